import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, precision_score, recall_score

from ram_tune.evaluation.metrics import (
    THREADS_PAY,
    average_precision,
    average_precision_11,
    decide,
    f1_scores,
    mean_average_precision,
    summary,
)

quick = settings(max_examples=60, deadline=None)


@st.composite
def rankings(draw):
    """(scores, targets, ignore), each (n, L): seven different scores at most, so most of them are tied."""
    shape = draw(st.tuples(st.integers(1, 30), st.integers(1, 4)))
    scores = draw(arrays(np.int64, shape, elements=st.integers(-3, 3))) / 4
    return scores, draw(arrays(bool, shape)), draw(arrays(bool, shape))


def column(*values):
    return np.array(values)[:, None]


def by_hand_11(scores, targets):
    """The definition, word for word, for one label; recall and r compared as fractions of integers."""
    best = []
    for tenths in range(11):
        reached = [scores >= s for s in scores if 10 * (targets & (scores >= s)).sum() >= tenths * targets.sum()]
        best.append(max(targets[chosen].mean() for chosen in reached))
    return sum(best) / 11


# --- average precision


@quick
@given(rankings())
def test_ap_is_sklearns_whatever_is_tied(case):
    scores, targets, _ = case
    for ap, s, t in zip(average_precision(scores, targets), scores.T, targets.T, strict=True):
        if t.any():
            assert ap == pytest.approx(average_precision_score(t, s), abs=1e-12)
        else:
            assert math.isnan(ap)


@quick
@given(rankings())
def test_ignored_cells_are_as_if_the_image_were_not_there(case):
    scores, targets, ignore = case
    ap, ap_11 = average_precision(scores, targets, ignore), average_precision_11(scores, targets, ignore)
    for label in range(scores.shape[1]):
        kept = ~ignore[:, label]
        s, t = scores[kept, label], targets[kept, label]
        if t.any():
            assert ap[label] == pytest.approx(average_precision_score(t, s), abs=1e-12)
            assert ap_11[label] == pytest.approx(by_hand_11(s, t), abs=1e-12)
        else:
            assert math.isnan(ap[label]) and math.isnan(ap_11[label])


def test_of_many_scores_too_for_which_threads_are_started():
    draw = np.random.default_rng(0)
    scores, targets = draw.integers(0, 500, (25_000, 20)), draw.random((25_000, 20)) < np.geomspace(0.4, 0.001, 20)
    assert scores.size >= THREADS_PAY
    wanted = [average_precision_score(t, s) for s, t in zip(scores.T, targets.T, strict=True)]
    np.testing.assert_allclose(average_precision(scores, targets), wanted, rtol=0, atol=1e-12)


def test_ap_by_hand():
    # rank       1    2    3    4    5    6
    # positive   yes  no   no   yes  yes  no      P = 3
    # precision  1    1/2  1/3  1/2  3/5  1/2
    # recall     1/3  1/3  1/3  2/3  1    1
    # area: recall rises by 1/3 at ranks 1, 4, 5: (1 + 1/2 + 3/5) / 3 = 0.7
    # 11-point: rank 1 reaches r = 0, .1, .2, .3 with precision 1; from .4 on the best is rank 5's 3/5: (4 + 7·0.6) / 11
    scores, targets = column(6.0, 5, 4, 3, 2, 1), column(True, False, False, True, True, False)
    assert average_precision(scores, targets) == pytest.approx([0.7])
    assert average_precision_11(scores, targets) == pytest.approx([8.2 / 11])


def test_tied_images_are_one_threshold():
    # As above with ranks 1 and 2 tied: the first threshold has precision 1/2, so the area is (1/2 + 1/2 + 3/5) / 3,
    # and no r has a better precision than rank 5's.
    scores, targets = column(6.0, 6, 4, 3, 2, 1), column(True, False, False, True, True, False)
    assert average_precision(scores, targets) == pytest.approx([1.6 / 3])
    assert average_precision_11(scores, targets) == pytest.approx([0.6])


