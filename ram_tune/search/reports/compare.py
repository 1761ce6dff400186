"""Arms compared: what each is worth, and how it differs from the reference, over seeds and over images.

Everything is in the metric's unit of a table: percent, and points of difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ram_tune.config import Config
from ram_tune.errors import BadInput, nearest
from ram_tune.search.jobs import Job
from ram_tune.search.published import Protocol, Published
from ram_tune.search.report import arms_of, published
from ram_tune.search.reports import images
from ram_tune.search.reports.kept import Kept
from ram_tune.search.statistics import Interval, Paired, centred, holm, paired, percentiles, t_interval

METRICS = "mAP", "mAP_11", "CP", "CR", "CF1", "OP", "OR", "OF1"
"""What arms may be compared by."""

PERCENT = 100


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
    notes: Sequence[str] = ()


def compare(kept: Kept, others: Sequence[Kept] = (), metric: str = "mAP", reference: str = "") -> Comparison:
    """Compare the arms of `kept`, and those of `others` beside them, with `reference`. Raises BadInput for a reference that
    is no arm, and for damaged files.
    """
    groups = [(one, name, jobs) for one in (kept, *others) for name, jobs in rows_of(one)]
    rows = [_row(one, f"{one.name}: {name}" if one is not kept else name, jobs, metric) for one, name, jobs in groups]
    base = _reference(rows, reference, kept)
    if base is None:
        return Comparison(metric, kept.dataset, "", rows)
    draws = _draws([kept, *others], metric)
    of = dict(zip((row.name for row in rows), groups, strict=True))
    pairable = _Pairable(of[base.name][0], metric in images.METRICS)
    found = []
    for row in rows:
        one, _, jobs = of[row.name]
        mine, theirs = _by_seed(jobs, draws), _by_seed(of[base.name][2], draws)
        row = replace(row, images=_over_images(row.mean, mine, None))
        if row.name == base.name:
            row = replace(row, reference=True)
        elif row.mean and base.mean:
            why = pairable.why_not(one)
            row = replace(row, unpaired=why) if why else _compared(row, base, mine, theirs)
        found.append(row)
    adjusted = holm([row.paired.p if row.paired else math.nan for row in found])
    found = [replace(row, holm=p) for row, p in zip(found, adjusted, strict=True)]
    return Comparison(metric, kept.dataset, base.name, found)


def rows_of(kept: Kept) -> list[tuple[str, list[Job]]]:
    """Arm → its jobs, one for each seed; stage 1 first, models that are only evaluated left out."""
    found = []
    for name, jobs in arms_of(kept.jobs):
        if jobs[0].kind == "stage1" or name in kept.arms:
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
    entry = published(kept.space, (jobs[0].setting,), Protocol.of(config), metric)
    if entry is None:
        return row
    return replace(row, published=entry, known=getattr(entry, metric), differs=differences(config, entry))


def _reference(rows: Sequence[Row], name: str, kept: Kept) -> Row | None:
    wanted = name or kept.reference
    found = next((row for row in rows if row.name == wanted), None)
    if found is None and name:
        known = [row.name for row in rows]
        raise BadInput(
            "--reference", found=repr(name), expected=f"one of {', '.join(known)}", remedy=nearest(name, known)
        )
    return found


def _draws(searches: Sequence[Kept], metric: str) -> dict[str, np.ndarray]:
    """Fingerprint → the metric on the resamples of its test images (R,), in percent."""
    if metric not in images.METRICS:
        return {}
    folders, configs = {}, {}
    for one in searches:
        for _, jobs in rows_of(one):
            for job in jobs:
                if job.fingerprint in one.folders:
                    folders[job.fingerprint], configs[job.fingerprint] = one.folders[job.fingerprint], job.config
    return {run: PERCENT * values[metric] for run, values in images.resampled(folders, configs).items()}


def _by_seed(jobs: Sequence[Job], draws: Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
    return {job.seed: draws[job.fingerprint] for job in jobs if job.fingerprint in draws}


def _over_images(mean: Interval | None, mine: Mapping[int, np.ndarray], theirs: Mapping[int, np.ndarray] | None):
    """The interval over images of a mean over seeds, or of its difference to another over the same resamples."""
    if mean is None or not mine or (theirs is not None and not theirs):
        return None
    draws = np.mean(list(mine.values()), axis=0)
    if theirs is None:
        return centred(mean.mean, draws)
    return percentiles(mean.mean, draws - np.mean(list(theirs.values()), axis=0))


def _compared(row: Row, base: Row, mine: Mapping[int, np.ndarray], theirs: Mapping[int, np.ndarray]) -> Row:
    assert row.mean and base.mean
    both = [seed for seed in row.values if seed in base.values]
    if "stage1" in (row.kind, base.kind) and (len(row.values) == 1 or len(base.values) == 1):
        both = []  # all seeds start from it: none is its pair
    if not both:  # and yet the same images
        apart = Interval(row.mean.mean - base.mean.mean)
        return replace(row, difference=_over_images(apart, mine, theirs))
    seeds = paired([row.values[seed] for seed in both], [base.values[seed] for seed in both])
    mine, theirs = ({seed: one[seed] for seed in both if seed in one} for one in (mine, theirs))
    return replace(row, paired=seeds, difference=_over_images(seeds.difference, mine, theirs))


class _Pairable:
    """Whether another search's runs were made and measured on the same images as the reference's."""

    def __init__(self, base: Kept, by_images: bool):
        self.base, self.by_images = base, by_images

    def why_not(self, other: Kept) -> str:
        if other is self.base:
            return ""
        mine, theirs = (next((job.dataset for job in one.jobs), "") for one in (self.base, other))
        if mine != theirs:
            return f"unpaired: other images ({other.dataset})"
        ours, other_ids = (next(map(images.ids, one.folders.values()), None) for one in (self.base, other))
        same = ours is not None and other_ids is not None and np.array_equal(ours, other_ids)
        return "" if same else "unpaired: other test images"


def differences(config: Config, entry: Published) -> str:
    """In what a run of `config` was measured or trained otherwise than the published number, in words; empty: in nothing.

    What the paper trained with are the configuration's defaults.
    """
    ours, theirs, said = Protocol.of(config), entry.protocol(), []
    for name, words in (("dataset", "{}"), ("split", "{}"), ("scales", "N={}"), ("views", "{}"), ("classifier", "{}")):
        mine, its = getattr(ours, name), getattr(theirs, name)
        if mine != its and not (name == "split" and ours.dataset != theirs.dataset):
            said.append(f"{words.format(_plain(mine))}, not {_plain(its)}")
    usual = Config()
    budget = [("training.epochs", "{} epochs"), ("data.limit", "{} images of each split")]
    budget += [("model.backbone.name", "backbone {}"), ("model.backbone.trainable", "trainable: {}")]
    mine, its = config.flat(), usual.flat()
    for name, words in budget:
        if mine[name] != its[name]:
            said.append(words.format(mine[name]) + (f", not {its[name]}" if its[name] else ""))
    return "; ".join(said)


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return " and ".join(map(str, value))
    return {"one": "one view", "ten": "ten views"}.get(str(value), str(value))
