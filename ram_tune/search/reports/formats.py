"""Tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from ram_tune.search.findings import plural
from ram_tune.search.reports.compare import Comparison, Row
from ram_tune.search.reports.tables import probability

GREEK = {"α": "alpha", "β": "beta", "γ": "gamma", "λ": "lambda", "ρ": "rho", "σ": "sigma"}
SIGNS = {"±": r"$\pm$", "−": "$-$", "×": r"$\times$", "·": r"$\cdot$", "≥": r"$\geq$", "→": r"$\to$", "–": "--"}
SPECIAL = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    '"': r"''",
    "[": "{[}",  # at the start of a row it would be an option of the line break before it
}
LATEX = SPECIAL | SIGNS | {letter: f"$\\{name}$" for letter, name in GREEK.items()}

COLUMNS = (
    *("search", "arm", "kind", "seeds", "seeds_asked", "metric", "mean", "low", "high", "images_low", "images_high"),
    *(
        "reference",
        "pairs",
        "difference",
        "difference_low",
        "difference_high",
        "p",
        "p_holm",
        "p_flips",
        "p_flips_floor",
    ),
    *("images_difference", "images_difference_low", "images_difference_high"),
    *("published", "published_source", "measured_minus_published", "differs"),
)


FORMULA = tuple("=+-@\t\r")
"""What a spreadsheet takes for the start of a formula."""


FEW = 2
"""Ways of measuring that a caption has room for."""


@dataclass(frozen=True)
class Sheet:
    """A table as plain texts."""

    title: str
    head: list[str]
    rows: list[list[str]]
    right: list[bool]  # of each column: is it set to the right?
    notes: list[str]


def sheet(table: Table) -> Sheet:
    """What a terminal's table says."""
    columns = [[_plain(cell) for cell in column.cells] for column in table.columns]
    notes = _plain(table.caption).splitlines() if table.caption else []
    head = [_plain(column.header) for column in table.columns]
    right = [column.justify == "right" for column in table.columns]
    return Sheet(_plain(table.title or ""), head, [list(row) for row in zip(*columns, strict=True)], right, notes)


def markdown(table: Table) -> str:
    """As GitHub and MLflow show it."""
    found = sheet(table)
    lines = [f"### {escaped(found.title)}", "", _line(found.head)]
    lines.append(_line(["---:" if right else "---" for right in found.right], escape=False))
    lines += map(_line, found.rows)
    lines += ["", *(f"{escaped(note)}  " for note in found.notes)] if found.notes else []
    return "\n".join(lines) + "\n"


def csv_text(found: Comparison) -> str:
    """A line for each arm with every figure, in percent and points, to four digits; empty where there is none.

    A text that a spreadsheet would compute has an apostrophe before it.
    """
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in found.rows:
        table.writerow(map(_cell, _figures(found, row)))
    return stream.getvalue()


def _figures(found: Comparison, row: Row) -> list[str | float | int]:
    nan = math.nan
    mean, over, seeds, apart = row.mean, row.images, row.paired, row.difference
    about = [row.search, row.name, row.kind, len(row.values), row.asked, found.metric]
    means = [mean.mean, mean.low, mean.high] if mean else [nan] * 3
    means += [over.low, over.high] if over else [nan] * 2
    by_seed = [seeds.difference.mean, seeds.difference.low, seeds.difference.high] if seeds else [nan] * 3
    tests = [seeds.p, row.holm, seeds.flips, seeds.floor] if seeds else [nan] * 4
    by_image = [apart.mean, apart.low, apart.high] if apart else [nan] * 3
    known = [row.known, row.published.source if row.published else "", nan if row.gap is None else row.gap]
    pairs = seeds.n if seeds else ""
    return [*about, *means, found.reference, pairs, *by_seed, *tests, *by_image, *known, row.unpaired or row.differs]


