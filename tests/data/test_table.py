"""The CSV reader: any labels and paths survive; what cannot be read is refused by its line."""

import csv
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ram_tune.data import table
from ram_tune.data.annotations import inside
from ram_tune.errors import BadInput

SAME_FOLDER = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# Cells are stripped; what a file system or UTF-8 cannot hold is left out; commas, quotes and line ends are in.
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\\:\0"), min_size=1, max_size=12).filter(
    lambda text: text == text.strip() and text not in (".", "..")
)
paths = st.lists(words, min_size=1, max_size=3).map("/".join)
labels = words.filter(lambda text: ";" not in text)


def read(folder: Path, text: str | bytes):
    file = folder / "own.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return table.read(file, folder)


def refusal(folder: Path, text: str | bytes) -> str:
    with pytest.raises(BadInput) as caught:
        read(folder, text)
    return str(caught.value)


@SAME_FOLDER
@given(
    rows=st.dictionaries(paths, st.tuples(st.sets(labels, max_size=4), words), min_size=1, max_size=6),
    named=st.booleans(),
    mark=st.booleans(),
)
def test_what_is_written_is_read(tmp_path: Path, rows: dict[str, tuple[set[str], str]], named: bool, mark: bool):
    file = tmp_path / "own.csv"
    with file.open("w", encoding="utf-8-sig" if mark else "utf-8", newline="") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
        writer.writerow(["path", "labels", "split"][: 2 + named])
        for path, (names, split) in rows.items():
            writer.writerow([path, " ; ".join(names), split][: 2 + named])
    if not any(names for names, _ in rows.values()):
        with pytest.raises(BadInput, match="no label in any line"):
            table.read(file, tmp_path)
        return
    images, splits = table.read(file, tmp_path)
    assert images.ids == images.paths == tuple(rows)
    assert images.categories == tuple(sorted(set().union(*(names for names, _ in rows.values()))))
    for row, (names, _) in zip(images.targets, rows.values(), strict=True):
        assert {name for name, there in zip(images.categories, row, strict=True) if there} == names
    assert splits == (tuple(split for _, split in rows.values()) if named else None)
    assert images.boxes is None and not images.difficult.any()


@SAME_FOLDER
@given(st.lists(st.one_of(words, st.sampled_from(["..", ".", "", "/", "\\", "C:", "..\\..", "//"])), max_size=8))
def test_no_path_escapes_the_root(tmp_path: Path, parts: list[str]):
    relative = "/".join(parts)
    try:
        clean = inside(relative, "here")
    except BadInput:
        return
    root = tmp_path.resolve()
    assert (root / clean).is_relative_to(root) and root / clean != root
    assert not {"..", ".", ""} & set(clean.split("/"))
    assert "\\" not in clean and not clean.startswith("/") and ":" not in clean.split("/")[0]


def test_blanks_order_and_empty_labels(tmp_path: Path):
    images, splits = read(
        tmp_path, "split, labels ,path\r\n\r\n train, dog ; cat;;dog ,a.jpg\r\n,,\r\ntest,,b//c.jpg\r\n"
    )
    assert images.categories == ("cat", "dog") and images.ids == ("a.jpg", "b/c.jpg")
    assert images.targets.tolist() == [[True, True], [False, False]] and splits == ("train", "test")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "own.csv:1: found an empty file"),
        ("\n\n", "own.csv:1: found an empty file"),
        ("path,labels\n", "own.csv:1: found no images"),
        ("labels\ncat\n", "own.csv:1: found no column 'path'"),
        ("path,split\na,b\n", "own.csv:1: found no column 'labels'"),
        ("path,labels,spilt\na,b,c\n", "own.csv:1: found the column 'spilt'"),
        ("path,labels,spilt\na,b,c\n", "Did you mean split?"),
        ("path,labels,path\na,b,c\n", "own.csv:1: found the column 'path' twice"),
        ("path,labels\na.jpg,cat\nb.jpg\n", "own.csv:3: found 1 cells; expected 2 (path,labels)"),
        ("path,labels\na.jpg,cat,dog\n", "own.csv:2: found 3 cells"),
        ("path,labels\na.jpg,cat,dog\n", 'Separate labels by ";"'),
        (
            "path,labels\na.jpg,cat\n\nb.jpg,cat\n./a.jpg,dog\n",
            "own.csv:5: path: found 'a.jpg' again (first on line 2)",
        ),
        ('path,labels\n"a\nb.jpg",cat\n"a\nb.jpg",cat\n', "own.csv:4: path"),
        ("path,labels\n../a.jpg,cat\n", "own.csv:2: path: found the image path '../a.jpg'"),
        ("path,labels\n/a.jpg,cat\n", "own.csv:2: path: found the image path '/a.jpg'"),
        ("path,labels\n,cat\n", "own.csv:2: path: found the image path ''"),
        ("path,labels,split\na.jpg,cat,\n", "own.csv:2: split: found nothing"),
        ("path,labels\na.jpg,\n", "own.csv: labels: found no label in any line"),
        ('path,labels\na.jpg,cat\n"b.jpg,cat\n', "own.csv:3: found malformed CSV"),
        (b"path,labels\na.jpg,caf\xe9\n", "own.csv:2: found"),
        (b"path,labels\na.jpg,caf\xe9\n", "Save the file as UTF-8"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path: Path, text: str | bytes, expected: str):
    assert expected in refusal(tmp_path, text)


def test_no_file_or_no_folder(tmp_path: Path):
    with pytest.raises(BadInput, match=r"nowhere.csv: found No such file"):
        table.read(tmp_path / "nowhere.csv", tmp_path)
    with pytest.raises(BadInput, match="--data-root"):
        table.read(tmp_path / "own.csv", tmp_path / "nowhere")
