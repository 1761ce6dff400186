"""Which failures of a run's workers are worth another try, and what is said of those that are not."""

from __future__ import annotations

from ray.exceptions import OutOfMemoryError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from ram_tune.data.storage import Unreachable
from ram_tune.errors import BadInput, NotEnoughMemoryError


class Retries(DefaultFailurePolicy):
    """Ray Train's own policy (lost workers and nodes; machines taken away with notice, without limit), but for what no second
    try would mend: a run that did not fit into memory is not tried again as it was, nor one whose input is bad.
    """

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        if _hopeless(training_failed_error):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


def words(error: WorkerGroupError, config: str) -> str:
    """What to say of a run, of `config` as JSON, that no second try would mend; empty where it failed for another reason."""
    from ram_tune.presets import from_json
    from ram_tune.training.memory import too_large

    failure = _hopeless(error)
    if failure is None or isinstance(failure, NotEnoughMemoryError | BadInput):  # the worker's own words
        return f"{type(failure).__name__}: {failure}" if failure else ""
    reason = str(failure).partition("\n")[0]
    return f"NotEnoughMemoryError: {too_large(from_json(config, 'the run'), reason, len(error.worker_failures))}"


def _hopeless(error: BaseException) -> BaseException | None:
    """The failure of a worker that had bad input or ran out of memory, or that Ray killed before its machine did."""
    for failure in error.worker_failures.values() if isinstance(error, WorkerGroupError) else ():
        if isinstance(failure, UserExceptionWithTraceback):
            failure = failure._base_exc
        elif isinstance(failure, WorkerHealthCheckFailedError):
            failure = failure.health_check_failure
        bad = isinstance(failure, BadInput) and not isinstance(failure, Unreachable)
        if bad or isinstance(failure, NotEnoughMemoryError | OutOfMemoryError):
            return failure
    return None
