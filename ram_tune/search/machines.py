"""The Ray cluster of a search: the machines that are there, and those that come when there is work for them."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ray
import yaml
from ray.exceptions import AuthenticationError
from ray.util import get_node_ip_address

from ram_tune.distribution.trial import ENVIRONMENT
from ram_tune.errors import BadInput
from ram_tune.search.layout import Node

OBJECT_STORE_BYTES = 200_000_000  # nothing large travels through it

LAUNCHED_FROM = "~/ray_bootstrap_config.yaml"
"""On the head of a cluster that `ray up` made: what it was made from, with the CPUs and GPUs of each type of machine."""


class Machines(NamedTuple):
    """Of a cluster."""

    alive: tuple[Node, ...]
    may_come: tuple[Node, ...] = ()  # the autoscaler starts them when runs wait for them

    @property
    def all(self) -> tuple[Node, ...]:
        return (*self.alive, *self.may_come)


@contextmanager
def ray_cluster(address: str = "") -> Iterator[Machines]:
    """The cluster at `address`, or a Ray instance of our own on this machine. Raises BadInput."""
    os.environ.update(ENVIRONMENT)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "namespace": "ram_tune"}
    if address:
        _require_reachable(address)
        _show_the_token(address)
        try:
            variables = {"env_vars": {**ENVIRONMENT, "RAY_ADDRESS": address}}
            ray.init(address=address, runtime_env=variables, **quiet)
        except AuthenticationError as error:
            raise _no_token(address) from error
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _unreachable(address, str(error).splitlines()[0]) from error
    else:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a machine of one's own is not taken away
        with _address_of_ones_own():
            ray.init(
                address="local",  # never a stale cluster whose address is lying about
                include_dashboard=True,  # Train frees the resources of a stopped run through it
                object_store_memory=OBJECT_STORE_BYTES,
                **quiet,
            )
    try:
        alive = tuple(_node(node["Resources"]) for node in ray.nodes() if node["Alive"])
        yield Machines(alive, may_come(alive, _launched_from()) if address else ())
    finally:
        ray.shutdown()


@contextmanager
def _address_of_ones_own() -> Iterator[None]:
    """Choose the address of a Ray that is started meanwhile, so that all its processes inherit it.

    What frees a lost run's machines would else look for a Ray on this machine, and give up where it finds two: another
    search's beside this one.
    """
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    chosen = {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"{get_node_ip_address()}:{port}"}
    before = {name: os.environ.get(name) for name in chosen}
    os.environ.update(chosen)
    try:
        yield
    finally:  # what this process starts later is not to find it
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def may_come(alive: Sequence[Node], cluster: Mapping[str, Any]) -> tuple[Node, ...]:
    """The machines that `cluster`, the content of a file for `ray up`, allows beside those that are there."""
    there, found = list(alive), []
    for name, kind in cluster.get("available_node_types", {}).items():
        node = _node(kind.get("resources", {}))
        if name == cluster.get("head_node_type") or not any(node.values()):
            continue
        for _ in range(kind.get("max_workers", 0)):
            if node in there:
                there.remove(node)
            else:
                found.append(node)
    workers = len(alive) - 1  # beside the head
    return tuple(found[: max(cluster.get("max_workers", len(found)) - workers, 0)])


def _node(resources: Mapping[str, float]) -> Node:
    return {name: float(resources.get(name, 0)) for name in ("CPU", "GPU")}


def _launched_from() -> Mapping[str, Any]:
    """What the cluster was made from whose head this machine is; empty for any other cluster."""
    try:
        return yaml.safe_load(Path(LAUNCHED_FROM).expanduser().read_text())
    except OSError:
        return {}


def _show_the_token(address: str) -> None:
    """`ray start` asks for a token where its machine has one, as each has that a search of its own has run on; `ray.init` with
    an address shows it only where it is told to. A cluster that asks for none does not know what to do with it.
    """
    if os.environ.get("RAY_AUTH_MODE") or address == "auto" or not _asks_for_a_token(address):
        return
    from ray._private.authentication import authentication_token_setup as setup

    setup.logger.setLevel(logging.ERROR)
    if not setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False):
        raise _no_token(address)


def _no_token(address: str) -> BadInput:
    return BadInput(
        f"--address {address}",
        found="a Ray cluster that asks for a token",
        expected="its token, in ~/.ray/auth_token, or in the file or the words of $RAY_AUTH_TOKEN_PATH, $RAY_AUTH_TOKEN",
        remedy="Copy it from the cluster's head.",
    )


def _asks_for_a_token(address: str) -> bool:
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=5)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
    return False


def _require_reachable(address: str) -> None:
    """Ray itself would try for minutes."""
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise BadInput(
            f"--address {address}",
            found="Ray Client",
            expected="host:port of the cluster's head, from a machine that belongs to it",
            remedy="Ray Train does not run through Ray Client.",
        )
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise BadInput("--address", found=repr(address), expected="host:port, such as 10.0.0.1:6379, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, UnicodeError) as error:  # a name that is none
        raise _unreachable(address, getattr(error, "strerror", "") or str(error)) from error


def _unreachable(address: str, reason: str) -> BadInput:
    return BadInput(
        f"--address {address}",
        found=f"no Ray cluster there ({reason})",
        expected="a running one, and its token in ~/.ray/auth_token if it asks for one",
        remedy="Start one with `ray start --head`, or leave --address out for this machine alone.",
    )
