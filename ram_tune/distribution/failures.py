"""Which failures of a run's workers are worth another try, and what is said of those that are not."""

from __future__ import annotations

from ray.exceptions import OutOfMemoryError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from ram_tune.errors import NotEnoughMemoryError


class Retries(DefaultFailurePolicy):
    """Ray Train's own policy (lost workers and nodes; machines taken away with notice, without limit), but for a run that
    did not fit into memory: it is not tried again as it was."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        if _memory_failure(training_failed_error):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


def out_of_memory(error: WorkerGroupError, config: str) -> str:
    """What to say of a run, of `config` as JSON, that did not fit into memory; empty where it failed for another reason."""
    from ram_tune.presets import from_json
    from ram_tune.training.memory import too_large

    failure = _memory_failure(error)
    if failure is None or isinstance(failure, NotEnoughMemoryError):  # the worker's own words
        return f"NotEnoughMemoryError: {failure}" if failure else ""
    reason = str(failure).partition("\n")[0]
    return f"NotEnoughMemoryError: {too_large(from_json(config, 'the run'), reason, len(error.worker_failures))}"


def _memory_failure(error: BaseException) -> BaseException | None:
    """The failure of a worker that ran out of memory, or that Ray killed before its machine did."""
    for failure in error.worker_failures.values() if isinstance(error, WorkerGroupError) else ():
        if isinstance(failure, UserExceptionWithTraceback):
            failure = failure._base_exc
        elif isinstance(failure, WorkerHealthCheckFailedError):
            failure = failure.health_check_failure
        if isinstance(failure, NotEnoughMemoryError | OutOfMemoryError):
            return failure
    return None
