"""One-vs-rest linear SVMs on representations of images: LIBLINEAR, through scikit-learn (METHOD 6).

Legend: n images, L labels, D representation.

*Decided*, where the paper is silent: representations are scaled to length 1, so that one C means the same for every
network; L2 penalty and squared hinge loss, LIBLINEAR's defaults; one C for all labels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ram_tune.data.roles import stratified
from ram_tune.evaluation.metrics import Bools, Floats, average_precision, check_finite


@dataclass(frozen=True, eq=False)
class LinearSVM:
    """A hyperplane per label; decision values, of which 0 is probability 1/2, are distances in units of the margin."""

    weight: NDArray[np.float64]  # (L, D), on representations of length 1
    bias: NDArray[np.float64]  # (L,)
    trained: Bools  # (L,) False where train had no positive or no negative: the decision is then −1 for every image
    c: float  # the one chosen
    cs: NDArray[np.float64]  # those tried, ascending
    mean_ap: NDArray[np.float64]  # cross-validated mAP of each; nan where none was computed


def fit(
    representations: Floats,
    targets: Bools,
    difficult: Bools | None,
    cs: Sequence[float],
    folds: int,
    workers: int = 0,
    seed: int = 0,
) -> LinearSVM:
    """Train an SVM per label on representations (n, D), targets (n, L).

    Of several `cs` the one of the highest cross-validated mAP is taken, the smallest among equals; images are dealt to
    `folds` stratified, by `seed`. Only labels with a positive and a negative in every fold are judged; where there is
    none, the middle C is taken. `difficult` (n, L) cells are negatives in training and left out of that AP (METHOD 7).

    `workers` labels are trained side by side (0: as many as there are CPUs), each with a copy of its own of 16 bytes per
    nonzero number; their number does not change the result. ValueError: representations that are not finite.
    """
    check_finite(representations, "representations")
    X, tried = unit(representations), np.unique(np.asarray(cs, np.float64))
    with ThreadPoolExecutor(workers or _cpus()) as pool:
        mean_ap = np.full(len(tried), np.nan)
        if len(tried) > 1:
            mean_ap = _cross_validate(pool, X, targets, difficult, tried, folds, seed)
        judged = not np.isnan(mean_ap).any()
        c = float(tried[np.argmax(mean_ap) if judged else len(tried) // 2])
        trained = np.any(targets, axis=0) & ~np.all(targets, axis=0)
        weight, bias = np.zeros((targets.shape[1], X.shape[1])), np.full(targets.shape[1], -1.0)
        weight[trained], bias[trained] = _train(pool, X, targets[:, trained], c)
    return LinearSVM(weight, bias, trained, c, tried, mean_ap)


def decisions(svm: LinearSVM, representations: Floats) -> NDArray[np.float32]:
    """Decision values (n, L) of representations (n, D); a label's probability is their sigmoid (METHOD 7)."""
    return (unit(representations) @ svm.weight.T + svm.bias).astype(np.float32)


def _cross_validate(
    pool: ThreadPoolExecutor, X: Floats, targets: Bools, difficult: Bools | None, cs: Floats, folds: int, seed: int
) -> NDArray[np.float64]:
    """mAP of each of `cs`: AP within each fold, its mean over folds and labels; all nan if no label can be judged."""
    ignore = np.zeros_like(targets) if difficult is None else difficult
    positive, negative = targets & ~ignore, ~targets & ~ignore
    fold = _deal(targets, folds, seed)
    both = [positive[fold == number].any(0) & negative[fold == number].any(0) for number in range(folds)]
    judged = np.all(both, axis=0)  # (L,)
    ap = np.full((len(cs), folds), np.nan)
    for number in range(folds) if judged.any() else ():
        held = fold == number
        learn, wanted = X[~held], targets[:, judged]
        for i, c in enumerate(cs):
            weight, bias = _train(pool, learn, wanted[~held], c)
            ap[i, number] = average_precision(X[held] @ weight.T + bias, wanted[held], ignore[held][:, judged]).mean()
    return ap.mean(1)


def _deal(targets: Bools, folds: int, seed: int) -> NDArray[np.int64]:
    """(n,) number of each image's fold: equal sizes, each label's images spread as evenly as can be."""
    fold, left = np.zeros(len(targets), np.int64), np.arange(len(targets))
    for number in range(1, folds):
        drawn = stratified(targets[left], 1 / (folds - number + 1), seed)
        fold[left[drawn]] = number
        left = left[~drawn]
    return fold


def _train(pool: ThreadPoolExecutor, X: Floats, targets: Bools, c: float) -> tuple[Floats, Floats]:
    """weight (L, D) and bias (L,) of labels that all have positives and negatives."""
    from sklearn.svm import LinearSVC

    def one(target: Bools) -> tuple[Floats, Floats]:
        # The primal solver draws no random numbers. The dual one draws from a generator that all threads share: their
        # timing would change the result. Threads gain what processes would: LIBLINEAR trains outside Python's global
        # lock, and only copies its input inside.
        svm: Any = LinearSVC(C=c, dual=False)  # type: ignore[arg-type]
        svm.fit(X, target)
        return svm.coef_[0], svm.intercept_[0]

    found = list(pool.map(one, targets.T))
    weight, bias = np.zeros((len(found), X.shape[1])), np.zeros(len(found))
    for label, (row, number) in enumerate(found):
        weight[label], bias[label] = row, number
    return weight, bias


def unit(representations: Floats) -> NDArray[np.float64]:
    """Each row scaled to Euclidean length 1; a row of zeros stays."""
    X = representations.astype(np.float64)
    length = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(length > 0, length, 1)


def _cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
