import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit

from ram_tune.evaluation.calibration import Platt, probabilities, sigmoid

quick = settings(max_examples=40, deadline=None)


def regularised(targets):
    positives = targets.sum()
    return np.where(targets, (positives + 1) / (positives + 2), 1 / (len(targets) - positives + 2))


def objective(slope_intercept, scores, targets):
    """Mean cross-entropy of one label, as METHOD and Platt (1999) state it."""
    logit, wanted = slope_intercept[0] * scores + slope_intercept[1], regularised(targets)
    return np.mean(wanted * np.logaddexp(0, -logit) + (1 - wanted) * np.logaddexp(0, logit))


def draw(seed, n=400, labels=5):
    """Scores whose means, spreads and worth differ by label; the last label's rank its images backwards."""
    generator = np.random.default_rng(seed)
    targets = generator.random((n, labels)) < np.linspace(0.1, 0.7, labels)
    signal = np.append(np.linspace(0.5, 3, labels - 1), -1.5)
    scores = generator.normal(size=(n, labels)) + signal * targets
    return scores * np.geomspace(0.01, 100, labels) + np.linspace(-20, 20, labels), targets


def test_sigmoid():
    x = np.linspace(-700, 700, 4001)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        np.testing.assert_allclose(sigmoid(x), expit(x), rtol=1e-14)
        assert sigmoid(np.array([-1e9, 0, 1e9])).tolist() == [0, 0.5, 1]
    single = sigmoid(np.array([-30], dtype=np.float32))
    assert single.dtype == np.float64 and single == pytest.approx(expit(-30.0), rel=1e-14)


@pytest.mark.parametrize("seed", range(3))
def test_platt_is_the_minimum_of_the_stated_objective(seed):
    scores, targets = draw(seed)
    platt = Platt.fit(scores, targets)
    for label, (s, t) in enumerate(zip(scores.T, targets.T, strict=True)):
        middle, spread = s.mean(), s.std()  # BFGS needs scores of size one, and gets there on its own
        reference = minimize(objective, [0, 0], ((s - middle) / spread, t), method="BFGS", options={"gtol": 1e-8})
        slope = reference.x[0] / spread
        ours = platt.slope[label], platt.intercept[label]
        assert ours == pytest.approx((slope, reference.x[1] - slope * middle), rel=1e-4)
        assert objective(ours, s, t) <= reference.fun + 1e-12


def test_platt_gradient_vanishes():
    scores, targets = draw(7)
    rest = Platt.fit(scores, targets)(scores) - np.stack([regularised(t) for t in targets.T], axis=1)
    standard = (scores - scores.mean(0)) / scores.std(0)
    assert np.abs(rest.mean(0)).max() < 1e-9 and np.abs((rest * standard).mean(0)).max() < 1e-9


def test_platt_is_scikit_learns():
    calibration = pytest.importorskip("sklearn.calibration")
    if not hasattr(calibration, "_sigmoid_calibration"):
        pytest.skip("scikit-learn moved its private Platt scaling")
    scores, targets = draw(1)
    ours = Platt.fit(scores, targets)(scores)
    for label, (s, t) in enumerate(zip(scores.T, targets.T, strict=True)):
        a, b = calibration._sigmoid_calibration(s, t)  # its sign of both is Platt's, P = 1 / (1 + exp(a s + b))
        np.testing.assert_allclose(ours[:, label], expit(-(a * s + b)), atol=2e-4)


def test_backwards_scores_get_a_negative_slope():
    assert (np.sign(Platt.fit(*draw(2)).slope) == [1, 1, 1, 1, -1]).all()


# 308 of which 301: here a laxer line search steps to where every probability is 0 or 1 and never comes back.
@pytest.mark.parametrize(("n", "positives"), [(2, 1), (308, 301), (5000, 1), (5000, 4999), (5000, 1667)])
def test_two_separated_scores_reach_the_regularised_targets(n, positives):
    targets = (np.arange(n) < positives)[:, None]
    p = Platt.fit(targets * 3.0 - 1, targets)(np.array([[-1.0], [2.0]]))
    assert p.ravel() == pytest.approx([1 / (n - positives + 2), (positives + 1) / (positives + 2)], abs=1e-8)


