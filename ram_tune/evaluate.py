"""`python -m ram_tune.evaluate RUN…`: judge trained models as the paper does: views, scales, SVMs."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ram_tune.config import Config, digest
from ram_tune.errors import BadInput, NotEnoughMemoryError, command_line, error_line
from ram_tune.options import add_cache_option, add_set_option, cache_dir, make_folder, results_dir
from ram_tune.presets import absolute, from_fields, from_json, parse_set

EXAMPLES = """\
examples:
  python -m ram_tune.evaluate ram_tune_runs/FOLDER                             one view, the network's own scores
  python -m ram_tune.evaluate ram_tune_runs/FOLDER --views ten --classifier svm
  python -m ram_tune.evaluate RUN512 RUN640 --views ten --classifier svm       two scales, fused
  python -m ram_tune.evaluate 0123456789abcdef0123456789abcdef --split val     a run in MLflow, another split
  python -m ram_tune.evaluate RUN --address 10.0.0.1:6379                      in a worker of that cluster

RUN: the folder of a run, its best.pt, the id of its run in MLflow, or a registered model
such as constraints-scenes@best ($MLFLOW_TRACKING_URI, else mlflow.db in this folder)"""

FIGURES = "mAP", "mAP_11", "CP", "CR", "CF1", "OP", "OR", "OF1"
CONTROLS = "", "_anchors", "_centre", "_random", "_shuffled"


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)

    from ram_tune.search.model import find_run
    from ram_tune.training import checkpoint
    from ram_tune.training.judging import NotFiniteError
    from ram_tune.training.trained import find_weights

    weights = [find_weights(find_run(run)) for run in options.run]
    config = _configuration(weights, [checkpoint.load(path)["config"] for path in weights], options)
    caches = cache_dir(options.cache_dir)
    identity = digest([config.flat(), [str(path) for path in weights]])
    folder = make_folder((options.out or results_dir(None) / f"evaluation-{identity[:8]}").absolute(), "--out")

    started = time.perf_counter()
    try:
        if options.address:
            summary = _on_cluster(config, weights, caches, identity, folder, options.address)
        else:
            summary = _here(config, weights, caches, identity, folder)
    except (NotFiniteError, NotEnoughMemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console = Console()
    images = summary["images"]["test"]
    scales = ", ".join(map(str, config.evaluation.scales or [config.data.image_size]))
    rule = config.evaluation
    how = f"N={scales}, {rule.views} view{'s' if rule.views == 'ten' else ''}, {rule.classifier}"
    console.print(figures_table(summary["test"], f"{config.data.test_split}, {images} images: {how}, in percent"))
    if table := attention_table(summary["test"]):
        console.print(table)
    console.print(f"{time.perf_counter() - started:.0f} s; files in {folder}", highlight=False, soft_wrap=True)
    return 0


def _here(config: Config, weights: list[Path], caches: Path, identity: str, folder: Path) -> dict[str, Any]:
    """The evaluation in this process → its `metrics.json`; all files are in `folder`."""
    from ram_tune.training.judging import finish
    from ram_tune.training.memory import telling_what_does_not_fit
    from ram_tune.training.results import write_results
    from ram_tune.training.run import load_trained

    with telling_what_does_not_fit(config):
        runs = load_trained(config, caches, weights, identity)
        return write_results(runs[0], finish(runs), folder)


def _on_cluster(
    config: Config, weights: list[Path], caches: Path, identity: str, folder: Path, address: str
) -> dict[str, Any]:
    """The same in a worker of a Ray cluster, with all the CPUs and GPUs that one may have there.

    Weights and `folder` must be where every node sees them. Raises BadInput.
    """
    from ram_tune.distribution.trial import TrialConfig, run_job
    from ram_tune.distribution.worker import Order
    from ram_tune.search.executor import read_outcome
    from ram_tune.search.jobs import Job
    from ram_tune.search.layout import layout
    from ram_tune.search.machines import ray_cluster
    from ram_tune.training import checkpoint
    from ram_tune.training.results import read_summary

    for path in weights:
        if path.name != checkpoint.BEST:
            raise BadInput("RUN", found=path, expected=f"a run's folder or its {checkpoint.BEST}, with --address")
    with ray_cluster(address) as machines:
        order = Order(
            kind="evaluate",
            run=identity,
            config=config.model_dump_json(),
            cache_dir=str(caches),
            starts=[str(path.absolute().parent) for path in weights],
            desk="",  # nobody follows it
            keep_all=False,
        )
        resources = layout([Job("evaluate", "evaluation", config, identity, "")], machines.all).resources[identity]
        ended = run_job(TrialConfig(order=order, storage=str(folder), workers=1, fewest=0, resources=resources))
        outcome, _ = read_outcome(ended["checkpoint"])
    summary = read_summary(Path(ended["checkpoint"])) if outcome.state == "finished" else None
    if summary is None:
        problem = error_line(ended["error"] or outcome.error or "it left no result")
        raise BadInput(f"--address {address}", found=problem, expected="an evaluation that ends")
    for file in Path(ended["checkpoint"]).iterdir():
        if file.suffix != ".pt":
            file.replace(folder / file.name)
    shutil.rmtree(folder / identity)
    return summary


def figures_table(test: Mapping[str, float], title: str) -> Table:
    """mAP … OF1, and the mAP of chance."""
    table = Table(title=title)
    for name in (*FIGURES, "chance mAP"):
        table.add_column(name, justify="right")
    table.add_row(*(f"{100 * test[name]:.1f}" for name in FIGURES), f"{100 * test['chance']:.1f}")
    return table


def attention_table(test: Mapping[str, float]) -> Table | None:
    """Share of objects with their centre in a region, own and controls; None without regions or boxes."""
    if "coverage" not in test:
        return None
    margin = [test.get(f"coverage_own_minus_shuffled{end}", float("nan")) for end in ("", "_low", "_high")]
    caption = (
        f"own − another image's, per image: {margin[0]:+.3f}, 95 % interval {margin[1]:+.3f} to {margin[2]:+.3f}: "
        + (
            "regions follow what is in the image"
            if test["attends"]
            else "no attention to what is in the image is shown"
        )
    )
    if "centres_on_objects_own_minus_shuffled" in test:
        own, other, *margin = (
            100 * test[f"centres_on_objects{name}"]
            for name in ("", "_shuffled", *(f"_own_minus_shuffled{end}" for end in ("", "_low", "_high")))
        )
        caption += (
            f"\nregion centres that lie on an object: {own:.1f} %, another image's {other:.1f} %; "
            f"own − another's {margin[0]:+z.1f}, 95 % interval {margin[1]:+z.1f} to {margin[2]:+z.1f}"
        )
    table = Table(title="Objects whose centre lies in a region, in percent", caption=caption)
    for column in ("objects", "number", "own regions", "anchors", "centre", "random", "another image's"):
        table.add_column(column, justify="right")
    for name, group in (("all", ""), ("small", "_small")):
        if f"coverage{group}" in test:
            shares = (test.get(f"coverage{group}{control}", float("nan")) for control in CONTROLS)
            table.add_row(name, f"{test[f'objects{group}']:.0f}", *(f"{100 * share:.1f}" for share in shares))
    return table


def _configuration(weights: Sequence[Path], texts: Sequence[str], options: argparse.Namespace) -> Config:
    """How the models are evaluated; they may differ in their image size alone. Raises BadInput."""
    configs = [from_json(text, str(path)) for text, path in zip(texts, weights, strict=True)]
    scales = tuple(config.data.image_size for config in configs)
    if len(set(scales)) < len(scales):
        raise BadInput("RUN", found=f"models of the scales {scales}", expected="one of each scale")
    if options.scales and sorted(options.scales) != sorted(scales):
        found, wanted = f"models of the scales {sorted(scales)}", f"{sorted(options.scales)}, as --scales says"
        raise BadInput("RUN", found=found, expected=wanted, remedy="Name one trained model for each scale.")
    values: dict[str, Any] = {"evaluation.scales": scales if len(scales) > 1 else ()}
    for name in ("views", "classifier"):
        if getattr(options, name):
            values[f"evaluation.{name}"] = getattr(options, name)
    if options.split:
        values["data.test_split"] = options.split
    return from_fields({**configs[0].flat(), **values, **absolute(parse_set(options.set))})


def sizes(text: str) -> list[int]:
    """`512,640` → both."""
    return [int(part) for part in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ram_tune.evaluate",
        description="Evaluate trained models: one view or ten, one scale or several, the network's own scores or SVMs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "run", nargs="+", metavar="RUN", help="a trained model; several of different image sizes are fused"
    )
    parser.add_argument("--views", choices=("one", "ten"), help="the centre, or ten crops of the feature map")
    parser.add_argument("--classifier", choices=("network", "svm"), help="what decides")
    parser.add_argument(
        "--scales",
        type=sizes,
        metavar="N,N",
        help="as a check on the RUNs",
    )
    parser.add_argument(
        "--address",
        default="",
        metavar="HOST:PORT",
        help="a running Ray cluster, in a worker of which it is done (default: this process); RUN and --out must be on "
        "storage that all nodes share",
    )
    parser.add_argument("--split", metavar="NAME", help="the split to test on (default: the run's own)")
    add_set_option(parser)
    add_cache_option(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the results (default: ram_tune_runs/evaluation-…)"
    )
    return parser


if __name__ == "__main__":
    command_line(main)
