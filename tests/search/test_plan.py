"""From a space to jobs: stage 1 once, every arm and seed, nothing that an arm owns overridden."""

from __future__ import annotations

import pytest

from ram_tune.data.roles import Dataset, load
from ram_tune.errors import BadInput
from ram_tune.presets import configure, parse_set
from ram_tune.search import space as spaces
from ram_tune.search.plan import base_config, plan


@pytest.fixture
def dataset(pictures, tiny, tmp_path) -> Dataset:
    return load(configure(str(pictures), overrides=parse_set(tiny)).data, tmp_path)


def test_five_arms_and_two_seeds_share_one_stage_1(pictures, tiny, dataset):
    jobs = plan(spaces.read("constraints"), str(pictures), "", parse_set(tiny), 2, dataset)
    first, *runs = jobs
    assert first.kind == "stage1"
    assert first.config.model.name == "whole_image"
    assert [(run.setting, run.config.training.seed) for run in runs] == [
        (arm, seed) for seed in (0, 1) for arm in ("none", "S+P", "A+S", "A+P", "A+S+P")
    ]
    assert {run.needs for run in runs} == {first.fingerprint}
    assert len({job.fingerprint for job in jobs}) == 11
    assert (runs[0].config.loss.anchor, runs[4].config.loss.anchor) == (False, True)
    assert runs[0].config.model.regions == 2  # --set reaches every arm


def test_an_arm_that_changes_stage_1_has_its_own(pictures, tiny, dataset):
    space = spaces.Space(version=1, title="T", arms={"a": {}, "b": {"stage1.epochs": 1}, "c": {"stage1.epochs": 0}})
    tiny = [text for text in tiny if not text.startswith("stage1.epochs")]
    jobs = plan(space, str(pictures), "", parse_set(tiny), 1, dataset)
    assert [job.kind for job in jobs] == ["stage1", "stage1", "train", "train", "train"]
    a, b, c = jobs[2:]
    assert (a.needs, b.needs, c.needs) == (jobs[0].fingerprint, jobs[1].fingerprint, "")


def test_set_on_a_field_that_an_arm_owns_is_refused():
    with pytest.raises(BadInput, match=r"--set loss\.anchor: found a field that arm 'none' sets"):
        base_config(spaces.read("constraints"), "scenes", "", {"loss.anchor": True})


def test_set_wins_over_the_spaces_base():
    space = spaces.read("constraints")
    assert base_config(space, "scenes", "", {}).model.localization_init == "xavier"
    changed = base_config(space, "scenes", "", {"model.localization_init": "centred_half"})
    assert changed.model.localization_init == "centred_half"


def test_arms_that_compute_the_same_are_refused(pictures, tiny, dataset):
    space = spaces.Space(version=1, title="T", arms={"a": {}, "b": {"loss.anchor": True}})
    with pytest.raises(BadInput, match=r"arms a · seed 0 and b · seed 0: found the same configuration"):
        plan(space, str(pictures), "", parse_set(tiny), 1, dataset)


def test_an_arm_may_not_choose_other_images(pictures, tiny, dataset):
    space = spaces.Space(version=1, title="T", arms={"a": {}, "b": {"data.limit": 3}})
    with pytest.raises(BadInput, match=r"arms\.b: data\.limit"):
        plan(space, str(pictures), "", parse_set(tiny), 1, dataset)
