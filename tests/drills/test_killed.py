"""`kill -9` of a whole search at different moments: the same command goes on, and nothing is lost or done twice."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from searches import Searches

from ram_tune.search.findings import best
from ram_tune.search.settings import tried
from ram_tune.search.study import open_study

pytestmark = pytest.mark.drill

DRAWN = """\
version: 1
title: Drawn
parameters:
  model.regions: {int: [1, 6]}
  loss.anchor_weight: {float: [0.001, 1.0], log: true, when: {model.regions: {above: 1}}}
pruner: hyperband
budget: {trials: 8}
confirm: 2
"""
ARMS = "none", "A+S"


def pids(command: str, folder: Path) -> list[int]:
    """Processes of this search whose command line begins with `command`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if (entry / "cmdline").read_bytes().startswith(command.encode()) and (entry / "cwd").readlink() == folder:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


ROLES = {  # at which epoch the process of that role is killed
    4: "ray::ImplicitFunc",  # Tune's trial
    16: "ray::RayTrainWorker",
    28: "ray::TrainController",
    40: "ray::Desk",
}


def test_processes_that_are_lost_one_after_another_are_replaced_within_the_search(pictures, tiny, tmp_path):
    fields = [field for field in tiny if not field.startswith("training.epochs")] + ["training.epochs=60"]
    searches = Searches(tmp_path, pictures, fields)
    search, said, left = searches.start("constraints", "--arms", "A+S"), [], dict(ROLES)
    for line in search.stdout:
        said.append(line)
        for epoch in [epoch for epoch in left if line.startswith("A+S") and f"epoch {epoch:>3}/60" in line]:
            role = left.pop(epoch)
            found = pids(role, tmp_path)
            assert found, f"no process {role}"
            for pid in found:
                os.kill(pid, signal.SIGKILL)
    assert search.wait() == 0, "".join(said)
    assert not left, "".join(said)
    parent, children = searches.children("constraints-pictures")
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
    assert searches.epochs(children["A+S · seed 0"]) == list(range(1, 61))


def test_a_run_that_hangs_is_told_of_and_who_holds_the_machine(pictures, tiny, tmp_path):
    fields = [field for field in tiny if not field.startswith("training.epochs")] + ["training.epochs=20"]
    searches = Searches(tmp_path, pictures, [*fields, "execution.cpus_per_worker=1"])
    search, said, stopped = searches.start("constraints", "--arms", "A+S", "--watchdog", "0.1"), [], []
    for line in search.stdout:
        said.append(line)
        if line.startswith("A+S") and "epoch   4/20" in line:
            stopped = pids("ray::RayTrainWorker", tmp_path)
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
        if stopped and "has not moved" in line:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
    assert search.wait() == 0, "".join(said)
    told, *_ = (line for line in said if "has not moved" in line and "since epoch" in line)
    assert told.startswith("A+S · seed 0 ") and "Held or wanted by A+S · seed 0 (1 CPU)" in told


@pytest.mark.parametrize("workers", ["2", "1:2"])
def test_one_of_two_workers_of_a_run_is_lost(pictures, tiny, tmp_path, workers):
    fields = [field for field in tiny if not field.startswith("training.epochs")] + ["training.epochs=40"]
    searches = Searches(tmp_path, pictures, fields)
    options = "constraints", "--arms", "A+S", "--workers", workers
    search, said = searches.start(*options), []
    for line in search.stdout:
        said.append(line)
        if line.startswith("A+S") and "epoch   4/40" in line:
            found = pids("ray::RayTrainWorker", tmp_path)
            assert len(found) == 2
            os.kill(max(found), signal.SIGKILL)
    assert search.wait() == 0, "".join(said)
    parent, children = searches.children("constraints-pictures")
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
    assert searches.epochs(children["A+S · seed 0"]) == list(range(1, 41))


KILLED = signal.SIGKILL
MOMENTS = {  # by --workers: a run's process starts in seconds without Ray Train
    0: (
        ("stage 1", "epoch   1/2", KILLED),
        ("none ·", "epoch   5/12", KILLED),
        ("A+S ·", "epoch   3/12", signal.SIGINT),  # as Ctrl-C in a terminal, which tells the whole group
        ("A+S ·", "epoch   7/12", KILLED),
    ),
    1: (("none ·", "epoch   5/12", KILLED), ("A+S ·", "epoch   3/12", signal.SIGINT)),
}


