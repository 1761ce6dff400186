"""The options of `python -m ram_tune.search`, and what they make of a space."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping
from typing import Any, get_args

from ram_tune.config import Config
from ram_tune.errors import BadInput, nearest
from ram_tune.options import add_data_options, add_search_places
from ram_tune.presets import parse_set
from ram_tune.search import notify
from ram_tune.search.jobs import Keep
from ram_tune.search.space import Space

EXAMPLES = """\
examples:
  python -m ram_tune.search constraints                     the five arms on the embedded dataset
  python -m ram_tune.search constraints --seeds 3           the same with three seeds each: only what is missing is run
  python -m ram_tune.search constraints --dry-run           what would be run, and with what
  python -m ram_tune.search constraints --data voc2007 --data-root ~/data --set model.projection_size=512
  python -m ram_tune.search my_space.yaml --workers 0       one's own question; many small runs
  python -m ram_tune.search full --workers 0 --trials 24    settings drawn by a sampler; 20 more later: --trials 44
  python -m ram_tune.search full --confirm 3                the best setting and the paper's with 3 fresh seeds, on test
  python -m ram_tune.search constraints --submit            the same as a job on the cluster that `ray dashboard` brings here
  python -m ram_tune.search --jobs                          its jobs; --follow ID, --stop ID
  python -m ram_tune.search --list                          the searches that come with the package
  mlflow ui                                                 browse the runs, in the same folder