@pytest.mark.parametrize("first", range(11))
def test_11_points_reach_a_recall_that_equals_r(first):
    # `first` of 10 positives, 10 negatives, the other positives: r ≤ first/10 has precision 1, the rest 10/20.
    targets = np.repeat([True, False, True], [first, 10, 10 - first])[:, None]
    scores = np.arange(20.0)[::-1, None]
    expected = (first + 1 + (10 - first) * 0.5) / 11 if first else 0.5
    assert average_precision_11(scores, targets) == pytest.approx([expected], abs=1e-12)


@quick
@given(rankings(), st.randoms(use_true_random=False))
def test_order_of_images_changes_nothing_at_all(case, random):
    order = random.sample(range(len(case[0])), len(case[0]))
    scores, targets, ignore = case
    shuffled = scores[order], targets[order], ignore[order]
    for metric in (average_precision, average_precision_11):
        np.testing.assert_array_equal(metric(*case), metric(*shuffled))
    before = summary(scores, np.abs(scores), targets, ignore, 2, 0.5)
    assert before == pytest.approx(summary(shuffled[0], np.abs(shuffled[0]), *shuffled[1:], 2, 0.5), abs=0, nan_ok=True)


@quick
@given(rankings(), st.floats(0.1, 10), st.floats(-5, 5))
def test_only_the_order_of_scores_counts(case, factor, shift):
    scores, *rest = case
    risen = np.exp(scores * factor) + shift
    for metric in (average_precision, average_precision_11):
        np.testing.assert_array_equal(metric(scores, *rest), metric(risen, *rest))


def test_single_precision_scores():
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(500, 3)).astype(np.float32)
    targets = generator.random((500, 3)) < 0.2
    expected = [average_precision_score(t, s) for s, t in zip(scores.T, targets.T, strict=True)]
    np.testing.assert_allclose(average_precision(scores, targets), expected, rtol=1e-12)


def test_map_is_over_labels_that_have_positives():
    assert mean_average_precision(np.array([0.25, np.nan, 0.75])) == 0.5
    assert math.isnan(mean_average_precision(np.array([np.nan, np.nan])))


@pytest.mark.parametrize("metric", [average_precision, average_precision_11])
def test_scores_that_are_not_finite_are_counted(metric):
    scores = np.array([[0.0, np.nan], [np.inf, 1.0], [2.0, -np.inf]])
    with pytest.raises(ValueError, match="found 3 of 6 not finite"):
        metric(scores, np.ones((3, 2), dtype=bool))


# --- decisions


def test_the_three_most_probable_less_those_below_the_threshold():
    probabilities = np.array([[0.6, 0.9, 0.7, 0.8], [0.9, 0.1, 0.2, 0.6], [0.5, 0.4999999, 0.0, 0.1]])
    expected = [[False, True, True, True], [True, False, False, True], [True, False, False, False]]
    assert decide(probabilities, 3, 0.5).tolist() == expected
    expected[0][0] = True
    assert decide(probabilities, None, 0.5).tolist() == expected
    assert decide(probabilities, 9, 0.5).tolist() == expected


def test_ties_rank_by_label_index():
    probabilities = np.full((1, 20), 0.75)
    probabilities[0, 17] = 0.8
    assert np.flatnonzero(decide(probabilities, 3, 0.5)).tolist() == [0, 1, 17]


def test_probabilities_that_are_not_finite_are_counted():
    with pytest.raises(ValueError, match="probabilities: found 1 of 2 not finite"):
        decide(np.array([[0.5, np.nan]]), 3, 0.5)


# --- precision, recall, F1


