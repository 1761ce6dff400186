"""What a run costs the driver and the desk, when it is the tenth of a search and when it is the thousandth.

Nothing is trained: the books (study, outbox and MLflow, all in SQLite) are told of runs as the desk is, of two at a time, and
each window is over when MLflow has all of it. The driver's queue hands out the runs.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

from benchmarks.measure import Row
from ram_tune.config import Config, Training
from ram_tune.search.books import open_books
from ram_tune.search.jobs import RUNS, Job, Outcome, Queue
from ram_tune.search.lease import this_process
from ram_tune.search.record import About
from ram_tune.search.study import open_study

EPOCHS, SEEDS, WINDOW = 12, 5, 20
EPOCH = {f"{role}/m{i}": 0.1 * i for role in ("train", "selection") for i in range(12)}
FINAL = {f"{role}/m{i}": 0.1 * i for role in ("test", "selection") for i in range(15)} | {"selection/mAP": 0.5}


def jobs(count: int) -> list[Job]:
    return [
        Job("train", f"arm {i // SEEDS}", Config(training=Training(seed=i % SEEDS)), f"run{i:05}", "dataset")
        for i in range(count)
    ]


def left(folder: Path, run: str) -> str:
    """What training leaves of a run → where."""
    place = folder / RUNS / run
    place.mkdir(parents=True)
    (place / "metrics.json").write_text(json.dumps(FINAL))
    (place / "per_label.csv").write_text("label,AP\n" + "".join(f"{i},0.5\n" for i in range(20)))
    return str(place)


def growth(runs: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory(prefix="ram_tune-bench-") as name, chdir(name):
        folder, storage = Path(name), f"sqlite:///{name}/studies.db"
        plan, held = jobs(runs), this_process()
        study = open_study(storage, "bench")
        assert study is not None
        study.lease.claim(held)
        about = About("bench", "bench", "Bench", "?", "python -m benchmarks.desk", Config().flat())
        record = f"sqlite:///{name}/mlflow.db"
        books = open_books(storage, "bench", folder, about, record, plan, held, name)
        queue, taken = Queue(plan), []
        books.record.flush(120)  # MLflow makes its tables
        for start in range(0, runs, WINDOW):
            began = time.perf_counter(), time.process_time()
            for _ in range(0, min(WINDOW, runs - start), 2):
                pair = [job for job in (queue.next(), queue.next()) if job]
                for job in pair:
                    books.started(job.fingerprint)
                    books.worker(job.fingerprint, {"host": "here", "device": "cpu"})
                for epoch in range(1, EPOCHS + 1):
                    for job in pair:
                        books.epoch(job.fingerprint, epoch, EPOCH)
                        books.worth_going_on(job.fingerprint, epoch, EPOCH)
                books.beat()
                for job in pair:
                    outcome = Outcome({**FINAL, "best_epoch": EPOCHS}, left(folder, job.fingerprint))
                    queue.ended(job, books.ended(job.fingerprint, outcome))
            if books.record.flush(300):
                raise SystemExit(f"the record is not sent: {books.problem()}")
            taken.append((time.perf_counter() - began[0], time.process_time() - began[1]))
        books.record.stop()
    few, many = taken[0], taken[-1]
    yield Row(
        f"driver and desk, per run, at {runs:,} simulated runs",
        f"at {WINDOW // 2}",
        many[0] / few[0],
        1.2,
        False,
        f"what a run says: {EPOCHS} epochs of {len(EPOCH)} numbers and its files",
        f"{1000 * many[0] / WINDOW:.0f} ms, {1000 * few[0] / WINDOW:.0f} ms a run "
        f"(CPU {1000 * many[1] / WINDOW:.0f} ms, {1000 * few[1] / WINDOW:.0f} ms)",
    )
