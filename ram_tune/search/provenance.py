"""Where a result comes from: the code's commit, the versions of what it stands on, who ran it. Imports none of them."""

from __future__ import annotations

import getpass
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import ram_tune

LIBRARIES = "torch", "torchvision", "ray", "optuna", "mlflow"
COMMIT = "RAM_TUNE_COMMIT"
"""The variable with what `commit` said, for a package that is sent to a cluster without its checkout."""


def provenance(folder: Path | None = None) -> dict[str, str]:
    """Tags for a run of the package in `folder` (by default this one); without a git checkout there is no commit.

    `mlflow.*` are the names that MLflow's own pages show.
    """
    return {
        **(_git(folder or Path(ram_tune.__file__).parent) or _told()),
        "ram_tune.version": ram_tune.__version__,
        "ram_tune.python": platform.python_version(),
        "ram_tune.platform": platform.platform(),
        **{f"ram_tune.{name}": version for name in LIBRARIES if (version := _version(name))},
        "mlflow.user": _user(),
        "mlflow.source.name": "ram_tune",
        "mlflow.source.type": "LOCAL",
    }


def commit() -> str:
    """This package's commit, with ` dirty` where files differ from it; empty without a git checkout."""
    found = _git(Path(ram_tune.__file__).parent)
    return found["mlflow.source.git.commit"] + " dirty" * (found["ram_tune.dirty"] == "true") if found else ""


def environment() -> str:
    """All installed distributions, `name==version`, sorted, one a line."""
    found = {f"{each.metadata['Name']}=={each.version}" for each in metadata.distributions() if each.metadata["Name"]}
    return "".join(f"{line}\n" for line in sorted(found, key=str.lower))


def _git(folder: Path) -> dict[str, str]:
    try:
        # A package installed inside somebody's checkout (a virtual environment there) is not under its version control.
        if not _run_git(folder, "ls-files", "."):
            return {}
        commit = _run_git(folder, "rev-parse", "HEAD")
        changes = _run_git(folder, "status", "--porcelain", "--", ".")
    except (OSError, subprocess.SubprocessError):  # no git, no checkout, no commit yet
        return {}
    return {"mlflow.source.git.commit": commit, "ram_tune.dirty": "true" if changes else "false"}


def _told() -> dict[str, str]:
    """Likewise, from what was sent along with the package."""
    commit, _, changes = os.environ.get(COMMIT, "").partition(" ")
    return {"mlflow.source.git.commit": commit, "ram_tune.dirty": "true" if changes else "false"} if commit else {}


def _run_git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container whose user has no name
        return "unknown"
