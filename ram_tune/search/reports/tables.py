"""A comparison as tables for a terminal; `formats` makes other formats of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ram_tune.evaluation.resampling import RESAMPLES
from ram_tune.search.findings import plural
from ram_tune.search.report import spread
from ram_tune.search.reports import images
from ram_tune.search.reports.compare import Comparison, Row
from ram_tune.search.statistics import MOST_SEEDS, Interval, Paired

ALPHA = 0.05
"""The field's usual level."""

MOST_LABELS = 3
"""Of each arm's gains, and of its losses."""


def difference_table(found: Comparison) -> Table | None:
    """Every arm against the reference: by seed with t interval and p, and over images; None where there is nothing to compare."""
    base, rows = _base(found), [row for row in found.rows if row.mean and not row.reference]
    if base is None or base.mean is None or not rows:
        return None
    title = f"{found.metric} against {found.reference}, in points"
    table = Table(title=escape(title), caption_justify="left")
    table.add_column("arm")
    for column in ("pairs", "over seeds", "p", "p (Holm)", "permutation p", "over images"):
        table.add_column(column, justify="right")
    for row in rows:
        if row.unpaired:
            table.add_row(Text(row.name), "", Text(row.unpaired), "", "", "", "")
            continue
        seeds, over = row.paired, bracketed(row.difference) if row.difference else "–"
        if seeds is None:
            table.add_row(Text(row.name), "0", "–", "", "", "", over)
            continue
        tests = probability(seeds.p), probability(row.holm), _flips(seeds)
        table.add_row(Text(row.name), f"{seeds.n}", bracketed(seeds.difference), *tests, over)
    table.caption = escape("\n".join(_how(found.metric, base, rows)))
    return table


def verdicts(found: Comparison) -> list[str]:
    """What the comparison of arms comes to, one sentence each."""
    base, arms = _base(found), _arms(found)
    if base is None or base.mean is None or len(arms) < 2:
        return without_reference(found)
    top = max(arms, key=lambda row: row.mean.mean if row.mean else -math.inf)
    other = f"; {base.name}, the reference, has {spread(base.mean)}" if top is not base else ", the reference"
    said = [f"highest {found.metric}: {top.name} with {spread(top.mean)}{other}"]
    tested = [row for row in arms if not math.isnan(row.holm)]
    if tested:
        sure = [f"{row.name} ({row.paired.difference.mean:+z.1f})" for row in tested if row.paired and row.holm < ALPHA]
        who = f"{', '.join(sure)} {'differs' if len(sure) == 1 else 'differ'}" if sure else "no arm differs"
        said.append(f"{who} from the reference by more than seeds make (paired t test, Holm, 5 %)")
    over = [row for row in arms if row.difference and row.difference.known]
    if over:
        sure = [
            f"{row.name} ({row.difference.mean:+z.1f})"
            for row in over
            if row.difference and _beside_zero(row.difference)
        ]
        who = f"{', '.join(sure)} {'differs' if len(sure) == 1 else 'differ'}" if sure else "no arm differs"
        said.append(
            f"{who} from the reference by more than other test images would make (95 % interval of {_seeds(over)}"
            f"{f', not corrected for {len(over)} comparisons' if len(over) > 1 else ''})"
        )
    return said


def without_reference(found: Comparison) -> list[str]:
    """That arms have nothing to be compared with, where that is so: a sentence."""
    base = _base(found)
    if base is None or base.mean or not _arms(found):
        return []
    return [f"{base.name}, the reference, has no finished run: name another with --reference"]


def _base(found: Comparison) -> Row | None:
    return next((row for row in found.rows if row.reference), None)


def _arms(found: Comparison) -> list[Row]:
    return [row for row in found.rows if row.mean and row.kind != "stage1"]


def _seeds(rows: Sequence[Row]) -> str:
    """Of how many seeds the differences are over images."""
    counts = sorted({row.paired.n if row.paired else len(row.values) for row in rows})
    return plural(counts[0], "seed") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def _flips(found: Paired) -> str:
    """p of the permutation test and the least that it can be, in the same digits: rounded apart it could seem to be less."""
    return "" if found.n < 2 or math.isnan(found.flips) else f"{found.flips:.3g} (≥ {found.floor:.3g})"


def _beside_zero(interval: Interval) -> bool:
    return interval.low > 0 or interval.high < 0


