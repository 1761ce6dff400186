"""The desk and the line to it, without Ray: what it hears, what it answers, and what happens while it is away."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from ram_tune.distribution.desk import Desk, Line
from ram_tune.search.jobs import Outcome


class Books:
    """Remembers what it is told; epochs once."""

    def __init__(self):
        self.epochs: dict[tuple[str, int], dict[str, float]] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.hopeless: set[str] = set()
        self.lost = self.away = ""
        self.beaten = threading.Event()

    def more(self) -> list | None:
        return None

    def known(self, runs: Sequence[str]) -> dict[str, Outcome]:
        return {run: self.outcomes[run] for run in runs if run in self.outcomes}

    def know(self, job: Any) -> None: ...

    def started(self, run: str, gpus: float) -> None: ...

    def worker(self, run: str, about: Mapping[str, str]) -> None: ...

    def epoch(self, run: str, epoch: int, metrics: Mapping[str, float]) -> bool:
        new = (run, epoch) not in self.epochs
        self.epochs.setdefault((run, epoch), dict(metrics))
        return new

    def worth_going_on(self, run: str, epoch: int, metrics: Mapping[str, float]) -> bool:
        return run not in self.hopeless

    def gave_up(self, run: str) -> bool:
        return run in self.hopeless

    def ended(self, run: str, outcome: Outcome) -> Outcome:
        self.outcomes[run] = Outcome(pruned="hopeless") if run in self.hopeless else outcome
        return self.outcomes[run]

    def beat(self) -> str:
        self.beaten.set()
        return self.lost

    def problem(self) -> str:
        return self.away

    def close(self, table: str, status: str) -> None: ...

    def settle(self, timeout: float) -> list[str]:
        return []


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def wait_for(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("it did not happen")


def test_an_epoch_is_answered_with_go_until_the_driver_says_stop():
    desk = Desk(Books)
    assert desk.report("a", 1, {"train/loss": 1.0})
    life, events, stopping = desk.poll("", 0, stop=False)
    assert (types(events), stopping) == (["epoch"], False)
    _, events, stopping = desk.poll(life, 1, stop=True)
    assert (events, stopping) == ([], True)
    assert not desk.report("a", 2, {"train/loss": 0.5})


def test_a_run_that_is_given_up_hears_it_alone():
    desk = Desk(Books)
    desk.books.hopeless.add("b")
    assert desk.report("a", 1, {"train/loss": 1.0}) and not desk.report("b", 1, {"train/loss": 9.0})
    assert desk.told_to_stop("b") and not desk.told_to_stop("a")
    assert desk.ended("b", Outcome()).state == "pruned"
    _, events, _ = desk.poll("", 0, stop=False)
    assert (events[-1]["type"], events[-1]["text"]) == ("pruned", "hopeless")


def test_what_is_told_twice_counts_once():
    desk = Desk(Books)
    for loss in (1.0, 2.0):
        desk.report("a", 1, {"train/loss": loss})
    assert desk.books.epochs == {("a", 1): {"train/loss": 1.0}}


def test_what_a_resumed_worker_repeats_is_not_shown_again_but_what_was_missed_is():
    desk = Desk(Books)
    desk.report("a", 1, {"train/loss": 1.0})
    for epoch in (1, 2):
        desk.report("a", epoch, {"train/loss": 1.0}, past=True)
    assert [event["epoch"] for event in desk.poll("", 0, stop=False)[1]] == [1, 2]


def test_epochs_that_never_reached_it_come_with_the_end():
    desk = Desk(Books)
    desk.started("a")
    desk.report("a", 1, {"train/loss": 1.0})
    history = [{"epoch": epoch, "train/loss": 1.0 / epoch} for epoch in (1, 2, 3)]
    desk.ended("a", Outcome({"test/mAP": 0.5}, "/folder"), history)
    assert [epoch for _, epoch in desk.books.epochs] == [1, 2, 3]
    assert desk.books.epochs["a", 3] == {"train/loss": pytest.approx(1 / 3)}  # the epoch's number is no metric
    events = desk.poll("", 0, stop=False)[1]
    assert types(events) == ["started", *["epoch"] * 3, "finished"]
    assert events[-1]["metrics"] == {"test/mAP": 0.5}


def test_a_restarted_desk_numbers_its_events_anew():
    first, second = Desk(Books), Desk(Books)
    for desk in (first, second):
        desk.progress("a", type="state", text="working")
    life, events, _ = first.poll("", 0, stop=False)
    seen = len(events)
    assert first.poll(life, seen, stop=False)[1] == []
    after, events, _ = second.poll(life, seen, stop=False)
    assert after != life
    assert types(events) == ["state"]


def test_what_the_driver_has_heard_is_forgotten():
    desk = Desk(Books)
    for step in range(10):
        desk.progress("a", type="step", step=step)
    life, events, _ = desk.poll("", 0, stop=False)
    desk.progress("a", type="step", step=10)
    _, more, _ = desk.poll(life, len(events), stop=False)
    assert [event["step"] for event in more] == [10]
    _, again, _ = desk.poll(life, len(events), stop=False)  # the answer was lost on its way
    assert again == more
    assert len(desk.events) == 1


def test_a_lost_lease_stops_everything_and_a_problem_is_said_once():
    books = Books()
    desk = Desk(lambda: books, beat_seconds=0.01)
    books.away = "MLflow does not answer"
    wait_for(lambda: desk.events)
    books.away = "MLflow still does not answer"
    assert not desk.stopping
    books.beaten.clear()
    assert books.beaten.wait(5)
    books.away = ""
    wait_for(lambda: not desk.complaint)
    books.lost = "another driver has taken this search over"
    wait_for(lambda: desk.stopping and len(desk.events) > 1)
    assert [event["text"] for event in desk.events] == ["MLflow does not answer", books.lost]


class Wire:
    """Stands for Ray between a line and its desk; cut, nothing arrives."""

    def __init__(self, desk: Desk):
        self.desk, self.cut = desk, False

    def __call__(self, method: str, *arguments: Any) -> Any:
        return None if self.cut else getattr(self.desk, method)("a", *arguments)


def test_a_worker_that_cannot_reach_the_desk_goes_on_and_tells_it_later(monkeypatch):
    desk = Desk(Books)
    line, wire = Line("desk", "a"), Wire(desk)
    monkeypatch.setattr(line, "_ask", wire)
    assert line.report(1, {"x/y": 1.0})
    wire.cut = True
    assert line.report(2, {"x/y": 2.0})
    assert line.report(3, {"x/y": 3.0})
    wire.cut = False
    desk.stopping = True
    assert not line.report(4, {"x/y": 4.0})
    assert {epoch: value["x/y"] for (_, epoch), value in desk.books.epochs.items()} == {1: 1, 2: 2, 3: 3, 4: 4}
    assert line.unsent == []
