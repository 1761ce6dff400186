"""`kill -9` of a whole search at different moments: the same command goes on, and nothing is lost or done twice."""

from __future__ import annotations

import os
import signal

import pytest
from searches import Searches

pytestmark = pytest.mark.drill

ARMS = "none", "S+P", "A+S", "A+P", "A+S+P"


@pytest.mark.parametrize("workers", [0, 1])
def test_killed_at_three_moments(pictures, tiny, tmp_path, workers):
    fields = [field for field in tiny if not field.startswith("training.epochs")] + ["training.epochs=12"]
    searches = Searches(tmp_path, pictures, fields)
    options = "--workers", str(workers)
    for start, text in (("stage 1", "epoch   1/2"), ("none", "epoch   5/12"), ("A+P", "epoch   7/12")):
        search = searches.start("constraints", *options)
        for line in search.stdout:
            if line.startswith(start) and text in line:
                break
        else:
            pytest.fail(f"{text} of {start} never came")
        os.killpg(search.pid, signal.SIGKILL)
        search.wait()
        search.stdout.close()
    done = searches.run("constraints", *options)
    assert done.returncode == 0, done.stdout + done.stderr

    parent, children = searches.children("constraints-labels")
    assert set(children) == {"stage 1", *(f"{arm} · seed 0" for arm in ARMS)}
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
    assert searches.epochs(children.pop("stage 1")) == [1, 2]
    for name, run in children.items():
        assert searches.epochs(run) == list(range(1, 13)), name
        assert run.data.metrics["test/mAP"] > 0
