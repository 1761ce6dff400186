"""From the outbox to MLflow, in order, any number of times: what is there already is found again, not written twice."""

from __future__ import annotations

import contextlib
import csv
import logging
import os
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ram_tune.options import masked
from ram_tune.search import browsing
from ram_tune.search.browsing import PICTURES
from ram_tune.search.outbox import Entry, Outbox

if TYPE_CHECKING:
    from mlflow.entities import Run

SEARCH = ""  # what the parent is called among the runs; its children are called by their fingerprints
PER_READ = 1000  # entries taken from the outbox at once
METRICS_PER_CALL, PARAMS_PER_CALL = 1000, 100  # MLflow's limits
TRIES = 3  # of an entry that fails for a reason not known to be MLflow's absence
SQLITE = "sqlite:///"
EXPERIMENT = "experiment"  # the note that says its id
DESCRIPTION = "mlflow.note.content"
"""The tag that MLflow shows as a run's description, in Markdown."""

REFUSALS = {
    "ALREADY_EXISTS",
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "MALFORMED_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}
"""MLflow's error codes that say that the entry is at fault; all others may pass."""


class Refused(Exception):  # noqa: N818 (what happened to the entry)
    """An entry that can never be sent."""


class Forgotten(Exception):  # noqa: N818
    """MLflow no longer knows the search."""


class Sender:
    """Writes the entries of one search into MLflow.

    An entry that MLflow refuses is rejected in the outbox, with the reason, and stands in nobody's way.
    """

    def __init__(self, outbox: Outbox, experiment: str, study: str, tracking_uri: str):
        self.outbox, self.experiment, self.study, self.uri = outbox, experiment, study, tracking_uri
        self.client: Any = None  # connected
        self.experiment_id = ""
        self.tries: Counter[int] = Counter()
        self.stopping = False
        self.handlers: dict[str, Callable[[Entry], None]] = {
            "open": self._begin,
            "started": self._begin,
            "worker": self._tags,
            "finished": self._finished,
            "failed": self._failed,
            "stopped": self._stopped,
            "close": self._closed,
        }

    def send(self) -> None:
        """Send all unsent entries, or as many as it can before `stopping` is set.

        Raises any exception while MLflow is away; then call again, later.
        """
        while True:
            try:
                if self.client is None:
                    self._connect()
                while not self.stopping and (entries := self.outbox.unsent(PER_READ)):
                    self._send(entries)
                return
            except Forgotten:
                self.outbox.reset()  # and write it all anew
                self.client = None
            except Exception:
                self.client = None  # look around again when it is back
                raise

    # Reaching MLflow

    def _connect(self) -> None:
        prepare()
        from mlflow import MlflowClient

        place = masked(self.uri)
        if self.outbox.get("destination") != place:
            self.outbox.reset()
            self.outbox.set("destination", place)
        file = sqlite_file(self.uri)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
        client = MlflowClient(self.uri)
        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            # MLflow would put artifacts into the current folder, which need not be where the store is.
            artifacts = (file.parent / "mlruns").as_uri() if file else None
            self.experiment_id = client.create_experiment(self.experiment, artifact_location=artifacts)
        else:
            self.experiment_id = found.experiment_id
            if found.lifecycle_stage == "deleted":
                client.restore_experiment(self.experiment_id)
        if found is None or found.tags.get(browsing.TAG) != browsing.view():
            client.set_experiment_tag(self.experiment_id, browsing.TAG, browsing.view())
        self.outbox.set(EXPERIMENT, self.experiment_id)
        if file:  # three times as fast; a reader may be in the way, then next time
            with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(file)) as database:
                database.execute("PRAGMA journal_mode = WAL")
        self.client = client
        self._check_parent()

    def _check_parent(self) -> None:
        known = self.outbox.get(_note(SEARCH))
        if known and self._active(known) is None:
            raise Forgotten

    def _active(self, run_id: str) -> Run | None:
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    # Entries

    def _send(self, entries: list[Entry]) -> None:
        """In the order of each run; its epochs between two other entries go in one call."""
        points: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            if entry.kind in self.handlers:
                self._try(points.pop(entry.run, []), self._points)
                self._try([entry], lambda only: self.handlers[only[0].kind](only[0]))
            else:
                points[entry.run].append(entry)
        for left in points.values():
            self._try(left, self._points)

    def _try(self, entries: list[Entry], call: Callable[[list[Entry]], None]) -> None:
        if self.stopping or not entries:
            return
        try:
            call(entries)
        except Exception as error:
            if not self._is_refusal(error, entries[0]):
                raise
            self._check_parent()
            if len(entries) == 1:
                self.outbox.reject(entries[0].id, masked(str(error)))
            else:  # one of them
                for entry in entries:
                    self._try([entry], call)
        else:
            self.outbox.mark_sent(entry.id for entry in entries)

    def _is_refusal(self, error: Exception, entry: Entry) -> bool:
        from mlflow.exceptions import MlflowException
        from requests import HTTPError, RequestException

        match error:
            case Refused():
                return True
            case MlflowException():
                return error.error_code in REFUSALS
            case HTTPError(response=response) if response is not None:  # artifacts
                return 400 <= response.status_code < 500 and response.status_code not in (401, 403, 408, 429)
            case RequestException() | ConnectionError() | TimeoutError():
                return False
        self.tries[entry.id] += 1
        return self.tries[entry.id] >= TRIES

    def _points(self, entries: list[Entry]) -> None:
        self._metrics(
            entries[0].run, [(name, value, e.time, e.step) for e in entries for name, value in e.payload.items()]
        )

    def _metrics(self, run: str, points: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        run_id = self._id(run)
        for some in chunks([Metric(*point) for point in points], METRICS_PER_CALL):
            self.client.log_batch(run_id, metrics=some)

    def _begin(self, entry: Entry) -> None:
        """Find the run, or create it: it runs, for the first time or again."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT as CONTEXT

        name, tags, params = entry.payload["name"], dict(entry.payload["tags"]), entry.payload["params"]
        if entry.run != SEARCH:
            tags["mlflow.parentRunId"] = self._id(SEARCH)
        run = self._find(entry.run)
        if run is None:
            run = self.client.create_run(self.experiment_id, start_time=entry.time, tags=tags, run_name=name)
        else:
            self.client.log_batch(run.info.run_id, tags=[RunTag(*tag) for tag in tags.items()])
            self.client.update_run(run.info.run_id, status="RUNNING", name=name)
            if "ram_tune.error" in run.data.tags:  # of an earlier attempt
                self.client.delete_tag(run.info.run_id, "ram_tune.error")
        self.outbox.set(_note(entry.run), run.info.run_id)
        # MLflow never changes a parameter: those of the first attempt stay.
        new = [Param(*param) for param in params.items() if param[0] not in run.data.params]
        for some in chunks(new, PARAMS_PER_CALL):
            self.client.log_batch(run.info.run_id, params=some)
        if (about := entry.payload.get("dataset")) and not (run.inputs and run.inputs.dataset_inputs):
            self.client.log_inputs(run.info.run_id, [DatasetInput(Dataset(**about), [InputTag(CONTEXT, "training")])])

    def _find(self, run: str) -> Run | None:
        known = self.outbox.get(_note(run))
        if known and (found := self._active(known)):
            return found
        which = "`ram_tune.role` = 'search'" if run == SEARCH else f"`ram_tune.fingerprint` = '{run}'"
        wanted = f"tags.`ram_tune.study` = '{self.study}' and tags.{which}"
        return next(iter(self.client.search_runs([self.experiment_id], wanted, max_results=1)), None)

    def known(self, run: str) -> str | None:
        """The id of a run that was created or found here."""
        return self.outbox.get(_note(run))

    def _id(self, run: str) -> str:
        known = self.known(run)
        if known is None:
            raise Refused(f"run {run or 'of the search'} was never started")
        return known

    def _tags(self, entry: Entry) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(self._id(entry.run), tags=[RunTag(*tag) for tag in entry.payload.items()])

    def _ended(self, entry: Entry) -> None:
        self.client.set_terminated(self._id(entry.run), entry.payload["status"], entry.time)

    def _stopped(self, entry: Entry) -> None:
        self._ended(entry)
        if entry.payload.get("reason"):
            self.client.set_tag(self._id(entry.run), "ram_tune.given_up", entry.payload["reason"])

    def _failed(self, entry: Entry) -> None:
        self._ended(entry)
        self.client.set_tag(self._id(entry.run), "ram_tune.error", entry.payload["error"])
        self.client.log_text(self._id(entry.run), entry.payload["traceback"], "traceback.txt")

    def _closed(self, entry: Entry) -> None:
        run_id, said = self._id(entry.run), entry.payload
        self._ended(entry)
        if said["table"]:  # none of a search that was left at once: what it found before stays
            self.client.set_tag(run_id, DESCRIPTION, said.get("description", ""))
            self.client.log_text(run_id, said["table"], "table.txt")
        self.client.log_text(run_id, said["environment"], "environment.txt")
        if Path(report := said.get("report", "")).is_file():
            self.client.log_artifact(run_id, report)

    def _finished(self, entry: Entry) -> None:
        said = entry.payload
        self._metrics(entry.run, [(name, value, said["when"], said["step"]) for name, value in said["metrics"].items()])
        self.client.set_tag(self._id(entry.run), "ram_tune.checkpoint", said["folder"])  # where its weights are
        self._ended(entry)
        self._artifacts(self._id(entry.run), Path(said["folder"]))

    def _artifacts(self, run_id: str, folder: Path) -> None:
        """The files of training.results; weights stay where they are."""
        if not folder.is_dir():
            raise Refused(f"{folder} is gone: its files could not be copied to MLflow")
        self._pictures(run_id, folder / "pictures")
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.suffix not in (".pt", ".jpg", ".partial") and not file.name.startswith("."):
                under = file.parent.relative_to(folder).as_posix()
                self.client.log_artifact(run_id, str(file), None if under == "." else under)
        if (table := folder / "per_label.csv").is_file():
            self.client.log_dict(run_id, table_of(table.read_text(encoding="utf-8")), "per_label.json")
            # MlflowClient.log_table would append the rows of every attempt; this is the mark that it leaves.
            self.client.set_tag(run_id, "mlflow.loggedArtifacts", '[{"path": "per_label.json", "type": "table"}]')

    def _pictures(self, run_id: str, folder: Path) -> None:
        """`003.jpg`, …: what MLflow's image slider shows for steps 3, …; those that are there are not sent twice."""
        from PIL import Image

        there = {item.path for item in self.client.list_artifacts(run_id, "images")}
        for file in sorted(folder.glob("*.jpg")):
            step = int(file.stem)
            name = re.compile(rf"{PICTURES}[%+]step[%+]{step}[%+]")  # which of the two depends on the artifact store
            if not any(name.search(path) for path in there):
                self.client.log_image(run_id, Image.open(file), key=PICTURES, step=step)


def prepare() -> None:
    """Before MLflow is imported: an absent server shows within seconds, and our output stays ours."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name in ("urllib3.connectionpool", "mlflow.store.db.utils"):  # they tell of every attempt, at length
        logging.getLogger(name).setLevel(logging.CRITICAL)


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite URI, from the root; None for any other URI."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0]).resolve() if uri.startswith(SQLITE) else None


def table_of(text: str) -> dict[str, list[Any]]:
    """A CSV as MLflow's table artifact: numbers as numbers, those that are not one as null."""
    columns, *rows = csv.reader(text.splitlines())
    return {"columns": columns, "data": [[row[0], *map(_number, row[1:])] for row in rows]}


def chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    """`items` in lists of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))


def _number(text: str) -> float | None:
    return None if text == "nan" else float(text) if "." in text else int(text)


def _note(run: str) -> str:
    return f"run {run}"
