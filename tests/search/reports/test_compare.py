"""Arms compared from what their runs left: against SciPy, and against the metrics on images that are really repeated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from finished import ARMS, Finished, space
from scipy import stats

from ram_tune.errors import BadInput
from ram_tune.evaluation import metrics
from ram_tune.evaluation.resampling import multiplicities
from ram_tune.search.published import Published
from ram_tune.search.reports import images
from ram_tune.search.reports.compare import compare
from ram_tune.search.reports.kept import Kept, opened, read
from ram_tune.training.results import SCORES


def kept(search: Finished) -> Kept:
    return read(opened(search.storage, search.name), search.folder)


def entry(arm: str = "none", **values) -> Published:
    how = {
        "dataset": "voc2007",
        "split": "test",
        "scale": 512,
        "views": "ten",
        "classifier": "svm",
        "source": "RMA",
        **values,
    }
    return Published(arm=arm, **{"mAP": 90.0, **how})


@pytest.fixture
def search(tmp_path) -> Finished:
    return Finished(tmp_path, space(published=[entry()]))


def values(search: Finished, arm: str, metric: str = "mAP") -> list[float]:
    runs = sorted((run["seed"], run) for run in search.study.runs().values() if run["setting"] == arm)
    return [100 * run["metrics"][f"test/{metric}"] for _, run in runs]


@pytest.mark.parametrize("metric", ["mAP", "CF1", "mAP_11"])
def test_means_and_differences_are_scipys(search, metric):
    search.all()
    base, arm = compare(kept(search), metric=metric).rows
    ours, theirs = values(search, "A_1", metric), values(search, "none", metric)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(ours), scale=stats.sem(ours))
    assert (arm.mean.mean, arm.mean.low, arm.mean.high) == pytest.approx((np.mean(ours), low, high))
    tested = stats.ttest_rel(ours, theirs)
    assert arm.paired.p == pytest.approx(tested.pvalue) == arm.holm  # the only comparison
    assert arm.paired.difference.low == pytest.approx(tested.confidence_interval(0.95).low)
    assert (arm.paired.flips, arm.paired.floor) == (0.25, 0.25)
    assert base.reference and base.paired is None and math.isnan(base.holm)
    assert (arm.difference is None) == (metric not in images.METRICS)


def test_over_images_the_difference_is_that_of_repeated_images(search, monkeypatch):
    monkeypatch.setattr(images, "multiplicities", lambda n: multiplicities(n, 30))
    images._counts.cache_clear()
    search.all(seeds=2)
    found = compare(kept(search)).rows[1]
    images._counts.cache_clear()

    counts, drawn = multiplicities(80, 30), []
    for resample in range(30):
        chosen = np.repeat(np.arange(80), counts[:, resample])
        worth = {}
        for arm in ARMS:
            for seed in range(2):
                with np.load(search.folder / "runs" / f"{arm}-{seed}" / SCORES) as file:
                    scores, targets = file["test_scores"][chosen], file["test_targets"][chosen]
                worth.setdefault(arm, []).append(metrics.average_precision(scores, targets).mean())
        drawn.append(100 * (np.mean(worth["A_1"]) - np.mean(worth["none"])))
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high), abs=1e-4)
    both = [np.mean(values(search, arm)) for arm in ("A_1", "none")]
    assert found.difference.mean == pytest.approx(both[0] - both[1])


def test_one_seed_has_an_interval_over_images_alone(search):
    search.all(seeds=1)
    _, arm = compare(kept(search)).rows
    assert not arm.mean.known and math.isnan(arm.paired.p) and math.isnan(arm.holm)
    assert arm.images.low < arm.mean.mean < arm.images.high
    assert arm.difference.low > 0  # half a standard deviation better on the very same images


def test_only_seeds_that_both_finished_are_paired(search):
    for seed in range(3):
        search.run("none", seed)
    search.run("A_1", 1)
    search.run("A_1", 2)
    _, arm = compare(kept(search)).rows
    assert (len(arm.values), arm.asked, arm.paired.n) == (2, 3, 2)
    ours, theirs = values(search, "A_1"), values(search, "none")[1:]
    assert arm.paired.difference.mean == pytest.approx(np.mean(ours) - np.mean(theirs))


def test_holm_counts_the_arms_that_are_compared(tmp_path):
    arms = {**ARMS, "B": {"loss.scale": False}, "C": {"loss.scale": False, "loss.positive": False}}
    search = Finished(tmp_path, space(arms=arms)).all()
    rows = compare(kept(search)).rows
    p = sorted(row.paired.p for row in rows if row.paired)
    assert min(row.holm for row in rows if row.paired) == pytest.approx(min(1, 3 * p[0]))


def test_an_arm_without_a_finished_run_has_its_place(search):
    search.run("none", 0)
    search.failed("A_1", 0)
    _, arm = compare(kept(search)).rows
    assert arm.mean is None and arm.paired is None and arm.asked == 3


def test_a_stage_1_that_all_seeds_share_is_nobodys_pair(search):
    search.run("stage 1", 0, kind="stage1")
    search.all()
    stage1 = compare(kept(search)).rows[0]
    assert stage1.kind == "stage1" and stage1.paired is None
    apart = values(search, "stage 1")[0] - np.mean(values(search, "none"))
    assert stage1.difference.mean == pytest.approx(apart)


WHOLE = {"whole": {"model.name": "whole_image"}, "attended": {}, "A": {"loss.anchor": False}}


def test_an_arm_that_shares_stage_1s_run_is_one_row_of_all_its_seeds(tmp_path):
    search = Finished(tmp_path, space(arms=WHOLE, published=[entry("whole")]))
    search.run("stage 1", 0, kind="stage1", also=["whole"])
    search.run("whole", 1)
    search.run("whole", 2)
    for seed in range(3):
        search.run("attended", seed)
        search.run("A", seed)
    found = compare(kept(search))
    assert [(row.name, row.kind, len(row.values)) for row in found.rows] == [
        ("stage 1", "stage1", 1),
        ("whole", "train", 3),
        ("attended", "train", 3),
        ("A", "train", 3),
    ]
    stage1, whole, attended, _ = found.rows
    assert whole.reference and whole.published.arm == "whole" and stage1.published is None
    assert whole.mean.mean == pytest.approx(np.mean([*values(search, "stage 1"), *values(search, "whole")]))
    assert attended.paired.n == 3 and attended.difference.known
    assert stage1.paired is None and stage1.difference.known


@pytest.mark.parametrize("reference", ["", "whole", "stage 1", "stage 1 = whole"])
def test_at_one_seed_it_is_an_arm_as_well(tmp_path, reference):
    search = Finished(tmp_path, space(arms=WHOLE, seeds=1, published=[entry("whole")]))
    search.run("stage 1", 0, kind="stage1", also=["whole"])
    search.run("attended", 0)
    found = compare(kept(search), reference=reference)
    assert [row.name for row in found.rows] == ["stage 1 = whole", "attended", "A"]
    assert found.reference == "stage 1 = whole"
    whole, attended, _ = found.rows
    assert (whole.kind, whole.published.arm, attended.paired.n) == ("train", "whole", 1)


@pytest.mark.parametrize("reference", ["", "attended", "centred", "attended = centred"])
def test_arms_that_are_one_run_are_one_row_and_one_comparison(tmp_path, reference):
    arms = {"attended": {}, "centred": {}, "A": {"loss.anchor": False}, "B": {"loss.scale": False}, "C": {}}
    search = Finished(tmp_path, space(arms=arms, published=[entry("centred")]))
    for seed in range(3):
        search.run("attended", seed, also=["centred"])
        search.run("A", seed)
        search.run("B", seed, also=["C"])
    found = compare(kept(search), reference=reference)
    assert [row.name for row in found.rows] == ["attended = centred", "A", "B = C"]
    assert found.reference == "attended = centred" and found.rows[0].published.arm == "centred"
    p = sorted(row.paired.p for row in found.rows[1:])
    assert min(row.holm for row in found.rows[1:]) == pytest.approx(min(1, 2 * p[0]))


def test_anothers_arms_that_are_one_run_answer_to_either_name(tmp_path, search):
    search.all(seeds=1)
    beside = Finished(tmp_path, space(), name="beside-scenes-00000000")
    beside.run("none", 0, also=["A_1"])
    found = compare(kept(search), [kept(beside)], reference="beside-scenes-00000000: A_1")
    assert found.reference == "beside-scenes-00000000: none = A_1"


def test_another_reference_may_be_named(search):
    search.all(seeds=2)
    found = compare(kept(search), reference="A_1")
    assert found.reference == "A_1"
    assert found.rows[0].paired.difference.mean < 0
    with pytest.raises(BadInput, match="one of none, A_1"):
        compare(kept(search), reference="A")


def test_another_search_on_the_same_images_is_paired_and_on_others_not(tmp_path, search):
    search.all(seeds=2)
    same = Finished(tmp_path, space(), name="again-scenes-00000000").all(seeds=2)
    other = Finished(tmp_path, space(), name="other-voc-00000000", dataset="else").all(seeds=2)
    cropped = Finished(tmp_path, space(), name="fewer-scenes-00000000", images=70).all(seeds=2)
    found = {row.name: row for row in compare(kept(search), [kept(same), kept(other), kept(cropped)]).rows}
    again = found["again-scenes-00000000: A_1"]
    assert again.paired == found["A_1"].paired and again.difference == found["A_1"].difference
    assert found["other-voc-00000000: none"].unpaired == "unpaired: other images (scenes)"
    assert found["fewer-scenes-00000000: A_1"].unpaired == "unpaired: other test images"
    assert found["other-voc-00000000: A_1"].paired is None


def test_resamples_are_computed_once_and_again_where_they_cannot_be_read(search):
    search.all(seeds=1)
    first = compare(kept(search)).rows[1]
    file = search.folder / "runs" / "A_1-0" / images.KEPT
    written = file.stat().st_mtime_ns
    assert compare(kept(search)).rows[1] == first
    assert file.stat().st_mtime_ns == written
    file.write_bytes(b"broken")
    assert compare(kept(search)).rows[1] == first
    assert not list(file.parent.glob("*.partial*"))


def test_runs_without_their_scores_are_compared_by_seed_alone(search):
    search.all(seeds=2)
    for run in ("none-0", "none-1"):
        (search.folder / "runs" / run / SCORES).unlink()
    _, arm = compare(kept(search)).rows
    assert arm.difference is None and arm.paired.n == 2


def without_scores(search: Finished, *runs: str) -> Finished:
    for run in runs:
        (search.folder / "runs" / run / SCORES).unlink()
    return search


def test_an_interval_over_images_is_of_the_seeds_in_the_mean(search):
    base, arm = compare(kept(without_scores(search.all(), "A_1-2"))).rows
    assert len(arm.values) == arm.paired.n == 3
    assert arm.images is None and arm.difference is None  # two of three seeds have draws
    assert base.images.low < base.mean.mean < base.images.high


def test_the_references_missing_scores_leave_no_interval_of_the_difference(search):
    base, arm = compare(kept(without_scores(search.all(), "none-0"))).rows
    assert base.images is None and arm.difference is None
    assert arm.images.low < arm.mean.mean < arm.images.high


@pytest.mark.parametrize("missing", [(), ("none-1",), ("A_1-2",)])
def test_of_other_seeds_the_interval_is_of_both_means(search, missing):
    for seed in range(2):
        search.run("none", seed)
        search.run("A_1", 2 + seed)
    _, arm = compare(kept(without_scores(search, *missing))).rows
    assert arm.paired is None
    if missing:
        assert arm.difference is None
    else:
        gap = np.mean(values(search, "A_1")) - np.mean(values(search, "none"))
        assert arm.difference.mean == pytest.approx(gap)
        assert arm.difference.low < gap < arm.difference.high


def test_seeds_without_a_pair_may_have_kept_no_scores(search):
    search.all(seeds=2)
    search.run("A_1", 2)
    _, arm = compare(kept(without_scores(search, "A_1-2"))).rows
    assert arm.images is None and arm.paired.n == 2 and arm.difference.known


def test_another_search_whose_first_run_kept_no_scores_is_paired(tmp_path, search):
    search.all(seeds=2)
    again = without_scores(Finished(tmp_path, space(), name="again-scenes-00000000").all(seeds=2), "none-0")
    none = Finished(tmp_path, space(), name="bare-scenes-00000000").all(seeds=1)
    without_scores(none, "none-0", "A_1-0")
    found = {row.name: row for row in compare(kept(search), [kept(again), kept(none)]).rows}
    assert found["again-scenes-00000000: A_1"].unpaired == "" and found["again-scenes-00000000: A_1"].paired.n == 2
    assert found["bare-scenes-00000000: A_1"].unpaired == "unpaired: test images not known (no scores.npz)"


def test_generations_have_runs_of_the_same_fingerprints_and_draws_of_their_own(tmp_path, search):
    search.all(seeds=1)
    second = Finished(tmp_path, space(), name=f"{search.name}-2", skill=lambda arm, seed: 3.0).all(seeds=1)
    rows = compare(kept(search), [kept(second)]).rows
    assert [row.images.low < row.mean.mean < row.images.high for row in rows] == [True] * 4
    assert rows[0].images != rows[2].images and rows[2].difference.low > 0


def test_a_damaged_file_is_named(search):
    search.all(seeds=1)
    (search.folder / "runs" / "none-0" / SCORES).write_bytes(b"broken")
    with pytest.raises(BadInput, match=SCORES):
        compare(kept(search))


def test_labels_are_means_over_seeds(search):
    search.all(seeds=2)
    found = compare(kept(search)).rows[0].labels
    read_back = [images.per_label(search.folder / "runs" / f"none-{seed}")["label_2"] for seed in range(2)]
    assert found["label_2"] == pytest.approx(100 * np.mean(read_back))


def test_the_published_number_comes_with_what_differs(search):
    search.all(seeds=1)
    base, arm = compare(kept(search)).rows
    assert base.gap == pytest.approx(base.mean.mean - 90.0)
    said = "scenes, not voc2007; N=160, not 512; one view, not ten views; network, not svm; 3 epochs, not 45"
    said += "; loss.classification=bce"  # its own field is what the number is of
    assert base.differs == said
    assert arm.published is None and arm.gap is None
