"""The machines of a cluster that grows."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import yaml

from ram_tune.search.machines import Machines, may_come

HEAD, WORKER = {"CPU": 0.0, "GPU": 0.0}, {"CPU": 8.0, "GPU": 1.0}


def cluster(most: int = 8, **kinds: dict) -> dict:
    head = {"resources": {"CPU": 0}, "node_config": {}}
    return {"max_workers": most, "head_node_type": "head", "available_node_types": {"head": head, **kinds}}


def kind(most: int, **resources: float) -> dict:
    return {"resources": resources, "max_workers": most}


def test_those_that_are_there_count_among_those_allowed():
    one = cluster(worker=kind(3, CPU=8, GPU=1))
    assert may_come([HEAD], one) == (WORKER,) * 3
    assert may_come([HEAD, WORKER, WORKER], one) == (WORKER,)
    assert may_come([HEAD, *[WORKER] * 5], one) == ()


def test_all_kinds_together_are_no_more_than_the_cluster_may_have():
    two = cluster(3, small=kind(2, CPU=4), large=kind(2, CPU=8, GPU=1))
    assert may_come([HEAD], two) == ({"CPU": 4.0, "GPU": 0.0},) * 2 + (WORKER,)
    assert may_come([HEAD, WORKER], two) == ({"CPU": 4.0, "GPU": 0.0},) * 2


def test_machines_of_ones_own_have_no_resources_in_their_file_and_no_file_says_nothing():
    assert may_come([HEAD, WORKER], cluster(worker=kind(2))) == ()
    assert may_come([HEAD], {}) == ()
    assert Machines((HEAD,), (WORKER,)).all == (HEAD, WORKER)


def test_our_own_file_as_ray_completes_it():
    config = yaml.safe_load((Path(__file__).parents[2] / "cluster.yaml").read_text())
    config["available_node_types"]["worker"]["resources"] = {
        "CPU": 8,
        "memory": 1,
        "GPU": 1,
        "accelerator_type:A10G": 1,
    }
    assert may_come([HEAD], config) == (WORKER,) * config["max_workers"]


SHOW = """
import os, sys
from ram_tune.search.machines import _show_the_token

_show_the_token(sys.argv[1])
print(os.environ.get("RAY_AUTH_MODE"))
"""
ENTER = """
import sys
from ram_tune.search.machines import ray_cluster

with ray_cluster(sys.argv[1]):
    pass
"""


def test_told_to_show_a_token_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with socket.create_server(("127.0.0.1", 0)) as server:  # Ray looks for the token before it says a word
        address = f"127.0.0.1:{server.getsockname()[1]}"
        done = subprocess.run([sys.executable, "-c", ENTER, address], capture_output=True, text=True)
    assert "BadInput" in done.stderr and "found a Ray cluster that asks for a token" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("asks", "token", "answer"),
    [
        (True, "", "a Ray cluster that asks for a token"),
        (True, "0123456789abcdef" * 2, "token"),
        (False, "0123456789abcdef" * 2, "None"),
        (False, "", "None"),
    ],
)
def test_whether_a_cluster_asks_for_a_token_is_asked_before_ray_tries_without(
    asks, token, answer, monkeypatch, tmp_path
):
    class Head(grpc.GenericRpcHandler):
        def service(self, handler_call_details):
            def answer(request, context):
                return context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken") if asks else b""

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Head()])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text(token)
    try:  # in a process of its own: Ray keeps the first token that a process reads
        done = subprocess.run([sys.executable, "-c", SHOW, address], capture_output=True, text=True)
    finally:
        server.stop(None)
    told = done.stdout.strip() or done.stderr
    assert answer in told, told
    assert ("BadInput" in told) == (asks and not token)


ASK = """
def actors() -> int:
    from ray.util.state import list_actors  # as Ray's own helpers ask

    return len(list_actors())
"""
BESIDE = f"""
import ray
from ram_tune.search.machines import ray_cluster
{ASK}
with ray_cluster():
    print(ray.get(ray.remote(num_cpus=0)(actors).remote()))
"""


@pytest.mark.ray
def test_beside_another_ray_each_finds_itself(ray_cluster):
    import ray

    class Nothing:
        def there(self) -> bool:
            return True

    names: dict = {"__name__": "__main__"}  # whose functions are sent as they are, to workers that cannot import tests
    exec(ASK, names)
    actors = ray.remote(num_cpus=0)(names["actors"])
    assert "RAY_ADDRESS" not in os.environ  # whatever is started by hand later is not to end up here
    nothing = ray.remote(num_cpus=0)(Nothing).remote()
    assert ray.get(nothing.there.remote())
    mine = ray.get(actors.remote())
    other = subprocess.Popen([sys.executable, "-c", BESIDE], stdout=subprocess.PIPE, text=True)
    found = []
    while other.poll() is None:
        found.append(ray.get(actors.remote()))
    assert other.returncode == 0
    assert int(other.stdout.read()) == 0  # none of ours
    assert min(found) >= mine > 0
