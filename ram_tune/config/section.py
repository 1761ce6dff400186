"""A group of fields, and the hash of one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

NOT_HASHED: dict[str, Any] = {"hashed": False}
"""Marks a field (or a group) that does not change what a run computes."""


class Section(BaseModel):
    """A frozen group of fields; unknown names are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )


def digest(value: object, digits: int = 16) -> str:
    """SHA-256 of `value` written as canonical JSON, its first hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def file_digest(path: Path, digits: int = 16) -> str:
    """SHA-256 of a file's bytes, its first hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:digits]
