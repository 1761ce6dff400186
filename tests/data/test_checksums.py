"""SHA256SUMS as sha256sum writes it."""

import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ram_tune.data import checksums
from ram_tune.errors import BadInput

A, B = "ab" * 32, "0f" * 32
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1).filter(
    lambda name: name.strip(".")
)


def escaped(name: str) -> tuple[str, str]:
    """(the mark, the name) as coreutils writes it."""
    new = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return ("\\" if new != name else ""), new


@given(st.dictionaries(NAMES, st.binary(max_size=3).map(lambda content: hashlib.sha256(content).hexdigest())))
def test_whatever_the_names(sums: dict[str, str]):
    lines = [f"{mark}{sums[name]}  ./{new}\n" for name in sums for mark, new in [escaped(name)]]
    assert checksums.parse("".join(lines).encode(), "SHA256SUMS") == sums


@given(st.binary())
def test_whatever_the_bytes(content: bytes):
    try:
        sums = checksums.parse(content, "SHA256SUMS")
    except BadInput:
        return
    assert all(len(value) == 64 and set(value) <= set("0123456789abcdef") for value in sums.values())


def test_the_tool_itself(tmp_path: Path):
    contents = {"plain.txt": b"1", "two words.txt": b"2", "back\\slash": b"3", "line\nbreak": b"4", "ünlike": b"5"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    command = "find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum > SHA256SUMS"  # as documented
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    expected = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    assert checksums.parse((tmp_path / "SHA256SUMS").read_bytes(), "x") == expected
    assert {name: checksums.of(tmp_path / name) for name in contents} == expected


def test_forms_of_a_line():
    text = f"{A.upper()} *binary.bin\r\n\n{B}  a/./b\n"
    assert checksums.parse(text.encode(), "x") == {"binary.bin": A, "a/b": B}


@pytest.mark.parametrize("line", ["hello", f"{A}", f"{A[1:]}  short", f"{A}  ", f"SHA256 (x) = {A}", f"{A}\tx"])
def test_other_lines_are_named(line: str):
    with pytest.raises(BadInput, match=r"s3://b/SHA256SUMS:2: .*64 hex digits"):
        checksums.parse(f"{B}  x\n{line}\n".encode(), "s3://b/SHA256SUMS")
