"""The exceptions that users are meant to see, and the one line of the others that they are."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable


class BadInput(Exception):  # noqa: N818 (the input is bad, the program is not in error)
    """Something a person gave (a file, a field, an option) that cannot be used.

    The message names the place, what was found, what was expected and how to mend it; command lines print it and exit
    with code 2. Programming errors are never turned into this class: they keep their traceback.
    """

    def __init__(self, where: object, *, found: object, expected: str, remedy: str = "") -> None:
        self.where, self.found, self.expected, self.remedy = str(where), str(found), expected, remedy
        # Exceptions cross process borders by pickling their args; one string survives that.
        super().__init__(f"{where}: found {found}; expected {expected}." + (f" {remedy}" if remedy else ""))

    def __reduce__(self):  # keyword-only arguments do not survive the default
        return _rebuild, (type(self), self.where, self.found, self.expected, self.remedy)


def _rebuild(kind: type[BadInput], where: str, found: str, expected: str, remedy: str) -> BadInput:
    return kind(where, found=found, expected=expected, remedy=remedy)


class NotEnoughMemoryError(RuntimeError):
    """A run does not fit into the memory of its device; the message names the batch size and what would fit. A second try
    as it was would end as the first."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`Did you mean X?` for the closest known word, or an empty string when nothing is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else ""


def error_line(error: str) -> str:
    """The line of a traceback, or of any error text, that says what went wrong, without the exception's module."""
    lines = [line.rstrip() for line in error.splitlines() if line.strip() and not line.startswith("Traceback")]
    frames = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    said = [line for line in lines[frames[-1] + 1 if frames else 0 :] if not line[0].isspace()]
    # An exception follows its last frame at once, and its message may have more lines; without frames look for one.
    likely = said[:1] if frames else [line for line in said if re.match(r"[\w.]+(Error|Exception)\b.*: ", line)]
    line = (likely or lines or [""])[-1].strip()
    return re.sub(r"^(\w+\.)+(?=\w+(\(\w+\))?(:|$))", "", line)


def command_line(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and exit: 2 with one message for bad input, 130 for Ctrl-C, else what it returns."""
    try:
        code = main()
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:  # whoever read our output has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        code = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code or 0)
