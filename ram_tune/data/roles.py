"""What a configuration says about data becomes three sets of images that never mix: train, selection, test (METHOD 4).

Legend: n images, L labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np

from ram_tune.config import Data, digest
from ram_tune.data import coco, remote, scenes, table, voc
from ram_tune.data.annotations import Annotations, folder
from ram_tune.errors import BadInput, nearest

Splits = dict[str, Annotations]
"""Role (`train`, `test` and, where one is named, `selection`) → its images."""


@dataclass(frozen=True)
class Dataset:
    """The images of each role: to learn from, to choose by, and to be measured on once."""

    name: str
    train: Annotations
    selection: Annotations
    test: Annotations

    @property
    def categories(self) -> tuple[str, ...]:
        """The L labels' names, the same in every role."""
        return self.train.categories

    @property
    def roles(self) -> dict[str, Annotations]:
        """Role → its images."""
        return {"train": self.train, "selection": self.selection, "test": self.test}

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the three roles' ids, labels and file sizes. Raises BadInput when an image is not there."""
        return digest({role: images.fingerprint() for role, images in self.roles.items()})


def load(data: Data, cache_dir: Path, kept: bool = False) -> Dataset:
    """The dataset a configuration names, in its three roles.

    In this order: unlabelled images are left out, at most `data.limit` images of each split are kept, selection is
    drawn from train where no split is named for it. What lies behind a URL is fetched, into the cache folder; with `kept`
    this machine's copy does, where it was whole. Raises BadInput for files and fields that cannot be used, roles that end
    empty, and splits that share images or differ in their categories.
    """
    if not remote.is_remote(data):
        return _roles(data, cache_dir)

    def files(dataset: Dataset) -> list[Path]:
        return [file for images in dataset.roles.values() for file in images.files()]

    return remote.local(data, cache_dir, kept, lambda there: _roles(there, cache_dir), files)


def _roles(data: Data, cache_dir: Path) -> Dataset:
    splits = _from_file(data) if data.file else _from_folders(data, cache_dir)
    # Only where nothing is chosen or learned may an image stay whose labels are all difficult.
    splits = {role: images.without_unlabelled(difficult_counts=role == "test") for role, images in splits.items()}
    for role, images in splits.items():
        if not len(images):
            raise BadInput(
                _where(data, role),
                found=f"no labelled image ({images.dropped} without labels)",
                expected="at least one",
                remedy="Name another split or correct its annotations.",
            )
    _check_agreement(splits, data)
    splits = {role: _limited(images, data) for role, images in splits.items()}
    if "selection" not in splits:
        what = "data.selection_split (empty: drawn from train)"
        splits["train"], splits["selection"] = _drawn(splits["train"], data.selection_fraction, data.split_seed, what)
    return Dataset(data.name or (Path(data.file).stem if data.file else data.format), **splits)


