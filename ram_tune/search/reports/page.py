"""The report as one HTML file that needs nothing beside it: no network, no script, also inside MLflow's viewer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from rich.table import Table

import ram_tune
from ram_tune.errors import error_line
from ram_tune.search.record import REPORT
from ram_tune.search.reports import drawings, formats
from ram_tune.search.reports.compare import rows_of
from ram_tune.search.reports.document import Document, document
from ram_tune.search.reports.kept import Kept, read
from ram_tune.search.reports.pictures import Strip, strips
from ram_tune.search.study import Study
from ram_tune.training.results import write

STYLE = """
:root { --ink: #1b1f24; --soft: #5b6570; --line: #d9dee3; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 "Source Serif 4", Charter, Georgia, "DejaVu Serif",
  serif; }
main { max-width: 1000px; margin: 0 auto; padding: 44px 30px 70px; }
h1 { font-size: 32px; line-height: 1.2; margin: 0 0 10px; letter-spacing: -0.01em; }
h2 { font-size: 21px; margin: 52px 0 14px; padding-top: 14px; border-top: 2px solid var(--ink); }
.question { font-size: 19px; font-style: italic; color: var(--soft); margin: 0 0 22px; max-width: 46em; }
.facts, table, svg text, figcaption, .note, footer, code { font-family: "Inter", "Helvetica Neue", Arial, "DejaVu Sans",
  sans-serif; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 3px 18px; font-size: 13.5px; margin: 0; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; }
