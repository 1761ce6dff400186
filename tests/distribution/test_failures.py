"""Which failures are tried again. The errors are Ray's own classes, as a killed worker makes them (see tests/drills)."""

from __future__ import annotations

import pickle

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import FailureConfig
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from ram_tune.data.storage import Unreachable
from ram_tune.distribution.failures import Retries, words
from ram_tune.errors import BadInput, NotEnoughMemoryError
from ram_tune.presets import configure

CONFIG = configure("voc2007").model_dump_json()
LOST = WorkerHealthCheckFailedError("lost", ActorDiedError())
KILLED = WorkerHealthCheckFailedError("lost", OutOfMemoryError("1 worker(s) were killed\nlong tale"))
OWN = UserExceptionWithTraceback(NotEnoughMemoryError("out of memory with training.batch_size=64"), "Traceback …")


def decide(policy: Retries, *failures: Exception) -> FailureDecision:
    return policy.make_decision(WorkerGroupError("", dict(enumerate(failures))))


@pytest.mark.parametrize(
    "failures", [(OWN,), (KILLED,), (LOST, OWN), (UserExceptionWithTraceback(ValueError(), ""), KILLED)]
)
def test_what_did_not_fit_into_memory_is_not_tried_again(failures):
    assert decide(Retries(FailureConfig(max_failures=2)), *failures) is FailureDecision.RAISE


def test_what_one_of_several_workers_cannot_use_is_not_tried_again():
    bad = UserExceptionWithTraceback(BadInput("/data", found="no folder", expected="the dataset"), "Traceback …")
    away = UserExceptionWithTraceback(Unreachable("s3://b", found="no answer", expected="one"), "Traceback …")
    assert decide(Retries(FailureConfig(max_failures=2)), bad) is FailureDecision.RAISE
    assert decide(Retries(FailureConfig(max_failures=2)), away) is FailureDecision.RETRY
    assert words(WorkerGroupError("", {1: bad}), CONFIG) == "BadInput: /data: found no folder; expected the dataset."
    assert type(pickle.loads(pickle.dumps(away._base_exc))) is Unreachable  # as it comes from a worker


def test_a_lost_worker_is_replaced_as_often_as_is_said():
    policy = Retries(FailureConfig(max_failures=2))
    assert [decide(policy, LOST) for _ in range(3)] == [FailureDecision.RETRY] * 2 + [FailureDecision.RAISE]


def test_machines_that_are_taken_away_with_notice_do_not_count():
    from ray.train.v2.api.exceptions import PreemptionError

    policy = Retries(FailureConfig(max_failures=0))
    notice = PreemptionError(PreemptionInfo(None, {"node": [0]}), drain_timed_out=False)
    assert [policy.make_decision(notice) for _ in range(20)] == [FailureDecision.RETRY] * 20
    assert decide(policy, LOST) is FailureDecision.RAISE


def test_what_is_said_of_memory():
    assert words(WorkerGroupError("", {0: LOST, 1: OWN}), CONFIG) == (
        "NotEnoughMemoryError: out of memory with training.batch_size=64"
    )
    said = words(WorkerGroupError("", {0: KILLED, 1: LOST}), CONFIG)
    assert "training.batch_size=16, 8 images at once" in said and "(1 worker(s) were killed)" in said
    assert words(WorkerGroupError("", {0: LOST}), CONFIG) == ""