def latex(found: Comparison, title: str) -> str:
    """A table for one column of a paper in two: `booktabs` and `tabularx` must be loaded. Arms, means and differences."""
    known = any(row.published for row in found.rows)
    head = ["arm", "$n$", tex(found.metric), "$\\Delta$", "$p$"] + (["publ."] if known else [])
    lines = [_latex_row(row, known) for row in found.rows]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs,tabularx}",
            "\\begin{table}[t]",
            "\\centering",
            "\\footnotesize",
            "\\setlength{\\tabcolsep}{3pt}",
            f"\\caption{{{_caption(found, title)}}}",
            "\\vspace{4pt}",
            f"\\label{{tab:{re.sub('[^A-Za-z0-9]+', '-', title).strip('-').lower()}}}",
            f"\\begin{{tabularx}}{{\\columnwidth}}{{@{{}}>{{\\raggedright\\arraybackslash}}X{'r' * (len(head) - 1)}@{{}}}}",
            "\\toprule",
            " & ".join(head) + " \\\\",
            "\\midrule",
            *lines,
            "\\bottomrule",
            "\\end{tabularx}",
            "\\end{table}",
            "",
        ]
    )


def _caption(found: Comparison, title: str) -> str:
    base = next((row for row in found.rows if row.reference), None)
    said = [f"{tex(title)}, in percent."]
    several = any(row.mean.known for row in found.rows if row.mean)
    if several:
        one = "; all seeds start from one stage 1, whose variance it excludes" if found.one_stage1 else ""
        said.append(f"$\\pm$: 95\\,\\% interval over seeds{one}.")
    elif any(row.mean for row in found.rows):
        said.append("One seed.")
    if base and base.mean:
        tests = ", by seed; $p$: paired $t$ test, Holm" if several else ""
        said.append(f"$\\Delta$: against {tex(base.name)}{tests}.")
    elif base:
        said.append(f"No $\\Delta$: {tex(base.name)}, the reference, has no finished run.")
    fewer = [f"{row.name} {len(row.values)} of {row.asked} seeds" for row in found.rows if len(row.values) < row.asked]
    if fewer:
        said.append(f"Incomplete: {tex(', '.join(fewer))}.")
    return " ".join([*said, *_otherwise(found)])


def _otherwise(found: Comparison) -> list[str]:
    """How what was measured is not what was published: a sentence, of few ways."""
    ways: dict[str, list[str]] = {}
    for row in (row for row in found.rows if row.published and row.mean):
        ways.setdefault(row.differs, []).append(row.name)
    differ = [way for way in ways if way]
    if len(differ) > FEW:
        return ["Published numbers were measured or trained otherwise, each in its own way."]
    words = differ if len(ways) == 1 else [f"{', '.join(ways[way])} ({way})" for way in differ]
    return [f"Measured otherwise than published: {tex('; '.join(words))}."] if words else []


def _latex_row(row: Row, known: bool) -> str:
    mean = "--"
    if row.mean:
        mean = f"{row.mean.mean:.1f}" + (f"$\\,\\pm\\,${row.mean.half:.1f}" if row.mean.known else "")
    cells = [tex(row.name), str(len(row.values)), mean, _latex_difference(row), tex(probability(row.holm))]
    if known:
        cells.append(f"{row.known:.1f}" if row.published else "")
    return " & ".join(cells) + " \\\\"


def _latex_difference(row: Row) -> str:
    """The difference by seed, else that over images."""
    found = row.paired.difference if row.paired else row.difference
    if found is None:
        return "--" if row.reference else ""
    half = f"\\pm{found.half:.1f}" if found.known and row.paired else ""
    return f"${found.mean:+z.1f}{half}$"


def tex(text: str) -> str:
    """With what LaTeX reads otherwise escaped, and the signs and Greek letters of ours as it has them."""
    return "".join(LATEX.get(letter, letter) for letter in text)


def summary(found: Comparison) -> str:
    """How complete it is, in words."""
    arms = [row for row in found.rows if row.kind != "stage1"]
    short = [f"{row.name} ({len(row.values)} of {row.asked} seeds)" for row in arms if len(row.values) < row.asked]
    whole = f"{plural(len(arms), 'arm')}, {plural(sum(len(row.values) for row in arms), 'finished run')}"
    return f"{whole}; incomplete: {', '.join(short)}" if short else whole


def _plain(cell: object) -> str:
    return Text.from_markup(cell).plain if isinstance(cell, str) else str(cell)


def _line(cells: Sequence[str], escape: bool = True) -> str:
    return f"| {' | '.join(escaped(cell) if escape else cell for cell in cells)} |"


def escaped(text: str) -> str:
    """Nothing of it is markup: an arm may be called `*`."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", text).replace("\n", " ")


def _cell(value: str | float | int) -> str | int:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}"
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
