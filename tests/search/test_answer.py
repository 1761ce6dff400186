"""What is said of a sampled search, from its study: on simulated runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from optuna.trial import TrialState
from simulated import memory

from ram_tune.presets import parse_set
from ram_tune.search.answer import answer, is_complete, space_table
from ram_tune.search.books import sampling_of
from ram_tune.search.driver import settings_failed
from ram_tune.search.estimate import expected
from ram_tune.search.jobs import Job, Outcome
from ram_tune.search.plan import Maker
from ram_tune.search.report import failed_runs
from ram_tune.search.settings import Need, agree, planned
from ram_tune.search.space import Space

PARAMETERS = {
    "model.regions": {"int": [1, 4]},
    "loss.anchor_weight": {"float": [0.001, 1.0], "log": True, "when": {"model.regions": {"above": 1}}},
}


@pytest.fixture
def maker(pictures, tiny) -> Maker:
    space = Space.model_validate(
        {"version": 1, "title": "T", "parameters": PARAMETERS, "budget": {"trials": 8}, "confirm": 2}
    )
    overrides = parse_set([field for field in tiny if not field.startswith("model.regions")])
    return Maker(space.model_copy(update={"base": {"stage1.seed": 3}}), str(pictures), "", overrides, "data")


def worth(job: Job) -> float:
    """More regions are better, up to 3; seeds differ by a little."""
    return 0.2 * min(job.config.model.regions, 3) + 0.001 * job.seed


def run(maker: Maker, until: int = 99, worth=worth):
    """The search without a cluster, ended after so many runs."""
    study = memory()
    agree(study, maker.space)
    sampling = sampling_of(study, maker)
    for _ in range(until):
        jobs = sampling.more()
        if not jobs:
            break
        for job in jobs:
            study.started(job)
            value = worth(job)
            found = {"selection/mAP": value, "test/mAP": value - 0.05, "best_epoch": 2} if value >= 0 else {}
            outcome = Outcome(found, error="" if found else "ValueError: broken")
            study.ended(job, outcome, epochs=3)
            sampling.ended(job.fingerprint, outcome)
    return study


def test_a_whole_search_says_which_setting_is_better_than_the_papers(maker):
    study = run(maker)
    tables, said = answer(study, maker)
    assert len(tables) == 2
    text = " ".join(said)
    assert "of the best setting" in text and "over 2 fresh seeds" in text
    assert "8 settings" in str(tables[0].caption)
    assert not settings_failed(study)
    assert is_complete(study, maker) and not is_complete(run(maker, 9), maker)


def test_what_pruning_saved_is_counted_by_runs_of_one_seed(maker):
    seeds = replace(maker, space=maker.space.model_copy(update={"seeds": 3}))
    study = run(maker, 4)
    trial = study.study.ask()
    trial.set_user_attr("values", {"model.regions": 4})
    study.study.tell(trial, state=TrialState.PRUNED)
    for one in (maker, seeds):
        assert "pruning saved 3 of" in " ".join(answer(study, one)[1])  # all of one run's 3 epochs


def test_a_search_that_was_stopped_says_what_there_is(maker):
    for runs in (0, 1, 3):
        _, said = answer(run(maker, runs), maker)
        assert said
    assert "winner's curse" in " ".join(answer(run(maker, 5), maker)[1])


def test_nothing_but_failures_is_a_failure(maker):
    study = run(maker, worth=lambda job: -1.0)
    assert settings_failed(study)
    assert len(failed_runs(study)) == len(study.runs())
    assert "ValueError: broken" in " ".join(answer(study, maker)[1])


def test_settings_share_the_stage_1_that_does_not_depend_on_them(maker):
    first, second = (maker.jobs(Need(f"#{k}", {"model.regions": k}, seed)) for k, seed in ((1, 0), (4, 2)))
    assert first[0].fingerprint == second[0].fingerprint and first[0].setting == "stage 1"
    assert first[1].fingerprint != second[1].fingerprint
    assert second[1].config.model.regions == 4 and second[1].seed == 2
    assert second[1].needs == (second[0].fingerprint,)


def test_several_scales_are_trained_and_then_evaluated_together(maker):
    need = Need("#1", {"evaluation.scales": (64, 96)}, 0, trial=1)
    jobs = maker.jobs(need)
    assert [job.kind for job in jobs] == ["stage1", "stage1", "train", "train", "evaluate"]
    assert set(jobs[-1].needs) == {job.fingerprint for job in jobs if job.kind == "train"}
    assert all(job.sampled for job in jobs if job.kind != "stage1")


def test_the_table_of_parameters_names_domains_and_the_papers_values(maker):
    table = space_table(maker)
    cells = [list(column.cells) for column in table.columns]
    assert "whole numbers 1 to 4" in str(cells[1][0]) and "log scale" in str(cells[1][1])
    assert str(cells[2][0]) == "5"


def test_the_plan_counts_what_is_left(maker, tmp_path):
    assert len(planned(maker, None)) == 1 + 8 + 2 * 2
    study = run(maker, 3)
    done = len([one for one in study.runs().values() if one["kind"] == "train"])
    assert len(planned(maker, study)) == 8 - done + 4
    said = expected(planned(maker, None), None, tmp_path, gpus=2)
    assert "13 trainings, 38 epochs" in said and "GPU-hours" in said and "timed here" in said  # stage 1 has 2 epochs


@pytest.mark.parametrize("batch", [4, 16, 32])
def test_an_epoch_takes_what_its_images_take_however_few_batches_they_are(maker, tmp_path, monkeypatch, batch):
    now = 0.0

    def step(run, batch):
        nonlocal now
        now += 3.0 * len(batch.targets)  # of 20 images 16 make the last batch another than the first
        return torch.zeros(1)

    monkeypatch.setattr("ram_tune.training.loop.optimise", step)
    monkeypatch.setattr("ram_tune.search.estimate.time", SimpleNamespace(perf_counter=lambda: now))
    (*_, job) = maker.jobs(Need("#0", {"model.regions": 1}, 0))
    config = job.config.model_copy(update={"training": job.config.training.model_copy(update={"batch_size": batch})})
    assert "a run 60 s an epoch (timed here" in expected([replace(job, config=config)], None, tmp_path, gpus=0)


def test_recorded_runs_tell_the_pace(maker, tmp_path):
    study = memory()
    (*_, job) = maker.jobs(Need("#0", {"model.regions": 1}, 0))
    study.started(job)
    study.ended(job, Outcome({"selection/mAP": 0.5}), epochs=3, seconds=30.0)
    said = expected([job, job], study, Path(tmp_path), gpus=0)
    assert "2 trainings, 6 epochs ≈ 60 s" in said and "10 s an epoch (as recorded)" in said
