"""From a space to jobs: stage 1 once, every arm and seed, nothing that an arm owns overridden."""

from __future__ import annotations

import pytest

from ram_tune.config import Config
from ram_tune.data.roles import Dataset, load
from ram_tune.errors import BadInput
from ram_tune.presets import configure, parse_set
from ram_tune.search import space as spaces
from ram_tune.search.plan import base_config, experiment_name, plan, study_name


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
    assert {run.needs for run in runs} == {(first.fingerprint,)}
    assert len({job.fingerprint for job in jobs}) == 11
    assert (runs[0].config.loss.anchor, runs[4].config.loss.anchor) == (False, True)
    assert runs[0].config.model.regions == 2  # --set reaches every arm


def test_an_arm_that_changes_stage_1_has_its_own(pictures, tiny, dataset):
    space = spaces.Space(version=1, title="T", arms={"a": {}, "b": {"stage1.epochs": 1}, "c": {"stage1.epochs": 0}})
    tiny = [text for text in tiny if not text.startswith("stage1.epochs")]
    jobs = plan(space, str(pictures), "", parse_set(tiny), 1, dataset)
    assert [job.kind for job in jobs] == ["stage1", "stage1", "train", "train", "train"]
    a, b, c = jobs[2:]
    assert [job.name for job in jobs[:2]] == ["stage 1 of a", "stage 1 of b"]
    assert (a.needs, b.needs, c.needs) == ((jobs[0].fingerprint,), (jobs[1].fingerprint,), ())


def test_set_on_a_field_that_an_arm_owns_is_refused():
    with pytest.raises(BadInput, match=r"--set loss\.anchor: found a field that arm 'none' sets"):
        base_config(spaces.read("constraints"), "scenes", "", {"loss.anchor": True})


def test_set_wins_over_the_spaces_base():
    space = spaces.read("constraints")
    assert base_config(space, "scenes", "", {}).model.localization_init == "centred_half"  # the preset's
    space = space.model_copy(update={"base": {"model.localization_init": "identity"}})
    assert base_config(space, "scenes", "", {}).model.localization_init == "identity"
    changed = base_config(space, "scenes", "", {"model.localization_init": "xavier"})
    assert changed.model.localization_init == "xavier"


def test_arms_that_compute_the_same_share_a_run(pictures, tiny, dataset):
    arms = {"a": {}, "b": {"loss.anchor": False}, "c": {"loss.anchor": True}, "d": {"evaluation.top_k": 1}}
    arms["e"] = {"evaluation.top_k": 1, "loss.scale": True}
    space = spaces.Space(version=1, title="T", arms=arms)
    jobs = plan(space, str(pictures), "", parse_set(tiny), 2, dataset)
    assert [job.name for job in jobs] == [
        "stage 1",
        *("a = c · seed 0", "b · seed 0", "a = c · seed 1", "b · seed 1"),
        *("d = e · seed 0", "d = e · seed 1"),
    ]
    assert [job.kind for job in jobs[-2:]] == ["evaluate", "evaluate"]
    assert jobs[-2].needs == (jobs[1].fingerprint,)
    assert len({job.fingerprint for job in jobs}) == len(jobs)


def test_an_arm_that_is_just_stage_1_shares_its_run(pictures, tiny, dataset):
    first = configure(str(pictures), overrides=parse_set(tiny)).stage1_config().flat()
    default = Config().flat()
    whole = {name: value for name, value in first.items() if value != default[name] and not name.startswith("data.")}
    attended = {name: value for name, value in parse_set(tiny).items() if not name.startswith("data.")}
    space = spaces.Space(version=1, title="T", arms={"attended": attended, "whole": whole, "again": whole})
    shared = {name: value for name, value in parse_set(tiny).items() if name.startswith("data.")}
    stage1, run = plan(space, str(pictures), "", shared, 1, dataset)
    assert (stage1.kind, stage1.name) == ("stage1", "stage 1 = whole = again")
    assert (run.name, run.needs) == ("attended · seed 0", (stage1.fingerprint,))


