"""The training loop inside a Ray Train worker: where it gets its configuration, and whom it tells."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, TypedDict


class Order(TypedDict):
    """What a worker is told; plain values, for they cross process borders."""

    config: str  # Config as JSON
    cache_dir: str
    stage1: str  # the checkpoint folder of the stage-1 run it starts from; empty: none


def train_worker(order: dict[str, Any]) -> None:
    """A whole run. What no second try would mend (bad input, a loss that is not finite) is reported as its error."""
    import ray.train

    from ram_tune.errors import BadInput
    from ram_tune.training.loop import NotFiniteError

    try:
        _train(order)
    except (BadInput, NotFiniteError) as error:
        ray.train.report({"error": f"{type(error).__name__}: {error}"})


def _train(order: dict[str, Any]) -> None:
    """Report every epoch with a checkpoint to go on from; at the end report the test with the results.

    Each checkpoint is a folder with best.pt (weights) and last.pt (everything); the last one holds best.pt and the files
    of `training.results` instead, so that the run's outcome travels and survives as its checkpoints do.
    """
    import ray.train
    from ray.train import Checkpoint

    from ram_tune.presets import from_json
    from ram_tune.training import checkpoint
    from ram_tune.training.loop import finish, fit
    from ram_tune.training.results import write_results
    from ram_tune.training.run import prepare

    config = from_json(order["config"], "the run's configuration")
    with tempfile.TemporaryDirectory(prefix="ram_tune-") as place:
        folder = Path(place)
        stage1 = None
        if order["stage1"]:
            with Checkpoint(order["stage1"]).as_directory() as found:
                stage1 = Path(shutil.copy(Path(found) / checkpoint.BEST, folder / "stage1.pt"))
        best, last = folder / checkpoint.BEST, folder / checkpoint.LAST
        if (interrupted := ray.train.get_checkpoint()) is not None:
            with interrupted.as_directory() as found:
                shutil.copy(Path(found) / checkpoint.BEST, best)
                if not (Path(found) / checkpoint.LAST).exists():
                    return  # lost after its final report: nothing is left to do
                shutil.copy(Path(found) / checkpoint.LAST, last)
        run = prepare(config, Path(order["cache_dir"]), stage1, last=last if last.exists() else None)
        run.cache()

        def report(metrics: dict[str, Any], *files: Path) -> None:
            with tempfile.TemporaryDirectory(prefix="ram_tune-report-") as parcel:
                for file in files:
                    shutil.copy(file, parcel)
                ray.train.report(metrics, checkpoint=Checkpoint.from_directory(parcel))

        for epoch in fit(run):
            if epoch.is_best:
                checkpoint.save(best, run.weights(), config, run.fingerprint)
            checkpoint.save(last, run.state(), config, run.fingerprint)
            report({"epoch": epoch.epoch, "is_best": epoch.is_best, **epoch.metrics}, best, last)

        run.network.load_state_dict(checkpoint.load(best, config, run.fingerprint)["network"])
        results = folder / "results"
        summary = write_results(run, finish(run), results)
        on_test = {f"test/{name}": value for name, value in summary["test"].items()}
        final = {"epoch": run.epoch, "finished": True, "best_epoch": run.best_epoch, **on_test}
        report(final, best, *results.iterdir())
