"""A search as a job on a running Ray cluster: what is sent there, what it is called, and the places that a job may use.

Sent is a folder made for the purpose: this package and its search spaces as they are here, and the file of a search of
one's own. A job finds that folder before what is installed on the machines, so the cluster runs the code that was edited
and checked here. Nothing else of the current folder is read: data, results, databases and keys stay where they are, and
Ray's limit of 512 MiB is far away.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ram_tune
from ram_tune.errors import BadInput
from ram_tune.options import masked
from ram_tune.presets import dataset_name, is_path
from ram_tune.search import space as spaces
from ram_tune.search.arguments import parser
from ram_tune.search.provenance import COMMIT, commit
from ram_tune.search.space import Space

IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it, with the job's environment in it, for the command of a job and for no other process."""

STOP_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
STOP_SECONDS = 3600
"""How long a job that is stopped may take before Ray kills it: running jobs end with their epoch. Ray's own default is 3.
*Decided*; `STOP_VARIABLE` in the environment of --submit names another number."""

NOT_SENT = {"search", "submit", "jobs", "follow", "stop", "address"}
"""Options that are not handed on as they are. A job uses the cluster that it runs on."""

BY_VARIABLE = {
    "study_storage": "RAM_TUNE_STUDY_STORAGE",
    "tracking_uri": "MLFLOW_TRACKING_URI",
    "notify": "RAM_TUNE_NOTIFY",
}
"""Options that travel as variables: they may hold secrets, and Ray shows a job's command to all, and writes it to its log."""

DATA_FILES = {".csv", ".json"}
FILE_FIELDS = "data.root", "data.file", "model.backbone.weights", "model.proposals.edge_model"


@dataclass(frozen=True)
class Place:
    """A place that is kept when a job has ended."""

    option: str  # as in the parsed options
    such_as: str
    variable: str = ""  # of the cluster's environment, that stands in for the option
    default: str = ""  # what is meant without either, where that is in the working directory


PLACES = (
    Place("results", "/shared/results", "RAM_TUNE_RESULTS", "ram_tune_runs"),
    Place("study_storage", "sqlite:////home/me/studies.db, on the head", "RAM_TUNE_STUDY_STORAGE"),  # else in results
    Place("tracking_uri", "http://127.0.0.1:5000, on the head", "MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"),
    Place("cache_dir", "/scratch/ram_tune", "RAM_TUNE_CACHE"),
    Place("data_root", "/shared/datasets"),
    Place("data", "/shared/datasets/labels.csv"),
)


@dataclass(frozen=True)
class Submission:
    """What Ray is told of a job, but for the folder that is sent."""

    id: str
    entrypoint: str
    variables: dict[str, str]
    """Of the job's environment. Ray refuses a job that sets one of them in `ray.init` again (machines.ray_cluster)."""
    metadata: dict[str, str]


def submission(options: argparse.Namespace) -> Submission:
    """The job that does what `options` ask for. A new id each time: readable, and unique on any cluster."""
    arguments = arguments_of(options)
    name, dataset = Path(options.search).stem, dataset_name(options.data or "scenes")
    readable = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{name}-{dataset}-{time.strftime('%Y%m%d-%H%M%S')}")
    variables = {BY_VARIABLE[option]: getattr(options, option) for option in BY_VARIABLE if getattr(options, option)}
    variables[STOP_VARIABLE] = os.environ.get(STOP_VARIABLE, str(STOP_SECONDS))
    if made_from := commit():
        variables[COMMIT] = made_from
    return Submission(
        id=f"{readable}-{secrets.token_hex(2)}",
        entrypoint=shlex.join(["python", "-m", "ram_tune.search", *arguments]),
        variables=variables,
        metadata={"search": name, "dataset": dataset, "command": masked(shlex.join(arguments))},
    )


def arguments_of(options: argparse.Namespace) -> list[str]:
    """What is to be typed after `python -m ram_tune.search` in the job."""
    usual = vars(parser().parse_args([]))
    own = Path(options.search).name if is_file_name(options.search) else options.search
    arguments = [own]
    for option, value in vars(options).items():
        if option in NOT_SENT or option in BY_VARIABLE or value == usual[option]:
            continue
        values = [] if value is True else value if isinstance(value, list) else [value]
        arguments += [f"--{option.replace('_', '-')}", *map(str, values)]
    return arguments


