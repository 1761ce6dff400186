"""What each job gets of a cluster, and how many run at once. Pure arithmetic: nothing here knows Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ram_tune.errors import BadInput
from ram_tune.search.jobs import Job

ROUNDING = 1e-6  # five workers of 0.2 GPUs fit one

Node = Mapping[str, float]
"""CPUs and GPUs of one machine of the cluster."""


@dataclass(frozen=True)
class Layout:
    """How jobs are laid out on a cluster."""

    nodes: tuple[Node, ...]
    resources: dict[str, dict[str, float]]  # fingerprint → CPU and GPU of its worker
    at_once: int
    kinds: dict[str, dict[str, float]]  # the same of the jobs of a kind, for those that nobody knew of then

    def all_of(self, job: Job) -> list[dict[str, float]]:
        """The same for each of the workers that the job cannot do without."""
        return [self.of(job)] * _needed(job)

    def of(self, job: Job) -> dict[str, float]:
        """CPU and GPU of a job's worker."""
        return self.resources.get(job.fingerprint) or self.kinds.get(job.kind) or self.kinds["train"]


def layout(jobs: Sequence[Job], nodes: Sequence[Node], concurrency: int = 0) -> Layout:
    """What each job's worker gets, and how many jobs run at once (at most `concurrency`, where that is not 0).

    A job gets what its `execution` fields ask for: CPUs else an equal share of the cluster for each job of its kind that can
    run at once, a GPU where there are any. Shares follow from the whole plan, not from what is left of it, so that a search
    that goes on computes with as many threads as before. Raises BadInput for a job that no node could ever hold.
    """
    most_gpus = max(node["GPU"] for node in nodes)
    resources: dict[str, dict[str, float]] = {}
    for job in jobs:
        execution = job.config.execution
        gpus = min(most_gpus, 1.0) if execution.gpus_per_worker is None else execution.gpus_per_worker
        alike = sum((other.kind == "stage1") == (job.kind == "stage1") for other in jobs)
        wanted = min(alike, concurrency or alike) * max(workers_of(job), 1)
        cpus = execution.cpus_per_worker or _share(nodes, gpus, wanted)
        resources[job.fingerprint] = {"CPU": cpus, "GPU": gpus}
        _require_room(job, resources[job.fingerprint], nodes)
    most = max(_holds(nodes, **resources[job.fingerprint]) // _needed(job) for job in jobs)
    kinds = {job.kind: resources[job.fingerprint] for job in jobs}
    return Layout(tuple(nodes), resources, min(concurrency or most, most), kinds)


def workers_of(job: Job) -> int:
    """Worker processes of a job: an evaluation is the work of one."""
    workers = job.config.execution.workers
    return min(workers, 1) if job.kind == "evaluate" else workers


def _needed(job: Job) -> int:
    """Workers that a job cannot do without; one without any of its own takes as much as one."""
    workers = max(workers_of(job), 1)
    return min(job.config.execution.fewest_workers or workers, workers)


def _share(nodes: Sequence[Node], gpus: float, workers: int) -> float:
    """The most CPUs, one at least, with which as many of `workers` alike run at once as with one CPU each."""
    wanted = min(workers, _holds(nodes, CPU=1, GPU=gpus))
    most = int(max(node["CPU"] for node in nodes))
    return float(next((n for n in range(most, 1, -1) if _holds(nodes, CPU=n, GPU=gpus) >= max(wanted, 1)), 1))


def _holds(nodes: Sequence[Node], **needed: float) -> int:
    """How many workers that need this the machines hold at once."""
    return sum(int(min(node[name] / amount + ROUNDING for name, amount in needed.items() if amount)) for node in nodes)


def fits(nodes: Sequence[Node], workers: Sequence[Mapping[str, float]]) -> bool:
    """Whether the machines hold all these workers at once, the largest placed first."""
    free = [dict(node) for node in nodes]
    for needed in sorted(workers, key=lambda one: (one["GPU"], one["CPU"]), reverse=True):
        for node in free:
            if all(node[name] + ROUNDING >= amount for name, amount in needed.items()):
                for name, amount in needed.items():
                    node[name] -= amount
                break
        else:
            return False
    return True


def _require_room(job: Job, needed: Mapping[str, float], nodes: Sequence[Node]) -> None:
    workers = _needed(job)
    if _holds(nodes, **needed) >= workers:
        return
    wanted = ", ".join(f"{amount:g} {name}" for name, amount in needed.items() if amount)
    there = "; ".join(", ".join(f"{amount:g} {name}" for name, amount in node.items()) for node in nodes)
    raise BadInput(
        "execution.workers, cpus_per_worker, gpus_per_worker",
        found=f"{wanted} for each of {workers} worker{'s' * (workers > 1)} of a run",
        expected=f"what the machines have ({there})",
        remedy="The run could never start. Ask for less.",
    )
