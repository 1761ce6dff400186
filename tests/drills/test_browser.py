"""What a person sees: MLflow's own UI in a real browser (Debian's chromium, which `make drills` installs where it can)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from searches import Searches

pytestmark = pytest.mark.drill

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or ""


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


def encoded(query: dict[str, str]) -> str:
    return urllib.parse.urlencode(query, quote_via=urllib.parse.quote)


def page(address: str, picture: Path) -> str:
    """The page's text and markup once its scripts have run; leaves a screenshot."""
    common = [
        BROWSER,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ]
    patient = ["--virtual-time-budget=90000", "--timeout=60000", "--window-size=1500,950"]
    profile = f"--user-data-dir={picture.parent / 'profile'}"
    subprocess.run(
        [*common, *patient, profile, f"--screenshot={picture}", address], capture_output=True, timeout=180, check=True
    )
    done = subprocess.run(
        [*common, *patient, profile, "--dump-dom", address], capture_output=True, text=True, timeout=180, check=True
    )
    return done.stdout


@pytest.mark.skipif(not BROWSER, reason="no chromium here")
def test_the_search_is_found_and_two_arms_are_compared(searches, ui, tmp_path):
    parent, children = searches.children("constraints-labels")
    experiment = parent.info.experiment_id
    runs = page(f"{ui}/#/experiments/{experiment}/runs", tmp_path / "runs.png")
    assert parent.info.run_name in runs

    # Sorted by a metric MLflow shows children beside one another, and not folded under their parent.
    query = {
        "searchFilter": f"tags.mlflow.parentRunId = '{parent.info.run_id}'",
        "orderByKey": "metrics.`test/mAP`",
        "compareRunsMode": "CHART",
    }
    charts = page(f"{ui}/#/experiments/{experiment}/runs?{encoded(query)}", tmp_path / "charts.png")
    for name in ("stage 1", "none · seed 0", "A+S+P · seed 0"):
        assert name in charts, name

    curves = {
        "runs": json.dumps([children[f"{arm} · seed 0"].info.run_id for arm in ("none", "A+S+P")]),
        "experiments": json.dumps([experiment]),
        "metric": json.dumps("selection/mAP"),
        "plot_metric_keys": json.dumps(["selection/mAP"]),
        "plot_layout": "{}",
        "x_axis": "step",
    }
    found = page(f"{ui}/#/metric?{encoded(curves)}", tmp_path / "curves.png")
    for text in ("none · seed 0 (selection/mAP)", "A+S+P · seed 0 (selection/mAP)"):
        assert text in found, text

    run = page(f"{ui}/#/experiments/{experiment}/runs/{children['none · seed 0'].info.run_id}", tmp_path / "run.png")
    assert "loss.anchor" in run