def test_what_an_arm_evaluates_may_be_stage_1(pictures, tiny, dataset):
    first = configure(str(pictures), overrides=parse_set(tiny)).stage1_config().flat()
    default = Config().flat()
    whole = {name: value for name, value in first.items() if value != default[name] and not name.startswith("data.")}
    attended = {name: value for name, value in parse_set(tiny).items() if not name.startswith("data.")}
    arms = {"attended": attended, "whole, one label": {**whole, "evaluation.top_k": 1}}
    shared = {name: value for name, value in parse_set(tiny).items() if name.startswith("data.")}
    jobs = plan(spaces.Space(version=1, title="T", arms=arms), str(pictures), "", shared, 1, dataset)
    assert [job.kind for job in jobs] == ["stage1", "train", "evaluate"]  # not a training beside it, in the same folder
    assert jobs[1].needs == jobs[2].needs == (jobs[0].fingerprint,)


def test_an_arm_with_a_seed_of_its_own_has_no_others(pictures, tiny, dataset):
    space = spaces.Space(version=1, title="T", arms={"a": {}, "b": {"training.seed": 7}})
    with pytest.raises(BadInput, match=r"arms\.b: training\.seed: found one seed"):
        plan(space, str(pictures), "", parse_set(tiny), 2, dataset)


def test_an_arm_may_not_choose_other_images(pictures, tiny, dataset):
    space = spaces.Space(version=1, title="T", arms={"a": {}, "b": {"data.limit": 3}})
    with pytest.raises(BadInput, match=r"arms\.b: data\.limit"):
        plan(space, str(pictures), "", parse_set(tiny), 1, dataset)


def test_arms_that_differ_only_in_their_evaluation_share_one_training(pictures, tiny, dataset):
    arms = {"plain": {}, "one label": {"evaluation.top_k": 1}, "two labels": {"evaluation.top_k": 2}}
    jobs = plan(spaces.Space(version=1, title="T", arms=arms), str(pictures), "", parse_set(tiny), 1, dataset)
    stage1, plain, one, two = jobs
    assert [job.kind for job in jobs] == ["stage1", "train", "evaluate", "evaluate"]
    assert plain.needs == (stage1.fingerprint,)
    assert one.needs == two.needs == (plain.fingerprint,)

    # Without the arm that is just the training, the training is a job all the same.
    del arms["plain"]
    jobs = plan(spaces.Space(version=1, title="T", arms=arms), str(pictures), "", parse_set(tiny), 1, dataset)
    assert [(job.kind, job.setting) for job in jobs[1:]] == [
        ("train", "one label (training)"),
        ("evaluate", "one label"),
        ("evaluate", "two labels"),
    ]
    assert jobs[1].fingerprint == plain.fingerprint  # the same run, whichever arms there are

    # Where the epoch is chosen by a metric that depends on the evaluation, each is trained.
    by_f1 = {**parse_set(tiny), "training.select_by": "CF1"}
    jobs = plan(spaces.Space(version=1, title="T", arms=arms), str(pictures), "", by_f1, 1, dataset)
    assert [job.kind for job in jobs] == ["stage1", "stage1", "train", "train"]


def test_stage_1_can_be_trained_per_seed(pictures, tiny, dataset):
    overrides = {**parse_set(tiny), "stage1.per_seed": True}
    jobs = plan(spaces.read("constraints"), str(pictures), "", overrides, 3, dataset)
    stages = [job for job in jobs if job.kind == "stage1"]
    assert [job.seed for job in stages] == [0, 1, 2]
    assert [job.name for job in stages] == ["stage 1", "stage 1 · seed 1", "stage 1 · seed 2"]
    for job in jobs[3:]:
        assert job.needs == (stages[job.seed].fingerprint,)


def test_a_study_is_named_by_what_its_arms_share_but_for_the_seed(pictures, tiny, dataset):
    def name(*more: str) -> str:
        return study_name(
            "c", base_config(spaces.read("constraints"), str(pictures), "", parse_set([*tiny, *more])), dataset
        )

    assert name() == name("training.seed=5") == name("execution.threads=1")
    assert name() != name("training.epochs=4")
    assert name().startswith("c-pictures-")
    assert experiment_name("c", "My Photos' best") == "c-My_Photos_best"  # a word of a command, and of MLflow's queries
