"""Checkpoints: `best.pt`, weights of the best epoch; `last.pt`, everything an interrupted run needs to go on.

Both are written under a temporary name and renamed, and read with `weights_only=True`: nothing in them is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ram_tune.config import Config
from ram_tune.errors import BadInput
from ram_tune.presets import from_json

BEST, LAST = "best.pt", "last.pt"
NEXT = "next.pt"  # best.pt, until the last.pt that knows of it is written
FORMAT = "ram_tune checkpoint 1"


def save(path: Path, content: Mapping[str, Any], config: Config, fingerprint: str) -> None:
    """Write `content` and what it belongs to."""
    import torch  # only here and in `load`: who names these files, or drives a run, does without it

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    torch.save({**content, "format": FORMAT, "config": config.model_dump_json(), "fingerprint": fingerprint}, partial)
    partial.rename(path)


def save_epoch(
    folder: Path, weights: Mapping[str, Any] | None, state: Mapping[str, Any], config: Config, run: str
) -> None:
    """After an epoch: `weights` where it is the best so far, and `state`; never one without the other."""
    if weights is not None:
        save(folder / NEXT, weights, config, run)
    save(folder / LAST, state, config, run)
    if weights is not None:
        (folder / NEXT).replace(folder / BEST)


def recover(folder: Path) -> None:
    """After a kill at any moment of `save_epoch`: best.pt is the one that last.pt knows of."""
    waiting, last = folder / NEXT, folder / LAST
    if waiting.exists():
        known = last.exists() and load(last)["best_epoch"] == load(waiting)["epoch"]
        waiting.replace(folder / BEST) if known else waiting.unlink()


def load(path: Path, config: Config | None = None, fingerprint: str = "") -> dict[str, Any]:
    """Read a checkpoint. Raises BadInput when it is none, or belongs to another run than `config`, naming what differs."""
    remedy = "Name a checkpoint that ram_tune wrote."
    if not path.is_file():
        raise BadInput(path, found="no such file", expected="a checkpoint", remedy=remedy)
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen kinds for files that are none of its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BadInput(path, found=f"no checkpoint ({reason})", expected=FORMAT, remedy=remedy) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BadInput(path, found="a file of another kind", expected=FORMAT, remedy=remedy)
    if config is not None and content["fingerprint"] != fingerprint:
        theirs, ours = from_json(content["config"], str(path)).flat(), config.flat()
        different = [
            f"{name} {theirs[name]!r} there, {ours[name]!r} here" for name in ours if theirs[name] != ours[name]
        ]
        raise BadInput(
            path,
            found="a checkpoint of another configuration"
            + (f" ({'; '.join(different[:4])})" if different else " (of other data, weights or program version)"),
            expected="one of this configuration",
            remedy="Give the settings it was made with, or start anew in another folder.",
        )
    return content
