"""The weights that a search leaves: which stay, which become models in MLflow, and what they take on disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from ram_tune.errors import error_line
from ram_tune.search.findings import plural
from ram_tune.search.jobs import Job, Keep, Outcome
from ram_tune.search.record import About, Record
from ram_tune.search.study import OBJECTIVE, Study
from ram_tune.training import checkpoint

VERSIONS = "model versions"
"""The note by which a study says which runs are models in MLflow: fingerprint → its version there."""

BEST = "best model"
"""The note by which a study says which version it has called the best."""

BEST_ALIAS = "best"


def has_weights(folder: str) -> bool:
    return bool(folder) and (Path(folder) / checkpoint.BEST).exists()


def best_of_arms(jobs: Sequence[Job], outcomes: Mapping[str, Outcome], evaluations: bool = False) -> dict[str, Job]:
    """Arm → its finished training of the highest selection mAP, or, with `evaluations`, also its finished evaluation; arms
    that share a run have the same.
    """
    found: dict[str, Job] = {}
    for job in jobs:
        outcome = outcomes.get(job.fingerprint, Outcome())
        if (job.kind == "evaluate" and not evaluations) or outcome.state != "finished":
            continue
        for arm in job.owners:
            if arm not in found or _value(outcome) > _value(outcomes[found[arm].fingerprint]):
                found[arm] = job
    return found


def register(
    jobs: Sequence[Job], outcomes: Mapping[str, Outcome], study: Study, record: Record, about: About
) -> list[str]:
    """Log the best network of each arm of `jobs` as a model in MLflow, a version of the one that bears the search's name, and
    call the best of all versions `best` → sentences. Where nothing is new MLflow is not asked.
    """
    arms: dict[str, list[str]] = {}  # fingerprint → the arms whose best it is
    runs: dict[str, Job] = {}
    versions, best = dict(study.note(VERSIONS) or {}), study.note(BEST)
    for arm, job in best_of_arms(jobs, outcomes).items():
        if has_weights(outcomes[job.fingerprint].checkpoint) and job.fingerprint not in versions:
            arms.setdefault(job.fingerprint, []).append(arm)
            runs[job.fingerprint] = job
    if not runs and _best_version(jobs, versions, study) == best:
        return []
    from mlflow import MlflowClient

    from ram_tune.search.model import card, log_model
    from ram_tune.search.model import register as new_version

    logging.getLogger("mlflow.pyfunc").setLevel(logging.ERROR)
    name = about.experiment
    try:
        for run, job in runs.items():
            run_id, folder = record.run_id(run), Path(outcomes[run].checkpoint)
            if run_id is None:
                return [
                    "The models were not registered: MLflow has not heard of their runs yet. The same command tries again."
                ]
            words = card(folder, f"{about.title}: {job.name}")
            tags = {"ram_tune.setting": ", ".join(arms[run]), "ram_tune.seed": str(job.seed)}
            model = log_model(record.uri, run_id, folder, name, words)
            versions[run] = new_version(record.uri, model, name, words, tags)
            study.set_note(VERSIONS, versions)
        best = _best_version(jobs, versions, study) or ""
        MlflowClient(record.uri).set_registered_model_alias(name, BEST_ALIAS, best)
        study.set_note(BEST, best)
    except Exception as error:  # MLflow's, the network's: the search is over and well
        return [f"Not every arm's model was registered: {error_line(str(error))}. The same command tries again."]
    by = "the search's objective" if any(job.sampled for job in jobs) else OBJECTIVE.replace("/", " ")
    new = f"{plural(len(runs), 'version')} of {name}; " if runs else ""
    return [f"Registered in MLflow: {new}the best by {by} is {name}@{BEST_ALIAS}."]


def _best_version(jobs: Sequence[Job], versions: Mapping[str, str], study: Study) -> str | None:
    """The version that is to be called the best, if any: a sampled search's last setting is, by whatever the search is for,
    and where that only evaluates, the training it evaluates.
    """
    for job in reversed([job for job in jobs if job.sampled]):
        for run in (job.fingerprint, *job.needs):
            if run in versions:
                return versions[run]
    known = study.outcomes()
    top = max((run for run in versions if run in known), key=lambda run: _value(known[run]), default=None)
    return versions[top] if top else None


def drop(keep: Keep, jobs: Sequence[Job], outcomes: Mapping[str, Outcome]) -> None:
    """Delete the weights that `keep` does not. Those that others start from or evaluate stay: arms and seeds may be added."""
    kept: Collection[str] = {need for job in jobs for need in job.needs}
    if keep == "arms":
        kept |= {job.fingerprint for job in best_of_arms(jobs, outcomes, evaluations=True).values()}
    if keep in ("arms", "none"):
        for job in jobs:
            outcome = outcomes.get(job.fingerprint)
            if job.kind != "stage1" and job.fingerprint not in kept and outcome and outcome.checkpoint:
                _delete(outcome.checkpoint)


def drop_sampled(keep: Keep, study: Study, chosen: Collection[str]) -> None:
    """The same of a sampled search, where the best setting's runs are `chosen`."""
    for fingerprint, run in study.runs().items():
        kept = run["kind"] == "stage1" or (keep == "arms" and fingerprint in chosen)
        if keep in ("arms", "none") and not kept and run["checkpoint"]:
            _delete(run["checkpoint"])


def best_of(jobs: Sequence[Job], outcomes: Mapping[str, Outcome]) -> dict[str, str | float]:
    """Of the run of the highest selection mAP: which arm's, that value, and the mAP on test."""
    found = best_of_arms(jobs, outcomes)
    if not found:
        return {}
    arm, job = max(found.items(), key=lambda one: _value(outcomes[one[1].fingerprint]))
    metrics = outcomes[job.fingerprint].metrics
    return {
        "arm": arm,
        "seed": job.seed,
        **{name: metrics[name] for name in (OBJECTIVE, "test/mAP") if name in metrics},
    }


def disk_use(folder: Path) -> str:
    """One sentence on what a search's folder takes, and its weights within it."""
    total = weights = files = 0
    for place, _, names in os.walk(folder):
        for file in (Path(place) / name for name in names):
            size = file.lstat().st_size if file.exists() else 0
            total += size
            if file.suffix == ".pt":
                weights, files = weights + size, files + 1
    files_of_weights = f"{_size(weights)} in {plural(files, 'file')} of weights (--keep-checkpoints)"
    return f"On disk: {_size(total)}, of it {files_of_weights}; MLflow's copies apart."


def _delete(folder: str) -> None:
    """An evaluation of several scales has the weights of each."""
    for file in Path(folder).glob(checkpoint.BEST.replace(".", "*.")):
        file.unlink()


def _value(outcome: Outcome) -> float:
    return outcome.metrics.get(OBJECTIVE, float("-inf"))


def _size(size: float) -> str:
    for unit in ("kB", "MB"):
        size /= 1000
        if size < 1000:
            return f"{size:.3g} {unit}"
    return f"{size / 1000:.3g} GB"
