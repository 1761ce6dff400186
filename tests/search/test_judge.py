"""The judge of epochs, against Optuna's own trials and against a judge that was never interrupted."""

from __future__ import annotations

import binascii
import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from ram_tune.search.judge import Judge, Verdict
from ram_tune.search.samplers import pruner

optuna.logging.set_verbosity(optuna.logging.ERROR)

EPOCHS = 9
PRUNERS: dict[str, dict[str, Any]] = {
    "median": {"n_startup_trials": 2},
    "percentile": {"percentile": 50.0, "n_startup_trials": 1, "n_warmup_steps": 2},
    "successive_halving": {},
    "hyperband": {},
    "patient": {"patience": 1},
}


def judge(name: str, direction: str = "maximize", horizon: int | None = None) -> Judge:
    return Judge("study", pruner(name, PRUNERS.get(name, {}), EPOCHS), direction, horizon)


class Life:
    """What runs and reports in a search, by chance: `at_once` trials at a time, each an unsteady learning curve.

    With `holes` some numbers never start. `kept` is what `Judge.restore` takes, by number.
    """

    def __init__(self, seed: int, at_once: int = 3, holes: bool = False):
        self.rng, self.at_once, self.holes = np.random.default_rng(seed), at_once, holes
        self.next, self.running = 0, []
        self.kept: dict[int, tuple[str, dict[int, float], float | None]] = {}

    def start(self) -> int:
        self.next += int(self.rng.integers(0, 3)) if self.holes else 0
        number, self.next = self.next, self.next + 1
        self.kept[number] = ("open", {}, None)
        self.running.append(number)
        return number

    def end(self, number: int, state: str, value: float | None) -> None:
        self.kept[number] = (state, self.kept[number][1], value)
        self.running.remove(number)

    def report(self, number: int) -> tuple[int, float]:
        steps = self.kept[number][1]
        value = round(float(np.random.default_rng(number).random() + 0.05 * len(steps) + 0.3 * self.rng.random()), 2)
        value = math.nan if self.rng.random() < 0.05 else value
        steps[len(steps) + 1] = value
        return len(steps), value


def live(life: Life, reports: int, *judges: Judge | OptunasOwn) -> list[list[str]]:
    """Every judge's verdicts, in order; the first one's word holds."""
    heard: list[list[str]] = [[] for _ in judges]
    for _ in range(reports):
        while len(life.running) < life.at_once:
            number = life.start()
            for each in judges:
                each.started(number)
        number = int(life.rng.choice(life.running))
        step, value = life.report(number)
        verdicts = [each.report(number, step, value) for each in judges]
        for words, verdict in zip(heard, verdicts, strict=True):
            words.append(repr(verdict))
        state = (
            "pruned" if verdicts[0] else "failed" if life.rng.random() < 0.03 else "finished" if step == EPOCHS else ""
        )
        if state:
            life.end(number, state, value if state == "finished" else None)
            for each in judges:
                each.ended(number, state, life.kept[number][2])
    return heard


class OptunasOwn:
    """A plain study of one objective that prunes as Optuna's manual has it."""

    def __init__(self, name: str, direction: str):
        made = pruner(name, PRUNERS[name], EPOCHS)
        self.study = optuna.create_study(study_name="study", pruner=made, direction=direction)
        self.trials: list[optuna.Trial] = []

    def started(self, number: int) -> None:
        while len(self.trials) <= number:
            self.trials.append(self.study.ask())

    def report(self, number: int, step: int, value: float) -> bool:
        self.trials[number].report(value, step)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return bool(self.trials[number].should_prune())

    def ended(self, number: int, state: str, value: float | None) -> None:
        states = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        if state == "finished" and math.isnan(value):
            state, value = "failed", None
        self.study.tell(self.trials[number], value, states[state])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("name", PRUNERS)
def test_it_judges_as_optuna_does(name, direction, seed):
    ours, theirs = live(Life(seed), 300, judge(name, direction), OptunasOwn(name, direction))
    assert [words != "None" for words in ours] == [words == "True" for words in theirs]
    assert 5 < theirs.count("True") < 200


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), before=st.integers(0, 150), name=st.sampled_from(list(PRUNERS)), holes=st.booleans())
def test_a_restored_judge_goes_on_as_one_that_was_never_interrupted(seed, before, name, holes):
    life, lived, restored = Life(seed, holes=holes), judge(name), judge(name)
    live(life, before, lived)
    kept = [(number, *trial) for number, trial in life.kept.items()]
    life.rng.shuffle(kept)
    restored.restore(kept)
    one, other = live(life, 120, lived, restored)
    assert one == other