def is_file_name(search: str) -> bool:
    """Whether a search is a file of one's own, and none that comes with the package."""
    return search.endswith((".yaml", ".yml"))


def check_fields(options: argparse.Namespace, space: Space, overrides: Mapping[str, Any]) -> None:
    """Raise BadInput here, before it is sent, for fields that the search could not use there."""
    from ram_tune.search.plan import base_config

    data = options.data or "scenes"
    there = Path(data).suffix.lower() in DATA_FILES  # a file of the cluster's cannot be read here
    base_config(space, "" if there else data, options.data_root, overrides)


def check_places(options: argparse.Namespace, space: Space, overrides: Mapping[str, Any], there: bool = False) -> None:
    """Raise BadInput for a place in a job's working directory, which is thrown away.

    Here, before it is sent: among those that are given. `there`, in the job: also where the cluster's environment, or
    the lack of it, leads to one.
    """
    for place in PLACES:
        given = str(getattr(options, place.option) or "")
        if place.option == "data" and Path(given).suffix.lower() not in DATA_FILES:
            continue
        known = os.environ.get(place.variable, "") if there and place.variable else ""
        option = f"--{place.option.replace('_', '-')}"
        if _is_relative(given, place.option in BY_VARIABLE):
            left_out = f" Left out, the cluster's ${place.variable} counts." if place.variable else ""
            raise _thrown_away(f"{option} {masked(given)}", "a relative place", place.such_as, left_out)
        if there and not given and _is_relative(known or place.default, place.option in BY_VARIABLE):
            found = f"{masked(known)!r}, a relative place," if known else "nothing"
            found = f"{found} in ${place.variable} of the cluster, and no {option}"
            raise _thrown_away(option, found, place.such_as, f" Set either; {place.variable} before `ray start`.")
    owned = [item for fields in space.arms.values() for item in fields.items()]
    for field, value in (*space.base.items(), *overrides.items(), *owned):
        named = field == "model.backbone.weights" and isinstance(value, str) and not is_path(value)  # torchvision's
        file = field in FILE_FIELDS and isinstance(value, str) and not named
        if file and _is_relative(str(value), False):
            raise _thrown_away(f"{field}={value}", "a relative place", f"/shared/{Path(str(value)).name}", "")


def _is_relative(place: str, is_uri: bool) -> bool:
    """Whether it means a place in the folder where the command is typed."""
    if is_uri:  # sqlite:///here, sqlite:////there; SQLite is the only kind that has both
        return place.startswith("sqlite") and not place.partition(":///")[2].startswith("/")
    return bool(place) and "://" not in place and not Path(place).expanduser().is_absolute()


def _thrown_away(where: str, found: str, such_as: str, remedy: str) -> BadInput:
    expected = f"a place outside the job's working directory, such as {such_as}"
    return BadInput(
        where, found=found, expected=expected, remedy=f"That directory is thrown away with the job.{remedy}"
    )


@contextmanager
def working_directory(search: str) -> Iterator[Path]:
    """A folder with what a job needs of this machine, for as long as the context lasts."""
    package = Path(ram_tune.__file__).parent
    with tempfile.TemporaryDirectory(prefix="ram_tune_job_") as made:
        folder = Path(made)
        shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        if not spaces.folder().is_relative_to(package):  # those of a clone lie beside the package
            shutil.copytree(spaces.folder(), folder / spaces.folder().name)
        if is_file_name(search):
            shutil.copy(Path(search).expanduser(), folder)
        yield folder


def settle_in(options: argparse.Namespace, space: Space, overrides: Mapping[str, Any]) -> None:
    """In a job: check its places, and use the cluster that it runs on. Elsewhere: nothing."""
    if IN_A_JOB in os.environ:
        check_places(options, space, overrides, there=True)
        options.address = options.address or os.environ["RAY_ADDRESS"]  # Ray sets it for a job; `auto` might be another
