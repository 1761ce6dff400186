"""Whole sampled searches on simulated runs."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from simulated import EPOCHS, Simulated, memory, space

from ram_tune.config import Config
from ram_tune.errors import BadInput
from ram_tune.search.jobs import NOT_RUN, Job, Outcome
from ram_tune.search.sampling import Sampling
from ram_tune.search.settings import agree
from ram_tune.search.study import Study, open_study

TWO = {"loss.anchor_weight": {"float": [0.0, 1.0]}, "loss.scale_threshold": {"float": [0.01, 1.0]}}


def plateau(values, seed: int) -> float:
    """Best at 0.3 and 0.7."""
    x, y = values["loss.anchor_weight"], values.get("loss.scale_threshold", 0.7)
    return math.exp(-8 * ((x - 0.3) ** 2 + (y - 0.7) ** 2)) + 0.001 * seed


def curve(values, seed: int, epoch: int) -> float:
    return plateau(values, seed) * (1 - math.exp(-epoch / 5))


def search(study: Study | None = None, **values) -> Simulated:
    fields = {"parameters": TWO, "budget": {"trials": 20}, **values}
    return Simulated(study or memory(), space(**fields), curve)


def test_every_setting_is_run_once_and_told():
    found = search().run(slots=3)
    assert len(found.started) == 20 and len({str(need.values) for need in found.started}) == 20
    assert [one.state for one in found.sampling.tried()] == ["finished"] * 20
    assert found.trained == 20 * EPOCHS
    for one in found.sampling.tried():
        assert one.objectives == (pytest.approx(curve(one.values, 0, EPOCHS)),)


def test_the_papers_setting_comes_first():
    paper = {"loss.anchor_weight": 0.01, "loss.scale_threshold": 0.5}
    found = Simulated(memory(), space(parameters=TWO, budget={"trials": 3}), curve, paper).run()
    assert found.asked[0] == paper and found.sampling.tried()[0].paper
    assert not any(one.paper for one in found.sampling.tried()[1:])


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "nsga2"])
def test_the_same_seed_names_the_same_settings_also_across_a_restart(sampler):
    whole = search(sampler=sampler).run()
    parts = search(sampler=sampler)
    for epochs in (10, 60, 100, None):  # lost in the middle of a run each time
        parts.run(epochs=epochs)
        parts.open()
    parts.run()
    assert parts.asked == whole.asked
    other = Simulated(memory(), space(parameters=TWO, budget={"trials": 20}, sampler=sampler), curve, seed=1).run()
    assert other.asked != whole.asked


def test_more_trials_go_on_from_those_there_are():
    study = memory()
    first = search(study, budget={"trials": 8}).run().asked
    again = search(study, budget={"trials": 8}).run()
    assert again.started == []
    more = search(study, budget={"trials": 12}).run()
    assert len(first) == 8 and len(more.started) == 4
    assert more.asked[:8] == first
    assert more.asked == search(budget={"trials": 12}).run().asked


def test_a_lost_driver_loses_no_setting_and_repeats_no_finished_one():
    study = memory()
    found = search(study, pruner="hyperband")
    for _ in range(40):
        found.run(slots=3, epochs=17)
        found.open()
    found.run(slots=3)
    tried = found.sampling.tried()
    assert len(tried) == 20 and {one.state for one in tried} <= {"finished", "pruned"}
    ended = [need.name for need in found.started]
    finished = {f"#{one.number}" for one in tried if one.state == "finished"}
    assert finished <= set(ended)
    runs = study.runs()
    assert len([run for run in runs.values() if run["state"] == "finished"]) == len(finished)


def test_an_ask_that_was_cut_short_is_no_setting():
    study = memory()
    found = search(study, budget={"trials": 3})
    study.study.ask().suggest_float("loss.anchor_weight", 0.0, 1.0)  # then its driver died
    found.open()
    found.run()
    assert len(found.sampling.tried()) == 3
    assert study.study.trials[0].state.name == "FAIL"


def test_the_papers_setting_is_not_lost_with_the_ask_for_it():
    paper = {"loss.anchor_weight": 0.01, "loss.scale_threshold": 0.5}
    study = memory()
    found = Simulated(study, space(parameters=TWO, budget={"trials": 3}), curve, paper)
    study.study.ask()  # takes it, and then its driver died
    found.open()
    found.run()
    assert [one.paper for one in found.sampling.tried()] == [True, False, False]


def test_a_later_seed_that_fails_takes_nothing_from_the_others():
    found = search(seeds=3, budget={"trials": 1})
    found.curve = lambda values, seed, epoch: 0.5
    found.run(epochs=EPOCHS)  # seed 0, and the next one is not told yet
    jobs = found.sampling.more() or found.open() or found.sampling.more()
    assert jobs[-1].seed == 1
    found.study.started(jobs[-1])
    found.end(jobs[-1], Outcome(error="OutOfMemoryError: batch of 16"), 1)
    (one,) = found.sampling.tried()
    assert (one.state, one.objectives, len(one.seeds)) == ("finished", (0.5,), 1)


def test_values_that_do_not_go_together_are_no_setting_and_no_end():
    found = search(parameters={"model.regions": {"int": [1, 4]}}, budget={"trials": 9})
    found.curve = lambda values, seed, epoch: values["model.regions"] / 10
    makes = found.sampling.jobs_of

    def jobs_of(need):
        if need.values.get("model.regions") == 3:
            raise BadInput("model.regions", found=3, expected="not 3")
        return makes(need)

    found.sampling.jobs_of = jobs_of
    found.run()
    assert sorted(one["model.regions"] for one in found.asked) == [1, 2, 4]


def test_a_stage_1_that_fails_ends_the_search_and_is_tried_again_by_the_next():
    found = search(budget={"trials": 3})
    makes = found.sampling.jobs_of
    stage1 = Job("stage1", "stage 1", Config(), "s", "data")
    found.sampling.jobs_of = lambda need: [stage1, *makes(need)]
    jobs = found.sampling.more()
    assert [job.kind for job in jobs] == ["stage1", "train"]
    broken = Outcome(error="ValueError: broken")
    found.study.ended(stage1, broken)
    found.sampling.ended("s", broken)
    not_run = Outcome(error=f"{NOT_RUN}stage 1, which it starts from, failed")
    found.study.ended(jobs[-1], not_run)
    found.sampling.ended(jobs[-1].fingerprint, not_run)
    assert found.sampling.more() is None
    assert [one.state for one in found.sampling.tried()] == ["open"]
    found.open()
    found.run()
    assert [one.state for one in found.sampling.tried()] == ["finished"] * 3


def test_a_setting_whose_own_stage_1_fails_is_the_only_one_to_fail():
    found = search(parameters={"model.regions": {"int": [1, 4]}}, budget={"trials": 4})
    makes = found.sampling.jobs_of

    def jobs_of(need):
        own = f"s{need.values.get('model.regions')}" if need.values.get("model.regions") == 3 else "s"
        return [Job("stage1", "stage 1", Config(), own, "data"), *makes(need)]

    found.sampling.jobs_of = jobs_of
    while jobs := found.sampling.more():
        stage1, run = jobs
        broken = stage1.fingerprint == "s3"
        found.study.ended(stage1, Outcome(error="no memory") if broken else Outcome({"selection/mAP": 0.1}))
        found.sampling.ended(stage1.fingerprint, found.study.outcomes()[stage1.fingerprint])
        outcome = Outcome(error=f"{NOT_RUN}stage 1") if broken else Outcome({"selection/mAP": 0.5, "test/mAP": 0.5})
        found.study.ended(run, outcome)
        found.sampling.ended(run.fingerprint, outcome)
    assert sorted(one.state for one in found.sampling.tried()) == ["failed", "finished", "finished", "finished"]


def test_a_budget_of_hours_goes_on_counting_where_the_desk_was_lost():
    found = search(budget={"trials": 9, "hours": 2})
    again = Sampling(found.study, found.space, None, 9, found.sampling.jobs_of, clock=lambda: 7200.0, since=0.0)
    assert again.spent() == "the budget of 2 hours is spent"


def test_a_setting_that_is_another_ones_model_is_not_waited_for():
    found = search(parameters={"model.regions": {"int": [1, 2]}}, budget={"trials": 2})
    first = found.sampling.more()[-1]
    number = found.sampling.asker.ask()
    found.sampling._go_on(number)
    (need,) = found.sampling.pending
    found.sampling.outcomes[found.sampling._run(need)] = Outcome(
        {"selection/mAP": 0.7}
    )  # as the model of an evaluation
    assert found.sampling.more() == []
    assert [one.objectives for one in found.sampling.tried() if one.number == number] == [(0.7,)]
    assert list(found.sampling.running) == [first.fingerprint]


def test_a_given_up_run_hears_it_from_a_desk_that_was_lost_in_between():
    found = search(budget={"trials": 12}, pruner="successive_halving", sampler="random")
    jobs = [found.sampling.more()[-1] for _ in range(8)]
    for value, job in enumerate(reversed(jobs)):
        found.study.started(job)
        if not found.sampling.epoch(job.fingerprint, 1, {"selection/mAP": -value}):
            break
    assert job.fingerprint in found.sampling.given_up
    found.open()  # before the worker heard it
    assert job.fingerprint in found.sampling.cut_off
    assert not found.sampling.epoch(job.fingerprint, 2, {"selection/mAP": 9.0})
    assert found.sampling.judged(job.fingerprint, Outcome()).state == "pruned"
    assert found.sampling.epoch(jobs[0].fingerprint, 2, {"selection/mAP": 9.0})  # the others are still judged


def test_seeds_and_cheap_runs_are_judged_by_the_named_objective():
    def ranked(**values):
        fields = space(
            parameters=TWO,
            objectives=["parameters", "mAP"],
            pruner={"name": "none", "judge": "mAP"},
            budget={"trials": 15},
            sampler="random",
            **values,
        )
        found = Simulated(memory(objectives=2), fields, lambda v, s, e: plateau(v, 0))
        found.extra = lambda values, seed: {"cost/parameters": 1000 * plateau(values, 0)}  # the better, the dearer
        return found.run().sampling.tried()

    tried = ranked(seeds=2)
    best = max(tried, key=lambda one: plateau(one.values, 0))
    assert len(best.seeds) == 2
    promoted = [plateau(one.values, 0) for one in ranked(fidelity={"training.epochs": 9}) if one.state == "finished"]
    assert max(promoted) == max(plateau(one.values, 0) for one in tried)


def test_confirming_seeds_are_none_that_anything_was_chosen_by():
    study = memory()
    search(study, seeds=3, budget={"trials": 6}, sampler="random").run()
    fields = space(parameters=TWO, seeds=1, confirm=2, budget={"trials": 6}, sampler="random")
    found = Simulated(study, fields, curve, {"loss.anchor_weight": 0.9, "loss.scale_threshold": 0.1}).run()
    confirmed = [run["seed"] for run in study.runs().values() if "confirmed" in run["setting"]]
    assert confirmed and min(confirmed) >= 3
    assert found.started


def test_duplicates_are_not_trained_and_a_small_space_ends():
    found = search(parameters={"model.regions": {"int": [1, 4]}}, budget={"trials": 20})
    found.curve = lambda values, seed, epoch: values["model.regions"] / 10
    found.run()
    assert sorted(one["model.regions"] for one in found.asked) == [1, 2, 3, 4]
    assert len(found.started) == 4


def test_hyperband_spares_epochs_and_finds_the_best():
    def rising(values, seed, epoch):
        rate = 3 + 4 * values["loss.anchor_weight"]
        return plateau(values, seed) * (1 - math.exp(-epoch / rate))

    plain, spared = (
        Simulated(
            memory(), space(parameters=TWO, budget={"trials": 120}, pruner=pruner, sampler="random"), rising
        ).run()
        for pruner in ("none", {"name": "hyperband", "options": {"reduction_factor": 3}})
    )
    assert spared.asked == plain.asked
    assert spared.trained <= 0.4 * plain.trained
    assert spared.best >= 0.99 * plain.best
    given_up = [one for one in spared.sampling.tried() if one.state == "pruned"]
    assert given_up and all("rank" in one.reason and "mAP" in one.reason for one in given_up)
    assert spared.trained == sum(one.epochs for one in spared.sampling.tried())


def test_tpe_is_better_than_random_at_equal_budget():
    def best(sampler: str, seed: int) -> float:
        fields = space(parameters=TWO, budget={"trials": 40}, sampler=sampler)
        return Simulated(memory(), fields, lambda v, s, e: plateau(v, 0), seed=seed, epochs=1).run().best

    found = {name: [best(name, seed) for seed in range(10)] for name in ("tpe", "random")}
    assert statistics.median(found["tpe"]) > statistics.median(found["random"])


def test_later_seeds_are_spent_on_settings_still_in_the_running():
    found = search(seeds=3, budget={"trials": 30}, sampler="random").run()
    tried = found.sampling.tried()
    counts = np.array([len(one.seeds) for one in tried])
    assert set(counts) == {1, 2, 3} or set(counts) == {1, 3}
    firsts = np.array([one.seeds[0][0] for one in tried])
    assert firsts[counts > 1].mean() > firsts[counts == 1].mean()
    assert len(found.started) < 60
    for one in tried:
        assert one.objectives[0] == pytest.approx(np.mean([seed[0] for seed in one.seeds]))


def test_wilcoxon_judges_seeds_not_epochs():
    def noisy(values, seed, epoch):
        noise = np.random.default_rng(seed).normal(0, 0.001)
        return values["loss.anchor_weight"] + noise

    found = Simulated(
        memory(), space(seeds=8, budget={"trials": 12}, pruner="wilcoxon", sampler="random"), noisy, epochs=2
    ).run()
    counts = [len(one.seeds) for one in found.sampling.tried()]
    assert max(counts) == 8 and min(counts) < 8
    assert all(one.state == "finished" for one in found.sampling.tried())


def test_a_failed_run_ends_its_setting_with_the_reason():
    found = search(budget={"trials": 2})
    jobs = found.sampling.more()
    found.study.started(jobs[-1])
    found.end(jobs[-1], Outcome(error="Traceback\nNotFiniteError: the loss is nan"), 1)
    found.run()
    first, second = found.sampling.tried()
    assert (first.state, second.state) == ("failed", "finished")
    assert "the loss is nan" in first.reason


def test_a_value_that_is_not_finite_is_no_result():
    found = search(budget={"trials": 1})
    found.curve = lambda values, seed, epoch: float("nan")
    found.run()
    assert [one.state for one in found.sampling.tried()] == ["failed"]


def test_cheap_runs_decide_who_gets_a_full_one_and_are_no_values():
    found = search(fidelity={"training.epochs": 9}, budget={"trials": 30}, sampler="random").run()
    tried = found.sampling.tried()
    full = [one for one in tried if one.state == "finished"]
    assert 5 <= len(full) <= 20
    assert all(one.objectives == (pytest.approx(curve(one.values, 0, EPOCHS)),) for one in full)
    left = [one for one in tried if one.state == "pruned"]
    assert len(left) == 30 - len(full) and all(one.cheap and "not promoted" in one.reason for one in left)
    best = max(tried, key=lambda one: plateau(one.values, 0))
    assert best.state == "finished"
    assert found.trained == 9 * 30 + EPOCHS * len(full)


def test_several_objectives_are_judged_by_the_named_one():
    fields = space(
        parameters=TWO, objectives=["mAP", "CF1"], budget={"trials": 25}, pruner={"name": "median", "judge": "mAP"}
    )
    found = Simulated(memory(objectives=2), fields, curve)
    found.extra = lambda values, seed: {"selection/CF1": 1 - values["loss.anchor_weight"]}
    found.run()
    tried = found.sampling.tried()
    assert {one.state for one in tried} == {"finished", "pruned"}
    assert all(len(one.objectives) == 2 for one in tried if one.state == "finished")
    assert len(found.study.study.best_trials) >= 1


def test_constraints_mark_what_breaks_them():
    fields = space(parameters=TWO, constraints=["parameters <= 50"], budget={"trials": 15})
    found = Simulated(memory(), fields, curve)
    found.extra = lambda values, seed: {"cost/parameters": 100 * values["loss.anchor_weight"]}
    found.run()
    for one in found.sampling.tried():
        assert one.feasible == (100 * one.values["loss.anchor_weight"] <= 50)


def test_the_best_and_the_papers_are_confirmed_with_seeds_of_their_own():
    paper = {"loss.anchor_weight": 0.01, "loss.scale_threshold": 0.5}
    fields = space(parameters=TWO, budget={"trials": 6}, confirm=3)
    study = memory()
    found = Simulated(study, fields, curve, paper)
    for _ in range(80):  # drivers are lost again and again
        found.run(slots=2, epochs=7)
        found.open()
    found.run()
    confirmed = [run for run in study.runs().values() if "confirmed" in run["setting"]]
    assert sorted(run["seed"] for run in confirmed) == [1, 1, 2, 2, 3, 3]
    assert len(found.sampling.tried()) == 6
    best = max(found.sampling.tried(), key=lambda one: one.objectives)
    assert {run["setting"] for run in confirmed} == {"the paper's, confirmed", f"#{best.number}, confirmed"}


def test_hours_end_a_search_which_goes_on_later():
    fields = {"budget": {"trials": 10, "hours": 50 / 3600}}
    study = memory()
    found = search(study, **fields).run(slots=2)
    assert found.trained < 110 and "hours" in found.sampling.spent()
    states = [one.state for one in found.sampling.tried()]
    assert "open" in states
    later = search(study, budget={"trials": 10}).run()
    assert [one.state for one in later.sampling.tried()] == ["finished"] * 10


def test_another_space_is_refused_with_what_changed():
    study = memory()
    agree(study, space(parameters=TWO))
    agree(study, space(parameters=TWO, budget={"trials": 50}, sampler="random", seeds=3))  # these may change
    wider = {**TWO, "loss.anchor_weight": {"float": [0.0, 2.0]}}
    with pytest.raises(BadInput, match=r"loss\.anchor_weight"):
        agree(study, space(parameters=wider))
    with pytest.raises(BadInput, match="objectives"):
        agree(study, space(parameters=TWO, objectives=["CF1"]))


def test_500_trials_in_seconds():
    found = search(budget={"trials": 500}, pruner="hyperband", sampler="random").run(slots=4)
    assert len(found.sampling.tried()) == 500


def test_a_long_search_takes_little_memory(tmp_path):
    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    study = open_study(f"sqlite:///{tmp_path / 'studies.db'}", "many")
    assert study is not None
    fields = {"pruner": "hyperband", "sampler": "random"}
    used = []
    for trials in (30, 130):
        found = Simulated(study, space(parameters=TWO, budget={"trials": trials}, **fields), curve, epochs=2).run()
        assert len(found.sampling.tried()) == trials
        used.append(resident())
    assert used[1] - used[0] < 50 / 4.5  # MiB for 100 settings: below 50 for 450
