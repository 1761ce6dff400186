"""One driver per study: a lease that a successor may take over when its holder is dead.

The holder writes a growing number into it every few seconds. On the holder's own machine a successor asks the system
whether that process lives; from another machine it watches the number, so that clocks need not agree.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

from ram_tune.errors import BadInput

PATIENCE_SECONDS = 30.0
"""How long a lease may stand still before its holder on another machine counts as dead; several beats."""

BEAT_SECONDS = 5.0


class Held(TypedDict):
    """What a lease says."""

    holder: str
    host: str
    pid: int
    born: str  # when that process started, as the system counts: process ids are used again
    beats: int


def this_process() -> Held:
    """A lease for the calling process."""
    pid = os.getpid()
    return Held(holder=uuid.uuid4().hex, host=socket.gethostname(), pid=pid, born=_born(pid), beats=0)


class Lease:
    """`read` and `write` reach where it is kept; None: nobody holds it."""

    def __init__(self, read: Callable[[], Held | None], write: Callable[[Held | None], None]):
        self.read, self.write = read, write

    def claim(
        self, mine: Held, patience: float = PATIENCE_SECONDS, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Hold it from now on. Raises BadInput where another driver lives."""
        found = self.read()
        if found and self._lives(found, patience, sleep):
            raise BadInput(
                "this search",
                found=f"another driver at work on it (process {found['pid']} on {found['host']})",
                expected="one driver",
                remedy="Wait for it or stop it; or start the search anew beside it with --fresh.",
            )
        self.write(mine)
        sleep(0.2)  # of two that claim at the same moment the one that wrote last has it
        if not self.mine(mine):
            raise BadInput("this search", found="another driver that started just now", expected="one driver")

    def mine(self, mine: Held) -> bool:
        found = self.read()
        return found is not None and found["holder"] == mine["holder"]

    def beat(self, mine: Held) -> bool:
        """Show that the holder lives → False if another one has taken over."""
        found = self.read()
        if found is None or found["holder"] != mine["holder"]:
            return False
        self.write({**found, "beats": found["beats"] + 1})
        return True

    @contextmanager
    def kept(self, mine: Held, every: float = BEAT_SECONDS) -> Iterator[None]:
        """Hold it for as long as the context lasts, and show it all the while."""
        self.claim(mine)
        done = threading.Event()

        def show() -> None:
            while not done.wait(every):
                with contextlib.suppress(Exception):  # the storage is away: the next beat may find it again
                    self.beat(mine)

        beating = threading.Thread(target=show, daemon=True)
        beating.start()
        try:
            yield
        finally:
            done.set()
            beating.join()
            self.release(mine)

    def release(self, mine: Held) -> None:
        if self.mine(mine):
            self.write(None)

    def _lives(self, found: Held, patience: float, sleep: Callable[[float], None]) -> bool:
        if found["host"] == socket.gethostname():
            return _born(found["pid"]) == found["born"] != ""
        for _ in range(10):
            sleep(patience / 10)
            if self.read() != found:
                return True
        return False


def _born(pid: int) -> str:
    """What tells a process from a later one of the same id; empty: there is no such process."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] == "Z" else fields[19]  # a zombie does nothing any more
    try:
        os.kill(pid, 0)  # macOS: no more can be had without another package
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"
