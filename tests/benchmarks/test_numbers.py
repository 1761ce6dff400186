"""The libraries that our metrics are measured against say the same as ours: else speed would say nothing."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.numbers import by_sklearn
from ram_tune.evaluation.metrics import summary


def test_scikit_learn_finds_the_same():
    draw = np.random.default_rng(0)
    targets = draw.random((300, 12)) < np.geomspace(0.4, 0.05, 12)
    scores = draw.normal(size=targets.shape) + targets
    probabilities = 1 / (1 + np.exp(-scores))
    own, other = summary(scores, probabilities, targets, None, 3, 0.5), by_sklearn(scores, probabilities, targets)
    assert {name: own[name] for name in other} == pytest.approx(other, abs=1e-9)
    assert len(other) == 13