@pytest.mark.parametrize("difficult_is", [False, True])
def test_f1_by_hand(difficult_is):
    # label             0           1                2
    # image 0           hit         missed           predicted
    # image 1           hit         -                predicted
    # image 2           predicted   missed           -
    # image 3           predicted,  -                -
    #                   difficult
    # Nᵖ Nᵍ Nᶜ          3 2 2       0 2 0 (P: 0)     2 0 0 (in neither CP nor CR)
    # CP = (2/3 + 0)/2 = 1/3, CR = (1 + 0)/2 = 1/2, CF1 = 2·(1/6)/(5/6) = 2/5
    # OP = 2/5, OR = 2/4, OF1 = 2·(1/5)/(9/10) = 4/9
    targets = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [difficult_is, 0, 0]], dtype=bool)
    predicted = np.array([[1, 0, 1], [1, 0, 1], [1, 0, 0], [1, 0, 0]], dtype=bool)
    ignore = np.zeros((4, 3), dtype=bool)
    ignore[3, 0] = True
    expected = {"CP": 1 / 3, "CR": 1 / 2, "CF1": 2 / 5, "OP": 2 / 5, "OR": 1 / 2, "OF1": 4 / 9}
    assert f1_scores(predicted, targets, ignore) == pytest.approx(expected)


def test_cf1_is_no_mean_of_f1s():
    # P, R of label 0: 1/2, 1; of label 1: 1, 1/2. Both F1 are 2/3; CP = CR = 3/4.
    targets = np.array([[1, 1], [0, 1]], dtype=bool)
    predicted = np.array([[1, 1], [1, 0]], dtype=bool)
    assert f1_scores(predicted, targets)["CF1"] == pytest.approx(3 / 4)


@quick
@given(rankings())
def test_precision_and_recall_are_sklearns(case):
    scores, targets, _ = case
    predicted, present = scores > 0, targets.any(0)
    found = f1_scores(predicted, targets)
    for name, score in (("P", precision_score), ("R", recall_score)):
        overall = score(targets.ravel(), predicted.ravel(), zero_division=0)
        assert found[f"O{name}"] == pytest.approx(overall, abs=1e-12)
        per_label = [score(t, p, zero_division=0) for t, p in zip(targets.T, predicted.T, strict=True)]
        assert found[f"C{name}"] == pytest.approx(np.mean(np.array(per_label)[present]) if present.any() else 0)


def test_nothing_predicted_and_nothing_there_are_zero():
    nothing, everything = np.zeros((3, 2), dtype=bool), np.ones((3, 2), dtype=bool)
    for predicted, targets in ((nothing, everything), (everything, nothing), (nothing, nothing)):
        assert set(f1_scores(predicted, targets).values()) == {0.0}


# --- all of them

NAMES = ["CP", "CR", "CF1", "OP", "OR", "OF1"]


@quick
@given(rankings())
def test_summary_is_plain_numbers_from_0_to_1(case):
    scores, targets, ignore = case
    numbers = summary(scores, 1 / (1 + np.exp(-scores)), targets, ignore, 3, 0.5)
    assert list(numbers) == ["mAP", "mAP_11", *NAMES, *(f"{name}_all" for name in NAMES)]
    assert all(type(value) is float for value in numbers.values())
    known = [value for value in numbers.values() if not math.isnan(value)]
    assert all(0 <= value <= 1 for value in known)
    assert len(known) == (14 if (targets & ~ignore).any() else 12)


def test_summary_of_perfect_scores():
    # Image 0 has four labels; of these the top 3 leave one out: OR 4/5, label 3 is never predicted, so CP = CR = 3/4.
    targets = np.array([[1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=bool)
    numbers = summary(targets * 2.0 - 1, targets * 0.8 + 0.1, targets, None, 3, 0.5)
    assert [numbers[name] for name in ("mAP", "mAP_11", *(f"{name}_all" for name in NAMES))] == [1.0] * 8
    assert [numbers[name] for name in NAMES] == pytest.approx([3 / 4, 3 / 4, 3 / 4, 1, 4 / 5, 8 / 9])


def test_summary_ranks_images_by_scores_and_decides_by_probabilities():
    targets = column(True, False)
    numbers = summary(column(2.0, 1.0), column(0.1, 0.9), targets, None, 3, 0.5)
    assert (numbers["mAP"], numbers["OP"], numbers["OR"]) == (1.0, 0.0, 0.0)
