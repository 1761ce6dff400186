"""`python -m ram_tune.cluster check cluster.yaml`: what the file of a cluster lacks or leaves open, before `ray up` reads it."""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ram_tune.errors import BadInput, command_line, error_line

EXAMPLES = """\
examples:
  python -m ram_tune.cluster check cluster.yaml     the one that comes with ram_tune, for AWS
  python -m ram_tune.cluster check mine.yaml        one's own, such as with `provider: {type: local, …}`

Type it in the folder from which `ray up` will be typed: local paths of file_mounts are looked up from there. Nothing is
started and nobody is asked; only Ray's own schema and preparation are run.

what a line starts with:
  missing   still to be filled in, or not there
  open      more than SSH could be reached from outside, or Ray would obey whoever reaches it
  wrong     `ray up` or a search would fail, or training would run where it should not
  unseen    not looked into, and no fault

exit code: 0 all is well, 1 something is to be mended, 2 the file cannot be used"""

PLACEHOLDER = re.compile(r"<[A-Za-z][\w-]*(?: [\w-]+)*>")
"""What a user has to replace, such as `<region>`."""

EVERY_ADDRESS = re.compile(
    r"(?<![\d.])0\.0\.0\.0(?!/|\d)|--[\w-]*host[= ]+['\"]?(?:\[::\]|::(?![\w:]))|--ray-debugger-external"
)
"""In a command: something listens to more than its own machine. `0.0.0.0/0` is a network and no listener."""

AUTH_MODE = re.compile(r"RAY_AUTH_MODE=['\"]?(\w+)")
TOKEN = ".ray/auth_token"
_SCHEMA = "what Ray's cluster launcher reads"
MERGED = "head_setup_commands", "worker_setup_commands"
"""Lists into which Ray's preparation merges `setup_commands`."""


@dataclass(frozen=True)
class Fault:
    """One thing to mend: missing, open or wrong; the field it is in; what is the matter, and what to do."""

    kind: str
    field: str
    text: str


