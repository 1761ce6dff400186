"""The order of jobs, and what must run: on simulated runs, killed at any moment."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ram_tune.config import Config
from ram_tune.search.jobs import Job, Outcome, Queue, missing

DONE = Outcome({"test/mAP": 0.5, "selection/mAP": 0.4}, "/somewhere")
FAILED = Outcome(error="ValueError: broken")
STOPPED = Outcome()


def job(fingerprint: str, *needs: str, kind: str = "train") -> Job:
    return Job(kind, f"setting {fingerprint}", Config(), fingerprint, "dataset", needs)  # type: ignore[arg-type]


PLAN = [job("s", kind="stage1"), job("a", "s"), job("b", "s"), job("c"), job("e", "b", kind="evaluate")]


def test_a_job_is_handed_out_only_when_what_it_needs_is_finished():
    queue = Queue(PLAN)
    assert [queue.next().fingerprint for _ in range(2)] == ["s", "c"]
    assert queue.next() is None  # a and b wait
    assert not queue.empty
    queue.ended(PLAN[0], DONE)
    assert [queue.next().fingerprint for _ in range(2)] == ["a", "b"]
    assert queue.next() is None
    queue.ended(PLAN[2], DONE)
    assert queue.next().fingerprint == "e"
    assert not queue.empty  # what runs may be lost and have to run again
    for number in (1, 3, 4):
        queue.ended(PLAN[number], DONE)
    assert queue.empty


def test_what_needs_a_failed_job_directly_or_not_is_dropped():
    queue = Queue(PLAN)
    queue.next()
    assert [other.fingerprint for other in queue.ended(PLAN[0], FAILED)] == ["a", "b", "e"]
    assert queue.next().fingerprint == "c"
    assert not queue.waiting


def test_a_job_for_which_there_is_no_room_holds_up_those_behind_it():
    queue = Queue(PLAN, ["s"])
    assert queue.next(lambda job: job.fingerprint != "a") is None
    assert queue.next().fingerprint == "a"


def test_a_lost_job_goes_on_before_others_start():
    queue = Queue(PLAN, ["s"])
    lost = queue.next()
    queue.again(lost)
    assert not queue.empty
    assert queue.next() is lost
    assert queue.next().fingerprint == "b"


def test_finished_jobs_are_not_handed_out_again():
    queue = Queue(PLAN, ["s", "a", "of another search"])
    assert [queue.next().fingerprint for _ in range(2)] == ["b", "c"]


def test_a_closed_queue_hands_out_nothing():
    queue = Queue(PLAN)
    queue.close()
    assert queue.next() is None
    assert queue.empty


@pytest.mark.parametrize(
    ("finished", "usable", "expected"),
    [
        ("", "", "sabce"),
        ("sabce", "sabce", ""),
        ("sabce", "", ""),  # weights that nobody needs any more need not be made again
        ("sac", "sac", "be"),
        ("sac", "ac", "sbe"),  # stage 1's weights are gone, and b starts from them
        ("sabc", "sac", "be"),  # e evaluates b, whose weights are gone; stage 1's are there
        ("abc", "ac", "sbe"),
    ],
)
def test_what_is_missing(finished, usable, expected):
    assert "".join(job.fingerprint for job in missing(PLAN, finished, usable)) == expected


@st.composite
def plans(draw: st.DrawFn) -> list[Job]:
    count = draw(st.integers(1, 12))
    jobs: list[Job] = []
    for number in range(count):
        names = [other.fingerprint for other in jobs]
        needs = draw(st.lists(st.sampled_from(names), unique=True, max_size=2)) if names else []
        jobs.append(job(str(number), *needs))
    return jobs


@settings(max_examples=200, deadline=None)
@given(plans(), st.integers(0, 2**32), st.integers(1, 4))
def test_killed_at_any_moment_every_job_is_finished_once_in_the_end(plan: list[Job], seed: int, slots: int):
    """Drivers that die at random moments; what a driver knows of its predecessors is which jobs are finished."""
    luck = random.Random(seed)
    finished: list[str] = []
    for _ in range(1000):
        todo = {one.fingerprint for one in missing(plan, finished, finished)}
        if not todo:
            break
        queue = Queue(plan, [one.fingerprint for one in plan if one.fingerprint not in todo])
        running: list[Job] = []
        while luck.random() > 0.1:  # else it is killed here
            while len(running) < slots and (ready := queue.next()):
                assert set(ready.needs) <= set(finished)
                running.append(ready)
            if not running:
                assert queue.empty
                break
            if luck.random() < 0.2:  # a driver is lost, the search is not
                queue.again(running.pop(luck.randrange(len(running))))
                assert not queue.empty
                continue
            ended = running.pop(luck.randrange(len(running)))
            finished.append(ended.fingerprint)
            assert queue.ended(ended, DONE) == []
    assert sorted(finished) == sorted(one.fingerprint for one in plan)  # each once


def test_further_jobs_are_asked_for_once_all_are_handed_out():
    drawn = [[job("a", "s")], [job("b", "s")], [], None]
    asked = []

    def more():
        asked.append(len(asked))
        return drawn[len(asked) - 1]

    queue = Queue([job("s")], [], more, job("like"))
    assert queue.next().fingerprint == "s" and not asked
    assert queue.next() is None
    assert asked == [0, 1]  # two wait for `s`, as for the one that is running; nothing else is drawn before
    assert queue.next() is None and asked == [0, 1]
    queue.ended(job("s"), Outcome({"m": 1}))
    assert [queue.next().fingerprint for _ in range(2)] == ["a", "b"]
    assert queue.next() is None and not queue.empty  # none now
    queue.ended(job("a"), Outcome({"m": 1}))
    assert queue.next() is None and not queue.empty  # none ever again, but one is running
    queue.ended(job("b"), Outcome({"m": 1}))
    assert queue.empty


def test_nothing_is_drawn_while_there_is_no_room():
    asked = []
    queue = Queue([], [], lambda: asked.append(1) or [job("a")], job("like"))
    assert queue.next(lambda one: False) is None and not asked
    assert queue.next().fingerprint == "a"


def test_a_given_up_run_is_none_that_stopped():
    assert Outcome(pruned="why").state == "pruned" and Outcome().state == "stopped"
