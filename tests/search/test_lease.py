"""One driver per study."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from ram_tune.errors import BadInput
from ram_tune.search.lease import Held, Lease, this_process


class Kept:
    """Where a lease is kept; `on_sleep` is what others do while somebody waits."""

    def __init__(self, held: Held | None = None):
        self.held = held
        self.slept = 0.0
        self.on_sleep: Any = lambda: None

    def lease(self) -> Lease:
        return Lease(lambda: self.held, lambda held: setattr(self, "held", held))

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.on_sleep()


def elsewhere(**changes: Any) -> Held:
    return Held(**{**this_process(), "host": "another machine", **changes})


def test_who_claims_first_holds_it_and_a_second_driver_is_refused():
    kept, first, second = Kept(), this_process(), this_process()
    kept.lease().claim(first, sleep=kept.sleep)
    assert kept.lease().mine(first)
    with pytest.raises(BadInput, match=rf"another driver at work on it \(process {first['pid']} on"):
        kept.lease().claim(second, sleep=kept.sleep)
    kept.lease().release(second)  # not its own
    assert kept.lease().mine(first)
    kept.lease().release(first)
    kept.lease().claim(second, sleep=kept.sleep)


def test_a_process_of_this_machine_that_is_dead_is_followed_at_once():
    code = "from ram_tune.search.lease import this_process; import json; print(json.dumps(this_process()))"
    import json

    dead = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    kept, mine = Kept(dead), this_process()
    kept.lease().claim(mine, sleep=kept.sleep)
    assert kept.lease().mine(mine)
    assert kept.slept < 1


def test_another_process_with_a_dead_ones_number_does_not_count_as_alive():
    kept = Kept(Held(**{**this_process(), "born": "12345"}))
    kept.lease().claim(this_process(), sleep=kept.sleep)


def test_a_holder_on_another_machine_is_watched():
    kept, mine = Kept(elsewhere()), this_process()
    kept.on_sleep = lambda: kept.lease().beat(kept.held)
    with pytest.raises(BadInput, match="on another machine"):
        kept.lease().claim(mine, patience=30, sleep=kept.sleep)
    kept.on_sleep = lambda: None
    kept.lease().claim(mine, patience=30, sleep=kept.sleep)
    assert kept.slept >= 30


def test_of_two_that_claim_at_once_one_is_refused():
    kept, mine, other = Kept(), this_process(), this_process()
    kept.on_sleep = lambda: setattr(kept, "held", other)  # read before, written after
    with pytest.raises(BadInput, match="started just now"):
        kept.lease().claim(mine, sleep=kept.sleep)


def test_a_holder_learns_that_it_was_succeeded():
    kept, mine = Kept(), this_process()
    kept.lease().claim(mine, sleep=kept.sleep)
    assert kept.lease().beat(mine)
    assert kept.held is not None
    assert kept.held["beats"] == 1
    kept.held = this_process()
    assert not kept.lease().beat(mine)
    kept.held = None
    assert not kept.lease().beat(mine)


def test_it_is_shown_for_as_long_as_it_is_kept():
    kept, mine = Kept(), this_process()
    with kept.lease().kept(mine, every=0.01):
        until = time.monotonic() + 10
        while kept.held["beats"] < 3 and time.monotonic() < until:
            time.sleep(0.01)
        assert kept.held["beats"] >= 3
    assert kept.held is None
    with pytest.raises(ValueError, match="mine"), kept.lease().kept(mine):
        raise ValueError("mine")
    assert kept.held is None
