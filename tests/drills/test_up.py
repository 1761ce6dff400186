"""`ray up` of cluster.yaml's file for one's own machines onto simulated hosts; searches sent there, one host cut off, and
`ray down`.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import yaml
from drills.hosts import KEY, Host, Hosts, hosts, missing
from searches import Searches
from test_cluster import ROOT, own_machines

pytestmark = pytest.mark.drill

UNIT = re.compile(r"Environment=(?P<variable>MLFLOW\S+)\n.*ExecStart=(?P<command>.*?)\n", re.DOTALL)
EPOCH = re.compile(r"A\+S · seed 0 +epoch +(\d+)/")
RAY = "^ray::|[r]aylet/raylet|[g]cs/gcs_server|ray/[d]ashboard/|ray/[a]utoscaler/|ray/[_]private/"
"""Command lines of Ray's processes, of which every host must have none in the end."""

LOGS = "/tmp/ray/session_latest/logs"

STARTS = 5
"""On a busy machine Ray may give up its own agent, for which it waits 15 s, and never starts such a worker again."""

EPOCHS = 100
SOME = 5  # epochs, until the plug is pulled
PATIENCE = 900.0
"""Seconds after which a command is given up; on an idle machine each takes two minutes at most."""


def file_for(head: Host, workers: list[Host]) -> dict[str, Any]:
    """cluster.yaml as docs/cluster.md turns it into a file for one's own machines, but for what these hosts cannot do.

    They reach no archive of packages, and have no systemd, PostgreSQL or NFS: commands for those fall away, folders are made
    as it is written there, and MLflow is started as its unit would, with SQLite. A worker has one CPU to give.
    """
    text = own_machines((ROOT / "cluster.yaml").read_text())
    values = {"head-address": head.address, "first-worker": workers[0].address, "second-worker": workers[1].address}
    for name, value in {**values, "user": "root"}.items():
        text = text.replace(f"<{name}>", value)
    config = yaml.safe_load(text)
    for name in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        config[name] = [kept for command in config[name] if (kept := _as_here(command))]
    for name, cpus in (("head", ""), ("worker", "--num-cpus=1 ")):
        stop, start = config[f"{name}_start_ray_commands"]
        before, start = start.split("ray start ")
        start = f"flock -o /shared/turn ray start --object-store-memory=100000000 {cpus}{start}"  # one host at a time
        again = " || ".join([start, *[f"{{ ray stop; {start}; }}"] * (STARTS - 1)])
        config[f"{name}_start_ray_commands"] = [stop, before + again]
    return config


def _as_here(command: str) -> str:
    """What these hosts can do of one of cluster.yaml's commands."""
    if unit := UNIT.search(command):
        serve = re.sub(r"postgresql\S+", "sqlite:///$HOME/records/mlflow.db", unit["command"])
        return f"mkdir -p ~/records; {unit['variable']} setsid nohup {serve} >~/mlflow.log 2>&1 </dev/null &"
    if "sudo" in command:
        folders = [line for line in command.splitlines() if line.startswith("sudo install -d -o")]
        return "\n".join(folders).replace("sudo ", "")
    return "" if "pip install" in command else command


