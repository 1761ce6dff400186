"""SVMs: scikit-learn's own, whatever the number of workers; labels that cannot be trained say no."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from sklearn.svm import LinearSVC

from ram_tune.evaluation import svm as module
from ram_tune.evaluation.calibration import sigmoid
from ram_tune.evaluation.svm import LinearSVM, decisions, fit

CS = (0.01, 0.1, 1.0, 10.0)


def draw(seed=0, n=150, D=12, L=4):
    """(representations, targets): like region features not negative, and telling of their labels."""
    rng = np.random.default_rng(seed)
    targets = rng.random((n, L)) < 0.3
    signal = targets @ rng.normal(size=(L, D))
    return np.maximum(rng.normal(size=(n, D)) + signal, 0).astype(np.float32), targets


def unit(X):
    X = X.astype(np.float64)
    return X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-300)


def assert_same(one: LinearSVM, other: LinearSVM) -> None:
    for name in ("weight", "bias", "trained", "cs", "mean_ap"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.c == other.c


@pytest.mark.parametrize("c", [0.01, 3.0])
def test_each_label_is_sklearns_svm_on_unit_vectors(c):
    X, targets = draw()
    found = fit(X, targets, None, [c], folds=3)
    assert found.c == c and found.trained.all() and np.isnan(found.mean_ap).all()
    for label, target in enumerate(targets.T):
        theirs = LinearSVC(C=c, dual=False).fit(unit(X), target)
        np.testing.assert_allclose(found.weight[label], theirs.coef_[0])
        np.testing.assert_allclose(found.bias[label], theirs.intercept_[0])
        np.testing.assert_allclose(
            decisions(found, X)[:, label], theirs.decision_function(unit(X)), rtol=1e-5, atol=1e-6
        )
        # The same minimum as the dual solver's, which is what sklearn itself chooses for n < D.
        dual = LinearSVC(C=c, dual=True, tol=1e-8, max_iter=100_000, random_state=0).fit(unit(X), target)
        np.testing.assert_allclose(found.weight[label], dual.coef_[0], atol=2e-3)


def test_c_is_the_one_of_the_best_cross_validated_map():
    X, targets = draw(1)
    found = fit(X, targets, None, (10.0, 0.01, 0.1), folds=3, seed=5)
    assert found.cs.tolist() == [0.01, 0.1, 10.0]
    fold = module._deal(targets, 3, 5)
    expected = []
    for c in found.cs:
        ap = []
        for number in range(3):
            learn, held = fold != number, fold == number
            for target in targets.T:
                scores = LinearSVC(C=c, dual=False).fit(unit(X)[learn], target[learn]).decision_function(unit(X)[held])
                ap.append(average_precision_score(target[held], scores))
        expected.append(np.mean(ap))
    np.testing.assert_allclose(found.mean_ap, expected)
    assert found.c == found.cs[np.argmax(expected)]
    np.testing.assert_array_equal(found.weight, fit(X, targets, None, [found.c], folds=3).weight)


@given(seed=st.integers(0, 100), folds=st.integers(2, 5))
@settings(max_examples=20, deadline=None)
def test_folds_are_of_one_size_and_share_every_label(seed, folds):
    targets = draw(seed)[1]
    fold = module._deal(targets, folds, seed)
    sizes = np.bincount(fold, minlength=folds)
    assert len(sizes) == folds and np.ptp(sizes) <= 1
    for target in targets.T:
        assert np.abs(np.bincount(fold[target], minlength=folds) - target.sum() / folds).max() < 2  # of an equal share


@pytest.mark.parametrize("workers", [0, 2, 5])
def test_the_number_of_workers_changes_nothing(workers):
    X, targets = draw(2)
    assert_same(fit(X, targets, None, CS, 3, workers=1, seed=1), fit(X, targets, None, CS, 3, workers=workers, seed=1))


def test_another_seed_deals_other_folds():
    X, targets = draw(2)
    one, other = (fit(X, targets, None, CS, 3, seed=seed).mean_ap for seed in (0, 1))
    assert not np.array_equal(one, other)


def test_labels_of_one_class_are_not_trained_and_say_no():
    X, targets = draw(3)
    targets[:, 1], targets[:, 2] = False, True
    found = fit(X, targets, None, CS, 3)
    assert found.trained.tolist() == [True, False, False, True]
    said = decisions(found, X)
    assert (said[:, 1:3] == -1).all() and (sigmoid(said[:, 1:3]) < 0.5).all()
    both = [0, 3]
    alone = fit(X, targets[:, both], None, [found.c], 3)
    np.testing.assert_array_equal(found.weight[both], alone.weight)
    assert not np.isnan(found.mean_ap).any()


def test_difficult_cells_are_negatives_in_training_and_not_in_the_choice_of_c():
    X, targets = draw(4)
    difficult = ~targets & (np.random.default_rng(40).random(targets.shape) < 0.2)
    found, without = fit(X, targets, difficult, CS, 3), fit(X, targets, None, CS, 3)
    assert not np.array_equal(found.mean_ap, without.mean_ap)
    np.testing.assert_array_equal(found.weight, fit(X, targets, None, [found.c], 3).weight)


def test_rare_labels_do_not_judge_c():
    X, targets = draw(5)
    rare = targets.copy()
    rare[:, 1] = np.arange(len(X)) < 2  # two images cannot be in three folds
    ignored = fit(X, rare, None, CS, 3, seed=2)
    fold = module._deal(rare, 3, 2)
    assert not all(rare[fold == number, 1].any() for number in range(3))
    assert ignored.trained.all() and not np.isnan(ignored.mean_ap).any()
    only = fit(X, rare[:, 1:2], None, CS, 3)
    assert only.c == 1.0 and np.isnan(only.mean_ap).all() and only.trained.all()


@given(
    n=st.integers(1, 12), D=st.integers(1, 5), L=st.integers(1, 4), folds=st.integers(2, 5), seed=st.integers(0, 1000)
)
@settings(max_examples=60, deadline=None)
def test_any_shape(n, D, L, folds, seed):
    rng = np.random.default_rng(seed)
    X = np.maximum(rng.normal(size=(n, D)), 0).astype(np.float32)  # some rows are all zeros
    targets = rng.random((n, L)) < 0.5
    found = fit(X, targets, rng.random((n, L)) < 0.1, (0.1, 1.0), folds, workers=1, seed=seed)
    said = decisions(found, X)
    assert said.shape == (n, L) and said.dtype == np.float32 and np.isfinite(said).all()
    assert found.weight.shape == (L, D) and found.bias.shape == (L,) and found.trained.shape == (L,)
    assert found.c in (0.1, 1.0) and found.mean_ap.shape == (2,)


def test_length_does_not_matter():
    X, targets = draw(6)
    longer = X * np.float32(4) ** np.arange(-5, 5)[np.arange(len(X)) % 10, None]
    found = fit(X, targets, None, CS, 3)
    assert_same(found, fit(longer, targets, None, CS, 3))
    np.testing.assert_array_equal(decisions(found, X), decisions(found, longer))


def test_what_is_not_finite_is_counted():
    X, targets = draw(7)
    X[3, 2] = np.nan
    with pytest.raises(ValueError, match="representations: found 1 of 1800 not finite"):
        fit(X, targets, None, CS, 3)
