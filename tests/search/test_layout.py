"""What each job gets of a cluster, and how many run at once."""

from __future__ import annotations

from typing import Any

import pytest

from ram_tune.config import Config, Execution
from ram_tune.errors import BadInput
from ram_tune.search.jobs import Job
from ram_tune.search.layout import fits, layout


def jobs(count: int, kind: Any = "train", **execution: Any) -> list[Job]:
    config = Config(execution=Execution(**execution))
    return [Job(kind, f"arm {number}", config, f"{kind}{number}", "dataset") for number in range(count)]


def node(cpus: float, gpus: float = 0) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus}


def test_jobs_of_a_kind_share_the_processors_of_a_laptop():
    found = layout([*jobs(1, "stage1"), *jobs(5)], [node(2)])
    assert found.resources["stage10"] == {"CPU": 2, "GPU": 0}
    assert found.resources["train0"] == {"CPU": 1, "GPU": 0}
    assert found.at_once == 2
    assert layout(jobs(5), [node(16)]).resources["train0"]["CPU"] == 3


def test_a_gpu_each_where_there_are_any_and_the_processors_by_gpu():
    found = layout(jobs(5), [node(16, 2), node(16, 2)])
    assert found.resources["train0"] == {"CPU": 8, "GPU": 1}
    assert found.at_once == 4
    half = layout(jobs(20, gpus_per_worker=0.5), [node(16, 2), node(16, 2)])
    assert half.resources["train0"] == {"CPU": 4, "GPU": 0.5}
    assert half.at_once == 8
    assert layout(jobs(2, gpus_per_worker=0), [node(16, 2)]).resources["train0"] == {"CPU": 8, "GPU": 0}


def test_a_head_without_gpus_takes_no_part():
    assert layout(jobs(5), [node(4), node(16, 4)]).at_once == 4


def test_concurrency_is_a_limit_and_shares_follow_it():
    found = layout(jobs(5), [node(8)], concurrency=2)
    assert found.resources["train0"]["CPU"] == 4
    assert found.at_once == 2
    assert layout(jobs(5, cpus_per_worker=4), [node(8)], concurrency=9).at_once == 2


def test_no_share_is_larger_than_a_machine():
    assert layout(jobs(1), [node(8), node(8)]).resources["train0"]["CPU"] == 8


def test_evaluations_share_as_trainings_do():
    found = layout([*jobs(5), *jobs(1, "evaluate")], [node(2)])
    assert found.resources["evaluate0"] == found.resources["train0"] == {"CPU": 1, "GPU": 0}


def test_five_fifths_of_a_gpu_fit_one():
    assert layout(jobs(9, gpus_per_worker=0.2), [node(16, 1)]).at_once == 5


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        ([(2, 0)], True),
        ([(1, 0), (1, 0)], True),
        ([(2, 0), (1, 0)], True),  # two machines
        ([(2, 0), (2, 0), (1, 0)], False),
        ([(1, 0), (2, 0), (1, 0)], True),  # the largest first
        ([(1, 0), (1, 0), (1, 0), (1, 0), (1, 0)], False),
        ([(1, 1)], False),
    ],
)
def test_what_fits_beside_what_runs(workers, expected):
    assert fits([node(2), node(2)], [node(*one) for one in workers]) is expected


@pytest.mark.parametrize(
    ("execution", "nodes"),
    [
        ({"cpus_per_worker": 3}, [node(2), node(2)]),  # together they have four
        ({"gpus_per_worker": 1}, [node(2)]),
        ({"gpus_per_worker": 1, "cpus_per_worker": 8}, [node(8), node(4, 1)]),
    ],
)
def test_what_no_machine_could_hold_is_refused(execution, nodes):
    with pytest.raises(
        BadInput, match=r"execution\.workers.*for each of 1 worker of a run; expected what the machines have"
    ):
        layout(jobs(2, **execution), nodes)


def test_a_run_of_several_workers_takes_room_for_each():
    nodes = [node(4, 2), node(4, 2)]
    two = layout(jobs(4, workers=2), nodes)
    assert two.at_once == 2 and two.resources["train0"] == {"CPU": 2, "GPU": 1}
    assert len(two.all_of(jobs(1, workers=2)[0])) == 2
    with pytest.raises(BadInput, match="for each of 5 workers of a run"):
        layout(jobs(1, workers=5), nodes)
    elastic = layout(jobs(1, workers=5, fewest_workers=3), nodes)
    assert layout(jobs(1, workers=2, fewest_workers=1), [node(2)]).resources["train0"]["CPU"] == 1  # both fit
    assert elastic.at_once == 1 and len(elastic.all_of(jobs(1, workers=5, fewest_workers=3)[0])) == 3
