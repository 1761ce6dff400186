"""MLflow: the record that people read. One parent run for a search, one child for each of its jobs.

Everything is put into an outbox on disk first and sent from there by a thread, so that MLflow may be away: nothing waits
for it, nothing fails with it, and the record catches up later, even from another process.
"""

from __future__ import annotations

import functools
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ram_tune.errors import error_line
from ram_tune.options import masked
from ram_tune.search.jobs import Job
from ram_tune.search.outbox import Outbox, encode
from ram_tune.search.provenance import environment, provenance
from ram_tune.search.sender import DESCRIPTION, EXPERIMENT, SEARCH, SQLITE, Sender, sqlite_file

FILE, REPORT = "outbox.db", "report.html"
LONGEST_PARAM, LONGEST_TAG = 6000, 5000  # characters, MLflow's limits; of a tag an older server's
LONGEST_COMMAND = 500  # characters, in a description
LONGEST_ERROR = 250  # characters of a tag that a column can show
PAUSES = 1.0, 30.0  # seconds between two attempts to reach MLflow: the first, doubled up to the last


@dataclass(frozen=True)
class About:
    """What a search says of itself. `study` names one search and generation, without quotation marks."""

    experiment: str
    study: str
    title: str
    question: str
    command: str  # as typed
    params: dict[str, Any] = field(default_factory=dict)  # the flattened base configuration
    tags: dict[str, str] = field(default_factory=dict)
    dataset: dict[str, str] = field(default_factory=dict)  # as MLflow has it: name, digest, source, profile

    def described(self, found: str = "") -> str:
        """In Markdown: the question, the command, and what was found."""
        command = masked(self.command)
        shown = command if len(command) < LONGEST_COMMAND else f"{command[:LONGEST_COMMAND]} …"
        parts = [self.question, f"```sh\n{shown}\n```", found]
        return "\n\n".join(part for part in parts if part)[:LONGEST_TAG]


