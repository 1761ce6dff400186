"""What is still to be sent: an ordered log on disk, so that the receiver may be away and the writer may be killed."""

from __future__ import annotations

import json
import math
import sqlite3
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY,
    run TEXT NOT NULL,
    kind TEXT NOT NULL,
    step INTEGER NOT NULL,
    time INTEGER NOT NULL,
    payload TEXT NOT NULL,
    sent INTEGER NOT NULL DEFAULT 0,
    rejected TEXT,
    UNIQUE (run, kind, step)
);
CREATE INDEX IF NOT EXISTS unsent ON entries (id) WHERE sent = 0 AND rejected IS NULL;
CREATE INDEX IF NOT EXISTS runs ON entries (run, id);
CREATE TABLE IF NOT EXISTS notes (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""

FIELDS = "SELECT id, run, kind, step, time, payload FROM entries "


@dataclass(frozen=True)
class Entry:
    """One line of the log: what to say (`kind`, `payload`) about which run, put at `time` (milliseconds since 1970)."""

    id: int
    run: str
    kind: str
    step: int
    time: int
    payload: dict[str, Any]


class Outbox:
    """All entries ever put, in order, each once, and which of them are sent; usable from several threads.

    Every call is one transaction of SQLite: a process killed at any moment leaves whole entries.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = threading.Lock()
        self.database = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        self.database.execute("PRAGMA journal_mode = WAL")
        self.database.execute("PRAGMA synchronous = NORMAL")  # only a power cut could take the last entries
        self.database.executescript(SCHEMA)

    def put(self, run: str, kind: str, step: int, payload: dict[str, Any], when_ms: int | None = None) -> bool:
        """Append an entry; False, and nothing changes, where this run has this kind at this step already."""
        return self._insert(run, kind, "?5", payload, when_ms, step)

    def add(self, run: str, kind: str, payload: dict[str, Any]) -> bool:
        """Append an entry at the next step of its kind; False where it would only repeat the run's newest entry."""
        with self.lock:
            newest = self.database.execute(
                "SELECT kind, payload FROM entries WHERE run = ? ORDER BY id DESC LIMIT 1", (run,)
            ).fetchone()
        if newest == (kind, encode(payload)):
            return False
        step = "(SELECT coalesce(max(step), 0) + 1 FROM entries WHERE run = ?1 AND kind = ?2)"
        return self._insert(run, kind, step, payload)

    def last(self, run: str, kind: str) -> Entry | None:
        """The newest entry of this kind."""
        found = self._entries("WHERE run = ? AND kind = ? ORDER BY id DESC LIMIT 1", (run, kind))
        return found[0] if found else None

    def get_entry(self, run: str, kind: str, step: int) -> Entry | None:
        """The entry at this step."""
        found = self._entries("WHERE run = ? AND kind = ? AND step = ?", (run, kind, step))
        return found[0] if found else None

    def unsent(self, limit: int) -> list[Entry]:
        """The oldest entries that are neither sent nor rejected, in the order in which they were put."""
        return self._entries("WHERE sent = 0 AND rejected IS NULL ORDER BY id LIMIT ?", (limit,))

    def pending(self) -> int:
        """How many entries are neither sent nor rejected."""
        return self._rows("SELECT count(*) FROM entries WHERE sent = 0 AND rejected IS NULL")[0][0]

    def mark_sent(self, ids: Iterable[int]) -> None:
        self._write("UPDATE entries SET sent = 1 WHERE id IN (SELECT value FROM json_each(?))", json.dumps(list(ids)))

    def reject(self, id: int, reason: str) -> None:
        """Never send this entry: the receiver does not want it."""
        self._write("UPDATE entries SET rejected = ? WHERE id = ?", reason, id)

    def rejected(self) -> list[tuple[Entry, str]]:
        """Entries that were rejected, and why."""
        reasons = dict(self._rows("SELECT id, rejected FROM entries WHERE rejected IS NOT NULL"))
        return [(entry, reasons[entry.id]) for entry in self._entries("WHERE rejected IS NOT NULL ORDER BY id")]

    def reset(self) -> None:
        """Nothing is sent, rejected or noted: the receiver is another one, or has lost what it was sent."""
        with self.lock, self.database:
            self.database.execute("BEGIN IMMEDIATE")
            self.database.execute("UPDATE entries SET sent = 0, rejected = NULL")
            self.database.execute("DELETE FROM notes")

    def get(self, key: str) -> str | None:
        """What was noted under `key`."""
        found = self._rows("SELECT value FROM notes WHERE key = ?", key)
        return found[0][0] if found else None

    def set(self, key: str, value: str) -> None:
        self._write(
            "INSERT INTO notes VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", key, value
        )

    def close(self) -> None:
        with self.lock:
            self.database.close()

    def _insert(
        self, run: str, kind: str, step: str, payload: dict[str, Any], when_ms: int | None = None, *values: int
    ) -> bool:
        when = time.time_ns() // 1_000_000 if when_ms is None else when_ms
        statement = f"INSERT OR IGNORE INTO entries (run, kind, step, time, payload) VALUES (?1, ?2, {step}, ?3, ?4)"
        return self._write(statement, run, kind, when, encode(payload), *values) == 1

    def _write(self, statement: str, *values: object) -> int:
        with self.lock:
            return self.database.execute(statement, values).rowcount

    def _rows(self, statement: str, *values: object) -> list[Any]:
        with self.lock:
            return self.database.execute(statement, values).fetchall()

    def _entries(self, which: str, values: tuple[object, ...] = ()) -> list[Entry]:
        return [Entry(*row[:-1], payload=decode(row[-1])) for row in self._rows(FIELDS + which, *values)]


def encode(payload: dict[str, Any]) -> str:
    """Strict JSON; NaN and the infinities as {"$float": "nan"}, characters that no encoding has as `?`."""
    text = json.dumps(_strict(payload), allow_nan=False, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode()


def decode(text: str) -> dict[str, Any]:
    """The inverse of `encode`."""
    return json.loads(text, object_hook=lambda found: float(found["$float"]) if found.keys() == {"$float"} else found)


def _strict(value: Any) -> Any:
    match value:
        case dict():
            return {key: _strict(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_strict(inner) for inner in value]
        case float() if not math.isfinite(value):
            return {"$float": str(value)}
        case _:
            return value
