"""What a search will cost, before it is run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain, count, islice, pairwise
from pathlib import Path
from statistics import mean

from ram_tune.config import Config
from ram_tune.search.findings import plural
from ram_tune.search.jobs import Job
from ram_tune.search.study import Study

STEPS = 3
"""Training steps that are timed, after one that is not."""


def expected(jobs: Sequence[Job], study: Study | None, cache_dir: Path, gpus: float) -> str:
    """One sentence: how long `jobs` will take a worker with `gpus` GPUs, one after another, and what that assumes.

    An epoch takes what it took in the runs that `study` recorded; without such runs a few training steps are timed here.
    """
    trainings = [job for job in jobs if job.kind != "evaluate"]
    if not trainings:
        return "expected: no training"
    recorded = {kind: pace for kind in ("stage1", "train") if (pace := _recorded(study, kind))}
    measured = {job.kind: job.config for job in trainings if job.kind not in recorded}
    paces = recorded | {kind: _measured(config, cache_dir) for kind, config in measured.items()}
    seconds = sum(paces[job.kind] * job.config.training.epochs for job in trainings)
    epochs = sum(job.config.training.epochs for job in trainings)
    on_gpus = f", {seconds * gpus / 3600:.2g} GPU-hours" if gpus else ""
    how = ", ".join(
        f"{'stage 1' if kind == 'stage1' else 'a run'} {pace:.3g} s an epoch"
        f" ({'as recorded' if kind in recorded else 'timed here, with all its CPUs'})"
        for kind, pace in paces.items()
    )
    what = f"{plural(len(trainings), 'training')}, {plural(epochs, 'epoch')}"
    return (
        f"expected: {what} ≈ {_duration(seconds)} of one worker{on_gpus}; "
        f"assumed: {how}; nothing given up, and evaluations not counted"
    )


def _recorded(study: Study | None, kind: str) -> float:
    """Mean seconds per epoch of the finished runs of a kind; 0 where there are none."""
    runs = study.runs().values() if study else ()
    known = [run for run in runs if run["kind"] == kind and run["state"] == "finished" and run.get("epochs")]
    known = [run for run in known if run.get("seconds")]
    return mean(run["seconds"] / run["epochs"] for run in known) if known else 0.0


def _measured(config: Config, cache_dir: Path) -> float:
    """Seconds that an epoch takes here: a few whole batches of as many images as they need, for each image of an epoch."""
    from ram_tune.data.batches import training_batches
    from ram_tune.data.roles import load
    from ram_tune.training.loop import optimise
    from ram_tune.training.run import prepare

    images, batch = len(load(config.data, cache_dir).train), config.training.batch_size
    few = config.data.model_copy(update={"limit": batch * (STEPS + 1) * 2})  # half of them may be for selection
    stage1 = config.stage1.model_copy(update={"epochs": 0})
    run = prepare(config.model_copy(update={"data": few, "stage1": stage1}), cache_dir)
    run.network.train()
    batch = min(batch, len(run.train))
    batches = chain.from_iterable(training_batches(run.train, batch, 0, epoch) for epoch in count(1))
    began = []
    for one in islice((one for one in batches if len(one.targets) == batch), STEPS + 1):
        optimise(run, one.to(run.device)).sum().item()  # waits for the device
        began.append(time.perf_counter())
    # The fastest, for whatever else runs here will not run then.
    return images / batch * min(later - earlier for earlier, later in pairwise(began))


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