class Record:
    """The record of one search (one `About.study`) in MLflow at `tracking_uri`, through the outbox in `folder`.

    Every method but `flush` and `stop` only writes to that folder, in milliseconds. One process at a time; a later one on
    the same folder goes on with the same runs. A job may start again after it ended: its run is reopened.
    """

    def __init__(self, folder: Path, search: About, tracking_uri: str):
        file = sqlite_file(tracking_uri)
        # By its full path, for this process and the next may stand in different folders.
        uri = SQLITE + str(file) + "".join(tracking_uri.partition("?")[1:]) if file else tracking_uri
        self.search, self.uri, self.place, self.folder = search, uri, masked(uri), folder
        self.outbox = Outbox(folder / FILE)
        self.sender = Sender(self.outbox, search.experiment, search.study, uri)
        self.problem = ""
        """One sentence on why MLflow cannot be reached; empty while it can."""
        self._failures = self._successes = 0  # attempts to send everything
        self._rejected_before = len(self.outbox.rejected())
        self._thread: threading.Thread | None = None
        self._news, self._now = threading.Event(), threading.Event()

    def open(self) -> None:
        """The search is running."""
        search, before = self.search, self.outbox.last(SEARCH, "close")
        tags = {
            **search.tags,
            "ram_tune.role": "search",
            "ram_tune.study": search.study,
            "ram_tune.command": masked(search.command),
            DESCRIPTION: (before.payload.get("description") if before else "") or search.described(),
        }
        self._begin(SEARCH, search.title, tags, search.params)

    def started(self, job: Job) -> None:
        """A job is running, for the first time or again."""
        tags = {
            "ram_tune.role": job.kind,
            "ram_tune.study": self.search.study,
            "ram_tune.setting": job.setting,
            "ram_tune.seed": str(job.seed),
            "ram_tune.fingerprint": job.fingerprint,
            "ram_tune.dataset": job.dataset,
            **({"ram_tune.also": ", ".join(job.also)} if job.also else {}),
        }
        self._begin(job.fingerprint, job.name, tags, job.config.flat())

    def worker(self, fingerprint: str, tags: dict[str, str]) -> None:
        """Where a job runs: host, device, …"""
        self._add(fingerprint, "worker", tags)

    def epoch(self, fingerprint: str, epoch: int, metrics: dict[str, float], when_ms: int | None = None) -> bool:
        """The metrics of an epoch; False where it was there already (a resumed job reports it again)."""
        added = self.outbox.put(fingerprint, "epoch", epoch, floats(metrics), when_ms)
        self._news.set()
        return added

    def finished(self, fingerprint: str, metrics: dict[str, float], folder: str) -> None:
        """Final metrics, at the step of the best epoch; the files of `folder` are copied when they are sent."""
        step = int(metrics.get("best_epoch", 0))
        epoch = self.outbox.get_entry(fingerprint, "epoch", step)
        there = epoch.payload if epoch else {}  # the same number at the same step would be a second point of the curve
        final = {name: value for name, value in floats(metrics).items() if there.get(name) != value}
        before = self.outbox.last(fingerprint, "finished")
        again = before is not None and encode(before.payload["metrics"]) == encode(final)
        when = before.payload["when"] if before and again else time.time_ns() // 1_000_000  # so would another time
        payload = {"metrics": final, "step": step, "when": when, "folder": folder, "status": "FINISHED"}
        self._add(fingerprint, "finished", payload)

    def failed(self, fingerprint: str, traceback: str) -> None:
        """A job ended with an error."""
        said = {"traceback": traceback, "error": error_line(traceback)[:LONGEST_ERROR], "status": "FAILED"}
        self._add(fingerprint, "failed", said)

    def stopped(self, fingerprint: str, reason: str = "") -> None:
        """A job ended because it was asked to; `reason`: why it was given up, of one that will not go on."""
        self._add(fingerprint, "stopped", {"status": "KILLED", "reason": reason})

    def best(self, metric: str, value: float, done: int) -> None:
        """The best value of `metric` after `done` jobs: a parent without metrics has no chart."""
        self.outbox.put(SEARCH, "best", done, {f"best/{metric.replace('/', '_')}": float(value)})
        self._news.set()

    def close(self, table: str, status: str, markdown: str = "") -> None:
        """The search has ended: FINISHED, FAILED or KILLED, with this table, as plain text and in Markdown. Its report, if
        there is one in the folder, goes with it.
        """
        report = self.folder / REPORT
        said = {"table": table, "environment": environment(), "status": status}
        said["description"] = self.search.described(markdown)
        self._add(SEARCH, "close", said | ({"report": str(report.absolute())} if report.is_file() else {}))

    @property
    def experiment(self) -> str | None:
        """MLflow's id of the experiment, once anything was sent."""
        return self.outbox.get(EXPERIMENT)

    def run_id(self, fingerprint: str) -> str | None:
        """MLflow's id of a job's run, once it was sent."""
        return self.sender.known(fingerprint)

    @property
    def opened(self) -> bool:
        """Whether anything was ever said of the search."""
        return self.outbox.last(SEARCH, "open") is not None

    @property
    def status(self) -> str:
        """What `close` was last told; empty where the search has been opened since, or never was closed."""
        opened, closed = self.outbox.last(SEARCH, "open"), self.outbox.last(SEARCH, "close")
        return closed.payload["status"] if closed and opened and closed.id > opened.id else ""

    @property
    def rejected(self) -> list[str]:
        """One sentence for each entry that MLflow would not take, of those sent from here."""
        found = self.outbox.rejected()[self._rejected_before :]
        return [f"{entry.kind} {entry.step} of run {entry.run or 'search'}: {reason}" for entry, reason in found]

    def start_sending(self) -> None:
        """Send in the background from now on."""
        if self._thread is None or not self._thread.is_alive():
            self.sender.stopping = False
            self._thread = threading.Thread(target=self._loop, name="mlflow record", daemon=True)
            self._thread.start()

    def flush(self, timeout: float) -> int:
        """Wait until everything is sent, an attempt to reach MLflow fails, or `timeout` seconds → entries left."""
        failures, successes, until = self._failures, self._successes, time.monotonic() + timeout
        self.start_sending()
        self._hurry()
        while self._failures == failures and time.monotonic() < until:
            if self._successes > successes and not self.outbox.pending():
                break  # not before a look at MLflow: it may have lost all it was sent
            time.sleep(0.02)
        return self.outbox.pending()

    def settle(self, timeout: float) -> list[str]:
        """`flush` → a sentence for everything that is not in MLflow after it."""
        left = self.flush(timeout)
        why = self.problem or f"MLflow at {self.place} is slow"
        waiting = f"{left} entries of the record are not in MLflow yet ({why}). The same command sends them later."
        return [*([waiting] if left else []), *(f"MLflow would not take {one}" for one in self.rejected)]

    def stop(self, timeout: float = 15) -> None:
        """Send no more; waits for the call in progress for at most `timeout` seconds."""
        self.sender.stopping = True
        self._hurry()
        if self._thread is not None:
            self._thread.join(timeout)

    @functools.cached_property
    def _provenance(self) -> dict[str, str]:
        return {**provenance(), "mlflow.source.name": "ram_tune.search"}

    def _begin(self, run: str, name: str, tags: dict[str, str], params: dict[str, Any]) -> None:
        texts = {key: str(value)[:LONGEST_PARAM] for key, value in params.items()}
        short = {key: value[:LONGEST_TAG] for key, value in (self._provenance | tags).items()}
        payload = {"name": name, "tags": short, "params": texts, "dataset": self.search.dataset}
        self._add(run, "open" if run == SEARCH else "started", payload)

    def _add(self, run: str, kind: str, payload: dict[str, Any]) -> None:
        self.outbox.add(run, kind, payload)
        self._news.set()

    def _hurry(self) -> None:
        self._now.set()
        self._news.set()

    def _loop(self) -> None:
        pause, longest = PAUSES
        while True:
            self._news.clear()  # before looking at anything that they announce
            self._now.clear()
            if self.sender.stopping:
                return
            try:
                self.sender.send()
            except Exception as error:  # whatever it is, the search goes on
                self.problem = f"MLflow at {self.place} cannot be reached: {first_line(masked(str(error)))}"
                self._failures += 1
                self._now.wait(pause)
                pause = min(2 * pause, longest)
            else:
                self.problem, pause = "", PAUSES[0]
                self._successes += 1
                self._news.wait()


def floats(metrics: dict[str, float]) -> dict[str, float]:
    """Plain floats: a NumPy number is not JSON."""
    return {name: float(value) for name, value in metrics.items()}


def first_line(text: str) -> str:
    """At most 250 characters of it."""
    return text.strip().partition("\n")[0][:LONGEST_ERROR]
