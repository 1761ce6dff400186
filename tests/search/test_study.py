"""What the study remembers, on Optuna's own storages."""

from __future__ import annotations

from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState

from ram_tune.config import Config
from ram_tune.errors import BadInput
from ram_tune.search.jobs import Job, Outcome
from ram_tune.search.lease import this_process
from ram_tune.search.study import Study, open_study

HELD = this_process()
STAGE1 = Job("stage1", "stage 1", Config(), "s", "dataset")


def run(arm: str, seed: int) -> Job:
    config = Config().model_copy(update={"training": Config().training.model_copy(update={"seed": seed})})
    return Job("train", arm, config, f"{arm}{seed}", "dataset", ("s",))


def done(value: float) -> Outcome:
    return Outcome({"selection/mAP": value, "test/mAP": 0.99}, "/folder")


@pytest.fixture
def study() -> Study:
    return Study(optuna.create_study(direction="maximize"))


def trials(study: Study) -> list[tuple[str, TrialState, float | None]]:
    return [(trial.user_attrs["setting"], trial.state, trial.value) for trial in study.study.trials]


def test_a_setting_is_a_trial_whose_value_is_the_mean_over_its_seeds_on_selection(study):
    runs = ["A0", "A1"]
    study.started(STAGE1)
    study.ended(STAGE1, done(0.1), {})
    for seed, value in ((0, 0.4), (1, 0.6)):
        study.started(run("A", seed))
        assert trials(study) == [("A", TrialState.RUNNING, None)]
        study.ended(run("A", seed), done(value), {"A": runs})
    assert trials(study) == [("A", TrialState.COMPLETE, pytest.approx(0.5))]
    assert {name: outcome.state for name, outcome in study.outcomes().items()} == dict.fromkeys(
        ["s", "A0", "A1"], "finished"
    )


def test_an_open_trial_that_a_dead_driver_left_is_taken_up_again(study):
    study.started(run("A", 0))
    after = Study(study.study)
    assert after.outcomes() == {}
    after.started(run("A", 0))
    after.ended(run("A", 0), done(0.4), {"A": ["A0"]})
    assert trials(after) == [("A", TrialState.COMPLETE, 0.4)]
    assert after.study.user_attrs["run:A0"]["attempts"] == 2


def test_the_only_one_who_writes_may_remember_what_was_written(tmp_path):
    place = f"sqlite:///{tmp_path / 'studies.db'}"
    kept = open_study(place, "s").keep()
    kept.agree({"A": {}})
    for _ in range(2):
        kept.started(run("A", 0))
    kept.lease.write(HELD)
    open_study(place, "s").lease.beat(HELD)  # a driver shows the lease while the desk keeps the rest
    assert kept.lease.read()["beats"] == 1
    kept.ended(run("A", 0), done(0.4), {"A": ["A0"]}, epochs=3)
    kept.set_note("gpu_seconds", 2.5)
    whole = open_study(place, "s")
    assert kept.outcomes() == whole.outcomes() and kept.runs() == whole.runs()
    assert whole.runs()["A0"]["attempts"] == 2
    assert kept.note("gpu_seconds") == whole.note("gpu_seconds") == 2.5
    assert trials(kept) == [("A", TrialState.COMPLETE, 0.4)]

    reads = []
    read = type(kept.study).user_attrs.fget
    counting = property(lambda study: reads.append(study) or read(study))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(kept.study), "user_attrs", counting)
        kept.started(run("A", 1))
        kept.ended(run("A", 1), done(0.6), {"A": ["A0", "A1"]})
    assert not reads


def test_seeds_added_later_make_a_new_trial_over_all_seeds(study):
    study.started(run("A", 0))
    study.ended(run("A", 0), done(0.4), {"A": ["A0"]})
    study.started(run("A", 1))
    study.ended(run("A", 1), done(0.6), {"A": ["A0", "A1"]})
    assert trials(study) == [("A", TrialState.COMPLETE, 0.4), ("A", TrialState.COMPLETE, pytest.approx(0.5))]


def test_a_failed_run_fails_its_trial_and_can_be_retried(study):
    study.started(run("A", 0))
    study.ended(run("A", 0), Outcome(error="x" * 10_000 + "ValueError: broken"), {"A": ["A0"]})
    assert trials(study) == [("A", TrialState.FAIL, None)]
    kept = study.outcomes()["A0"]
    assert kept.state == "failed"
    assert kept.error.endswith("ValueError: broken")
    study.started(run("A", 0))
    assert "A0" not in study.outcomes()
    study.ended(run("A", 0), done(0.4), {"A": ["A0"]})
    assert trials(study)[1:] == [("A", TrialState.COMPLETE, 0.4)]


def test_of_two_seeds_one_failed_the_value_is_the_others(study):
    for seed, outcome in ((0, done(0.4)), (1, Outcome(error="broken"))):
        study.started(run("A", seed))
        study.ended(run("A", seed), outcome, {"A": ["A0", "A1"]})
    assert trials(study) == [("A", TrialState.COMPLETE, 0.4)]


