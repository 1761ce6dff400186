"""The outbox: nothing lost, nothing twice, whatever happens to the process."""

from __future__ import annotations

import math
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ram_tune.search.outbox import Outbox, decode, encode

NUMBERS = st.floats(allow_nan=False)
PUTS = st.lists(
    st.tuples(
        st.sampled_from(["", "a", "b"]),
        st.sampled_from(["epoch", "started"]),
        st.integers(0, 4),
        st.dictionaries(st.text(st.characters(codec="utf-8")), NUMBERS | st.text(st.characters(codec="utf-8"))),
    )
)


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox.db")


@settings(max_examples=50, deadline=None)
@given(PUTS)
def test_first_put_wins_order_is_kept_and_reopening_changes_nothing(puts: list[tuple[str, str, int, dict]]):
    expected: dict[tuple, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outbox.db"
        outbox = Outbox(path)
        for run, kind, step, payload in puts:
            assert outbox.put(run, kind, step, payload) is ((run, kind, step) not in expected)
            expected.setdefault((run, kind, step), payload)
        for box in (outbox, Outbox(path)):
            found = box.unsent(1000)
            assert [((e.run, e.kind, e.step), e.payload) for e in found] == list(expected.items())
            assert box.pending() == len(expected)
            box.close()


def test_sent_and_rejected_entries_are_not_offered_again(outbox: Outbox):
    for step in range(4):
        outbox.put("a", "epoch", step, {})
    first, second, *rest = outbox.unsent(10)
    outbox.mark_sent([first.id])
    outbox.reject(second.id, "no such thing")
    assert outbox.unsent(10) == rest
    assert outbox.unsent(1) == rest[:1]
    assert outbox.pending() == 2
    assert outbox.rejected() == [(second, "no such thing")]


def test_reset_offers_everything_and_forgets_the_notes(outbox: Outbox):
    outbox.put("a", "epoch", 1, {})
    (entry,) = outbox.unsent(10)
    outbox.mark_sent([entry.id])
    outbox.set("destination", "here")
    outbox.set("destination", "there")
    assert outbox.get("destination") == "there"
    outbox.reset()
    assert outbox.unsent(10) == [entry]
    assert outbox.get("destination") is None


def test_add_takes_the_next_step_and_skips_a_mere_repetition(outbox: Outbox):
    assert outbox.add("a", "started", {"name": "x"})
    assert not outbox.add("a", "started", {"name": "x"})
    assert outbox.add("a", "failed", {"value": math.nan})
    assert not outbox.add("a", "failed", {"value": math.nan})
    assert outbox.add("a", "started", {"name": "x"})
    assert [(e.kind, e.step) for e in outbox.unsent(10)] == [("started", 1), ("failed", 1), ("started", 2)]
    last = outbox.last("a", "started")
    assert last is not None and last.step == 2
    assert outbox.get_entry("a", "started", 1) == outbox.unsent(1)[0]
    assert outbox.last("b", "started") is None


def test_the_given_time_is_kept(outbox: Outbox):
    outbox.put("a", "epoch", 1, {}, when_ms=12)
    assert outbox.unsent(1)[0].time == 12


def test_numbers_that_json_has_not():
    text = encode({"a": [math.inf, -math.inf, {"b": math.nan}], "c": (1.5,), "d": "a lone \udc80"})
    assert "NaN" not in text and "Infinity" not in text
    found = decode(text)
    assert found["a"][:2] == [math.inf, -math.inf] and math.isnan(found["a"][2]["b"])
    assert found["c"] == [1.5] and found["d"] == "a lone ?"


def test_two_threads(outbox: Outbox):
    def write() -> None:
        for step in range(300):
            outbox.put("a", "epoch", step, {"x": step})

    writer = threading.Thread(target=write)
    writer.start()
    got: list[int] = []
    while writer.is_alive() or outbox.pending():
        entries = outbox.unsent(20)
        got += [entry.step for entry in entries]
        outbox.mark_sent(entry.id for entry in entries)
    assert got == list(range(300))


PUT_FOREVER = """
import itertools, sys
from pathlib import Path
from ram_tune.search.outbox import Outbox

outbox = Outbox(Path(sys.argv[1]))
for step in itertools.count():
    outbox.put("a", "epoch", step, {"step": step})
    print(step, flush=True)
"""


def test_kill_9_loses_nothing_that_was_put(tmp_path: Path):
    path = tmp_path / "outbox.db"
    process = subprocess.Popen([sys.executable, "-c", PUT_FOREVER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(50):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    said = 49 + len(process.stdout.read().splitlines())
    process.wait()
    found = Outbox(path).unsent(10**6)
    assert [entry.step for entry in found] == list(range(len(found)))
    assert all(entry.payload == {"step": entry.step} for entry in found)
    assert len(found) in (said + 1, said + 2)  # the last may have been put and not yet said
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
