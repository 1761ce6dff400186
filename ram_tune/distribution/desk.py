"""The desk: one named Ray actor, the only hand on the study and on the record while a search runs.

Workers tell it every epoch and hear whether to go on. It may be away (killed, restarted, out of reach): a worker then goes
on and tells it later, and what it told twice counts once. All that the desk must remember is on disk, so a restarted one
knows what the lost one knew.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

BEAT_SECONDS = 5.0
ANSWER_SECONDS = 10.0
"""How long a worker waits for the desk before it goes on without an answer."""

Event = dict[str, Any]
"""What happened, for the progress display: `type`, `run` (its fingerprint), and what belongs to the type."""


class Books(Protocol):
    """What the desk keeps: the study and the record (see search.books)."""

    def more(self) -> list | None:
        """The jobs of the next run of a sampled search; [] while there is none, None when there never will be one."""
        ...

    def known(self, runs: Sequence[str]) -> dict[str, Any]:
        """How those of `runs` ended that did."""
        ...

    def know(self, job: Any) -> None:
        """A job that may be news: a desk that was restarted has forgotten those that were drawn."""
        ...

    def started(self, run: str, gpus: float) -> None: ...
    def worker(self, run: str, about: Mapping[str, str]) -> None: ...
    def epoch(self, run: str, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Whether that epoch is new."""
        ...

    def worth_going_on(self, run: str, epoch: int, metrics: Mapping[str, float]) -> bool: ...
    def gave_up(self, run: str) -> bool: ...
    def ended(self, run: str, outcome: Any) -> Any:
        """→ the outcome, of a run that was given up with the reason."""
        ...

    def beat(self) -> str:
        """Look whether the search is still this driver's, and what it has spent → empty, or why it must stop."""
        ...

    def problem(self) -> str:
        """Why the record is not being sent, or empty."""
        ...

    def close(self, table: str, status: str, markdown: str) -> None: ...
    def settle(self, timeout: float) -> list[str]:
        """Wait until the record is sent → what could not be."""
        ...


