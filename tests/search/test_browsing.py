"""Where a person is sent to see the runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ram_tune.search.browsing import browse, view

PAGE = "/#/experiments/3/runs?viewStateShareKey=ram_tune"


def test_a_server_is_named_with_the_page_and_without_the_password():
    assert browse("https://me:secret@host/mlflow/", "3") == f"https://***@host/mlflow{PAGE}"
    assert browse("http://host:5000", None) == "http://host:5000"  # nothing was sent yet
    assert browse("postgresql://me:secret@host/db", "3") == "postgresql://***@host/db"


def test_a_file_is_named_with_what_serves_it(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    here = browse(f"sqlite:///{Path.cwd() / 'mlflow.db'}", "3")
    assert here.endswith(f"mlflow ui, then http://127.0.0.1:5000{PAGE}")
    elsewhere = browse("sqlite:////data/runs.db", "3")
    assert "mlflow ui --backend-store-uri sqlite:////data/runs.db, then http" in elsewhere


def test_an_experiments_tag_holds_the_view():
    assert len(view()) < 5000  # MLflow's limit


def test_every_chart_is_in_a_section_that_is_there():
    shown = json.loads(view())
    sections = [section["uuid"] for section in shown["compareRunSections"]]
    charts = shown["compareRunCharts"]
    assert {chart["metricSectionId"] for chart in charts} == set(sections)
    assert len({chart["uuid"] for chart in charts}) == len(charts) == 10


def test_the_view_is_sorted_by_what_it_shows_first():
    shown = json.loads(view())
    assert shown["orderByKey"] == shown["selectedColumns"][0] == "metrics.`test/mAP`" and not shown["orderByAsc"]
