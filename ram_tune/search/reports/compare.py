"""Arms compared: what each is worth, and how it differs from the reference, over seeds and over images.

Everything is in the metric's unit of a table: percent, and points of difference.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ram_tune.config import FILES, Config, fields
from ram_tune.errors import BadInput, nearest
from ram_tune.search.jobs import Job
from ram_tune.search.published import Protocol, Published
from ram_tune.search.report import arms_of, one_stage1, published
from ram_tune.search.reports import images
from ram_tune.search.reports.kept import Kept
from ram_tune.search.statistics import Interval, Paired, centred, holm, paired, percentiles, t_interval
from ram_tune.training.results import SCORES

PERCENT = 100

MEASURED = {"scales": "N={}", "edges": "edges: {}"}
"""Field of `Protocol` → how it is said, where its value does not say it."""

TRAINED = {
    "training.epochs": "{} epochs",
    "data.limit": "{} images of each split",
    "model.backbone.name": "backbone {}",
    "model.backbone.trainable": "trainable: {}",
}
"""Field → how it is said: what a number hangs on most, before the others."""

IN_PROTOCOL = "data.image_size", *(f"evaluation.{name}" for name in ("scales", "views", "classifier"))
IN_PROTOCOL += ("model.proposals.edge_model",)
"""Fields that `Protocol` has in its own words."""

SEEDS = "training.seed", "stage1.seed"
"""No number is of one seed in particular."""

FEW = 2
"""Further fields that are named; more are counted."""


@dataclass(frozen=True)
class Row:
    """One arm."""

    name: str  # with the search's before it where it is another's
    search: str  # the study's name
    kind: str  # stage1, train or evaluate
    asked: int  # seeds
    values: Mapping[int, float]  # seed → the metric, of finished runs
    config: Config  # of its first seed
    mean: Interval | None = None  # over seeds; None where no run has finished
    images: Interval | None = None  # the same mean, over test images
    reference: bool = False
    paired: Paired | None = None  # with the reference, over the seeds that both have
    holm: float = math.nan  # the p of the t test, adjusted for all arms
    difference: Interval | None = None  # to the reference, over test images
    unpaired: str = ""  # why there is no difference
    published: Published | None = None
    known: float = math.nan  # its value
    differs: str = ""  # in what the published number was measured or trained otherwise
    labels: Mapping[str, float] = field(default_factory=dict)  # label → mean AP over seeds, percent

    @property
    def gap(self) -> float | None:
        """Measured − published."""
        return None if self.mean is None or self.published is None else self.mean.mean - self.known


@dataclass(frozen=True)
class Comparison:
    """All arms, and by what they were compared."""

    metric: str
    dataset: str
    reference: str  # the name of a row; empty where there is none
    rows: Sequence[Row]
    one_stage1: bool = False  # do all seeds of an arm start from one? Intervals over seeds then leave its variance out


def compare(kept: Kept, others: Sequence[Kept] = (), metric: str = "mAP", reference: str = "") -> Comparison:
    """Compare the arms of `kept`, and those of `others` beside them, with `reference`, by one of `reports.METRICS`. Raises
    BadInput for a reference that is no arm, and for damaged files.
    """
    groups = [(one, name, jobs) for one in (kept, *others) for name, jobs in rows_of(one)]
    rows = [_row(one, f"{one.name}: {name}" if one is not kept else name, jobs, metric) for one, name, jobs in groups]
    shared = any(one_stage1([job for job in jobs if one.finished(job)], one.jobs) for one, _, jobs in groups)
    chosen = _reference(rows, reference, kept)
    if chosen is None:
        return Comparison(metric, kept.dataset, "", rows, shared)
    base, against = rows[chosen], groups[chosen][0]
    draws = _draws([kept, *others], metric)
    by_seed = [_by_seed(one, jobs, draws) for one, _, jobs in groups]
    unpaired = {one.name: _why_unpaired(one, against) for one in (kept, *others)}
    found = []
    for number, row in enumerate(rows):
        mine = _mean(by_seed[number], row.values)
        if row.mean and mine is not None:
            row = replace(row, images=centred(row.mean.mean, mine))
        if number == chosen:
            row = replace(row, reference=True)
        elif row.mean and base.mean:
            why = unpaired[row.search]
            row = replace(row, unpaired=why) if why else _compared(row, base, by_seed[number], by_seed[chosen])
        found.append(row)
    adjusted = holm([row.paired.p if row.paired else math.nan for row in found])
    found = [replace(row, holm=p) for row, p in zip(found, adjusted, strict=True)]
    return Comparison(metric, kept.dataset, base.name, found, shared)


def rows_of(kept: Kept) -> list[tuple[str, list[Job]]]:
    """Arm → its jobs, one for each seed; stage 1 first, models that are only evaluated left out."""
    found = []
    for name, jobs in arms_of(kept.jobs):
        if jobs[0].kind == "stage1" or {jobs[0].setting, *jobs[0].also} & set(kept.arms):
            found.append((name, list({job.seed: job for job in jobs}.values())))
    return found


def _row(kept: Kept, name: str, jobs: Sequence[Job], metric: str) -> Row:
    ended = {job.seed: kept.outcomes[job.fingerprint].metrics for job in jobs if kept.finished(job)}
    values = {seed: PERCENT * one[f"test/{metric}"] for seed, one in sorted(ended.items())}
    config = jobs[0].config
    row = Row(name, kept.name, jobs[0].kind, len(jobs), values, config)
    if values:
        row = replace(row, mean=t_interval(list(values.values())))
    labels = [images.per_label(kept.folders[job.fingerprint]) for job in jobs if job.fingerprint in kept.folders]
    means = images.mean_per_label(labels)
    row = replace(row, labels={label: PERCENT * value for label, value in means.items()})
    if row.kind == "stage1":
        return row
    entry = published(kept.space, (jobs[0].setting, *jobs[0].also), Protocol.of(config), metric)
    if entry is None:
        return row
    differs = differences(config, entry, kept.fields.get(entry.arm, ()))
    return replace(row, published=entry, known=getattr(entry, metric), differs=differs)


def _reference(rows: Sequence[Row], name: str, kept: Kept) -> int | None:
    """Which row it is, by its whole name or that of one of the arms that share it."""
    wanted, known = name or kept.reference, [row.name for row in rows]
    if wanted in known:
        return known.index(wanted)
    found = next((number for number, one in enumerate(known) if wanted in _sharing(one)), None)
    if found is None and name:
        raise BadInput(
            "--reference", found=repr(name), expected=f"one of {', '.join(known)}", remedy=nearest(name, known)
        )
    return found


def _sharing(name: str) -> list[str]:
    """`constraints-scenes: A = B` → what either is called."""
    search, colon, arms = name.rpartition(": ")
    return [f"{search}{colon}{arm}" for arm in arms.split(" = ")]


def _draws(searches: Sequence[Kept], metric: str) -> dict[str, np.ndarray]:
    """Folder of a run → the metric on the resamples of its test images (R,), in percent."""
    if metric not in images.METRICS:
        return {}
    folders, configs = {}, {}
    for one in searches:
        for _, jobs in rows_of(one):
            for folder, job in ((one.folders[job.fingerprint], job) for job in jobs if job.fingerprint in one.folders):
                folders[str(folder)], configs[str(folder)] = folder, job.config
    return {folder: PERCENT * values[metric] for folder, values in images.resampled(folders, configs).items()}


def _by_seed(kept: Kept, jobs: Sequence[Job], draws: Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
    there = {job.seed: str(kept.folders[job.fingerprint]) for job in jobs if job.fingerprint in kept.folders}
    return {seed: draws[folder] for seed, folder in there.items() if folder in draws}


def _mean(draws: Mapping[int, np.ndarray], seeds: Collection[int]) -> np.ndarray | None:
    """(R,) the mean over `seeds`; None where one of them kept no scores: that of the others is no interval of their mean."""
    return np.mean([draws[seed] for seed in seeds], axis=0) if seeds and draws.keys() >= set(seeds) else None


def _compared(row: Row, base: Row, mine: Mapping[int, np.ndarray], theirs: Mapping[int, np.ndarray]) -> Row:
    assert row.mean and base.mean
    both = [seed for seed in row.values if seed in base.values]
    if "stage1" in (row.kind, base.kind) and (len(row.values) == 1 or len(base.values) == 1):
        both = []  # all seeds start from it: none is its pair
    # Without a pair these are the same images all the same.
    ours, others = (_mean(mine, both or row.values), _mean(theirs, both or base.values))
    seeds = paired([row.values[seed] for seed in both], [base.values[seed] for seed in both]) if both else None
    apart = seeds.difference.mean if seeds else row.mean.mean - base.mean.mean
    over = None if ours is None or others is None else percentiles(apart, ours - others)
    return replace(row, paired=seeds, difference=over)


def _why_unpaired(one: Kept, base: Kept) -> str:
    """Why runs of `one` and of `base` are no pairs; empty where they were made and measured on the same images."""
    if one is base:
        return ""
    mine, theirs = (next((job.dataset for job in each.jobs), "") for each in (one, base))
    if mine != theirs:
        return f"unpaired: other images ({one.dataset})"
    # All runs of a search have the same test images, also those that kept no scores.
    looked = ((images.ids(folder) for folder in each.folders.values()) for each in (one, base))
    ours, others = (next((ids for ids in found if ids is not None), None) for found in looked)
    if ours is None or others is None:
        return f"unpaired: test images not known (no {SCORES})"
    return "" if np.array_equal(ours, others) else "unpaired: other test images"


def differences(config: Config, entry: Published, own: Collection[str] = ()) -> str:
    """In what a run of `config` was measured or trained otherwise than the published number, in words; empty: in nothing.

    What the paper trained with are the configuration's defaults, and what is the arm's `own` fields' to say.
    """
    ours, theirs, said = Protocol.of(config), entry.protocol(), []
    for name in (one.name for one in dataclasses.fields(Protocol)):
        mine, its = getattr(ours, name), getattr(theirs, name)
        if mine != its and not (name == "split" and ours.dataset != theirs.dataset):
            said.append(f"{MEASURED.get(name, '{}').format(_plain(mine))}, not {_plain(its)}")
    mine, its = config.flat(), Config().flat()
    for name, words in TRAINED.items():
        if mine[name] != its[name]:
            said.append(words.format(mine[name]) + (f", not {its[name]}" if its[name] else ""))
    known = {*TRAINED, *IN_PROTOCOL, *SEEDS, *own}
    rest = [name for name, about in fields() if about["hashed"] and mine[name] != its[name] and name not in known]
    if len(rest) > FEW:
        said.append(f"and {len(rest)} other fields" if said else f"{len(rest)} fields of the configuration")
    else:
        said += [f"{name}={_value(name, mine[name])}" for name in rest]
    return "; ".join(said)


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return " and ".join(map(str, value))
    return {"one": "one view", "ten": "ten views", "": "none"}.get(str(value), str(value))


def _value(field: str, value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return Path(str(value)).name if field in FILES.values() else str(value)
