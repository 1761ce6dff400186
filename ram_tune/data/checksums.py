"""`SHA256SUMS`, the file that `sha256sum` writes: a line for each file, with its SHA-256 and its name."""

from __future__ import annotations

import hashlib
import posixpath
import re
from pathlib import Path

from ram_tune.errors import BadInput

NAME = "SHA256SUMS"
"""Where it lies below a dataset's root."""

LINE = re.compile(r"(\\?)([0-9a-fA-F]{64}) [ *](.+)")
ESCAPED = {r"\\": "\\", r"\n": "\n", r"\r": "\r"}


def parse(content: bytes, where: object) -> dict[str, str]:
    """Name → SHA-256 in lower case. A name is without the `./` that `find` puts before it.

    A backslash before the sum says that line breaks and backslashes in the name are escaped. Raises BadInput naming the
    line.
    """
    remedy = "Make it anew with `sha256sum` (the README has the command)."
    try:
        lines = content.decode().split("\n")  # names may hold what other ways to split take for the end of a line
    except UnicodeDecodeError as error:
        raise BadInput(where, found=str(error), expected="UTF-8 text", remedy=remedy) from error
    sums: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = LINE.fullmatch(line.removesuffix("\r"))
        if not found:
            expected = "a SHA-256 of 64 hex digits, two spaces and a file's name"
            raise BadInput(f"{where}:{number}", found=repr(line[:100]), expected=expected, remedy=remedy)
        escaped, sum_, name = found.groups()
        if escaped:
            name = re.sub(r"\\[\\nr]", lambda sign: ESCAPED[sign[0]], name)
        sums[posixpath.normpath(name)] = sum_.lower()
    return sums


def of(file: Path) -> str:
    """The SHA-256 of a file, in hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
