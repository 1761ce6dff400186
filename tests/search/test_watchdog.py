"""What has not moved, and who holds the machines."""

from __future__ import annotations

from ram_tune.search.watchdog import Watchdog, holders


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def step(epoch: int, step: int) -> dict:
    return {"type": "step", "run": "a", "epoch": epoch, "step": step, "steps": 75, "loss": 1.0}


def test_silence_is_said_once_until_the_run_moves_again():
    clock = Clock()
    watchdog = Watchdog(600, clock)
    watchdog.note({"type": "started", "run": "a"})
    clock.now = 599
    assert watchdog.silent() == []
    clock.now = 600
    assert watchdog.silent() == [("a", "has not moved for 10 min, and has no worker yet")]
    clock.now = 6000
    assert watchdog.silent() == []
    watchdog.note(step(3, 40))
    clock.now = 6900
    assert watchdog.silent() == [("a", "has not moved for 15 min, since epoch 3, step 40 of 75")]


def test_the_same_said_again_is_no_progress():
    clock = Clock()
    watchdog = Watchdog(600, clock)
    watchdog.note({"type": "state", "run": "a", "text": "final test"})
    clock.now = 500
    watchdog.note({"type": "state", "run": "a", "text": "final test"})
    clock.now = 700
    assert watchdog.silent() == [("a", "has not moved for 12 min, since “final test”")]


def test_runs_that_ended_and_a_watchdog_without_patience_say_nothing():
    clock = Clock()
    watchdog, none = Watchdog(600, clock), Watchdog(0, clock)
    for one in (watchdog, none):
        one.note({"type": "epoch", "run": "a", "epoch": 3, "metrics": {}})
        one.note({"type": "notice", "text": "hello"})
    watchdog.note({"type": "failed", "run": "a", "metrics": {}, "error": "why", "text": ""})
    clock.now = 10_000
    assert watchdog.silent() == none.silent() == []


def test_who_holds_the_machines():
    said = holders(
        {"CPU": 8, "GPU": 2, "memory": 1e9},
        {"CPU": 3, "memory": 1e9},
        [("A+S · seed 0", {"CPU": 1, "GPU": 1}), ("A+P · seed 0", {"CPU": 2, "GPU": 0})],
        [{"CPU": 4, "GPU": 2}],
    )
    assert said == (
        "Free: 3 of 8 CPU, 0 of 2 GPU. Held or wanted by A+S · seed 0 (1 CPU, 1 GPU), A+P · seed 0 (2 CPU), "
        "others (2 CPU, 1 GPU). Waiting for room: 4 CPU, 2 GPU."
    )


def test_a_cluster_of_our_own_and_one_that_has_lost_everything():
    assert holders({"CPU": 2}, {}, [("A", {"CPU": 2})], []) == "Free: 0 of 2 CPU. Held or wanted by A (2 CPU)."
    assert holders({"memory": 1.0}, {}, [], []) == "The cluster has no CPU and no GPU now."