def test_a_judge_restored_before_the_last_epoch_keeps_to_its_horizon():
    lived, restored = judge("successive_halving", horizon=EPOCHS), judge("successive_halving", horizon=EPOCHS)
    life = Life(5)
    live(life, 100, lived)
    restored.restore((number, *trial) for number, trial in life.kept.items())
    one, other = live(life, 100, lived, restored)
    assert one == other and any(words != "None" for words in one)


@pytest.mark.parametrize("numbers", [range(40), range(1, 40, 2), range(39, -1, -1)], ids=["all", "odd", "backwards"])
def test_hyperband_draws_brackets_from_the_searchs_own_numbers(numbers):
    ours = judge("hyperband")
    for number in numbers:
        for step in range(1, EPOCHS + 1):
            assert ours.report(number, step, 0.5) is None
    # Of 17 trials 9 are in the first bracket, the only one to judge the first of 9 epochs.
    first = [binascii.crc32(f"study_{number}".encode()) % 17 < 9 for number in range(40, 60)]
    assert [ours.report(number, 1, 0.1) is not None for number in range(40, 60)] == first
    assert 0 < sum(first) < 20


def test_without_a_pruner_nothing_is_given_up():
    ours = Judge("study", None, "maximize")
    ours.restore([(0, "finished", {1: 0.9}, 0.9)])
    ours.started(3)
    assert [ours.report(3, step, math.nan) for step in range(1, 10)] == [None] * 9
    ours.ended(3, "finished", 0.1)


def four_at_their_first_epoch(direction: str = "maximize") -> Judge:
    ours = judge("successive_halving", direction)
    sign = 1 if direction == "maximize" else -1
    for number, value in enumerate((0.1, 0.2, 0.3, 0.4)):  # each the best so far
        assert ours.report(number, 1, sign * value) is None
    return ours


def test_a_verdict_says_how_the_run_stood():
    ours = four_at_their_first_epoch()
    assert ours.report(4, 1, 0.25) == Verdict(1, 0.25, 3, 5, 0.4)
    assert ours.report(5, 1, 0.1) == Verdict(1, 0.1, 5, 6, 0.4)  # shared with the first trial
    assert ours.report(6, 1, 0.5) is None


def test_a_verdict_where_less_is_better():
    assert four_at_their_first_epoch("minimize").report(4, 1, -0.25) == Verdict(1, -0.25, 3, 5, -0.4)


def test_a_verdict_counts_those_alone_that_reached_the_step():
    ours = four_at_their_first_epoch()
    for step, value in ((2, 0.9), (3, 0.8)):
        assert ours.report(3, step, value) is None
    assert ours.report(2, 2, 0.1) is None
    assert ours.report(2, 3, 0.2) == Verdict(3, 0.2, 2, 2, 0.8)


def test_the_words_of_a_verdict():
    verdict = Verdict(3, 0.412, 7, 9, 0.561)
    assert verdict.words("mAP") == "given up after epoch 3: mAP 0.4120 there, rank 7 of 9 (best 0.5610)"
    assert replace(verdict, value=math.nan).words("loss", "seed") == (
        "given up after seed 3: loss not a number there, rank 7 of 9 (best 0.5610)"
    )
    assert replace(verdict, value=math.nan, best=math.nan).words("loss").endswith("there, rank 7 of 9")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_what_is_not_finite_is_the_worst(value, direction):
    ours = four_at_their_first_epoch(direction)
    verdict = ours.report(4, 1, value)
    assert verdict is not None and math.isnan(verdict.value) and (verdict.rank, verdict.of) == (5, 5)
    assert verdict.best == (0.4 if direction == "maximize" else -0.4)


def test_the_first_trial_is_given_up_as_well_if_it_reports_no_number():
    verdict = judge("hyperband").report(0, EPOCHS, math.nan)
    assert verdict is not None and (verdict.rank, verdict.of) == (1, 1) and math.isnan(verdict.best)


