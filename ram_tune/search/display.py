"""The progress of a search: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ram_tune.errors import error_line
from ram_tune.search.jobs import Job

LOG = logging.getLogger("ram_tune.search")
"""Where a search keeps what it says, and when: see driver.LOG."""


@dataclass
class _Run:
    """What is known of a running job."""

    job: Job
    since: float  # when it started
    trains_since: float  # when its first epoch here began
    text: str = "starting"  # what it does before that
    before: float | None = None  # epochs that were done when it started here: of a resumed run more than 0
    epoch: int = 0  # the one at hand, or the one that was over last
    done: float = 0  # epochs, with the fraction of the one at hand
    pace: float | None = None  # seconds per epoch
    loss: float | None = None
    last: float | None = None  # selection mAP
    best: float | None = None

    def advance(self, epoch: int, share: float, over: bool, now: float) -> None:
        """`share` of `epoch` is trained by `now`; is it `over`?"""
        if self.before is None:
            self.before = epoch - 1
        self.text, self.epoch, self.done = "", epoch, epoch - 1 + share
        # Steps leave out what comes after an epoch's last one, so they set the pace only until an epoch is over.
        if over or epoch - 1 == self.before:
            self.pace = (now - self.trains_since) / (self.done - self.before)

    def left(self, now: float) -> float | None:
        """Seconds."""
        if self.pace is None or self.before is None:
            return None
        return max(self.pace * (self.job.config.training.epochs - self.before) - (now - self.trains_since), 0)


class Display:
    """A context manager that is told of events and shows them.

    `jobs` is the whole plan, of which `finished` jobs need not run; of a sampled search it grows (`expect`), to about
    `total` jobs. `quiet`: shown is only what goes wrong. `handle` may be called from any one thread.
    """

    def __init__(
        self,
        console: Console,
        jobs: Sequence[Job],
        finished: int,
        clock: Callable[[], float] = time.monotonic,
        total: int = 0,
        quiet: bool = False,
    ):
        self.console, self.total, self.quiet = console, total, quiet
        self.jobs = {job.fingerprint: job for job in jobs}
        self.width = max((len(job.name) for job in jobs), default=0)
        self.clock = clock
        self.running: dict[str, _Run] = {}
        self.seen: set[tuple[str, int]] = set()  # run, epoch
        self.ended: set[str] = set()
        self.counts = {"finished": finished, "failed": 0, "pruned": 0, "stopped": 0}
        self.seconds: list[float] = []  # that the jobs took which finished here
        self.lock = threading.RLock()  # what is above changes while the live part is drawn
        self.cluster = ""  # what of it is in use
        self.live = Live(self, console=console, transient=True) if console.is_interactive and not quiet else None

    def __enter__(self) -> Display:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def expect(self, jobs: Sequence[Job]) -> None:
        """Further jobs of the plan."""
        with self.lock:
            self.jobs |= {job.fingerprint: job for job in jobs}
            self.width = max((self.width, *(len(job.name) for job in jobs)))

    def handle(self, event: Mapping[str, Any]) -> None:
        """Note an event: `type`, `run` (a fingerprint), and what belongs to the type. Unknown ones are ignored."""
        with self.lock:
            line, shown = self._note(event)
        if line:
            LOG.info(line)
        if (
            line and shown
        ):  # without the lock: printing waits for the live part, and drawing that one waits for the lock
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _note(self, event: Mapping[str, Any]) -> tuple[str, bool]:
        """→ the line to say of it, or nothing, and whether it is one for the terminal."""
        kind, run = event["type"], event.get("run", "")
        if kind in ("notice", "stalled"):
            return event["text"], True
        if kind == "cluster":
            self.cluster = event["text"]
            return "", False
        if run not in self.jobs or run in self.ended:
            return "", False
        name, now = f"{self.jobs[run].name:<{self.width}}", self.clock()
        if kind in self.counts:
            self.counts[kind] += 1
            self.ended.add(run)
            ended = self.running.pop(run, None)
            if kind == "failed":
                return f"{name}  FAILED  {error_line(event['error'])}", True
            if ended and kind == "finished":
                self.seconds.append(now - ended.since)
            if kind != "finished":
                return f"{name}  {event.get('text') or kind}", not self.quiet
            line = f"{name}  finished  {_test(event['metrics'])}"
            return line if self.live else f"{line}\n{self._summary(now)}", not self.quiet
        if kind not in ("started", "state", "step", "epoch") or event.get("epoch") == 0:  # epoch 0: before training
            return "", False
        new = run not in self.running
        found = self.running.setdefault(run, _Run(self.jobs[run], now, now))  # its start may not have been told
        line = self._progress(found, event, now) if kind != "started" else "started" if new else ""
        return f"{name}  {line}" if line else "", not self.live and not self.quiet

    def _progress(self, run: _Run, event: Mapping[str, Any], now: float) -> str:
        """What happens within a running job → what to say of it, if anything."""
        if event["type"] == "state":
            run.text = event["text"]
            if run.before is None:
                run.trains_since = now
            return ""
        epoch, told = event["epoch"], (run.job.fingerprint, event["epoch"])
        if told in self.seen:  # again, because a lost worker was replaced
            return ""
        if event["type"] == "step":
            run.advance(epoch, event["step"] / event["steps"], over=False, now=now)
            run.loss = event["loss"]
            return ""
        self.seen.add(told)
        run.advance(epoch, 1, over=True, now=now)
        metrics = event["metrics"]
        run.loss, run.last = metrics["train/loss"], metrics["selection/mAP"]
        run.best = max(run.best or 0, metrics["selection/mAP"])
        shown = " ".join(f"{name} {metrics[f'selection/{name}']:.3f}" for name in ("loss", "mAP", "CF1", "OF1"))
        return f"epoch {epoch:>3}/{run.job.config.training.epochs}  loss {run.loss:.4f}  selection {shown}"

    def __rich__(self) -> Group:
        """The live part: a row for every running job, and the state of the search."""
        with self.lock:
            now = self.clock()
            rows = Table.grid(padding=(0, 2, 0, 0))
            room = max(self.console.height - 2, 1)  # what does not fit on the screen would push the last line off it
            for run in list(self.running.values())[:room]:
                rows.add_row(*_row(run, now))
            hidden = len(self.running) - room
            parts = [rows] if self.running else []
            more = [Text(f"and {hidden} more")] if hidden > 0 else []
            return Group(*parts, *more, Text(self._summary(now)))

    def _summary(self, now: float) -> str:
        ended = ", ".join(f"{count} {state}" for state, count in self.counts.items() if count and state != "finished")
        total = max(self.total, len(self.jobs))
        text = f"{self.counts['finished']} of {total} runs finished" + (f", {ended}" if ended else "")
        remaining = total - sum(self.counts.values())
        if self.seconds and remaining > 0:
            each = sum(self.seconds) / len(self.seconds)
            spent = sum(min(now - run.since, each) for run in self.running.values())
            text += f" · {_duration((each * remaining - spent) / max(len(self.running), 1))} left"
        return f"{text} · {self.cluster}" if self.cluster else text


def _row(run: _Run, now: float) -> list[Any]:
    """Name, bar, epoch or state, loss, mAP, time left."""
    epochs = run.job.config.training.epochs
    bar = ProgressBar(total=epochs, completed=run.done, width=20)
    at = run.text or f"epoch {run.epoch}/{epochs}"
    loss = "" if run.loss is None else f"loss {run.loss:.4f}"
    value = "" if run.last is None else f"mAP {run.last:.3f} best {run.best:.3f}"
    left = run.left(now)
    return [Text(run.job.name), bar, Text(at), loss, value, "" if left is None else f"{_duration(left)} left"]


def _test(metrics: Mapping[str, float]) -> str:
    return "test " + " ".join(f"{name} {metrics[f'test/{name}']:.4f}" for name in ("mAP", "CF1", "OF1"))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
