"""What a search found, as tables: every arm with its interval over seeds, beside the published numbers."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import mean

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ram_tune.config import Config
from ram_tune.errors import error_line
from ram_tune.search.jobs import Job, Outcome
from ram_tune.search.published import Protocol, Published
from ram_tune.search.space import Space
from ram_tune.search.statistics import Interval, t_interval
from ram_tune.search.study import Study

FAULTS = {
    "mirrored_share": "mirrored",
    "region_area": "mean area",
    "anchor_distance": "distance",
    "outside_share": "outside",
    "redundancy": "redundancy",
}
COSTS = {"cost/parameters": ("params (M)", 1e6), "cost/multiply_adds": ("MACs (G)", 1e9)}
ALIKE = 0.01
"""Share by which costs may differ and yet be called the same."""
FAULTS_CAPTION = """\
mirrored: share of regions; P is to bring it to 0
mean area: the crop is 1; S is to keep it well below
distance: to the anchors, half the crop is 1; A is to bring it near 0
outside: share of regions that have no part of the crop; A is to bring it to 0
redundancy: IoU of two regions of an image; 1 where they collapse onto one another"""
ATTENTION_CAPTION = """\
own regions, another image's: of all objects; own − another's: mean over images, with its 95 % interval ({over});
above 0 regions follow what is in the image; attends: runs in which all of that interval (over images) is above 0
anchors, centre, random: boxes of the same sizes, put there
centres on objects: of an image's region centres those that lie in the box of an object; own − another's as before"""


def results_table(
    space: Space, dataset: str, jobs: Sequence[Job], outcomes: Mapping[str, Outcome], arms: Iterable[str] = ()
) -> Table:
    """A row for every arm of the plan `jobs`: means over the finished seeds, and the published mAP.

    A published number measured in another way than ours carries a mark that a footnote explains. Where arms differ in what
    they cost, their parameters and multiply–adds (per image, one view at each scale) are told too. `arms`: those of which
    only the study knows, as the space lists them no more.
    """
    named = {*space.arms, *arms}
    marks: dict[str, str] = {}  # how a published number was measured → its mark
    measured: dict[Protocol, list[str]] = {}  # how → the arms
    most, shared = 0, False  # finished seeds of an arm; does an interval leave out the variance of stage 1?
    table = Table(title=escape(f"{space.title} on {dataset}, in percent"), caption_justify="left")
    table.add_column("arm")
    for column in ("seeds", "mAP", "CF1", "OF1", "best epoch"):
        table.add_column(column, justify="right")
    compared = bool(space.published or space.others)  # with what others published
    if compared:
        table.add_column("published mAP", justify="right")
    costs = COSTS if _costs_differ(jobs, outcomes) else {}
    for column, _ in costs.values():
        table.add_column(column, justify="right")
    needed = {need for job in jobs for need in job.needs}
    for name, group in arms_of(jobs):
        mine = () if group[0].kind == "stage1" else (group[0].setting, *group[0].also)
        if group[0].kind == "train" and not named.intersection(mine) and group[0].fingerprint in needed:
            continue  # no arm: a model that several arms evaluate, each in its way
        runs = list({job.seed: job for job in group}.values())  # an evaluation comes after its training, and counts
        states = {run.fingerprint: outcomes[run.fingerprint].state for run in runs if run.fingerprint in outcomes}
        finished = [run for run in runs if states.get(run.fingerprint) == "finished"]
        found = [outcomes[run.fingerprint].metrics for run in finished]
        most = max(most, len(found))
        if found:
            values = [
                spread(t_interval([100 * one[f"test/{metric}"] for one in found])) for metric in ("mAP", "CF1", "OF1")
            ]
        else:
            values = 3 * [next((state for state in ("failed", "stopped") if state in states.values()), "–")]
        epochs = [one["best_epoch"] for one in found if "best_epoch" in one]
        best = f"{mean(epochs):.{int(len(epochs) > 1)}f}" if epochs else ""
        seeds = f"{len(found)}" if len(found) == len(runs) else f"{len(found)} of {len(runs)}"
        protocol = Protocol.of(group[0].config)
        measured.setdefault(protocol, []).append(name)
        entry = published(space, mine, protocol)
        note = ""
        if entry:
            how = "" if entry.protocol() == protocol else f"{entry.source}: {entry.protocol().words()}"
            mark = marks.setdefault(how, "*" * (1 + len(marks))) if how else ""
            note = f"{entry.mAP:.1f} {mark}".rstrip()
        shared = shared or one_stage1(finished, jobs)
        spent = [f"{mean(one[cost] for one in found) / unit:.3g}" if found else "" for cost, (_, unit) in costs.items()]
        table.add_row(Text(name), seeds, *values, best, *([note] if compared else []), *spent)
    for other in (other for other in space.others if other.dataset == dataset):
        mAP, CF1, OF1 = ("" if value is None else f"{value:.1f}" for value in (other.mAP, other.CF1, other.OF1))
        mark = marks.setdefault(
            f"{other.source}: {dataset}, another system with settings of its own", "*" * (1 + len(marks))
        )
        table.add_row(
            Text(other.system),
            "",
            "",
            f"{CF1} {mark}" if CF1 else "",
            f"{OF1} {mark}" if OF1 else "",
            "",
            f"{mAP} {mark}" if mAP else "",
        )
    how = [(protocol.words(), arms) for protocol, arms in measured.items()]
    said = [f"measured: {words}" + (f" ({', '.join(arms)})" if len(how) > 1 else "") for words, arms in how]
    notes = [*said, *(f"{mark} {how}" for how, mark in marks.items())]
    if costs:
        notes.append("params, MACs: weights, and multiply–adds per image")
    if most == 1:
        notes.append("one seed: differences of a few points say nothing yet")
    elif most > 1:
        one = (
            "; all seeds start from one stage 1, whose variance it excludes (stage1.per_seed=true trains one per seed)"
        )
        notes.append(f"± is the 95 % interval over seeds{one if shared else ''}")
    table.caption = escape("\n".join(notes))
    return table


def mechanism_table(jobs: Sequence[Job], histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Table | None:
    """What the regions of every arm do on selection before training and after it, means over seeds; None without regions.

    `histories`: fingerprint → its epochs (0: before the first), each with `epoch` and `selection/…`.
    """
    table = Table(title="Regions, start → end", caption=FAULTS_CAPTION, caption_justify="left")
    table.add_column("arm")
    for column in FAULTS.values():
        table.add_column(column, justify="right")
    for name, group in arms_of(jobs):
        epochs = [sorted(histories[job.fingerprint], key=_epoch) for job in group if histories.get(job.fingerprint)]
        epochs = [epoch for epoch in epochs if "selection/mirrored_share" in epoch[-1]]
        if epochs:
            table.add_row(Text(name), *(_change(epochs, f"selection/{fault}") for fault in FAULTS))
    return table if table.row_count else None


def attention_table(jobs: Sequence[Job], outcomes: Mapping[str, Outcome]) -> Table | None:
    """Do the regions of every arm lie on objects of the test images, more than another image's do? Means over seeds; None
    without regions or boxes (`evaluation.attention`).
    """
    table = Table(title="Objects whose centre lies in a region, in percent", caption_justify="left")
    columns = "own regions", "another image's", "own − another's", "attends", "anchors", "centre", "random"
    columns += "centres on objects", "own − another's"
    for column in ("arm", *columns):
        table.add_column(column, justify="left" if column == "arm" else "right")
    most = 0
    for name, group in arms_of(jobs):
        ended = [outcomes[job.fingerprint].metrics for job in group if job.fingerprint in outcomes]
        found = [one for one in ended if "test/coverage_own_minus_shuffled" in one]
        if not found:
            continue
        most = max(most, len(found))
        share = {
            control: f"{100 * mean(one[f'test/coverage{control}'] for one in found):.1f}"
            for control in ("", "_shuffled", "_anchors", "_centre", "_random")
        }
        margin, attends = _margin(found, "coverage"), sum(one["test/attends"] > 0 for one in found)
        own, others, *places = share.values()
        kept = [
            one for one in found if "test/centres_on_objects_own_minus_shuffled" in one
        ]  # records of before have none
        on_objects = f"{100 * mean(one['test/centres_on_objects'] for one in kept):.1f}" if kept else "–"
        centres = on_objects, _margin(kept, "centres_on_objects") if kept else "–"
        table.add_row(Text(name), own, others, margin, f"{attends} of {len(found)}", *places, *centres)
    table.caption = ATTENTION_CAPTION.format(
        over="over images" if most == 1 else "over images; of several seeds, over these"
    )
    return table if table.row_count else None


def _margin(found: Sequence[Mapping[str, float]], share: str) -> str:
    """Own − another image's `share`: mean and interval, of one seed over images, of several over seeds."""
    name = f"test/{share}_own_minus_shuffled"
    if len(found) > 1:
        return spread(t_interval([100 * one[name] for one in found]))
    low, middle, high = (100 * found[0][f"{name}{end}"] for end in ("_low", "", "_high"))
    return f"{middle:+z.1f} [{low:+z.1f}, {high:+z.1f}]"