@dataclass
class Cluster:
    """The cluster on simulated hosts, as whoever sits at the desk sees it."""

    hosts: Hosts
    head: Host
    workers: list[Host]
    came_up: str = ""  # how long it took

    def command(self, command: str) -> list[str]:
        """Something typed in the clone."""
        path = f"{Path(sys.prefix) / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin"
        variables = {"PATH": path, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
        return self.hosts.desk.command(command, folder=str(ROOT), **variables)

    def run(self, command: str) -> str:
        done = subprocess.run(
            self.command(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def wait_for(self, machines: int) -> None:
        """Wait until Ray counts so many machines, the head among them."""
        until, counted = time.monotonic() + PATIENCE, ""
        while counted != str(machines):
            if time.monotonic() > until:
                pytest.fail(f"{machines} machines never came:\n" + self.head.run(f"tail -n 200 {LOGS}/monitor.*"))
            time.sleep(1)
            log = self.head.run(f"tail -n 40 {LOGS}/monitor.log", check=False)  # has what `ray status` says, every 5 s
            counted = (re.findall(r"Active:\n (\d+) local.cluster.node\n", log) or [""])[-1]

    def training(self) -> list[Host]:
        """The hosts on which a run is trained now."""
        return [host for host in self.workers if host.run("pgrep -f ^ray::RayTrainWorker", check=False)]

    @contextmanager
    def submit(self, searches: Searches, *options: str) -> Iterator[Iterator[str]]:
        """A search sent to the cluster → the lines it prints as they come; it must succeed."""
        command = self.command(shlex.join(searches.command("constraints", "--submit", *options)))
        search = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        guard = Timer(PATIENCE, search.kill)
        guard.start()
        said: list[str] = []
        assert search.stdout
        try:
            yield (said.append(line) or line for line in search.stdout)
            said += search.stdout
            assert search.wait() == 0, "".join(said)
            if "not in MLflow yet" in "".join(said):  # on a busy machine; what to do is said there
                self.run(shlex.join(searches.command("constraints", "--submit", *options)))
        finally:
            guard.cancel()
            search.kill()
            search.wait()

    def searches(self, data: str, fields: list[str]) -> Searches:
        """Searches on the pictures under this name, with MLflow's record where the head has it."""
        folder = self.hosts.shared / "datasets"
        shutil.copy(folder / "labels.csv", folder / f"{data}.csv")
        fields = [field for field in fields if not field.startswith("training.epochs")]
        return Searches(
            self.head.home / "records", Path(f"/shared/datasets/{data}.csv"), [*fields, f"training.epochs={EPOCHS}"]
        )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Iterator[Cluster]:
    """A head and two workers, brought up from the desk as docs/cluster.md has it."""
    if lacking := missing():
        pytest.skip(f"simulated hosts: {lacking}")
    folder = tmp_path_factory.mktemp("hosts")
    with hosts(["head", "worker-1", "worker-2"], folder, ROOT) as all_hosts:
        head, *workers = all_hosts.others
        for host in all_hosts.others:  # the environment is there; its package is to be the one that `ray up` brings
            host.run(
                "touch ram_tune/.venv/.ready; echo ~/ram_tune >$(ls ram_tune/.venv/lib/python3*/site-packages/*ram_tune*.pth)"
            )
        shutil.copytree(pictures.parent, all_hosts.shared / "datasets")
        (all_hosts.desk.home / "own.yaml").write_text(yaml.safe_dump(file_for(head, workers), sort_keys=False))
        made = Cluster(all_hosts, head, workers)
        made.run("ray get-auth-token --generate")
        assert "nothing is left open" in made.run("python -m ram_tune.cluster check ~/own.yaml")
        begin = time.monotonic()
        made.run("ray up -y --no-config-cache ~/own.yaml")
        head_up = time.monotonic() - begin
        made.wait_for(3)
        made.came_up = f"ray up: the head after {head_up:.0f} s, both workers after {time.monotonic() - begin:.0f} s"
        with _dashboard(made):
            yield made


@contextmanager
def _dashboard(cluster: Cluster) -> Iterator[None]:
    """`ray dashboard`, without which nothing at the desk reaches the cluster but SSH."""
    forward = subprocess.Popen(
        cluster.command("exec ray dashboard ~/own.yaml"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 60
        while cluster.hosts.desk.run("echo >/dev/tcp/127.0.0.1/8265", check=False) and time.monotonic() < until:
            time.sleep(0.5)
        yield
    finally:
        forward.terminate()
        forward.wait()


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Have a line printed in the end, though the drill succeeds: how long things took."""
    return lambda line: record_property("", line)


def epochs(searches: Searches, experiment: str) -> list[tuple[int, float]]:
    """The epochs of the one arm and when each came, where MLflow has every run, finished, with each epoch once."""
    parent, children = searches.children(experiment)
    assert set(children) == {"stage 1", "A+S · seed 0"}
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
    assert searches.epochs(children["stage 1"]) == [1, 2]
    points = searches.client.get_metric_history(children["A+S · seed 0"].info.run_id, "train/loss")
    found = sorted((point.step, point.timestamp / 1000) for point in points)
    assert [step for step, _ in found] == list(range(1, EPOCHS + 1))
    return found


def went_on(found: list[tuple[int, float]], cut: float) -> tuple[int, float]:
    """The epoch that ended the longest wait after a moment, and when it came."""
    after = [(then - before, epoch, then) for (_, before), (epoch, then) in pairwise(found) if then > cut]
    _, epoch, then = max(after)
    return epoch, then


def test_a_run_goes_on_at_the_host_that_is_left(cluster: Cluster, tiny: list[str], tell: Callable[[str], None]):
    tell(cluster.came_up)
    searches = cluster.searches("left", tiny)
    lost, seen, cut, back = None, 0, 0.0, 0.0
    with cluster.submit(searches, "--arms", "A+S") as lines:
        for _ in filter(EPOCH.match, lines):
            seen += 1
            if not lost and seen >= SOME:
                (lost,) = cluster.training()
                cluster.hosts.cable(lost, "down")
                cut = time.time()
            elif lost and not back and any(host is not lost for host in cluster.training()):
                cluster.hosts.cable(lost, "up")
                back = time.time()
    assert lost and back, "it was over before the other host had a turn"
    epoch, then = went_on(epochs(searches, "constraints-left"), cut)
    tell(f"{lost.name} cut off: the other host went on with epoch {epoch} of {EPOCHS} after {then - cut:.0f} s")
    cluster.wait_for(3)
    tell(f"{lost.name} back: Ray knew it again, at the latest, after {time.time() - back:.0f} s")


def test_a_run_on_both_hosts_waits_for_the_one_that_is_gone(
    cluster: Cluster, tiny: list[str], tell: Callable[[str], None]
):
    searches = cluster.searches("both", tiny)
    lost = cluster.workers[1]
    seen, cut, back = 0, 0.0, 0.0
    with cluster.submit(searches, "--arms", "A+S", "--workers", "2") as lines:
        for _ in filter(EPOCH.match, lines):
            seen += 1
            if not cut and seen >= SOME:
                assert cluster.training() == cluster.workers
                cluster.hosts.cable(lost, "down")
                cut = time.time()
                cluster.wait_for(2)
                cluster.hosts.cable(lost, "up")
                back = time.time()
    epoch, then = went_on(epochs(searches, "constraints-both"), cut)
    assert then > back > cut > 0
    tell(f"{lost.name} cut off until Ray noticed, {back - cut:.0f} s")
    tell(f"{lost.name} back: both went on with epoch {epoch} of {EPOCHS} after {then - back:.0f} s")


def test_down_and_nothing_is_left(cluster: Cluster, tell: Callable[[str], None]):
    begin = time.monotonic()
    cluster.run("ray down -y ~/own.yaml")
    took = time.monotonic() - begin
    left = [host.name for host in cluster.hosts.others if host.run(f"pgrep -f '{RAY}'", check=False)]
    tell(f"ray down took {took:.0f} s; Ray's processes were still on {', '.join(left) or 'none'}")
    for host in cluster.workers:  # as docs/cluster.md has it
        cluster.hosts.desk.run(f"ssh -i {KEY} {host.address} ray stop", timeout=PATIENCE)
    for host in cluster.hosts.others:
        assert host.run(f"pgrep -af '{RAY}'", check=False) == "", host.name
