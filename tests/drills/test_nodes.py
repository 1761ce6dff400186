"""Searches on a cluster of several nodes, which come, are taken away with notice, and are lost without."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from searches import Searches

pytestmark = pytest.mark.drill

EPOCHS = 40
OBJECT_STORE = 80_000_000


@pytest.fixture
def fields(tiny) -> list[str]:
    return [field for field in tiny if not field.startswith("training.epochs")] + [f"training.epochs={EPOCHS}"]


@contextlib.contextmanager
def nodes(*cpus: int) -> Iterator[tuple[Any, list[Any]]]:
    """A head that trains nothing, and nodes with so many CPUs."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": 0, "object_store_memory": OBJECT_STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster, [cluster.add_node(num_cpus=one, object_store_memory=OBJECT_STORE) for one in cpus]
    finally:
        cluster.shutdown()


def at_work(node: Any) -> list[int]:
    """The training processes of a node."""
    (raylet,) = node.all_processes["raylet"]
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == raylet.process.pid and (entry / "cmdline").read_bytes().startswith(b"ray::RayTrainWorker"):
                found.append(int(entry.name))
    return found


def seconds_until(true: Callable[[], object], patience: float = 120) -> float:
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < patience
        time.sleep(0.1)
    return time.monotonic() - started


def whole(searches: Searches, names: set[str], epochs: int = EPOCHS) -> None:
    parent, children = searches.children("constraints-pictures")
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
    children.pop("stage 1")
    assert set(children) == names
    for name, run in children.items():
        assert searches.epochs(run) == list(range(1, epochs + 1)), name


def until(search: subprocess.Popen[str], said: list[str], *parts: str) -> float:
    """Read on until a line has all of `parts` → when."""
    for line in search.stdout:
        said.append(line)
        if all(part in line for part in parts):
            return time.monotonic()
    pytest.fail(f"{parts} never came:\n{''.join(said)}")


def test_runs_spread_over_nodes_and_one_of_these_is_lost(pictures, fields, tmp_path, record_property):
    searches, said = Searches(tmp_path, pictures, fields), []
    with nodes(1, 1, 1) as (cluster, workers):
        options = "constraints", "--arms", "none", "A+S", "A+S+P", "--address", cluster.address
        search = searches.start(*options)
        for arm in ("none ·", "A+S ·", "A+S+P ·"):  # each has begun
            if not any(arm in line and "epoch" in line for line in said):
                until(search, said, arm, "epoch")
        assert [len(at_work(node)) for node in workers] == [1, 1, 1], "each node has a run"
        before = {name: sum(name in line and "epoch" in line for line in said) for name in ("none", "A+S ", "A+S+P")}
        cluster.remove_node(workers[1], allow_graceful=False)
        lost = time.monotonic()
        rest = search.stdout.read()
        assert search.wait() == 0, "".join(said) + rest
        record_property("seconds until the search was over", time.monotonic() - lost)
    assert all(before.values())
    whole(searches, {"none · seed 0", "A+S · seed 0", "A+S+P · seed 0"})


def test_one_of_two_nodes_of_a_run_is_lost(pictures, fields, tmp_path, record_property):
    searches, said = Searches(tmp_path, pictures, fields), []
    with nodes(1, 1, 1) as (cluster, workers):
        search = searches.start("constraints", "--arms", "A+S", "--workers", "2", "--address", cluster.address)
        until(search, said, "A+S", f"epoch   4/{EPOCHS}")
        (first, second), (spare,) = ([node for node in workers if len(at_work(node)) == n] for n in (1, 0))
        cluster.remove_node(second, allow_graceful=False)
        record_property(
            "seconds until the run was on the spare node", seconds_until(lambda: at_work(first) and at_work(spare))
        )
        rest = search.stdout.read()
        assert search.wait() == 0, "".join(said) + rest
    whole(searches, {"A+S · seed 0"})


def test_a_node_is_taken_away_with_notice(pictures, fields, tmp_path, record_property):
    searches, said = Searches(tmp_path, pictures, fields), []
    with nodes(1, 1) as (cluster, workers):
        search = searches.start("constraints", "--arms", "A+S", "--address", cluster.address)
        until(search, said, "A+S", f"epoch   4/{EPOCHS}")
        (left,), (spare,) = ([node for node in workers if len(at_work(node)) == n] for n in (1, 0))
        notice = ["drain-node", "--address", cluster.address, "--node-id", left.node_id]
        reason = [
            "--reason",
            "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message",
            "spot",
            "--deadline-remaining-seconds",
            "3",
        ]
        ray = Path(sys.executable).with_name("ray")
        subprocess.run([ray, *notice, *reason], check=True, capture_output=True, timeout=60)
        record_property("seconds until the run was elsewhere", seconds_until(lambda: at_work(spare)))
        cluster.remove_node(left, allow_graceful=False)
        rest = search.stdout.read()
        assert search.wait() == 0, "".join(said) + rest
    whole(searches, {"A+S · seed 0"})


def test_nodes_come_when_there_is_work(pictures, fields, tmp_path):
    """As on a cluster that `ray up` made: the head's file says which may come, and Ray's autoscaler starts them."""
    home, temp = tmp_path / "home", Path("/tmp") / f"ram_tune_{os.getpid()}"
    home.mkdir()
    from ray.util import get_node_ip_address

    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    address = f"{get_node_ip_address()}:{port}"
    own = {
        "gcs_address": address,
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    head = "ray.head.default"  # what Ray's provider of nodes on one machine calls it
    nothing = "setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands"
    config = {
        **{
            name: []
            for name in (*nothing, "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files")
        },
        "auth": {},
        "file_mounts": {},
        "cluster_name": "grows",
        "provider": own,
        "max_workers": 2,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 60,
        "head_node_type": head,
        "available_node_types": {
            head: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": 1, "object_store_memory": OBJECT_STORE},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
    }
    (home / "ray_bootstrap_config.yaml").write_text(json.dumps(config))
    variables = {
        "HOME": str(home),
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "0",
    }
    start = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus=0", f"--port={port}"]
    start += [f"--autoscaling-config={home / 'ray_bootstrap_config.yaml'}", f"--temp-dir={temp}"]
    start += [f"--object-store-memory={OBJECT_STORE}", "--dashboard-port=0"]
    head = subprocess.Popen(
        start, env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        for line in head.stdout:
            if "Ray runtime started" in line:
                break
        searches = Searches(tmp_path, pictures, fields, {"HOME": str(home)})
        done = searches.run("constraints", "--arms", "none", "A+S", "--address", address)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 machines are there; up to 2 more come as runs wait." in done.stdout
        whole(searches, {"none · seed 0", "A+S · seed 0"})
    finally:
        head.kill()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if str(temp).encode() in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
