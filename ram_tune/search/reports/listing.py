"""The searches of a storage, at a glance."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ram_tune.errors import BadInput, nearest
from ram_tune.options import masked
from ram_tune.search.sender import sqlite_file

STATES = "finished", "pruned", "failed", "running"

ABOUT = "note:about"
"""As `kept.note` leaves it: what the study is of."""

QUERY = f"""
SELECT study_name, study_id, key, value_json FROM study_user_attributes JOIN studies USING (study_id)
WHERE key LIKE 'run:%' OR key = '{ABOUT}'
"""


@dataclass(frozen=True)
class Listed:
    """One search."""

    name: str  # of its study
    runs: Mapping[str, int]  # state → how many
    search: str = ""  # what was typed to run it; empty where the study is older than its note

    def begins(self, name: str) -> bool:
        """Whether its name begins so, with the whole name of its search: `constraints` is none of `constraints-mine`."""
        search = re.sub(r"[^\w.+-]+", "_", self.search)  # as a study's name has it (plan.study_name)
        return self.name.startswith(f"{name}-") and f"{name}-".startswith(f"{search}-" if search else "")


def listed(url: str) -> list[Listed]:
    """The searches that have runs, the one begun last at the end. Raises BadInput for a storage that is not there."""
    found: dict[tuple[int, str], dict[str, int]] = {}
    searches: dict[int, str] = {}
    for number, name, key, value in _attributes(url):
        if key == ABOUT:
            searches[number] = value["search"]
        else:
            found.setdefault((number, name), dict.fromkeys(STATES, 0))[value["state"]] += 1
    return [Listed(name, found[number, name], searches.get(number, "")) for number, name in sorted(found)]


def find(url: str, name: str, option: str = "NAME") -> list[str]:
    """The studies that a person may mean, the newest last: the one of this name, or all that begin with it (`constraints`,
    `constraints-scenes`). Raises BadInput naming the known ones.
    """
    there = listed(url)
    known = [one.name for one in there]
    meant = [one for one in known if one == name] or [one.name for one in there if one.begins(name)]
    if not meant:
        raise BadInput(
            option,
            found=f"no search {name!r}",
            expected=f"one of {', '.join(known)}, or the start of its name" if known else "a search; there is none yet",
            remedy=nearest(name, known),
        )
    return meant


def _attributes(url: str) -> Iterator[tuple[int, str, str, Any]]:
    """Number and name of a study, and what it says of one of its runs or of itself: key and value."""
    file = sqlite_file(url)
    if file is None:
        yield from _asked(url)
        return
    problem = "" if file.is_file() else "no such file"
    if not problem:
        try:  # in its own tables: to load Optuna with SQLAlchemy and Alembic would take longer than all the rest
            with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
                rows = database.execute(QUERY).fetchall()
        except sqlite3.Error as error:
            problem = str(error)
        else:
            yield from ((number, name, key, json.loads(value)) for name, number, key, value in rows)
    if problem:
        raise _not_there(url, problem)


def _asked(url: str) -> Iterator[tuple[int, str, str, Any]]:
    """The same from a database that only Optuna knows how to reach."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        studies = optuna.storages.get_storage(url).get_all_studies()
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, ValueError, RuntimeError) as error:
        raise _not_there(url, str(error).splitlines()[0]) from error
    for study in studies:
        for key, value in study.user_attrs.items():
            if key.startswith("run:") or key == ABOUT:
                yield study._study_id, study.study_name, key, value


def _not_there(url: str, problem: str) -> BadInput:
    return BadInput(
        "--study-storage",
        found=f"{masked(url)} ({problem})",
        expected="the studies of earlier searches",
        remedy="Run a search first, or say where its results are with --results.",
    )
