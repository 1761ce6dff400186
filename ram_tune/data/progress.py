"""Whom long work on data tells how far it is: a bar on the terminal, or whoever listens in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

Listener = Callable[[str, int, int], None]
"""Told of long work: what, done, of how many."""

_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)

Advance = Callable[[int], None]
"""Told after every piece how many more images are done."""


@contextmanager
def telling(listener: Listener) -> Iterator[None]:
    """Have `listener` told of long work on data, for instance in a worker without terminal."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def listening() -> Listener | None:
    """Who is told, if anybody is."""
    return _LISTENER.get()


def bars(*columns: ProgressColumn) -> Progress:
    """Bars on the terminal's error stream, the task's description before `columns`; none where somebody listens."""
    shown = TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn()
    return Progress(*shown, console=Console(stderr=True), disable=listening() is not None)


@contextmanager
def progress(task: str, total: int) -> Iterator[Advance]:
    """How many of `total` images are done."""
    listener = listening()
    with bars(MofNCompleteColumn()) as shown:
        bar = shown.add_task(task, total=total)

        def advance(done: int) -> None:
            shown.advance(bar, done)
            if listener:
                listener(task, int(shown.tasks[0].completed), total)

        yield advance