def plan_table(jobs: Sequence[Job], todo: Container[str], base: Config) -> Table:
    """What a search consists of: each job, whether it must run, what it needs, and in which fields it differs from `base`."""
    names = {job.fingerprint: job.name for job in jobs}
    table = Table(title="Jobs")
    for column in ("job", "kind", "", "needs", "workers · CPUs · GPUs of each", "fields that differ"):
        table.add_column(column, overflow="fold")
    shared = base.flat()
    for job in jobs:
        execution = job.config.execution
        gpus = "if any" if execution.gpus_per_worker is None else f"{execution.gpus_per_worker:g}"
        room = f"{execution.workers} · {execution.cpus_per_worker or 'share'} · {gpus}"
        own = {name: value for name, value in job.config.flat().items() if value != shared[name]}
        differ = "a whole-image model" if job.kind == "stage1" else ", ".join(f"{k}={v}" for k, v in own.items())
        needs = ", ".join(names[need] for need in job.needs)
        state = "to run" if job.fingerprint in todo else "finished"
        table.add_row(*map(Text, (job.name, job.kind, state, needs, room, differ)))
    return table


def failures(jobs: Sequence[Job], outcomes: Mapping[str, Outcome]) -> list[str]:
    """A line for every job that failed, in the plan's order."""
    ended = [(job.name, outcomes[job.fingerprint].error) for job in jobs if job.fingerprint in outcomes]
    return [f"FAILED {name}: {error_line(error)}" for name, error in ended if error]


