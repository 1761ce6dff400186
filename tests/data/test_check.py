"""The command that says what is in a dataset and whether it is whole."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ram_tune.config import Data
from ram_tune.data.annotations import Annotations
from ram_tune.data.check import against_published, main
from ram_tune.data.roles import Dataset
from ram_tune.errors import BadInput


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """25 images a and 25 images b, all whole; one unlabelled and not there."""
    (tmp_path / "img").mkdir()
    names = [f"img/[{label}]{i}.png" for i in range(25) for label in "ab"]
    for index, name in enumerate(names):
        Image.new("RGB", (8 + index, 9), (index, 0, 0)).save(tmp_path / name)
    lines = [f"{name},{name[5]}" for name in names]
    (tmp_path / "own.csv").write_text("\n".join(["path,labels", *lines, "img/none.png,"]))
    return tmp_path / "own.csv"


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAM_TUNE_CACHE", str(tmp_path / "cache"))


def check(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main(["check", *map(str, arguments)])
    return code, capsys.readouterr().out


def row(output: str, name: str) -> list[str]:
    """The cells of the table's row that starts with `name`."""
    rows = ([cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line)
    return next(cells[1:] for cells in rows if cells and cells[0] == name)


def test_a_whole_dataset(table: Path, capsys: pytest.CaptureFixture[str]):
    code, output = check(capsys, "--data", table)
    assert code == 0
    assert row(output, "a") == row(output, "b") == ["18", "2", "5"]
    assert row(output, "images") == ["36", "4", "10"] and row(output, "unlabelled, dropped") == ["1", "0", "0"]
    assert row(output, "boxes") == ["-", "-", "-"] and row(output, "labels") == ["36", "4", "10"]
    assert "all 50 files are there and decode" in output and "chance-level mAP on test: 0.5000" in output


def test_settings_reach_the_data(table: Path, capsys: pytest.CaptureFixture[str]):
    code, output = check(capsys, "--data", table, "--fast", "--set", "data.limit=4", "data.test_fraction=0.5")
    assert code == 0 and row(output, "images") == ["3", "1", "4"] and "all 8 files are there\n" in output
    one = output.splitlines()[-1]
    _, output = check(capsys, "--data", table, "--fast", "--set", "data.limit=4", "--set", "data.test_fraction=0.5")
    assert output.splitlines()[-1] == one and "fingerprint: " in one  # told once or twice: the same


def test_labels_that_a_role_lacks_are_named(table: Path, capsys: pytest.CaptureFixture[str]):
    lines = [line for line in table.read_text().splitlines() if not line.endswith(",")]
    splits = ["split", *["train"] * 44, *["selection"] * 2, *["test"] * 4]
    lines = [f"{line},{split}" for line, split in zip(lines, splits, strict=True)]
    lines[-4:] = [line.replace(",b,", ",a,") for line in lines[-4:]]
    lines[1] = lines[1].replace(",a,", ",a;c,")
    table.write_text("\n".join(lines))
    code, output = check(capsys, "--data", table, "--fast")
    assert code == 0
    told = [line for line in output.splitlines() if line.startswith("no image")]
    assert told == [
        "no image for selection shows c: the mAP on selection is without them",
        "no image for test shows b, c: the mAP on test is without them",
    ]
    table.write_text("\n".join(lines).replace(",train", ",spare").replace(",test", ",train").replace(",spare", ",test"))
    assert "no image for train shows b, c: they cannot be learned" in check(capsys, "--data", table, "--fast")[1]


def test_broken_files_are_listed(table: Path, capsys: pytest.CaptureFixture[str]):
    broken = [table.parent / f"img/[a]{i}.png" for i in range(12)]
    for path in broken[1:]:
        path.write_bytes(path.read_bytes()[:45])
    broken[0].write_text("not an image")
    code, output = check(capsys, "--data", table)
    assert code == 1 and "12 of 50 files are missing or broken:" in output
    listed = [line for line in output.splitlines() if line.startswith("  ") and ".png: " in line]
    assert len(listed) == 10 and "… and 2 more" in output
    assert all(any(str(path) in line for path in broken) for line in listed)
    assert check(capsys, "--data", table, "--fast")[0] == 0  # they are there


def test_reasons_tell_missing_from_broken_and_too_large(table: Path, capsys: pytest.CaptureFixture[str]):
    (table.parent / "img/[a]0.png").unlink()
    (table.parent / "img/[a]1.png").write_text("not an image")
    code, output = check(capsys, "--data", table, "--set", "data.max_image_pixels=512")
    assert code == 1
    reasons = {line.split("img/")[1].split(": ")[0]: line for line in output.splitlines() if "img/" in line}
    assert "no such file" in reasons["[a]0.png"] and "no image" in reasons["[a]1.png"]
    assert "57×9 pixels" in reasons["[b]24.png"] and len(reasons) == 3  # the only one of more than 512 pixels
    assert "fingerprint: unknown while files are missing" in output
    assert check(capsys, "--data", table, "--fast")[0] == 1


@pytest.mark.real
def test_voc_in_numbers(real_data: Path, capsys: pytest.CaptureFixture[str]):
    splits = ("data.train_split=train", "data.test_split=val")
    code, output = check(capsys, "--data", "voc2007", "--data-root", real_data, "--fast", "--set", *splits)
    assert code == 0
    assert row(output, "aeroplane")[2] == "126 +1" and row(output, "bird")[2] == "150 +1"
    assert row(output, "difficult-only labels")[2] == "278" and row(output, "images")[2] == "2510"
    assert "chance-level mAP on test: 0.07" in output


def test_chance_leaves_out_what_ap_leaves_out():
    targets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]], bool)
    difficult = np.array([[0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 1, 1]], bool)
    ids = ("0", "1", "2", "3")
    images = Annotations(Path(), ("a", "b", "c"), ids, ids, targets, difficult)
    assert images.chance() == pytest.approx((2 / 4 + 1 / 2) / 2)  # c is never there


