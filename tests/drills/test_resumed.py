"""A search that is interrupted, gone on with, typed again and extended."""

from __future__ import annotations

import signal

import pytest
from searches import Searches

pytestmark = pytest.mark.drill


def rows(output: str) -> list[str]:
    """Of all tables."""
    return [line for line in output.splitlines() if line.startswith("│")]


def test_interrupted_resumed_repeated_and_extended(pictures, tiny, tmp_path):
    """`--workers 0`: the runs share a process, so that this takes seconds."""
    fields = [field for field in tiny if "epochs" not in field]
    fields += ["execution.cpus_per_worker=1", "training.epochs=24", "stage1.epochs=2"]
    searches = Searches(tmp_path, pictures, fields)
    options = "--workers", "0", "--concurrency", "1", "--arms", "none", "A+S"

    first = searches.start("constraints", *options)
    lines = []
    for line in first.stdout:
        lines.append(line)
        if line.startswith("none") and "epoch   3/24" in line:
            first.send_signal(signal.SIGINT)
            break
    lines += list(first.stdout)
    assert first.wait(timeout=120) == 130, "".join(lines)
    assert "The same command goes on from here" in "".join(lines)
    parent, children = searches.children("constraints-pictures")
    assert parent.info.status == children["none · seed 0"].info.status == "KILLED"
    reached = searches.epochs(children["none · seed 0"])
    assert reached == list(range(1, len(reached) + 1))
    assert 3 <= len(reached) < 24

    second = searches.run("constraints", *options)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "1 of them finished before" in second.stdout  # stage 1
    assert "epoch   1/24" not in "".join(line for line in second.stdout.splitlines() if line.startswith("none"))
    parent, children = searches.children("constraints-pictures")
    assert set(children) == {"stage 1", "none · seed 0", "A+S · seed 0"}
    for name in ("none · seed 0", "A+S · seed 0"):
        assert searches.epochs(children[name]) == list(range(1, 25))
        assert children[name].info.status == "FINISHED"

    third = searches.run("constraints", *options)
    assert third.returncode == 0, third.stderr
    assert "started" not in third.stdout
    assert rows(third.stdout) == rows(second.stdout)

    fourth = searches.run("constraints", *options, "--seeds", "2", "--keep-checkpoints", "none")
    assert fourth.returncode == 0, fourth.stderr
    assert [line.split("·")[0].strip() for line in fourth.stdout.splitlines() if line.endswith("started")] == [
        "none",
        "A+S",
    ]
    parent, children = searches.children("constraints-pictures")
    assert set(children) == {"stage 1", *(f"{arm} · seed {seed}" for arm in ("none", "A+S") for seed in (0, 1))}
    assert parent.info.status == "FINISHED"
    assert "all seeds start from one stage 1" in fourth.stdout
    assert len(list(tmp_path.glob("ram_tune_runs/constraints-*/runs/*/best.pt"))) == 1  # stage 1's
    assert not list(tmp_path.glob("ram_tune_runs/constraints-*/runs/*/last.pt"))