def failed_runs(study: Study) -> list[str]:
    """The same of every run that a study knows."""
    runs = [run for run in study.runs().values() if run["state"] == "failed"]
    names = [" = ".join((run["setting"], *run.get("also", ()))) for run in runs]
    return [
        f"FAILED {name} · seed {run['seed']}: {error_line(run['error'])}" for name, run in zip(names, runs, strict=True)
    ]


def published(space: Space, arms: Container[str], protocol: Protocol, metric: str = "mAP") -> Published | None:
    """The published number of a row's arms: measured as ours, else on this dataset, else the first that there is."""
    known = [entry for entry in space.published if entry.arm in arms and getattr(entry, metric, None) is not None]
    return max(known, key=lambda entry: (entry.protocol() == protocol, entry.dataset == protocol.dataset), default=None)


def arms_of(jobs: Sequence[Job]) -> list[tuple[str, list[Job]]]:
    """Rows → the jobs of each, which differ in their seed: stage 1 first, then the arms, in the plan's order.

    An arm that is just stage 1 is an arm all the same. Where it has no other seeds than stage 1, they share a row.
    """
    groups: dict[object, list[Job]] = {}
    for job in sorted((part for job in jobs for part in _parts(job)), key=lambda job: job.kind != "stage1"):
        # Arms that change stage 1 have each their own: those are no seeds of one thing.
        training = job.config.training.model_copy(update={"seed": 0})
        kind = job.config.model_copy(update={"training": training}) if job.kind == "stage1" else None
        groups.setdefault((kind, job.setting), []).append(job)
    names = [group[0].setting for group in groups.values() if group[0].kind == "stage1"]
    rows: dict[frozenset[str], tuple[str, list[Job]]] = {}  # by their runs
    for group in groups.values():
        name = group[0].arms
        if group[0].kind == "stage1" and names.count(name) > 1:
            made = {job.fingerprint for job in group}
            name += f" of {', '.join(dict.fromkeys(job.setting for job in jobs if made & set(job.needs)))}"
        runs = frozenset(job.fingerprint for job in group)
        rows[runs] = (f"{rows[runs][0]} = {name}" if runs in rows else name, group)
    return list(rows.values())


def _parts(job: Job) -> list[Job]:
    """A job for stage 1 and one for the arms that are just this; any other as it is."""
    if job.kind != "stage1" or not job.also:
        return [job]
    arm, *also = job.also
    return [replace(job, also=()), replace(job, kind="train", setting=arm, also=tuple(also))]


def _costs_differ(jobs: Sequence[Job], outcomes: Mapping[str, Outcome]) -> bool:
    """Whether one arm costs more than another."""
    runs = [job.fingerprint for job in jobs if job.kind != "stage1" or job.also]
    arms = [outcomes[run].metrics for run in runs if run in outcomes]
    spent = [[one[cost] for one in arms if cost in one] for cost in COSTS]
    return any(max(values) > (1 + ALIKE) * min(values) for values in spent if values)


def spread(mean: Interval | None) -> str:
    """`72.9 ± 0.9`, or what there is of it."""
    if mean is None:
        return "–"
    return f"{mean.mean:.1f} ± {mean.half:.1f}" if mean.known else f"{mean.mean:.1f}"


def one_stage1(runs: Sequence[Job], jobs: Sequence[Job]) -> bool:
    """Whether several runs all start from one stage 1 of `jobs`: an interval over them leaves its variance out."""
    plan = {
        job.fingerprint: job for job in sorted(jobs, key=lambda job: job.kind == "stage1")
    }  # not an arm just like it
    return len(runs) > 1 and bool(set.intersection(*(_stage1(run, plan) for run in runs)))


def _stage1(job: Job, plan: Mapping[str, Job]) -> set[str]:
    """Fingerprints of the stage 1 jobs from which `job` starts, directly or not."""
    needed = [plan[need] for need in job.needs if need in plan]
    return {job.fingerprint for job in needed if job.kind == "stage1"}.union(*(_stage1(one, plan) for one in needed))


def _epoch(metrics: Mapping[str, float]) -> float:
    return metrics["epoch"]


def _change(histories: Sequence[Sequence[Mapping[str, float]]], name: str) -> str:
    """First → last epoch, means over `histories`."""
    ends = [[history[end][name] for history in histories if name in history[end]] for end in (0, -1)]
    return " → ".join(f"{mean(values):.2f}" if values else "–" for values in ends)