def test_the_median_gives_up_a_run_only_when_none_of_its_values_is_a_number():
    ours = judge("median")
    for number in range(3):
        ours.report(number, 1, 0.5)
        ours.report(number, 2, 0.5)
        ours.ended(number, "finished", 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ours.report(3, 1, 0.6) is None and ours.report(3, 2, math.nan) is None
        assert ours.report(4, 1, math.nan) is not None


def test_a_step_that_is_reported_again_keeps_its_first_value():
    ours = four_at_their_first_epoch()
    assert ours.report(3, 1, 0.0) is None  # it resumed from the start, and fares worse
    verdict = ours.report(4, 1, 0.25)
    assert verdict is not None and verdict.best == 0.4


def test_a_step_that_is_reported_again_is_not_judged_again():
    ours = judge("median")
    assert ours.report(0, 1, 0.1) is None
    for number in (1, 2):
        ours.report(number, 1, 0.5)
        ours.ended(number, "finished", 0.5)
    assert ours.report(0, 1, 0.1) is None
    assert ours.report(0, 2, 0.1) is None  # nobody else came so far as to be compared with
    assert ours.report(3, 1, 0.1) is not None


def test_a_trial_that_an_earlier_judge_gave_up_remains_so():
    ours, restored = four_at_their_first_epoch(), judge("successive_halving")
    verdict = ours.report(4, 1, 0.25)
    kept = [(number, "open", {1: value}, None) for number, value in enumerate((0.1, 0.2, 0.3, 0.4))]
    restored.restore([(4, "pruned", {1: 0.25}, None), *kept])
    assert restored.report(4, 2, 0.9) == verdict is not None


def test_a_trial_that_was_given_up_remains_so():
    ours = four_at_their_first_epoch()
    verdict = ours.report(4, 1, 0.25)
    assert ours.report(4, 1, 0.9) == ours.report(4, 2, 0.9) == verdict  # the worker had not heard
    ours.ended(4, "pruned", None)
    ours.ended(4, "finished", 0.9)
    ours.started(4)
    assert ours.report(4, 3, 0.9) == verdict


def test_what_comes_after_the_end_of_a_trial_changes_nothing():
    ours = four_at_their_first_epoch()
    ours.ended(3, "failed", None)
    assert ours.report(3, 2, 0.9) is None
    verdict = ours.report(4, 1, 0.25)
    assert verdict is not None and verdict.of == 5  # what the failed one reported still counts


def test_a_run_that_has_trained_for_all_its_epochs_is_not_given_up():
    ours = judge("successive_halving", horizon=3)
    for number, value in enumerate((0.5, 0.6)):
        for step in (1, 2):
            assert ours.report(number, step, value) is None
    assert ours.report(0, 3, 0.9) is None and ours.report(1, 3, 0.1) is None


def test_a_trial_without_a_finite_value_has_not_finished():
    ours = judge("median")
    for number, value in enumerate((math.nan, None, math.inf, 0.5)):
        ours.report(number, 1, 0.9)
        ours.ended(number, "finished", value)
    assert ours.report(4, 1, 0.1) is None  # one finished trial is less than the two that the median waits for
    ours.ended(4, "finished", 0.1)
    assert ours.report(5, 1, 0.05) is not None


def test_wilcoxon_judges_finished_seeds():
    ours = judge("wilcoxon")
    for seed in range(6):
        assert ours.report(0, seed, 0.8 + 0.01 * seed) is None
    ours.ended(0, "finished", 0.825)
    heard = [ours.report(1, seed, 0.3 + 0.02 * seed) for seed in range(6)]
    first = next(verdict for verdict in heard if verdict)
    assert heard[:2] == [None, None]
    assert first.words("mAP", "seed").startswith(f"given up after seed {first.step}: mAP 0.3")


@pytest.mark.parametrize("seed", range(3))
def test_hyperband_finds_as_good_a_setting_in_two_fifths_of_the_epochs(seed):
    rng, epochs = np.random.default_rng(seed), 27
    ours = Judge("study", pruner("hyperband", {}, epochs), "maximize", epochs)
    trained, found, everything = 0, [], []
    for number in range(200):
        height = rng.uniform(0.3, 0.9)
        pace = rng.uniform(0.1, 0.2) * height  # good ones are good early, most of the time
        curve = height * (1 - np.exp(-pace * np.arange(1, epochs + 1)))
        everything.append(curve[-1])
        for step, value in enumerate(curve, start=1):
            trained += 1
            verdict = ours.report(number, step, float(value))
            if verdict:
                break
        ours.ended(number, "pruned" if verdict else "finished", None if verdict else float(curve[-1]))
        found += [] if verdict else [curve[-1]]
    assert trained <= 0.4 * 200 * epochs
    assert max(found) >= 0.99 * max(everything)