def stratified(targets: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Draw round(n · fraction) of n images, at least one and not all, so that each label keeps its share on both sides.

    As in iterative stratification (Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011) the label with the fewest images
    left is dealt out first. Unlike there, the size is exact, and a label's images are not dealt one by one but sorted
    by their other labels and drawn at even steps, which spreads these too. `targets` is (n, L) bool, n ≥ 2; returns (n,)
    bool, the same for the same seed.
    """
    n = len(targets)
    rng = np.random.default_rng(seed)
    size = min(max(round(n * fraction), 1), n - 1)
    lacking = targets.sum(0) * (size / n)  # (L,) images of each label the draw still lacks
    # Eight labels a byte, the most frequent first: sorting by these puts alike images side by side.
    codes = np.packbits(targets[:, np.argsort(-lacking, kind="stable")], axis=1).T[::-1]
    drawn = np.zeros(n, bool)
    left = rng.permutation(n)
    while len(left):
        counts = targets[left].sum(0)
        rarest = int(np.where(counts > 0, counts, n + 1).argmin())
        holds = targets[left, rarest] if counts.any() else np.ones(len(left), bool)  # at last those without a label
        group = left[holds][np.lexsort(codes[:, left[holds]])]
        left = left[~holds]
        room = size - int(drawn.sum())
        wanted = round(lacking[rarest]) if counts.any() else room
        take = min(max(wanted, room - len(left), 0), room, len(group))  # the draw never ends too small or too large
        picked = group[(np.arange(take) * len(group) + rng.integers(len(group))) // max(take, 1)]
        drawn[picked] = True
        lacking -= targets[picked].sum(0)
    return drawn


def _from_folders(data: Data, cache_dir: Path) -> Splits:
    """Each named split, in its format's own layout."""
    root = Path(data.root)
    if data.format == "scenes":
        root = scenes.ensure(root if data.root else cache_dir)
    elif data.format == "table":
        raise BadInput("data.file", found="nothing", expected="a CSV", remedy="Give its path to --data.")
    elif not data.root:
        raise BadInput(
            "--data-root", found="nothing", expected="the dataset's folder", remedy="Add --data-root FOLDER, or a URL."
        )
    else:
        folder(root, "--data-root", "Check the path.")
    read = voc.read if data.format == "voc" else coco.read
    return {role: read(root, split) for role, split in _named(data).items()}


def _from_file(data: Data) -> Splits:
    """One file with all images: by its split column, or else test is drawn."""
    file = Path(data.file)
    root = Path(data.root) if data.root else file.parent
    if data.format == "table":
        images, names = table.read(file, root)
    elif data.format == "coco":
        images, names = coco.read_file(file, root), None
    else:
        raise BadInput(
            "data.file",
            found=f"{file} with data.format={data.format}",
            expected="data.format=table or coco",
            remedy="Leave data.file empty, or give the file's path to --data.",
        )
    if names is not None:
        return {role: _split_of(images, names, split, data, role) for role, split in _named(data).items()}
    if data.selection_split:
        raise BadInput(
            "data.selection_split",
            found=f"{data.selection_split!r}, but {file} names no splits",
            expected="nothing, so that it is drawn from train",
            remedy="Leave it empty, or add a column `split` to a CSV.",
        )
    labelled = images.without_unlabelled(difficult_counts=False)
    what = f"{file} (test is drawn from it)"
    train, test = _drawn(labelled, data.test_fraction, data.split_seed, what)
    return {"train": train, "test": test}


def _split_of(images: Annotations, names: tuple[str, ...], split: str, data: Data, role: str) -> Annotations:
    indices = np.flatnonzero(np.asarray(names) == split)
    if not len(indices):
        there = sorted(set(names))
        raise BadInput(
            _where(data, role),
            found=f"no image of that split in {data.file}",
            expected=f"one of {', '.join(there)}",
            remedy=nearest(split, there),
        )
    return images.take(indices)


def _named(data: Data) -> dict[str, str]:
    """Role → the split named for it."""
    named = {"train": data.train_split, "selection": data.selection_split, "test": data.test_split}
    return {role: split for role, split in named.items() if split or role != "selection"}


def _where(data: Data, role: str) -> str:
    return f"data.{role}_split={getattr(data, f'{role}_split')}"


def _drawn(images: Annotations, fraction: float, seed: int, what: str) -> tuple[Annotations, Annotations]:
    """(the rest, a stratified draw)."""
    if len(images) < 2:
        raise BadInput(
            what,
            found=f"{len(images)} labelled image to draw from",
            expected="at least two",
            remedy="Add images, or raise data.limit.",
        )
    draw = stratified(images.targets, fraction, seed)
    # The images left out were left out of the whole, and are counted once.
    return images.take(np.flatnonzero(~draw)), replace(images.take(np.flatnonzero(draw)), dropped=0)


def _limited(images: Annotations, data: Data) -> Annotations:
    """At most `data.limit` images, every one equally likely, in the dataset's order."""
    if not 0 < data.limit < len(images):
        return images
    return images.take(np.sort(np.random.default_rng(data.split_seed).permutation(len(images))[: data.limit]))


def _check_agreement(splits: Mapping[str, Annotations], data: Data) -> None:
    """Raise BadInput unless the splits have the same categories and no image in common."""
    for (one, images), (other, others) in combinations(splits.items(), 2):
        if images.categories != others.categories:
            unlike = sorted(set(images.categories) ^ set(others.categories))
            raise BadInput(
                f"{_where(data, one)} and {_where(data, other)}",
                found=f"different categories ({', '.join(unlike[:5]) or 'in another order'})",
                expected="the same in every split",
                remedy="Correct the annotations, or name splits of one dataset.",
            )
        # By file: the same picture under another id would leak as well.
        if shared := set(images.files()) & set(others.files()):
            raise BadInput(
                f"{_where(data, one)} and {_where(data, other)}",
                found=f"{len(shared)} images in both, such as {min(shared)}",
                expected="no image in two roles",
                remedy="Name splits that have no image in common, such as train and val.",
            )
