"""`kill -9` of a whole search at different moments: the same command goes on, and nothing is lost or done twice."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from searches import Searches

pytestmark = pytest.mark.drill

ARMS = "none", "S+P", "A+S", "A+P", "A+S+P"


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


@pytest.mark.parametrize("role", ["ray::ImplicitFunc", "ray::RayTrainWorker", "ray::TrainController", "ray::Desk"])
def test_a_process_that_is_lost_is_replaced_within_the_search(pictures, tiny, tmp_path, role):
    fields = [field for field in tiny if not field.startswith("training.epochs")] + ["training.epochs=60"]
    searches = Searches(tmp_path, pictures, fields)
    search = searches.start("constraints", "--arms", "A+S")
    said = []
    for line in search.stdout:
        said.append(line)
        if line.startswith("A+S") and "epoch   4/60" in line:
            found = pids(role, tmp_path)
            assert found, f"no process {role}"
            for pid in found:
                os.kill(pid, signal.SIGKILL)
    assert search.wait() == 0, "".join(said)
    parent, children = searches.children("constraints-labels")
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
    assert searches.epochs(children["A+S · seed 0"]) == list(range(1, 61))


@pytest.mark.parametrize("workers", [0, 1])
def test_killed_again_and_again(pictures, tiny, tmp_path, workers):
    fields = [field for field in tiny if not field.startswith("training.epochs")] + ["training.epochs=12"]
    searches = Searches(tmp_path, pictures, fields)
    options = "--workers", str(workers)
    moments = (
        ("stage 1", "epoch   1/2", signal.SIGKILL),
        ("none", "epoch   5/12", signal.SIGKILL),
        ("A+S", "epoch   3/12", signal.SIGINT),  # as Ctrl-C in a terminal, which tells the whole group
        ("A+P", "epoch   7/12", signal.SIGKILL),
    )
    for start, text, signal_ in moments:
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

    parent, children = searches.children("constraints-labels")
    assert set(children) == {"stage 1", *(f"{arm} · seed 0" for arm in ARMS)}
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
    assert searches.epochs(children.pop("stage 1")) == [1, 2]
    for name, run in children.items():
        assert searches.epochs(run) == list(range(1, 13)), name
        assert run.data.metrics["test/mAP"] > 0