def _how(metric: str, base: Row, rows: Sequence[Row]) -> list[str]:
    """What the figures of `difference_table` are."""
    pairs = [row for row in rows if row.paired]
    several = [row.paired for row in pairs if row.paired and row.paired.n > 1]
    notes = []
    if several:
        notes.append(
            "over seeds: the difference seed by seed, with its 95 % interval (Student's t), and p of the paired t test"
        )
        family = sum(not math.isnan(row.holm) for row in rows)
        notes.append(
            f"Holm: p adjusted for {plural(family, 'comparison')}; permutation: the exact sign-flip test, and the least it "
            "can say of so few seeds"
        )
        if any(one.n > MOST_SEEDS for one in several):
            notes.append(f"sign flips are not counted over {MOST_SEEDS} seeds")
    elif pairs:
        common = " in common" if any(len(row.values) > 1 for row in pairs) else ""
        notes.append(f"one seed{common}: that another seed would say the same is not known")
    others = (row for row in rows if not (row.paired or row.unpaired or "stage1" in (row.kind, base.kind)))
    if apart := ", ".join(row.name for row in others):
        notes.append(f"{apart}: no seed in common with {base.name}, so that none is its pair")
    if any(row.difference for row in rows):
        notes.append(
            f"over images: 95 % of {RESAMPLES:,} resamples of the test images, the same for both arms; what other images "
            "would change, not what other seeds would"
        )
    elif metric not in images.METRICS:
        notes.append(f"over images: not computed for {metric}")
    return notes


def published_table(found: Comparison) -> Table | None:
    """Measured beside published, with what differs between the two; None where nothing was published."""
    rows = [row for row in found.rows if row.published]
    if not rows:
        return None
    table = Table(title=escape(f"Published {found.metric}, in percent"), caption_justify="left")
    table.add_column("arm")
    for column in ("measured", "over images", "published", "measured − published"):
        table.add_column(column, justify="right")
    marks: dict[str, str] = {}
    for row in rows:
        assert row.published
        how = f"{row.published.source}; {row.differs}" if row.differs else ""
        mark = marks.setdefault(how, "*" * (1 + len(marks))) if how else ""
        gap = "–" if row.gap is None else f"{row.gap:+z.1f}"
        over = f"[{row.images.low:.1f}, {row.images.high:.1f}]" if row.images else "–"
        table.add_row(Text(row.name), spread(row.mean), over, f"{row.known:.1f} {mark}".rstrip(), gap)
    notes = [f"{mark} {how}" for how, mark in marks.items()]
    if len(marks) > 0:
        notes.append("what is measured otherwise is no replication, nor a failed one")
    table.caption = escape("\n".join(notes))
    return table


def gains_table(found: Comparison) -> Table | None:
    """The labels that every arm recognises better and worse than the reference, most first."""
    base = _base(found)
    rows = [row for row in found.rows if row.labels and not row.reference and not row.unpaired]
    if base is None or not base.labels or not rows:
        return None
    table = Table(
        title=escape(f"AP of single labels against {base.name}, in points"),
        caption="means over seeds; the greatest of many differences are great by chance too",
        caption_justify="left",
    )
    for column in ("arm", "most gained", "most lost"):
        table.add_column(column)
    for row in rows:
        changes = {label: row.labels[label] - base.labels.get(label, math.nan) for label in row.labels}
        ranked = sorted((label for label in changes if not math.isnan(changes[label])), key=changes.__getitem__)
        gained = [label for label in ranked[::-1] if changes[label] > 0][:MOST_LABELS]
        lost = [label for label in ranked if changes[label] < 0][:MOST_LABELS]
        cells = (", ".join(f"{label} {changes[label]:+z.1f}" for label in some) for some in (gained, lost))
        table.add_row(Text(row.name), *map(Text, cells))
    return table


def labels_table(found: Comparison) -> Table | None:
    """AP of every label under every arm."""
    rows = [row for row in found.rows if row.labels]
    if not rows:
        return None
    table = Table(
        title="AP of every label, in percent", caption="means over seeds; – has no positives", caption_justify="left"
    )
    table.add_column("label")
    for row in rows:
        table.add_column(escape(row.name), justify="right")
    for label in dict.fromkeys(label for row in rows for label in row.labels):
        values = [row.labels.get(label, math.nan) for row in rows]
        table.add_row(Text(label), *("–" if math.isnan(value) else f"{value:.1f}" for value in values))
    return table


def bracketed(difference: Interval) -> str:
    """`+0.7 [-2.5, +4.0]`, or what there is of it."""
    ends = f" [{difference.low:+z.1f}, {difference.high:+z.1f}]" if difference.known else ""
    return f"{difference.mean:+z.1f}{ends}"


def probability(p: float) -> str:
    """Two digits; small ones as `< 0.001`."""
    return "" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