def test_a_stopped_run_leaves_the_trial_open(study):
    study.started(run("A", 0))
    study.ended(run("A", 0), Outcome(), {"A": ["A0"]})
    assert trials(study) == [("A", TrialState.RUNNING, None)]
    assert study.outcomes()["A0"].state == "stopped"


def test_a_run_that_never_started_can_fail(study):
    study.ended(run("A", 0), Outcome(error="not run: stage 1, which it starts from, failed"), {"A": ["A0"]})
    assert trials(study) == [("A", TrialState.FAIL, None)]


def test_an_arm_that_changed_under_its_name_is_refused(study):
    study.agree({"A": {"loss.anchor": True}, "B": {}})
    study.agree({"A": {"loss.anchor": True}, "C": {"loss.scale": False}})  # arms may be left out and added
    with pytest.raises(BadInput, match=r"arm 'B'.*found loss\.anchor=False; expected no fields.*--fresh"):
        study.agree({"B": {"loss.anchor": False}})
    assert set(study.study.user_attrs["arms"]) == {"A", "B", "C"}


def test_fresh_makes_a_new_generation_and_the_newest_one_is_opened(tmp_path):
    storage = f"sqlite:///{tmp_path / 'studies.db'}"
    assert open_study(storage, "x", create=False) is None
    first = open_study(storage, "x")
    assert first is not None
    first.started(run("A", 0))
    first.ended(run("A", 0), done(0.4), {"A": ["A0"]})
    assert open_study(storage, "x").outcomes().keys() == {"A0"}
    second = open_study(storage, "x", fresh=True)
    assert second.name == "x-2"
    assert second.outcomes() == {}
    assert open_study(storage, "x").name == "x-2"
    assert open_study(storage, "x", exactly=True).name == "x"
    assert open_study(storage, "x", fresh=True).name == "x-3"


@pytest.mark.parametrize("storage", ["nonsense", "sqlite:////nowhere/at/all/studies.db", "postgresql://me:secret@h/db"])
def test_a_storage_that_cannot_be_used_is_named_without_its_password(storage):
    with pytest.raises(BadInput, match="--study-storage") as caught:
        open_study(storage, "x")
    assert "secret" not in str(caught.value)


def test_killed_between_the_last_run_and_its_trial_the_trial_is_told_later(study, monkeypatch):
    study.started(run("A", 0))
    monkeypatch.setattr(study, "settle", lambda *_: None)
    study.ended(run("A", 0), done(0.4), {"A": ["A0"]})
    monkeypatch.undo()
    assert trials(study) == [("A", TrialState.RUNNING, None)]
    for _ in range(2):  # a desk that was killed before it answered is told again
        study.settle("A", ["A0"])
        assert trials(study) == [("A", TrialState.COMPLETE, 0.4)]


def test_looking_does_not_make_a_database(tmp_path):
    assert open_study(f"sqlite:///{tmp_path / 'studies.db'}", "x", create=False) is None
    assert not list(tmp_path.iterdir())


def test_a_database_that_cannot_be_written_is_refused(tmp_path):
    open_study(f"sqlite:///{tmp_path / 'studies.db'}", "x")
    with pytest.raises(BadInput, match="--study-storage"):
        open_study(f"sqlite:///file:{tmp_path / 'studies.db'}?mode=ro&uri=true", "y")


def test_arms_that_share_a_run_have_each_its_trial(study):
    study.agree({"attended": {}, "centred": {"model.regions": 5}})
    job = replace(run("attended", 0), also=("centred",))
    study.started(job)
    study.ended(job, done(0.4), {"attended": ["attended0"], "centred": ["attended0"]})
    assert trials(study) == [("attended", TrialState.COMPLETE, 0.4), ("centred", TrialState.COMPLETE, 0.4)]


def test_a_run_keeps_the_names_of_all_plans(study):
    study.agree({"centred": {}, "whole": {}})
    study.started(run("centred", 0))
    study.ended(run("centred", 0), done(0.4), {"centred": ["centred0"]})
    study.ended(STAGE1, done(0.1))
    assert not study.rename([run("centred", 0), STAGE1])
    study.agree({"attended": {}})
    wider = replace(run("attended", 0), fingerprint="centred0", also=("centred",))
    plan = [replace(STAGE1, also=("whole",)), wider]
    assert study.rename(plan) and not study.rename(plan)
    named = {key: (one["kind"], one["setting"], one["also"]) for key, one in study.runs().items()}
    assert named == {"centred0": ("train", "attended", ["centred"]), "s": ("stage1", "stage 1", ["whole"])}
    assert not study.rename([STAGE1]) and study.runs()["s"]["also"] == ["whole"]  # a smaller plan takes none away
    study.ended(run("centred", 0), done(0.4), {"centred": ["centred0"]})
    assert (study.runs()["centred0"]["setting"], study.runs()["centred0"]["also"]) == ("centred", ["attended"])