class Desk:
    """The actor's body; an ordinary object in tests."""

    def __init__(self, open_books: Callable[..., Books], *arguments: Any, beat_seconds: float = BEAT_SECONDS):
        self.books = open_books(*arguments)
        self.name = uuid.uuid4().hex  # of this life of the desk: a restarted one numbers its events anew
        self.events: list[Event] = []  # those that `poll` has not handed out for good
        self.forgotten = 0  # how many came before them
        self.stopping = False
        self.complaint = self.reason = ""
        threading.Thread(target=self._live, args=(beat_seconds,), daemon=True).start()

    # for workers

    def report(self, run: str, epoch: int, metrics: Mapping[str, float], past: bool = False) -> bool:
        """An epoch is finished, or was in the past and may have been missed. → whether to go on."""
        new = self.books.epoch(run, epoch, metrics)
        if new or not past:
            self._say(type="epoch", run=run, epoch=epoch, metrics=dict(metrics))  # the display shows none twice
        return self.books.worth_going_on(run, epoch, metrics) and not self.stopping

    def worker(self, run: str, about: Mapping[str, str]) -> None:
        """Who runs it: host, device, versions."""
        self.books.worker(run, about)

    def progress(self, run: str, **values: Any) -> None:
        """What happens between epochs; for the display only."""
        self._say(run=run, **values)

    # for the search's driver

    def more(self) -> list | None:
        """See `Books.more`."""
        return self.books.more()

    def known(self, runs: Sequence[str]) -> dict[str, Any]:
        """See `Books.known`."""
        return self.books.known(runs)

    def started(self, run: str, gpus: float = 0.0, job: Any = None) -> None:
        if job is not None:
            self.books.know(job)
        self.books.started(run, gpus)
        self._say(type="started", run=run)

    def ended(self, run: str, outcome: Any, history: Sequence[Mapping[str, float]] = (), job: Any = None) -> Any:
        """A job ended → how; `history` holds its epochs, for those that never reached the desk."""
        if job is not None:
            self.books.know(job)
        for epoch in history:
            metrics = {name: value for name, value in epoch.items() if "/" in name}
            self.report(run, int(epoch["epoch"]), metrics, past=True)
        outcome = self.books.ended(run, outcome)
        self._say(type=outcome.state, run=run, metrics=outcome.metrics, error=outcome.error, text=outcome.pruned)
        return outcome

    def poll(self, life: str, seen: int, stop: bool) -> tuple[str, list[Event], bool]:
        """Events after the first `seen` ones of the desk's life `life` → its life now, the events, and whether it stops.

        With `stop` every worker is told to stop when it next asks.
        """
        self.stopping = self.stopping or stop
        if life == self.name:
            del self.events[: seen - self.forgotten]  # days of progress would fill the memory
            self.forgotten = max(seen, self.forgotten)
        return self.name, list(self.events), self.stopping

    def why_stopped(self) -> str:
        """Why the desk itself ended the search, or empty."""
        return self.reason

    def told_to_stop(self, run: str) -> bool:
        return self.stopping or self.books.gave_up(run)

    def close(self, table: str, status: str, timeout: float, markdown: str = "") -> list[str]:
        """End the record → a sentence for everything that could not be sent within `timeout` seconds."""
        self.books.close(table, status, markdown)
        return self.books.settle(timeout)

    def _live(self, beat_seconds: float) -> None:
        pause = threading.Event()
        while True:
            try:
                lost = self.books.beat()
                complaint = lost or self.books.problem()
            except Exception as error:  # the storage is away: the next beat may find it again
                lost, complaint = "", f"the study's storage does not answer: {error}"
            if lost:
                self.stopping, self.reason = True, lost
            if complaint and not self.complaint:  # once, not at every attempt that words it otherwise
                self._say(type="notice", text=complaint)
            self.complaint = complaint
            pause.wait(beat_seconds)

    def _say(self, **event: Any) -> None:
        self.events.append(event)


def start(name: str, open_books: Callable[..., Books], *arguments: Any) -> Any:
    """The actor, on the driver's node: SQLite files and relative places mean there what they mean to the user."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Desk)
    return actor.options(name=name, scheduling_strategy=here).remote(open_books, *arguments)


class Line:
    """A worker's line to the desk, for one run."""

    def __init__(self, desk: str, run: str):
        self.desk, self.run = desk, run
        self.unsent: list[tuple[int, dict[str, float], bool]] = []

    def report(self, epoch: int, metrics: Mapping[str, float], past: bool = False) -> bool:
        """Tell the desk of an epoch, and of those it has not heard of yet → whether to go on. Nobody there: go on."""
        self.unsent.append((epoch, dict(metrics), past))
        go = True
        while self.unsent:
            answer = self._ask("report", *self.unsent[0])
            if answer is None:
                break
            self.unsent.pop(0)
            go = answer
        return go

    def worker(self, about: Mapping[str, str]) -> None:
        self._ask("worker", dict(about))

    def progress(self, **values: Any) -> None:
        """Said without waiting for an answer."""
        import ray
        from ray.exceptions import RayError

        with contextlib.suppress(ValueError, RayError):  # nobody there to be told; it is for the display only
            ray.get_actor(self.desk).progress.remote(self.run, **values)

    def _ask(self, method: str, *arguments: Any) -> Any:
        """The desk's answer, or None where it does not give one."""
        import ray
        from ray.exceptions import RayError

        try:
            # One try each time: a worker goes on training rather than wait for a desk that is being restarted.
            ask = getattr(ray.get_actor(self.desk), method).options(max_task_retries=0)
            return ray.get(ask.remote(self.run, *arguments), timeout=ANSWER_SECONDS)
        except (ValueError, RayError):  # no actor of that name; dead, restarting or too slow
            return None