def read(path: Path) -> dict[str, Any]:
    """The content of a cluster's YAML file, with its anchors resolved. Raises BadInput for what is no mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(path, found=error.strerror, expected="the YAML file of a cluster") from error
    except (yaml.YAMLError, ValueError) as error:
        found = f"what is not YAML ({' '.join(str(error).split())})"
        raise BadInput(path, found=found, expected="the YAML file of a cluster") from error
    if not isinstance(content, dict):
        raise BadInput(path, found=f"a {type(content).__name__}", expected="a mapping, such as that of cluster.yaml")
    return content


def prepared(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The configuration as `ray up` would see it: checked against Ray's schema, with Ray's defaults.

    Raises BadInput with what Ray has to say, the field where it names one. The provider is not asked anything.
    """
    import click
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    filled = copy.deepcopy(dict(config))
    types = filled.get("available_node_types")
    for kind in types.values() if isinstance(types, dict) else ():
        if isinstance(kind, dict):
            kind.setdefault("resources", {})  # `ray up` looks them up at AWS, where none are written
    logging.getLogger("ray.autoscaler").setLevel(logging.WARNING)
    said = io.StringIO()  # what Ray prints of it is in the exception too
    try:
        # Types first: preparation takes them for granted. The two fields are among those that it adds.
        schema = {name: value for name, value in filled.items() if name != "min_workers"}  # which it takes out
        validate_config({"cluster_synced_files": [], "max_workers": 2, **schema})
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            ready = prepare_config(filled)
        validate_config(ready)
    except jsonschema.ValidationError as error:
        field = ".".join(map(str, error.absolute_path))
        raise BadInput(f"{path}: {field}" if field else path, found=error.message, expected=_SCHEMA) from None
    except (click.ClickException, AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
        raise BadInput(path, found=error_line(str(error)), expected=_SCHEMA) from error
    return ready


def faults(config: Mapping[str, Any], path: Path) -> list[Fault]:
    """All that is to be mended in the content of `path`, in the order of what to do first. Raises BadInput."""
    missing = list(_placeholders(config))
    try:
        ready = prepared(config, path)
    except BadInput:
        if not missing:
            raise
        return missing  # perhaps no more than `<n>` where a number belongs
    # As written: after preparation `setup_commands` would be there three times.
    shown = {**ready, **{name: config.get(name, []) for name in MERGED}}
    aws = ready["provider"]["type"] == "aws"
    return [
        *missing,
        *(_aws_fields(ready) if aws else ()),
        *_mounts(ready),
        *(_ingress(ready["provider"]) if aws else ()),
        *_listeners(shown),
        *_token(ready),
        *_head(ready),
        *_workers(ready),
    ]


def unseen(config: Mapping[str, Any]) -> list[str]:
    """What keeps the world out of a cluster without faults, and cannot be judged by its file."""
    if config["provider"]["type"] != "aws":
        return ["provider: which ports of these machines their firewall leaves open"]
    kinds = config.get("available_node_types", {}).items()
    own = "SecurityGroupIds", "NetworkInterfaces", "LaunchTemplate"
    return [
        f"available_node_types.{kind}.node_config.{name}: the rules of security groups that it names"
        for kind, content in kinds
        for name in own
        if name in content["node_config"]
    ]


def _placeholders(config: Mapping[str, Any]) -> Iterator[Fault]:
    fields: dict[str, list[str]] = {}
    for field, text in _texts(config):
        for name in PLACEHOLDER.findall(text):
            fields.setdefault(name, []).append(field)
    for name, where in fields.items():
        if used := [field for field in where[1:] or where if not field.startswith("metadata.")]:
            goes = f"; it goes to {', '.join(used)}" if used != where else ""
            yield Fault("missing", where[0], f"fill in {name}{goes}")


def _aws_fields(config: Mapping[str, Any]) -> Iterator[Fault]:
    if not config["provider"].get("region"):
        yield Fault("missing", "provider.region", "name one, such as eu-central-1")
    for name, kind in config["available_node_types"].items():
        node = kind["node_config"]
        if not node.get("ImageId") and "LaunchTemplate" not in node:
            text = "Ray's own image is an Ubuntu 18.04, with a Python too old for ram_tune: name one"
            yield Fault("missing", f"available_node_types.{name}.node_config.ImageId", text)


def _mounts(config: Mapping[str, Any]) -> Iterator[Fault]:
    mounts = config["file_mounts"]
    for remote, local in mounts.items():
        if not Path(str(local)).expanduser().exists():
            made = "`ray get-auth-token --generate` makes it" if str(local).endswith(TOKEN) else "not there, from here"
            yield Fault("missing", f"file_mounts.{remote}", f"{local}: {made}")
    if not any(str(remote).endswith(TOKEN) for remote in mounts):
        yield Fault("missing", "file_mounts", f"Ray's token does not reach the machines: add ~/{TOKEN}: ~/{TOKEN}")


def _ingress(provider: Mapping[str, Any]) -> Iterator[Fault]:
    where = "provider.security_group"
    group = provider.get("security_group") or {}
    if "IpPermissions" not in group:
        yield Fault("missing", f"{where}.IpPermissions", "write out what may reach the machines")
    for number, rule in enumerate(group.get("IpPermissions", ())):
        rule = rule if isinstance(rule, dict) else {}
        sources = _sources(rule)
        protocol, first, last = (str(rule.get(name, "?")) for name in ("IpProtocol", "FromPort", "ToPort"))
        if (protocol.lower(), first, last) not in (("tcp", "22", "22"), ("6", "22", "22")):
            ports = first if first == last else f"{first}–{last}"
            what = "every port" if protocol == "-1" else f"{protocol} {ports}"
            text = f"{what} from {', '.join(sources) or '?'}: remove it; only SSH is to be reached, the rest goes through it"
            yield Fault("open", f"{where}.IpPermissions.{number}", text)
        elif "0.0.0.0/0" in sources:
            text = "Ray adds this rule by itself, and AWS refuses one that is there twice: remove it"
            yield Fault("wrong", f"{where}.IpPermissions.{number}", text)


def _sources(rule: Mapping[str, Any]) -> list[str]:
    """Whom a rule lets in."""
    lists = ("IpRanges", "Ipv6Ranges", "PrefixListIds", "UserIdGroupPairs")
    entries = [entry for name in lists for entry in rule.get(name) or () if isinstance(entry, dict)]
    return [str(value) for entry in entries for name, value in entry.items() if name != "Description"]


def _listeners(config: Mapping[str, Any]) -> Iterator[Fault]:
    for field, text in _texts({name: value for name, value in config.items() if name not in ("provider", "metadata")}):
        for found in EVERY_ADDRESS.findall(text):
            yield Fault("open", field, f"{found} listens to every machine: use 127.0.0.1, and `ray attach -p PORT`")


def _token(config: Mapping[str, Any]) -> Iterator[Fault]:
    """Ray obeys all who reach its ports, unless each of its machines is told to ask for the token."""
    start = {"head": config["head_start_ray_commands"], "worker": config["worker_start_ray_commands"]}
    before = [("head", "head_setup_commands", config["head_setup_commands"])]
    before.append(("worker", "worker_setup_commands", config["worker_setup_commands"]))
    for name, kind in config["available_node_types"].items():
        if (own := kind.get("worker_setup_commands")) is not None:  # in place of all those of the cluster
            before.append(("worker", f"available_node_types.{name}.worker_setup_commands", own))
    for side, field, commands in before:
        modes = AUTH_MODE.findall("\n".join([*commands, *start[side]]))
        if set(modes) != {"token"}:
            found = f"RAY_AUTH_MODE={', '.join(dict.fromkeys(modes))}" if modes else "RAY_AUTH_MODE is not set"
            what = f"{found}: Ray would obey whoever reaches it; every shell needs `export RAY_AUTH_MODE=token`"
            yield Fault("open", field, what)


def _head(config: Mapping[str, Any]) -> Iterator[Fault]:
    """The machine that holds everything together trains nothing, and starts the others."""
    name, start = config["head_node_type"], " ".join(config["head_start_ray_commands"])
    if config["provider"]["type"] == "local":
        if not re.search(r"--num-cpus[= ]0(?!\d)", start):
            yield Fault("wrong", "head_start_ray_commands", "the head would train too: `ray start --head --num-cpus=0`")
        if "RAY_enable_autoscaler_v2=0" not in start:
            text = "Ray would start no worker: `export RAY_enable_autoscaler_v2=0; ray start --head …`"
            yield Fault("wrong", "head_start_ray_commands", text)
    elif config["available_node_types"][name]["resources"].get("CPU") != 0:
        text = "the head would train too: CPU: 0 (Ray puts what it finds here over --num-cpus)"
        yield Fault("wrong", f"available_node_types.{name}.resources", text)


def _workers(config: Mapping[str, Any]) -> Iterator[Fault]:
    kinds = config["available_node_types"]
    if config["max_workers"] == 0:
        yield Fault("wrong", "max_workers", "0: nothing could be trained")
    elif all(kind["max_workers"] == 0 for kind in kinds.values()):
        fields = [f"available_node_types.{name}.max_workers" for name in kinds if name != config["head_node_type"]]
        yield Fault("wrong", ", ".join(fields) or "available_node_types", "no workers: nothing could be trained")


def _texts(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a tree of mappings and lists, with the path to it."""
    if isinstance(value, str):
        yield field, value
        return
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in pairs:
        yield from _texts(part, f"{field}.{name}" if field else str(name))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ram_tune.cluster", description="Look after the file of a cluster.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        help="say what is missing, and what would be open to the world",
        description="Say what the YAML file of a cluster lacks, and what it would leave open, before `ray up` reads it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("file", type=Path, metavar="FILE", help="the YAML file for `ray up`")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code; raises BadInput (code 2)."""
    path: Path = parse(arguments).file
    config = read(path)
    found = faults(config, path)
    for fault in found:
        print(f"{fault.kind:<8} {fault.field}: {fault.text}")
    if found:
        print(f"{path}: {len(found)} to mend")
        return 1
    for text in unseen(config):
        print(f"{'unseen':<8} {text}")
    print(f"{path}: nothing is missing, and nothing is left open. Next: ray up {path}")
    return 0


if __name__ == "__main__":
    command_line(main)
