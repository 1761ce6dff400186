"""Searches sent as jobs to a real cluster that asks for a token: left, followed, listed, stopped, and gone on with."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from searches import Searches

import ram_tune
from ram_tune.search import space as spaces

pytestmark = pytest.mark.drill

TOKEN = "a-token-of-the-drill-with-at-least-32-characters"
PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "ray-client-server-port",
    "runtime-env-agent-port",
)
STARTS = 6
"""On a busy machine Ray may give up its own agent, for which it waits 15 s."""
GAVE_UP = "Timed out waiting for file"


@dataclass
class Cluster:
    """A head that trains too; `shared` is what its machines would share."""

    url: str
    shared: Path
    token: Path

    def client(self, **more: str) -> dict[str, str]:
        """The environment of a user: nothing of the cluster's but the way to it and its token."""
        dropped = ("RAY_", "RAM_TUNE_R", "RAM_TUNE_S", "RAM_TUNE_C", "MLFLOW_")
        own = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        return {**own, "RAY_API_SERVER_ADDRESS": self.url, "RAY_AUTH_TOKEN_PATH": str(self.token), **more}


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One of its own on this machine, whatever other clusters run here."""
    shared = tmp_path_factory.mktemp("shared")
    token = tmp_path_factory.mktemp("home") / "auth_token"
    token.write_text(TOKEN)
    binaries = Path(sys.executable).parent
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_raylet_start_wait_time_s": "120",
        "RAM_TUNE_RESULTS": str(shared / "results"),
        "RAM_TUNE_CACHE": str(shared / "cache"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{shared}/mlflow.db",
    }
    for _ in range(STARTS):
        ports = free_ports(len(PORTS))
        folder = tempfile.mkdtemp(prefix="ray")  # short: a socket's path has 107 characters
        command = [str(binaries / "ray"), "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"]
        command += [f"--temp-dir={folder}", "--object-store-memory=200000000"]
        command += [f"--{name}={port}" for name, port in zip(PORTS, ports, strict=True)]
        with (shared / "ray.log").open("w") as log:
            head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            if started(head, shared / "ray.log", Path(folder) / "session_latest" / "logs" / "raylet.out"):
                yield Cluster(f"http://127.0.0.1:{ports[1]}", shared, token)
                return
        finally:
            end(head)
            shutil.rmtree(folder, ignore_errors=True)
    pytest.fail(f"no cluster: {(shared / 'ray.log').read_text()}")


def started(head: subprocess.Popen, log: Path, raylet: Path) -> bool:
    until = time.monotonic() + 150
    while head.poll() is None and time.monotonic() < until:
        if "Ray runtime started" in log.read_text():
            return True
        if raylet.exists() and GAVE_UP in raylet.read_text():
            return False
        time.sleep(0.5)
    return False


def end(head: subprocess.Popen) -> None:
    """This cluster, and no other on the machine: `ray stop` would end them all."""
    head.terminate()
    try:
        head.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of the user's with an edit, and a search of the user's own."""
    package = Path(ram_tune.__file__).parent
    shutil.copytree(package, tmp_path / "ram_tune", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(spaces.folder(), tmp_path / "search_spaces")
    (tmp_path / "ram_tune" / "__init__.py").write_text('"""Edited."""\n\n__version__ = "0.0.edited"\n')
    (tmp_path / "data.csv").write_text("not to be sent")
    return tmp_path


def call(cluster: Cluster, folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ram_tune.search", *arguments],
        cwd=folder,
        env=cluster.client(**more),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def status_of(request: urllib.request.Request) -> int:
    try:
        return urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


def test_without_the_token_nothing_is_answered(cluster, tmp_path):
    job = json.dumps({"entrypoint": f"touch {tmp_path}/done"}).encode()
    there = {"Content-Type": "application/json"}
    for path, data in (("", None), ("", job), ("any/stop", b""), ("any/logs", None)):
        ask = urllib.request.Request(f"{cluster.url}/api/jobs/{path}", data=data, headers=there)
        assert status_of(ask) == 401, path
        ask.add_header("Authorization", "Bearer another-token-with-32-characters-or-more")
        assert status_of(ask) == 403, path
    ask = urllib.request.Request(f"{cluster.url}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
    assert status_of(ask) == 200 and not (tmp_path / "done").exists()

    nowhere = str(tmp_path / "no" / "token")
    for command in (["constraints", "--submit"], ["--jobs"], ["--follow", "any"], ["--stop", "any"]):
        done = call(cluster, tmp_path, *command, RAY_AUTH_TOKEN_PATH=nowhere)
        assert done.returncode == 2 and "asks for a token" in done.stderr, done.stderr
    assert "no jobs" in call(cluster, tmp_path, "--jobs").stdout


def test_a_search_is_left_running_listed_and_followed_to_its_end(cluster, clone, pictures, tiny):
    (clone / "mine.yaml").write_text((spaces.folder() / "constraints.yaml").read_text())
    # Long enough not to be over when the log has come here and Ctrl-C has gone back.
    fields = [field for field in tiny if not field.startswith("training.epochs")] + ["training.epochs=60"]
    searches = Searches(clone, pictures, fields, cluster.client())
    sent = searches.start("mine.yaml", "--arms", "none", "A+S", "--workers", "0", "--submit")
    said = []
    for line in sent.stdout:
        said.append(line)
        if "epoch" in line:
            os.killpg(sent.pid, signal.SIGINT)
            break
    said += sent.stdout
    assert sent.wait() == 130, "".join(said)
    (job,) = set(re.findall(r"mine-pictures-\d{8}-\d{6}-[0-9a-f]{4}", "".join(said)))
    assert f"--follow {job}" in said[-2] and f"--stop {job}" in said[-1]

    listed = call(cluster, clone, "--jobs").stdout
    assert f"│ {job} " in listed and "--arms none A+S" in listed
    done = call(cluster, clone, "--follow", job)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "│ A+S " in done.stdout and f"{job} succeeded" in done.stdout
    assert done.stdout.count("epoch  60/60") == 2 and "\x1b" not in done.stdout
    assert "succeeded" in call(cluster, clone, "--jobs").stdout
    assert call(cluster, clone, "--stop", job).returncode == 0  # there is nothing to do

    record = Searches(cluster.shared, pictures, fields)
    parent, children = record.children("mine-pictures")
    assert set(children) == {"stage 1", "none · seed 0", "A+S · seed 0"}
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
    assert record.epochs(children["A+S · seed 0"]) == list(range(1, 61))
    assert parent.data.tags["ram_tune.version"] == "0.0.edited"  # the package that was sent, not the one that is there
    assert {path.name for path in cluster.shared.iterdir()} >= {"results", "cache", "mlflow.db", "mlruns"}


def test_a_job_is_stopped_with_its_epoch_and_the_same_command_goes_on(cluster, clone, pictures, tiny):
    fields = [field for field in tiny if not field.startswith("training.epochs")] + ["training.epochs=300"]
    searches = Searches(clone, pictures, fields, cluster.client())
    options = "constraints", "--arms", "A+S", "--workers", "0", "--submit"
    sent = searches.start(*options)
    said = []
    for line in sent.stdout:
        said.append(line)
        if "epoch   4/300" in line:
            break
    (job,) = set(re.findall(r"constraints-pictures-\d{8}-\d{6}-[0-9a-f]{4}", "".join(said)))
    stopped = call(cluster, clone, "--stop", job)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "A+S  stopped" in stopped.stdout.replace(" · seed 0", ""), stopped.stdout  # by itself, within its epoch
    assert f"{job} stopped" in stopped.stdout
    said += sent.stdout
    assert sent.wait() == 130, "".join(said)

    done = searches.run(*options)
    assert done.returncode == 0, done.stdout + done.stderr
    record = Searches(cluster.shared, pictures, fields)
    parent, children = record.children("constraints-pictures")
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
    assert record.epochs(children["A+S · seed 0"]) == list(range(1, 301))
    trained = [int(epoch) for epoch in re.findall(r"epoch +(\d+)/300", done.stdout)]
    assert trained[-1] == 300 and trained[0] > 4  # it went on