.block { margin: 26px 0 34px; overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; width: 100%; }
table.close td { padding-top: 3px; padding-bottom: 3px; }
caption { text-align: left; font-weight: 600; padding-bottom: 8px; }
th, td { padding: 6px 14px 6px 0; text-align: left; vertical-align: baseline; } th { vertical-align: bottom; }
th:last-child, td:last-child { padding-right: 4px; }
th { font-weight: 600; font-size: 12.5px; color: var(--soft); border-bottom: 1px solid var(--ink); }
thead tr { border-top: 2px solid var(--ink); }
tbody tr { border-bottom: 1px solid var(--line); } tbody tr:last-child { border-bottom: 2px solid var(--ink); }
.right { text-align: right; } td.right { white-space: nowrap; }
td:first-child { font-weight: 600; }
.note { font-size: 12.5px; line-height: 1.5; color: var(--soft); margin: 8px 0 0; max-width: 78ch; }
ul.said { padding-left: 20px; } ul.said li { margin: 5px 0; }
figure { margin: 22px 0 34px; } figcaption { font-size: 13px; color: var(--soft); margin-top: 6px; max-width: 78ch; }
svg { width: 100%; height: auto; display: block; } svg text { font-size: 12px; fill: #3d4650; }
svg .axis { fill: var(--soft); } svg .name { font-weight: 600; font-size: 13.5px; }
figure img { width: 100%; height: auto; display: block; }
.pictures { display: grid; gap: 8px; align-items: start; font: 600 13px/1.3 "Inter", "Helvetica Neue", Arial, sans-serif; }
.pictures span { font-weight: 400; color: var(--soft); display: block; font-size: 12px; }
.failed li { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; color: #9b1c1c; overflow-wrap: anywhere; }
footer { margin-top: 60px; border-top: 1px solid var(--line); padding-top: 12px; font-size: 12.5px; color: var(--soft); }
@media print { main { max-width: none; padding: 0; } h2, .block, figure { break-inside: avoid; } }
"""

MANY = 12
"""Rows over which a table is set closer."""

DEEPEST = 10.0
"""Points of AP at which a tint is as deep as it gets."""


def leave(study: Study, folder: Path) -> str:
    """Write the report of a search that ends into its folder → why it could not be made; empty where it was.

    Whatever stands in the way, the search is over and well.
    """
    try:
        write(folder / REPORT, page(document(read(study, folder))))
    except Exception as error:
        return f"The report was not made: {error_line(f'{type(error).__name__}: {error}')}"
    return ""


def page(found: Document) -> str:
    """The whole file."""
    kept = found.kept
    sections = [
        _section("The answer", [_said(found.said), *map(_table, found.answer)]),
        _section("Differences", [_forest(found), *map(_table, found.differences)]),
        _section("Curves", [_curves(kept)]),
        _section("The search", _plots(kept)),
        _section("Labels", [_table(table, found.comparison.reference) for table in found.labels]),
        _section("What the regions do", [*map(_table, found.regions), *_pictures(kept)]),
        _section("Failed runs", [_list(found.failed, "failed")]),
    ]
    title = escape(found.title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{f'<p class="question">{escape(kept.space.question)}</p>' if kept.space.question else ""}
<dl class="facts">{"".join(f"<dt>{escape(name)}</dt><dd>{escape(what)}</dd>" for name, what in _facts(found))}</dl>
{"".join(sections)}
<footer>Made by ram_tune {ram_tune.__version__} from the study {escape(kept.name)} and what its runs left on disk.</footer>
</main>
</body>
</html>
"""


def _facts(found: Document) -> list[tuple[str, str]]:
    kept = found.kept
    summary = next(iter(kept.summaries.values()), None)
    facts = [("runs", formats.summary(found.comparison))] if found.comparison.rows else []
    if summary:
        images = summary["images"]
        split = ", ".join(f"{images[role]:,} {role}" for role in ("train", "selection", "test"))
        facts.append(("images", f"{split} (data {summary['dataset']})"))
    if kept.command:
        facts.append(("command", kept.command))
    beside = ", ".join(other.name for other in found.others)
    return [*facts, *([("beside it", beside)] if beside else [])]


def _section(title: str, parts) -> str:
    inside = "".join(parts)
    return f"<section><h2>{escape(title)}</h2>{inside}</section>\n" if inside else ""


def _table(table: Table, reference: str = "") -> str:
    """`reference`: the column that the others' numbers are tinted by."""
    sheet = formats.sheet(table)
    base = sheet.head.index(reference) if reference in sheet.head else None
    sides = [' class="right"' if right else "" for right in sheet.right]
    head = "".join(f"<th{side}>{escape(cell)}</th>" for cell, side in zip(sheet.head, sides, strict=True))
    body = ""
    for row in sheet.rows:
        tints = [_tint(cell, row[base]) if base else "" for cell in row]
        cells = zip(map(_minus, row), sides, tints, strict=True)
        body += "<tr>" + "".join(f"<td{side}{tint}>{escape(cell)}</td>" for cell, side, tint in cells) + "</tr>"
    notes = f'<p class="note">{"<br>".join(map(escape, sheet.notes))}</p>' if sheet.notes else ""
    caption, close = f"<caption>{escape(sheet.title)}</caption>", ' class="close"' if len(sheet.rows) > MANY else ""
    return f'<div class="block"><table{close}>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}</div>'


def _minus(cell: str) -> str:
    """With a minus sign before negative numbers."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", cell)


def _tint(cell: str, base: str) -> str:
    """Blue where a number is above the reference's, orange where it is below, the deeper the more."""
    try:
        apart = float(cell) - float(base)
    except ValueError:
        return ""
    depth = min(abs(apart) / DEEPEST, 1) * 0.55
    colour = "86,180,233" if apart > 0 else "230,159,0"
    return f' style="background:rgba({colour},{depth:.2f})"' if apart else ""


def _said(sentences: Sequence[str]) -> str:
    return _list(sentences, "said")


def _list(lines: Sequence[str], kind: str) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="{kind}">{items}</ul>' if items else ""


def _forest(found: Document) -> str:
    compared = found.comparison
    rows = [
        drawings.Apart(row.name, row.paired.difference if row.paired else None, row.difference)
        for row in compared.rows
        if (row.paired or row.difference) and row.kind != "stage1"  # so far below that nothing else could be told apart
    ]
    if not rows:
        return ""
    label = f"{compared.metric} against {compared.reference}"
    return _figure(
        drawings.forest(rows, label),
        f"{label}, in points: mean (dot), 95 % interval over test images (broad) and, of two seeds or more, over seeds "
        "(line). An interval that holds 0 shows no difference.",
    )


def _curves(kept: Kept) -> str:
    histories, found = kept.histories, []
    for name, jobs in rows_of(kept):
        if jobs[0].kind == "train":
            runs = [histories[job.fingerprint] for job in jobs if job.fingerprint in histories]
            found.append(drawings.curve(name, runs, "selection/mAP"))
    there = [one for one in found if one]
    if not there:
        return ""
    label = "mAP on the selection images by epoch, in percent"
    band = "; the band reaches from the lowest seed to the highest" if any(one.low != one.high for one in there) else ""
    return _figure(drawings.curves(there, label), f"{label}: means over seeds{band}.")


def _plots(kept: Kept) -> list[str]:
    if not kept.space.parameters:
        return []
    from ram_tune.search.reports.plots import plots

    return [_figure(f'<img src="{one.source}" alt="{escape(one.caption)}">', one.caption) for one in plots(kept)]


def _pictures(kept: Kept) -> list[str]:
    found = strips(kept)
    if not found:
        return []
    grid = f'<div class="pictures" style="grid-template-columns: repeat({len(found)}, 1fr)">{_cells(found)}</div>'
    caption = (
        "Regions on the same selection images, arm beside arm: each with its number, the label it scored highest and that "
        "score; below each image its true labels."
    )
    return [_figure(grid, caption)]


def _cells(found: Sequence[Strip]) -> str:
    heads = "".join(f"<div>{escape(one.arm)}<span>seed {one.seed}, epoch {one.epoch}</span></div>" for one in found)
    rows = zip(*(one.pictures for one in found), strict=False)
    tiles = "".join(
        f'<img src="{source}" alt="regions of {escape(one.arm)}">'
        for row in rows
        for one, source in zip(found, row, strict=True)
    )
    return heads + tiles


def _figure(inside: str, caption: str) -> str:
    return f"<figure>{inside}<figcaption>{escape(caption)}</figcaption></figure>"
