"""The record of a search, against a real MLflow server that is killed, deleted from and replaced."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from ram_tune.config import Config
from ram_tune.options import masked
from ram_tune.search.jobs import Job
from ram_tune.search.outbox import Outbox
from ram_tune.search.provenance import environment, provenance
from ram_tune.search.record import REPORT, About, Record
from ram_tune.search.sender import sqlite_file, table_of

TRACEBACK = 'Traceback (most recent call last):\n  File "loop.py", line 3, in fit\nValueError: no images\n'
WEIGHTS = "best.pt"
COMMAND = "search constraints --tracking-uri http://me:secret@host " + "y" * 9000


class Server:
    """`mlflow server` on a store of its own, always at the same port."""

    def __init__(self, folder: Path):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.uri = f"http://me:secret@127.0.0.1:{self.port}"

    def start(self) -> None:
        store, artifacts = f"sqlite:///{self.folder}/server.db", str(self.folder / "artifacts")
        options = ["--workers", "1", "--port", str(self.port)]
        options += ["--backend-store-uri", store, "--artifacts-destination", artifacts]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        until = time.monotonic() + 240  # on a machine with other work
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(f"{self.address}/health", timeout=1)
                return
            except OSError:
                time.sleep(0.1)
        self.kill()
        raise TimeoutError("mlflow server does not start")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.address)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def record(server: Server, tmp_path: Path, about: About) -> Iterator[Record]:
    record = Record(tmp_path / "search", about, server.uri)
    yield record
    record.stop()


@pytest.fixture
def about(request: pytest.FixtureRequest) -> About:
    return about_search(f"{request.node.name}-1")


def about_search(study: str, experiment: str = "constraints-scenes") -> About:
    params = {**Config().flat(), "long": "x" * 7000}
    return About(experiment, study, "Constraints", "Do they help?", COMMAND, params, {"ram_tune.who": "us"})


def job(setting: str, seed: int = 0) -> Job:
    config = Config.model_validate({"training": {"seed": seed}})
    return Job("train", setting, config, f"{setting}-{seed}-print", "dataset-print")


def results(folder: Path) -> str:
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "metrics.json").write_text("{}")
    (folder / "per_label.csv").write_text("label,positives,AP,AP_11\r\ncat,3,0.500000,0.600000\r\ndog,0,nan,nan\r\n")
    (folder / "scores.npz").write_bytes(b"scores")
    (folder / WEIGHTS).write_bytes(b"weights")
    return str(folder)


def epoch(number: int) -> dict[str, float]:
    return {"selection/mAP": number / 10, "train/loss": 1 / number}


def runs(client: MlflowClient, search: About) -> dict[str, Run]:
    """Setting (or `search`) → its run."""
    experiment = client.get_experiment_by_name(search.experiment)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"tags.`ram_tune.study` = '{search.study}'")
    named = {run.data.tags.get("ram_tune.setting", "search"): run for run in found}
    assert len(named) == len(found)
    return named


def history(client: MlflowClient, run: Run) -> dict[str, list[Any]]:
    """Metric → (step, value, time) of each of its rows."""
    return {
        name: [(m.step, str(m.value), m.timestamp) for m in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }


def steps(client: MlflowClient, run: Run, name: str) -> list[int]:
    return [step for step, _, _ in history(client, run)[name]]


def text(client: MlflowClient, run: Run, path: str, to: Path) -> str:
    return Path(client.download_artifacts(run.info.run_id, path, str(to))).read_text()


def wait_for(condition: Callable[[], bool], timeout: float = 30) -> None:
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def small_search(record: Record, tmp_path: Path) -> None:
    """One finished job of three epochs, one failed."""
    one, two = job("one"), job("two")
    record.open()
    record.started(one)
    record.started(two)
    for number in (1, 2, 3):
        record.epoch(one.fingerprint, number, epoch(number))
    record.epoch(two.fingerprint, 1, {"train/loss": math.nan, "selection/loss": math.inf})
    record.failed(two.fingerprint, TRACEBACK)
    record.finished(
        one.fingerprint, {"best_epoch": 3, "selection/mAP": 0.3, "test/mAP": 0.2}, results(tmp_path / "one")
    )
    record.best("selection/mAP", 0.3, 1)
    record.close("one 0.2", "FINISHED")


def test_a_search_whose_server_is_killed_is_recorded_whole(
    server: Server, record: Record, about: About, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    one, two = job("A+S+P"), job("none", seed=1)
    record.open()
    record.started(one)
    record.worker(one.fingerprint, {"ram_tune.host": "node1"})
    for number in (1, 2, 3):
        assert record.epoch(one.fingerprint, number, epoch(number))
    assert record.flush(30) == 0 and record.problem == ""
    server.kill()

    begin = time.monotonic()
    for number in (3, 4, 5, 6):  # it goes on from a checkpoint: epoch 3 comes again
        assert record.epoch(one.fingerprint, number, epoch(number)) is (number > 3)
    record.started(two)
    record.epoch(two.fingerprint, 1, epoch(1))
    record.failed(two.fingerprint, TRACEBACK)
    record.finished(one.fingerprint, {"best_epoch": 6, **epoch(6), "test/mAP": 0.4}, results(tmp_path / "one"))
    record.best("selection/mAP", 0.6, 1)
    (record.folder / REPORT).write_text("<p>A+S+P</p>")
    record.close("A+S+P 0.4", "FINISHED", "| arm | mAP |\n| A+S+P | 0.4 |")
    assert time.monotonic() - begin < 5
    assert record.flush(30) > 0
    assert f"127.0.0.1:{server.port}" in record.problem and "secret" not in record.problem

    server.start()
    wait_for(lambda: record.flush(30) == 0)
    assert record.problem == "" and record.rejected == []

    client = server.client
    found = runs(client, about)
    assert found.keys() == {"search", "A+S+P", "none"}
    parent, first, second = found["search"], found["A+S+P"], found["none"]

    assert parent.info.status == "FINISHED" and parent.info.run_name == "Constraints"
    assert parent.data.tags.items() >= {"ram_tune.role": "search", "ram_tune.who": "us"}.items()
    description = parent.data.tags["mlflow.note.content"]
    assert description.startswith("Do they help?\n\n```sh\nsearch constraints --tracking-uri http://***@host yyy")
    assert description.endswith("yyy …\n```\n\n| arm | mAP |\n| A+S+P | 0.4 |")
    assert parent.data.tags["ram_tune.command"].startswith("search constraints --tracking-uri http://***@host yyy")
    assert parent.data.params["model.regions"] == "5" and len(parent.data.params["long"]) == 6000
    assert [row[:2] for row in history(client, parent)["best/selection_mAP"]] == [(1, "0.6")]
    assert text(client, parent, "table.txt", tmp_path) == "A+S+P 0.4"
    assert text(client, parent, REPORT, tmp_path) == "<p>A+S+P</p>"
    assert "mlflow==" in text(client, parent, "environment.txt", tmp_path)

    assert first.info.status == "FINISHED" and first.info.run_name == "A+S+P · seed 0"
    tags = {
        "mlflow.parentRunId": parent.info.run_id,
        "ram_tune.role": "train",
        "ram_tune.setting": "A+S+P",
        "ram_tune.seed": "0",
        "ram_tune.fingerprint": one.fingerprint,
        "ram_tune.study": about.study,
        "ram_tune.dataset": "dataset-print",
        "ram_tune.host": "node1",
        "mlflow.loggedArtifacts": '[{"path": "per_label.json", "type": "table"}]',
        **{name: value for name, value in provenance().items() if name.startswith("ram_tune.")},
    }
    assert first.data.tags.items() >= tags.items()
    assert first.data.params == {name: str(value) for name, value in one.config.flat().items()}
    assert steps(client, first, "selection/mAP") == steps(client, first, "train/loss") == [1, 2, 3, 4, 5, 6]
    assert [row[:2] for row in history(client, first)["test/mAP"]] == [(6, "0.4")]
    files = {file.path for file in client.list_artifacts(first.info.run_id)}
    assert files == {"config.yaml", "metrics.json", "per_label.csv", "per_label.json", "scores.npz"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)  # load_table looks there, whatever its client
    table = client.load_table(parent.info.experiment_id, "per_label.json", [first.info.run_id])
    assert table["label"].tolist() == ["cat", "dog"] and str(table["AP"].tolist()) == "[0.5, nan]"
    assert first.info.end_time and first.info.end_time >= first.info.start_time

    assert second.info.status == "FAILED" and second.data.tags["ram_tune.error"] == "ValueError: no images"
    assert text(client, second, "traceback.txt", tmp_path) == TRACEBACK


@pytest.mark.parametrize("again", ["last", "all"])
def test_what_was_sent_and_not_yet_marked_is_not_written_twice(
    again: str, server: Server, record: Record, about: About, tmp_path: Path
):
    small_search(record, tmp_path)
    assert record.flush(30) == 0
    before = {name: (history(server.client, run), run.info) for name, run in runs(server.client, about).items()}
    with sqlite3.connect(record.outbox.database.execute("PRAGMA database_list").fetchone()[2]) as database:
        database.execute(f"UPDATE entries SET sent = 0 WHERE id > {4 if again == 'last' else 0}")
    assert record.flush(30) == 0 and record.rejected == []
    after = {name: (history(server.client, run), run.info) for name, run in runs(server.client, about).items()}
    assert str(after) == str(before)
    assert after["two"][0]["train/loss"][0][:2] == (1, "nan")
    assert after["two"][0]["selection/loss"][0][0] == 1
    table = json.loads(text(server.client, runs(server.client, about)["one"], "per_label.json", tmp_path))
    assert table["data"] == [["cat", 3, 0.5, 0.6], ["dog", 0, None, None]]


def test_a_later_process_goes_on_with_the_same_runs(server: Server, record: Record, about: About, tmp_path: Path):
    small_search(record, tmp_path)
    record.flush(30)
    before = runs(server.client, about)
    record.stop()

    later, two = Record(tmp_path / "search", about, server.uri), job("two")
    later.open()
    later.started(two)
    assert later.flush(30) == 0
    found = runs(server.client, about)
    assert found["search"].info.status == found["two"].info.status == "RUNNING"
    assert "ram_tune.error" not in found["two"].data.tags
    assert not later.epoch(two.fingerprint, 1, epoch(1))
    assert later.epoch(two.fingerprint, 2, epoch(2))
    for _ in range(2):
        later.finished(two.fingerprint, {"best_epoch": 2, "test/mAP": 0.5}, results(tmp_path / f"two{_}"))
    later.stopped(job("one").fingerprint)
    later.close("both", "KILLED")
    assert later.flush(30) == 0 and later.rejected == []
    later.stop()

    found = runs(server.client, about)
    assert {name: run.info.run_id for name, run in found.items()} == {n: run.info.run_id for n, run in before.items()}
    assert {name: run.info.status for name, run in found.items()} == {
        "search": "KILLED",
        "one": "KILLED",
        "two": "FINISHED",
    }
    assert steps(server.client, found["two"], "train/loss") == [1, 2]
    assert steps(server.client, found["two"], "test/mAP") == [2]


def test_another_destination_gets_the_whole_record_and_gets_it_again_when_it_was_deleted(
    server: Server, record: Record, about: About, tmp_path: Path
):
    small_search(record, tmp_path)
    record.flush(30)
    record.stop()

    def send() -> tuple[MlflowClient, dict[str, Run]]:
        other = Record(tmp_path / "search", about, f"sqlite:///{tmp_path}/other/mlflow.db")
        assert other.flush(60) == 0 and other.rejected == []
        other.stop()
        client = MlflowClient(f"sqlite:///{tmp_path}/other/mlflow.db")
        found = runs(client, about)
        for name, run in runs(server.client, about).items():
            assert str(history(client, found[name])) == str(history(server.client, run))
            assert found[name].info.status == run.info.status and found[name].data.params == run.data.params
        assert text(client, found["two"], "traceback.txt", tmp_path) == TRACEBACK
        return client, found

    client, first = send()
    with sqlite3.connect(tmp_path / "other" / "mlflow.db") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert (tmp_path / "other" / "mlruns" / first["one"].info.run_id / "artifacts" / "scores.npz").is_file()
    for run in first.values():
        client.delete_run(run.info.run_id)
    _, second = send()
    assert second["search"].info.run_id != first["search"].info.run_id


def test_a_refused_entry_stands_in_nobodys_way(server: Server, record: Record, about: About):
    one = job("one")
    record.open()
    record.epoch("never started", 1, epoch(1))
    record.started(one)
    record.epoch(one.fingerprint, 1, epoch(1))
    record.epoch(one.fingerprint, 2, {"no # in names": 1.0})
    record.epoch(one.fingerprint, 3, epoch(3))
    record.finished(one.fingerprint, {"best_epoch": 3, "test/mAP": 0.5}, "/no/such/folder")
    record.close("", "FINISHED")
    assert record.flush(30) == 0 and record.problem == ""
    found = runs(server.client, about)
    assert steps(server.client, found["one"], "train/loss") == [1, 3]
    assert found["one"].info.status == found["search"].info.status == "FINISHED"
    assert found["one"].data.metrics["test/mAP"] == 0.5
    said = sorted(record.rejected)
    assert len(said) == 3
    assert said[0] == "epoch 1 of run never started: run never started was never started"
    assert said[1].startswith("epoch 2 of run one-0-print: ") and "no # in names" in said[1]
    assert said[2].startswith("finished 1 of run one-0-print: /no/such/folder is gone")


def test_many_epochs_of_many_metrics_and_of_interleaved_runs(server: Server, record: Record, about: About):
    one, two = job("one"), job("two")
    record.open()
    record.started(one)
    record.started(two)
    for number in range(1, 31):
        for each in (one, two):
            record.epoch(each.fingerprint, number, {f"m{index}": number / 7 for index in range(50)})
    assert record.flush(30) == 0
    for run in (runs(server.client, about)[name] for name in ("one", "two")):
        assert all(steps(server.client, run, name) == list(range(1, 31)) for name in ("m0", "m49"))


def test_a_deleted_experiment_is_restored(server: Server, tmp_path: Path):
    about = about_search("restored-1", experiment="deleted")
    server.client.delete_experiment(server.client.create_experiment("deleted"))
    record = Record(tmp_path, about, server.uri)
    record.open()
    assert record.flush(30) == 0
    assert runs(server.client, about)["search"].info.status == "RUNNING"
    record.stop()


def test_the_constructor_does_not_ask_for_mlflow(tmp_path: Path, about: About):
    code = (
        "import sys; from pathlib import Path; from ram_tune.search.record import About, Record;"
        f"Record(Path({str(tmp_path)!r}), About('e', 's', 't', 'q', 'c'), 'http://127.0.0.1:1').open();"
        "print([name for name in ('torch', 'ray', 'mlflow') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert Outbox(tmp_path / "outbox.db").pending() == 1


def test_what_could_not_be_sent_is_said(tmp_path: Path, about: About):
    record = Record(tmp_path / "away", about, "http://127.0.0.1:1")
    record.open()
    record.close("table", "FINISHED")
    (sentence,) = record.settle(30)
    assert sentence.startswith("2 entries of the record are not in MLflow yet (MLflow at http://127.0.0.1:1 cannot be")
    assert record.status == "FINISHED"
    record.open()
    assert record.status == ""
    record.stop()


def test_passwords_are_masked():
    assert masked("at http://me:p@ss@host:1/x said") == "at http://***@host:1/x said"
    assert masked("postgresql://host/db?user=me&password=word&x=1") == "postgresql://host/db?user=me&password=***&x=1"


def test_sqlite_files_are_named_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert sqlite_file("sqlite:///mlflow.db") == sqlite_file(f"sqlite:///{tmp_path}/mlflow.db?timeout=3")
    assert sqlite_file("http://host") is None


def test_table_of_a_csv():
    assert table_of("label,n,AP\ncat,2,0.5\n") == {"columns": ["label", "n", "AP"], "data": [["cat", 2, 0.5]]}


def test_provenance_knows_the_commit_of_a_checkout(tmp_path: Path):
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    names = {"mlflow.source.git.commit", "ram_tune.dirty"}
    package = tmp_path / "package"
    package.mkdir()
    assert not names & provenance(package).keys()
    git("init")
    (package / "a.py").write_text("a")
    assert not names & provenance(package).keys()
    git("add", ".")
    git("commit", "-m", "a")
    found = provenance(package)
    assert found["mlflow.source.git.commit"] == git("rev-parse", "HEAD") and found["ram_tune.dirty"] == "false"
    (tmp_path / "mlflow.db").write_text("not code")
    assert provenance(package)["ram_tune.dirty"] == "false"
    (package / "b.py").write_text("b")
    assert provenance(package)["ram_tune.dirty"] == "true"


def test_environment_is_sorted():
    lines = environment().splitlines()
    assert lines == sorted(lines, key=str.lower) and any(line.startswith("mlflow==") for line in lines)
