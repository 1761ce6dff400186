"""MLflow and Optuna on PostgreSQL, as on a cluster's head: server and database come and go, and every point is there."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from searches import DRAWN, Searches

from ram_tune.config import Config
from ram_tune.search.jobs import Job
from ram_tune.search.record import About, Record
from ram_tune.search.settings import tried
from ram_tune.search.study import open_study

pytestmark = pytest.mark.drill

RUNS, EPOCHS = 8, 50
STAGES = 7  # of some seven epochs each, with something lost between most of them
EPOCH_SECONDS = 0.2


class Postgres:
    """A server of its own: a temporary folder, a socket in it and no port; it knows its user by the socket."""

    def __init__(self, programs: Path, owner: str | None):
        self.programs, self.owner = programs, owner
        # Not pytest's: that is closed to other users, and too long for a socket's name.
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        if owner:
            shutil.chown(self.folder, owner)
        self.data = str(self.folder / "data")
        user = ["--username", getpass.getuser(), "--auth-local", "peer", "--auth-host", "reject"]
        self.call("initdb", "--pgdata", self.data, *user, "--encoding", "UTF8", "--locale", "C", "--no-sync")

    def call(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self.programs / program, *arguments],
            user=self.owner,
            group=self.owner,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            check=True,
        )

    def control(self, *what: str) -> None:
        log = str(self.folder / "log")
        self.call("pg_ctl", *what, "--pgdata", self.data, "--log", log, "--options", f"-h '' -k {self.folder}")

    def ask(self, statement: str, database: str = "mlflow") -> list[tuple]:
        import psycopg2

        connection = psycopg2.connect(host=str(self.folder), dbname=database)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def url(self, database: str) -> str:
        return f"postgresql+psycopg2:///{database}?host={self.folder}"


class Server:
    """`mlflow server` as cluster.yaml starts it, always at the same port."""

    def __init__(self, store: str, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.command = [sys.executable, "-m", "mlflow", "server", "--port", self.address.rpartition(":")[2]]
        self.command += ["--workers", "1", "--backend-store-uri", store, "--artifacts-destination", str(folder)]

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(self.answers, 120)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=5):
                return True
        except OSError:
            return False

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def postgres():
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    program = found[-1] if found else shutil.which("initdb")
    if program is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    owner = "postgres" if os.geteuid() == 0 else None  # it will not run as root
    if owner and owner not in {user.pw_name for user in pwd.getpwall()}:
        pytest.skip("root, and no user postgres to run PostgreSQL")
    postgres = Postgres(Path(program).parent, owner)
    postgres.control("start")
    try:
        for database in ("mlflow", "optuna"):
            postgres.ask(f"CREATE DATABASE {database}", "postgres")
        yield postgres
    finally:
        postgres.control("stop", "--mode", "immediate")
        shutil.rmtree(postgres.folder)


@pytest.fixture(scope="module")
def server(postgres, tmp_path_factory):
    server = Server(postgres.url("mlflow"), tmp_path_factory.mktemp("artifacts"))
    server.start()
    yield server
    server.kill()


def wait_for(condition, timeout):
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)


def runs(client, experiment):
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id])


def metrics(run, epoch):
    """Of an epoch: four that differ from run to run, and one that is no number."""
    values = {f"selection/m{index}": epoch / (run + index + 1) for index in range(4)}
    return {**values, "train/loss": float("nan") if epoch == 7 else 1 / epoch}


class Writers:
    """Runs that tell a record of their epochs, all at once; of each stage's only after `begin`."""

    def __init__(self, record, jobs):
        self.record, self.jobs = record, jobs
        self.begun = [threading.Event() for _ in range(STAGES)]
        self.threads = [threading.Thread(target=self.write, args=(index,)) for index in range(len(jobs))]
        for thread in self.threads:
            thread.start()

    def begin(self, stage):
        self.begun[stage].set()

    def write(self, index):
        job = self.jobs[index]
        self.record.started(job)
        for epoch in range(1, EPOCHS + 1):
            self.begun[(epoch - 1) * STAGES // EPOCHS].wait()
            self.record.epoch(job.fingerprint, epoch, metrics(index, epoch))
            time.sleep(EPOCH_SECONDS)

    def end(self):
        for event in self.begun:
            event.set()
        for thread in self.threads:
            thread.join()


def test_no_point_is_lost_while_eight_runs_write(postgres, server, tmp_path):
    from mlflow import MlflowClient

    about = About("drill", "drill-1", "Drill", "Is all of it there?", "search", Config().flat())
    jobs = [Job("train", f"#{n}", Config.model_validate({"training": {"seed": n}}), f"r{n}", "d") for n in range(RUNS)]
    record = Record(tmp_path / "search", about, server.address)
    record.open()
    record.start_sending()

    def points():
        return postgres.ask("SELECT count(*) FROM metrics")[0][0]

    def more_points():
        before = points()

        def arrived():
            record.flush(0)  # it need not wait for its next attempt
            return points() > before

        wait_for(arrived, 60)

    writers = Writers(record, jobs)
    try:
        writers.begin(0)
        more_points()
        server.kill()
        writers.begin(1)
        wait_for(lambda: record.problem, 30)
        server.start()
        more_points()
        for stage, mode in ((2, "immediate"), (4, "fast")):  # as when it crashed; as when it was upgraded
            writers.begin(stage)
            more_points()
            postgres.control("restart", "--mode", mode)
            writers.begin(stage + 1)  # or nothing might be left to come
            more_points()
    finally:
        writers.end()
    for job in jobs:
        record.finished(job.fingerprint, {"best_epoch": EPOCHS, "test/mAP": 0.5}, str(tmp_path))
    record.best("selection/mAP", 0.5, RUNS)
    record.close("a table", "FINISHED")
    wait_for(lambda: record.flush(30) == 0, 60)
    assert record.rejected == [] and record.problem == ""
    record.stop()

    client = MlflowClient(server.address)
    found = {run.data.tags.get("ram_tune.fingerprint", ""): run for run in runs(client, "drill")}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert found.keys() == {"", *(job.fingerprint for job in jobs)}
    rows = Counter(postgres.ask("SELECT run_uuid, key, step, value, is_nan FROM metrics"))
    expected = Counter({(found[""].info.run_id, "best/selection_mAP", RUNS, 0.5, False): 1})
    for index, job in enumerate(jobs):
        run = found[job.fingerprint].info.run_id
        expected[run, "test/mAP", EPOCHS, 0.5, False] = expected[run, "best_epoch", EPOCHS, 50.0, False] = 1
        for epoch in range(1, EPOCHS + 1):
            for name, value in metrics(index, epoch).items():
                none = value != value  # which MLflow writes as a zero with a mark
                expected[run, name, epoch, 0.0 if none else value, none] = 1
    assert rows == expected


def test_a_search_keeps_its_study_and_its_record_there(postgres, server, pictures, tiny, tmp_path):
    from mlflow import MlflowClient

    fields = [field for field in tiny if not field.startswith("model.regions")]
    searches = Searches(tmp_path, pictures, fields, {"MLFLOW_TRACKING_URI": server.address})
    space, storage = tmp_path / "drawn.yaml", postgres.url("optuna")
    space.write_text(DRAWN)
    command = str(space), "--workers", "0", "--study-storage", storage
    first = searches.run(*command)
    assert first.returncode == 0, first.stdout + first.stderr
    assert not [path for path in tmp_path.rglob("*.db") if path.name != "outbox.db"]

    (folder,) = (path for path in (tmp_path / "ram_tune_runs").iterdir() if path.is_dir())
    study = open_study(storage, folder.name, exactly=True)
    assert study is not None
    assert {one.state for one in tried(study)} <= {"finished", "pruned"} and len(tried(study)) == 3
    assert study.note("lease") is None and study.lease.read() is None
    client = MlflowClient(server.address)

    def recorded():
        found = runs(client, "drawn-pictures")
        named = {run.info.run_name: run for run in found if run.data.tags["ram_tune.role"] != "search"}
        assert len(named) == len(found) - 1
        return {
            name: sorted(point.step for point in client.get_metric_history(run.info.run_id, "train/loss"))
            for name, run in named.items()
        }

    epochs = recorded()
    trained = {run["setting"]: run["epochs"] for run in study.runs().values()}
    assert epochs == {
        name if name == "stage 1" else f"{name} · seed 0": list(range(1, last + 1)) for name, last in trained.items()
    }
    assert trained["stage 1"] == 2 and 3 in trained.values()

    again = searches.run(*command)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "started" in first.stdout and "started" not in again.stdout
    assert recorded() == epochs
