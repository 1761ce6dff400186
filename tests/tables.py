"""Tables as a person reads them; shared by the tests of what is printed."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType


def shown(table: RenderableType | None) -> str:
    assert table is not None
    paper = io.StringIO()
    Console(file=paper, width=400, color_system=None).print(table)
    return paper.getvalue()


def rows(table: RenderableType | None) -> list[list[str]]:
    lines = [line for line in shown(table).splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def words(table: RenderableType) -> str:
    """The whole text as one line: a caption is wrapped to the table's width."""
    return " ".join(shown(table).split())
