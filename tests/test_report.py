"""`python -m ram_tune.report`, as it is typed."""

from __future__ import annotations

import csv
import subprocess
import sys

import pytest
from finished import Finished, space

from ram_tune.errors import BadInput
from ram_tune.report import main


@pytest.fixture(scope="module")
def search(tmp_path_factory) -> Finished:
    return Finished(tmp_path_factory.mktemp("runs"), space()).all()


def report(search: Finished, *options: str) -> int:
    return main([*options, "--results", str(search.folder.parent)])


def test_without_a_name_the_searches_are_listed(search, capsys):
    assert report(search) == 0
    assert "constraints-scenes-0a1b2c3d │        6" in capsys.readouterr().out


def test_text_on_the_terminal(search, capsys):
    assert report(search, "constraints") == 0
    said = capsys.readouterr().out
    assert "Constraints on scenes, in percent" in said
    assert "mAP against none, in points" in said
    assert "· highest mAP: A_1" in said


@pytest.mark.parametrize(
    ("format", "start"),
    [("text", "Which?"), ("markdown", "# Constraints on scenes"), ("latex", "% needs"), ("html", "<!DOCTYPE html>")],
)
def test_every_format_into_a_file(search, tmp_path, capsys, format, start):
    file = tmp_path / "deep" / "report"
    assert report(search, "constraints-scenes", "--format", format, "--out", str(file)) == 0
    assert file.read_text(encoding="utf-8").startswith(start)
    assert capsys.readouterr().out == f"{file}\n"


def test_another_metric_and_reference(search, capsys):
    report(search, "constraints", "--format", "csv", "--metric", "CF1", "--reference", "A_1")
    none, _ = csv.DictReader(capsys.readouterr().out.splitlines())
    assert (none["metric"], none["reference"], none["pairs"]) == ("CF1", "A_1", "3")


def test_which_of_several_it_is_of_is_said_beside_it(tmp_path, capsys):
    Finished(tmp_path, space()).all(seeds=1)
    search = Finished(tmp_path, space(), name="constraints-photos-00000000").all(seeds=1)
    report(search, "constraints", "--format", "csv")
    out, err = capsys.readouterr()
    assert err == "the newest of 2 searches that begin with constraints: constraints-photos-00000000\n"
    assert out.startswith("search") and len(list(csv.DictReader(out.splitlines()))) == 2
    report(search, "constraints-photos", "--format", "csv")
    assert capsys.readouterr().err == ""


def test_another_search_beside_it(search, capsys):
    beside = Finished(search.folder.parent, space(), name="again-scenes-00000000").all(seeds=2)
    report(search, "constraints", "--compare", "again", "again-scenes", "--format", "csv")
    lines = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    found = {row["arm"]: row for row in lines}
    assert len(lines) == len(found) == 4
    assert found[f"{beside.name}: none"]["pairs"] == "2"
    assert float(found[f"{beside.name}: none"]["difference"]) == 0
    assert report(search, "constraints", "--compare", "again") == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["constrain"], r"NAME: found no search 'constrain'; expected one of"),
        (["constraints", "--compare", "nothing"], r"--compare: found no search 'nothing'"),
        (["constraints", "--compare", "constraints"], r"--compare: found constraints-scenes"),
        (["constraints", "--reference", "B"], r"--reference: found 'B'; expected one of none, A_1"),
        (["--compare", "constraints"], r"NAME: found nothing"),
    ],
)
def test_what_cannot_be_used_is_named(search, options, said):
    with pytest.raises(BadInput, match=said):
        report(search, *options)


def test_only_what_is_read_can_be_named(search, capsys):
    with pytest.raises(SystemExit, match="2"):
        report(search, "constraints", "--tracking-uri", "sqlite:///mlflow.db")
    assert "unrecognized arguments: --tracking-uri" in capsys.readouterr().err


@pytest.mark.parametrize("by", ["option", "variable"])
def test_no_folder_is_made_by_reading(tmp_path, monkeypatch, by):
    monkeypatch.setenv("RAM_TUNE_RESULTS", str(tmp_path / "runs"))
    with pytest.raises(BadInput, match="no such file"):
        main(["--results", str(tmp_path / "runs")] if by == "option" else [])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_studies_is_said_to_be_one(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        main(["constraints", "--results", str(tmp_path)])


def test_what_arms_are_compared_by_is_in_every_finished_run(search):
    from ram_tune.search.reports import METRICS

    for run in search.study.runs().values():
        assert {f"test/{metric}" for metric in METRICS} <= set(run["metrics"])


def test_help_needs_neither_torch_nor_numpy():
    code = (
        "import sys, contextlib\n"
        "from ram_tune.report import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "print([name for name in ('torch', 'numpy', 'optuna', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_torch_ray_and_mlflow_are_not_needed(search):
    code = (
        "import sys; from ram_tune.report import main; "
        f"main(['constraints', '--format', 'html', '--out', '{search.folder}/r', '--results', '{search.folder.parent}']); "
        "print([name for name in ('torch', 'ray', 'mlflow', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