@pytest.fixture
def twelve_epochs(tiny) -> list[str]:
    return [field for field in tiny if not field.startswith("training.epochs")] + ["training.epochs=12"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """Where the first that needs one leaves the search that nobody kills; the same for any number of workers."""
    return tmp_path_factory.mktemp("undisturbed")


@pytest.mark.parametrize("workers", MOMENTS)
def test_killed_again_and_again(pictures, twelve_epochs, tmp_path, undisturbed, workers):
    searches = Searches(tmp_path, pictures, twelve_epochs)
    options = "--workers", str(workers), "--concurrency", "1", "--arms", *ARMS
    for start, text, signal_ in MOMENTS[workers]:
        search = searches.start("constraints", *options)
        for line in search.stdout:
            if line.startswith(start) and text in line:
                break
        else:
            pytest.fail(f"{text} of {start} never came")
        os.killpg(search.pid, signal_)
        rest = search.stdout.read()
        assert search.wait() == (130 if signal_ == signal.SIGINT else -signal.SIGKILL), rest
    done = searches.run("constraints", *options)
    assert done.returncode == 0, done.stdout + done.stderr

    parent, children = searches.children("constraints-pictures")
    assert set(children) == {"stage 1", *(f"{arm} · seed 0" for arm in ARMS)}
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
    assert searches.epochs(children.pop("stage 1")) == [1, 2]
    for name, run in children.items():
        assert searches.epochs(run) == list(range(1, 13)), name

    whole = Searches(undisturbed, pictures, twelve_epochs)
    if not (undisturbed / "mlflow.db").exists():
        assert whole.run("constraints", "--workers", "0", *options[2:]).returncode == 0
    _, others = whole.children("constraints-pictures")
    for name, run in children.items():
        for metric in ("test/mAP", "selection/mAP", "test/OF1"):
            assert run.data.metrics[metric] == others[name].data.metrics[metric], (name, metric)


def test_a_sampled_search_killed_at_ten_random_moments(pictures, tiny, tmp_path):
    fields = [field for field in tiny if not field.startswith(("training.epochs", "model.regions"))]
    searches = Searches(tmp_path, pictures, [*fields, "training.epochs=9"])
    (tmp_path / "drawn.yaml").write_text(DRAWN)
    moments = random.Random(0)
    for _ in range(10):
        search = searches.start(str(tmp_path / "drawn.yaml"), "--workers", "0")
        left = moments.randint(1, 9)
        for line in search.stdout:
            left -= "epoch" in line or "started" in line
            if not left:
                break
        time.sleep(moments.uniform(0, 1))
        os.killpg(search.pid, signal.SIGKILL)
        search.stdout.close()
        search.wait()
    done = searches.run(str(tmp_path / "drawn.yaml"), "--workers", "0")
    assert done.returncode == 0, done.stdout + done.stderr

    (name,) = (path.name for path in (tmp_path / "ram_tune_runs").iterdir() if path.is_dir())
    study = open_study(f"sqlite:///{tmp_path}/ram_tune_runs/studies.db", name, exactly=True)
    settings = tried(study)
    assert len(settings) == 8 and {one.state for one in settings} <= {"finished", "pruned"}
    runs = study.runs()
    _, children = searches.children("drawn-pictures")
    assert set(children) == {
        f"{run['setting']} · seed {run['seed']}" if run["kind"] != "stage1" else "stage 1" for run in runs.values()
    }
    assert (
        len(children) == len(runs) == 1 + 8 + 2 * (1 if settings[0].paper and best(settings, ["maximize"]).paper else 2)
    )
    for child, run in children.items():
        last = 2 if child == "stage 1" else 9
        epochs = searches.epochs(run)
        assert epochs == list(range(1, len(epochs) + 1)), child
        if run.info.status == "FINISHED":
            assert len(epochs) == last
        else:
            assert "rank" in run.data.tags["ram_tune.given_up"]