The same command goes on after Ctrl-C (once: running jobs end with their epoch; twice: at once), after a crash, and with more
arms, seeds or trials. exit code: 0 every run finished, 1 some failed (of drawn
settings: all, or what they share), 2 the options or files cannot be used, 130 interrupted
(a job: stopped, or left by Ctrl-C)"""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ram_tune.search",
        description="Train every arm of a search with Ray, record the runs in MLflow, and print what each arm is worth.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --notify is masked in the record by its name
    )
    parser.add_argument("search", nargs="?", help="a search that comes with the package, or the path of a YAML file")
    parser.add_argument("--list", action="store_true", help="list the searches that come with the package, and exit")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the jobs, what they need and how they differ; run none"
    )
    what = parser.add_argument_group("what to run")
    what.add_argument("--arms", nargs="+", metavar="ARM", help="only these arms (default: all)")
    what.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="runs of each arm, or of settings in the running (default: the search's own)",
    )
    what.add_argument("--trials", type=int, metavar="N", help="settings in all, those of earlier searches among them")
    what.add_argument("--hours", type=float, metavar="H", help="running jobs end with their epoch after so long")
    what.add_argument("--gpu-hours", type=float, metavar="H", help="the same, hours of all GPUs together")
    what.add_argument(
        "--confirm", type=int, metavar="N", help="fresh seeds of the best setting and the paper's, in the end, on test"
    )
    what.add_argument(
        "--fresh", action="store_true", help="start anew; what earlier searches made is kept, but not used"
    )
    add_data_options(what)
    how = parser.add_argument_group("how to run it")
    how.add_argument(
        "--workers",
        metavar="N",
        help="Ray Train workers of each run, which share its batches (default: 1); 1:4: as many of them as there is room for; "
        "0: many small runs share one process",
    )
    how.add_argument("--gpus-per-worker", type=float, metavar="N", help="such as 0.5 (default: 1 where there are any)")
    how.add_argument("--concurrency", type=int, metavar="N", help="runs at once (default: as many as fit)")
    how.add_argument(
        "--address",
        default="",
        metavar="HOST:PORT",
        help="a running Ray cluster that this machine belongs to (default: this machine alone)",
    )
    how.add_argument(
        "--watchdog",
        type=float,
        default=10,
        metavar="MINUTES",
        help="say so when a run has not moved for so long, and what holds the machines (default: 10; 0: never)",
    )
    how.add_argument("--quiet", action="store_true", help="no progress: only what goes wrong, and the answer")
    how.add_argument(
        "--notify",
        default="",
        metavar="URL",
        help="post a short JSON there when the search ends, and when a run has not moved (default: $RAM_TUNE_NOTIFY, which "
        "keeps it out of the shell's history)",
    )
    jobs = parser.add_argument_group(
        "as a job on a cluster elsewhere",
        "Sent is the package as it is here, and the search's file. Places must be absolute ones there; those left out\n"
        "are what the cluster's environment says. URL is that of Ray's dashboard (default: $RAY_API_SERVER_ADDRESS,\n"
        "$RAY_ADDRESS, else http://127.0.0.1:8265), and a token is sent if there is one. (docs/cluster.md)",
    ).add_mutually_exclusive_group()
    jobs.add_argument(
        "--submit",
        nargs="?",
        const="",
        metavar="URL",
        help="send this search to the cluster at URL and follow its log; Ctrl-C leaves it running",
    )
    jobs.add_argument("--jobs", action="store_true", help="list the jobs of a cluster (--address URL)")
    jobs.add_argument(
        "--follow", metavar="ID", help="show a job's log to its end (--address URL); Ctrl-C leaves it running"
    )
    jobs.add_argument("--stop", metavar="ID", help="end a job (--address URL); its running runs end with their epoch")
    places = parser.add_argument_group("where it is kept")
    add_search_places(places)
    places.add_argument(
        "--keep-checkpoints",
        choices=get_args(Keep),
        default="best",
        help="the weights of each run's best epoch (default); of each arm's best run alone; of every epoch, with its "
        "optimiser's state; or none but stage 1's",
    )
    return parser


def chosen(space: Space, arms: list[str] | None) -> Space:
    if arms and space.parameters:
        raise BadInput("--arms", found="a search that draws its settings", expected="one of named arms")
    for arm in arms or ():
        if arm not in space.arms:
            found, known = repr(arm), ", ".join(space.arms)
            raise BadInput("--arms", found=found, expected=f"among {known}", remedy=nearest(arm, space.arms))
    return space.model_copy(update={"arms": {arm: space.arms[arm] for arm in arms}}) if arms else space


def limited(space: Space, options: argparse.Namespace) -> Space:
    """The space with the numbers of the command line. Raises BadInput for options of the other kind of search."""
    given = {name: getattr(options, name) for name in ("trials", "hours", "gpu_hours")}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in {**given, "confirm": options.confirm}.items():
        option = f"--{name.replace('_', '-')}"
        if value is not None and not space.parameters:
            raise BadInput(option, found="a search of named arms", expected="one that draws its settings")
        least = 0 if name == "confirm" else 1 if name == "trials" else 1e-9
        if value is not None and not least <= value < math.inf:
            expected = f"at least {least}" if isinstance(least, int) else "more than 0"
            raise BadInput(option, found=f"{value:g}", expected=expected)
    update: dict[str, Any] = {"budget": space.budget.model_copy(update=given)}
    if options.confirm is not None:
        update["confirm"] = options.confirm
    if options.seeds:
        update["seeds"] = options.seeds
    return space.model_copy(update=update)


def overrides_of(options: argparse.Namespace) -> dict[str, Any]:
    """--set, and the options that are short for a field."""
    overrides = parse_set(options.set)
    fewest, most = _workers(options.workers)
    given = {"workers": most, "fewest_workers": fewest, "gpus_per_worker": options.gpus_per_worker}
    if not 0 <= (options.gpus_per_worker or 0) < math.inf:
        raise BadInput("--gpus-per-worker", found=f"{options.gpus_per_worker:g}", expected="0 or more")
    for option, value in given.items():
        field = f"execution.{option}"
        if value is not None and overrides.setdefault(field, value) != value:
            raise BadInput(
                f"--{option.replace('_', '-')} {value}",
                found=f"{field}={overrides[field]} in --set too",
                expected="one of them",
            )
    return overrides


def _workers(text: str | None) -> tuple[int | None, int | None]:
    """`4` → (None, 4); `1:4` → (1, 4): fewest and most. Raises BadInput."""
    if text is None:
        return None, None
    fewest, colon, most = text.rpartition(":")
    try:
        found = (int(fewest) if colon else None), int(most)
    except ValueError:
        found = None, -1
    if found[1] < 0 or (colon and not 0 < (found[0] or 0) <= found[1]):
        raise BadInput(
            "--workers", found=repr(text), expected="a number such as 2, or the fewest and the most, such as 1:4"
        )
    return found


def check_manner(options: argparse.Namespace) -> None:
    """Raise BadInput for numbers and addresses that cannot be meant; $RAM_TUNE_NOTIFY stands in for --notify."""
    positive("--seeds", options.seeds)
    positive("--concurrency", options.concurrency)
    if not 0 <= options.watchdog < math.inf:
        raise BadInput("--watchdog", found=f"{options.watchdog:g}", expected="minutes, or 0 for never")
    if options.submit is None:
        options.notify = options.notify or os.environ.get(notify.VARIABLE, "")
    notify.checked(options.notify)


def positive(option: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise BadInput(option, found=value, expected="at least 1")
    return value


def check_sampled(space: Space, base: Config, overrides: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Raise BadInput for what a sampler, a pruner or a cheap run cannot do."""
    from ram_tune.search.objectives import parse_constraint
    from ram_tune.search.plan import Maker
    from ram_tune.search.samplers import check_sampler, judges_epochs, pruner
    from ram_tune.search.settings import Need

    check_sampler(space.sampler.name, space.sampler.options, len(space.objectives), bool(space.constraints))
    pruner(space.pruner.name, space.pruner.options, base.training.epochs)
    metrics = {*space.objectives, *(parse_constraint(text)[0] for text in space.constraints)}
    finals = {name for name in space.parameters if name.startswith("evaluation.")}
    rule = base.evaluation
    if "loss" in metrics and (finals or rule.scales or rule.views == "ten" or rule.classifier == "svm"):
        raise BadInput(
            "objectives", found="loss", expected="a metric of the scores, where views, scales or SVMs decide"
        )
    if judges_epochs(space.pruner.name) and (rule.scales or "evaluation.scales" in space.parameters):
        raise BadInput(
            "pruner",
            found=f"{space.pruner.name} for settings of several models each",
            expected="pruner: none",
            remedy="No epoch of one model says what several are worth together.",
        )
    if space.pruner.name == "wilcoxon" and space.seeds < 2:
        raise BadInput(
            "pruner", found="wilcoxon with one seed", expected="several seeds to judge", remedy="Set seeds: 5."
        )
    maker = Maker(space, options.data or "scenes", options.data_root, overrides, "")
    full, cheap = (maker.jobs(Need("", {}, 0, cheap))[-1] for cheap in (False, bool(space.fidelity)))
    if space.fidelity and cheap.fingerprint == full.fingerprint:
        raise BadInput(
            f"fidelity of {options.search}",
            found=", ".join(space.fidelity),
            expected="fields that make a run another one than the full one",
            remedy="Such as training.epochs; --set wins over it.",
        )
