"""Telling somebody elsewhere: a short JSON is posted when a search ends, and when one of its runs no longer moves."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, Literal

import ram_tune
from ram_tune.errors import BadInput, error_line
from ram_tune.search.jobs import Outcome

TRIES, SECONDS = 2, 10.0
"""How often it is tried, and how long each time: nobody waits minutes at the end of a search."""

VARIABLE = "RAM_TUNE_NOTIFY"

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass
class Ending:
    """How a search ends; filled in while it does."""

    status: Status = "KILLED"
    text: str = ""  # one sentence
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Notifier:
    """`url`: where to; empty: nowhere. Every message names the search. A URL often is a secret: it is never printed."""

    url: str
    search: Mapping[str, Any]

    def post(self, event: Literal["ended", "stalled"], text: str, **more: Any) -> str:
        """Send one message → why it could not be sent, or nothing. `text` is what chats show of it."""
        if not self.url:
            return ""
        body = json.dumps({"event": event, "text": text, **self.search, **more}).encode()
        headers = {"Content-Type": "application/json", "User-Agent": f"ram_tune/{ram_tune.__version__}"}
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")
        why = ""
        for _ in range(TRIES):
            try:
                with urllib.request.urlopen(request, timeout=SECONDS):
                    return ""
            except urllib.error.HTTPError as error:
                why = f"it answered {error.code}"
                if error.code < 500:
                    break
            except (OSError, HTTPException, ValueError) as error:  # whatever it is, the search has ended and says so
                why = error_line(str(error)) or type(error).__name__
        return f"--notify: {host(self.url)} could not be told: {why}"

    @contextmanager
    def at_the_end(self, say: Any) -> Iterator[Ending]:
        """Post how the search ended, also where it ends by an exception; `say` prints what went wrong with that."""
        ending = Ending()
        try:
            yield ending
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            ending.status = "KILLED" if stopped else "FAILED"
            ending.text = "was interrupted" if stopped else f"failed: {error_line(f'{type(error).__name__}: {error}')}"
            raise
        finally:
            text = f"{self.search['search']} {ending.text}"
            if problem := self.post("ended", text, status=ending.status, **ending.about):
                say(problem)


NOBODY = Notifier("", {})


def checked(url: str) -> str:
    """`url`. Raises BadInput unless it can be posted to."""
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and not re.search(r"\s", url)
    except ValueError:
        good = False
    if url and not good:  # and not repeated: it may be a secret
        raise BadInput("--notify", found="something else", expected="an http(s) address to post to")
    return url


def host(url: str) -> str:
    return urllib.parse.urlsplit(url).hostname or ""


def counts(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many runs ended how."""
    found = Counter(outcome.state for outcome in outcomes)
    return {state: found[state] for state in ("finished", "failed", "pruned", "stopped") if found[state]}