@quick
@given(st.integers(0, 2**32 - 1), st.integers(3, 200), st.sampled_from([1, 3, 5]))
def test_separable_or_wild_scores_converge(seed, n, power):
    generator = np.random.default_rng(seed)
    targets = np.arange(n) % max(2, n // 4) == 0
    scores = np.stack([generator.random(n) + 9 * targets, generator.standard_cauchy(n) ** power], axis=1)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        platt = Platt.fit(scores, np.stack([targets, targets], axis=1))
    rest = platt(scores) - regularised(targets)[:, None]
    standard = (scores - scores.mean(0)) / scores.std(0)
    assert np.abs(rest.mean(0)).max() < 1e-8 and np.abs((rest * standard).mean(0)).max() < 1e-8


def test_labels_whose_scores_tell_nothing_get_their_mean_target():
    scores = np.random.default_rng(0).normal(size=(7, 4))
    scores[:, 2] = 0.1  # constant; 2 positives: (2·3/4 + 5·1/7) / 7
    targets = np.zeros((7, 4), dtype=bool)
    targets[:, 1] = targets[:2, 2] = targets[:, 3] = True
    ignore = np.zeros((7, 4), dtype=bool)
    ignore[:, 3] = True  # nothing left
    platt = Platt.fit(scores, targets, ignore)
    assert platt.slope.tolist() == [0, 0, 0, 0]
    expected = [1 / 9, 8 / 9, (2 * 3 / 4 + 5 / 7) / 7, 1 / 2]
    np.testing.assert_allclose(platt(scores), np.tile(expected, (7, 1)), rtol=1e-12)


@pytest.mark.parametrize("n", range(2, 60))
def test_constant_scores_whose_mean_is_rounded(n):
    targets = (np.arange(n) < 1)[:, None]
    assert Platt.fit(np.full((n, 1), 0.1), targets).slope.tolist() == [0]


def test_ignored_cells_are_as_if_the_image_were_not_there():
    scores, targets = draw(3)
    ignore = np.random.default_rng(3).random(scores.shape) < 0.3
    whole = Platt.fit(np.where(ignore, 1e6, scores), targets, ignore)
    for label, kept in enumerate(~ignore.T):
        part = Platt.fit(scores[kept, label, None], targets[kept, label, None])
        assert whole.slope[label] == pytest.approx(part.slope[0], rel=1e-6)
        assert whole.intercept[label] == pytest.approx(part.intercept[0], rel=1e-6)


def test_probabilities_do_not_depend_on_the_unit_of_the_scores():
    scores, targets = draw(4)
    other = 1e-3 * scores - 7
    expected = Platt.fit(scores, targets)(scores)
    np.testing.assert_allclose(Platt.fit(other, targets)(other), expected, rtol=1e-6)
    assert (expected > 0).all() and (expected < 1).all()


def test_scores_that_are_not_finite_are_counted():
    with pytest.raises(ValueError, match="found 1 of 2 not finite"):
        Platt.fit(np.array([[np.nan], [0.0]]), np.array([[True], [False]]))


def test_probabilities_by_classification_loss():
    scores = np.array([[-2.0, 0.0], [1.0, 3.0]])
    platt = Platt(slope=np.array([2.0, -1.0]), intercept=np.array([1.0, 0.5]))
    for name in ("bce", "asymmetric"):
        np.testing.assert_allclose(probabilities(scores, name), expit(scores))
    np.testing.assert_allclose(probabilities(scores, "euclidean", platt), expit([[-3, 0.5], [3, -2.5]]))
    with pytest.raises(ValueError, match="euclidean"):
        probabilities(scores, "euclidean")
