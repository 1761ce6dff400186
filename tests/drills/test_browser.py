"""What a person sees: MLflow's own UI in a real browser (Debian's chromium, which `make drills` installs where it can)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from screens import BROWSER, Pages, browser
from searches import Searches

from ram_tune.search.browsing import PICTURES

pytestmark = pytest.mark.drill


@pytest.fixture
def searches(pictures, tiny, tmp_path) -> Searches:
    found = Searches(tmp_path, pictures, tiny)
    done = found.run("constraints", "--workers", "0", "--arms", "none", "A+S+P")
    assert done.returncode == 0, done.stderr
    return found


@pytest.fixture
def ui(searches) -> Iterator[str]:
    """A bare `mlflow ui` in the folder of the search → its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("mlflow")), "ui", "--port", str(port)]
    server = subprocess.Popen(command, cwd=searches.folder, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.mark.skipif(not BROWSER, reason="no chromium here")
def test_a_person_finds_their_way(searches, ui, tmp_path):
    _, children = searches.children("constraints-pictures")
    by_test = sorted(children, key=lambda name: -children[name].data.metrics["test/mAP"])
    with browser() as page:
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        pages = Pages(page, ui, "constraints-pictures", tmp_path / "screens")
        assert [name for name in pages.leaderboard() if name in children] == by_test
        titles = pages.charts()
        assert {"selection/mAP", "selection/mirrored_share", PICTURES} <= set(
            titles
        )  # those further down are drawn later
        last, first, images = pages.regions()
        assert (last, first) == (3, 1) and images == 2  # of both arms
        assert set(pages.expanded()) == {pages.parent.info.run_name, *children}
        text = pages.compared("none · seed 0", "A+S+P · seed 0")
        assert "loss.anchor\tFalse\tTrue" in text
        text = pages.description()
        assert "Which of the anchor (A)" in text and "python -m ram_tune.search constraints" in text
        assert "best epoch" in text and "A+S+P" in text  # the table
        assert "pictures" in text.partition("Datasets")[2]
        text = pages.report()
        assert "The answer" in text and "A+S+P" in text and "over images" in text
    assert not complaints
    for name in ("runs", "curves", "regions", "tree", "compared", "parent", "report"):
        assert (tmp_path / "screens" / f"{name}.png").stat().st_size > 20_000