def test_bad_options_are_bad_input(table: Path):
    with pytest.raises(BadInput, match=r"--data: found 'voc2008'.*Did you mean voc2007"):
        main(["check", "--data", "voc2008"])
    with pytest.raises(BadInput, match="--data-root"):
        main(["check", "--data", "voc2007"])
    with pytest.raises(BadInput, match=r"data\.limti.*Did you mean data\.limit"):
        main(["check", "--data", str(table), "--set", "data.limti=4"])


def test_the_command_exits_with_2_and_one_line(tmp_path: Path):
    command = [sys.executable, "-m", "ram_tune.data", "check", "--data", "voc2007", "--data-root", str(tmp_path)]
    command += ["--cache-dir", str(tmp_path)]  # the default's module imports torch: seconds
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --data-root: found no VOC2007/ImageSets/Main")
    assert len(done.stderr.splitlines()) == 1


def test_help_has_examples(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main(["check", "--help"])
    output = capsys.readouterr().out
    assert caught.value.code == 0 and "examples:" in output and "--data-root" in output and "exit code" in output


@pytest.mark.real
def test_voc_2007_is_counted_against_what_is_published(real_data: Path, capsys: pytest.CaptureFixture[str]):
    splits = "data.train_split=train", "data.test_split=val"
    code, output = check(capsys, "--data", "voc2007", "--data-root", real_data, "--fast", "--set", *splits)
    assert code == 0
    assert "train: 2,501 images, as published" in output
    assert "val: 2,510 images, as published" in output
    _, output = check(capsys, "--data", "voc2007", "--data-root", real_data, "--fast", "--set", *splits, "data.limit=9")
    assert "as published" not in output


def test_a_part_of_a_published_dataset_is_said_to_be_one():
    few = Annotations(Path(), ("a",), ("x",), ("x.jpg",), np.ones((1, 1), bool), np.zeros((1, 1), bool), dropped=2)
    parts = Dataset("coco2014", few, few.take(np.array([0])), few)
    data = Data(format="coco", train_split="train2014", test_split="val2014")
    train, test = against_published(data, parts)
    assert train.startswith("train2014: 6 images, not the published 82,783")
    assert test.startswith("val2014: 3 images, not the published 40,504")
