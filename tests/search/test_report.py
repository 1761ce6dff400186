"""Tables of a search: means and intervals by hand, published numbers with how they were measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from tables import rows, words

from ram_tune.config import Config, Data, Evaluation, Model, Training
from ram_tune.config.model import Proposals
from ram_tune.search.jobs import Job, Outcome
from ram_tune.search.published import Published
from ram_tune.search.report import attention_table, failures, mechanism_table, results_table
from ram_tune.search.space import Space

ARMS = {"none": {}, "A": {}, "[b]": {}}


def entry(arm: str, dataset: str = "voc2007", mAP: float = 90.0, **values) -> Published:
    how = {"split": "test", "scale": 512, "views": "ten", "classifier": "svm", "source": "RMA Table 4", **values}
    return Published(arm=arm, dataset=dataset, mAP=mAP, **how)


def space(*entries: Published) -> Space:
    return Space(version=1, title="Constraints", arms=ARMS, published=entries)


def config(seed: int = 0, **values) -> Config:
    voc = Data(name="voc2007", image_size=512)
    return Config(training=Training(seed=seed), data=voc, **values)


def plan(seeds: int = 1, arms: tuple[str, ...] = ("none", "A"), per_seed: bool = False) -> list[Job]:
    firsts = [Job("stage1", "stage 1", config(seed), f"s{seed}", "data") for seed in range(seeds if per_seed else 1)]
    runs = [
        Job("train", arm, config(seed), f"{arm}{seed}", "data", (f"s{seed if per_seed else 0}",))
        for seed in range(seeds)
        for arm in arms
    ]
    return [*runs, *firsts]  # the table's order is its own


def outcome(mAP: float, CF1: float = 0.5, OF1: float = 0.6, best: float = 8) -> Outcome:
    return Outcome({"test/mAP": mAP, "test/CF1": CF1, "test/OF1": OF1, "best_epoch": best})


def test_one_seed_gives_plain_values_and_a_warning():
    found = {"s0": outcome(0.596, best=24), "none0": outcome(0.641, 0.571, 0.575, 10)}
    table = results_table(space(entry("none", mAP=89.9)), "voc2007", plan(), found)
    assert rows(table) == [
        ["stage 1", "1", "59.6", "50.0", "60.0", "24", ""],
        ["none", "1", "64.1", "57.1", "57.5", "10", "89.9 *"],
        ["A", "0 of 1", "–", "–", "–", "", ""],
    ]
    text = words(table)
    assert "Constraints on voc2007, in percent" in text
    assert "measured: voc2007 test, N=512, one view, network" in text
    assert "* RMA Table 4: voc2007 test, N=512, ten views, svm" in text
    assert "one seed: differences of a few points say nothing yet" in text
    assert "±" not in text


def test_the_interval_over_three_seeds_is_students():
    # 60, 62, 67: mean 63, s = √13 = 3.606; t(0.975, 2) = 4.303 by the table; 4.303·3.606/√3 = 8.957
    found = {f"A{seed}": outcome(value, best=seed) for seed, value in enumerate((0.60, 0.62, 0.67))}
    table = results_table(space(), "voc2007", plan(3), found)
    assert rows(table)[2] == ["A", "3", "63.0 ± 9.0", "50.0 ± 0.0", "60.0 ± 0.0", "1.0"]
    low, high = stats.t.interval(0.95, 2, loc=63, scale=stats.sem([60, 62, 67]))
    assert (high - low) / 2 == pytest.approx(8.957, abs=1e-3)
    assert "one seed" not in words(table)


@pytest.mark.parametrize(("edge_model", "edges"), [("", "gradient"), ("model.yml.gz", "structured forest")])
def test_proposals_by_other_edges_are_not_set_beside_the_published_ones_unmarked(edge_model, edges):
    proposals = Model(name="proposals", proposals=Proposals(edge_model=edge_model))
    runs = [
        Job("train", name, config(evaluation=Evaluation(classifier="svm"), model=model), name, "data")
        for name, model in {"attended": Model(), "proposals": proposals}.items()
    ]
    how = {"views": "one", "source": "RMA Table 3"}
    known = entry("attended", mAP=90.4, **how), entry("proposals", mAP=88.6, edges="structured forest", **how)
    table = results_table(space(*known), "voc2007", runs, {"attended": outcome(0.9), "proposals": outcome(0.8)})
    assert rows(table)[0][-1] == "90.4"
    assert rows(table)[1][-1] == ("88.6" if edge_model else "88.6 *")
    text = words(table)
    assert f"measured: voc2007 test, N=512, one view, svm, edges: {edges} (proposals)" in text
    assert "measured: voc2007 test, N=512, one view, svm (attended)" in text
    footnote = "* RMA Table 3: voc2007 test, N=512, one view, svm, edges: structured forest"
    assert (footnote in text) is not bool(edge_model)


@pytest.mark.parametrize("n", [2, 5])
def test_intervals_agree_with_scipys(n):
    values = np.random.default_rng(n).uniform(0.5, 0.8, n)
    found = {f"A{seed}": outcome(value) for seed, value in enumerate(values)}
    cell = rows(results_table(space(), "voc2007", plan(n), found))[2][2]
    low, high = stats.t.interval(0.95, n - 1, loc=100 * values.mean(), scale=100 * stats.sem(values))
    assert cell == f"{(low + high) / 2:.1f} ± {(high - low) / 2:.1f}"


@pytest.mark.parametrize("per_seed", [False, True])
def test_an_interval_says_whether_it_contains_stage_1s_variance(per_seed):
    jobs = plan(2, per_seed=per_seed)
    found = {job.fingerprint: outcome(0.6 + 0.1 * job.seed) for job in jobs}
    table = results_table(space(), "voc2007", jobs, found)
    # t(0.975, 1) = 12.706; 12.706·(10/√2)/√2 = 63.5
    assert rows(table)[0][:3] == (["stage 1", "2", "65.0 ± 63.5"] if per_seed else ["stage 1", "1", "60.0"])
    text = words(table)
    assert "± is the 95 % interval over seeds" in text
    assert ("all seeds start from one stage 1, whose variance it excludes" in text) is not per_seed


def test_a_shared_stage_1_is_seen_through_the_model_that_is_evaluated():
    trained = [Job("train", "(trained for A)", config(seed), f"t{seed}", "data", ("s0",)) for seed in (0, 1)]
    evaluated = [Job("evaluate", "A", config(seed), f"A{seed}", "data", (f"t{seed}",)) for seed in (0, 1)]
    found = {f"t{seed}": outcome(0.1) for seed in (0, 1)} | {f"A{seed}": outcome(0.6) for seed in (0, 1)}
    table = results_table(space(entry("A")), "voc2007", [*plan(arms=()), *trained, *evaluated], found)
    assert [row[:3] for row in rows(table)] == [["stage 1", "0 of 1", "–"], ["A", "2", "60.0 ± 0.0"]]
    assert "whose variance it excludes" in words(table)


def test_missing_seeds_are_counted_and_arms_without_any_say_why():
    found = {
        "none0": outcome(0.6),
        "none1": Outcome(error="no"),
        "A0": Outcome(),
        "A1": Outcome(),
        "[b]0": Outcome(),
        "[b]1": Outcome(error="no"),
    }
    table = results_table(space(), "voc2007", plan(2, tuple(ARMS)), found)
    assert [row[:3] for row in rows(table)] == [
        ["stage 1", "0 of 1", "–"],
        ["none", "1 of 2", "60.0"],
        ["A", "0 of 2", "stopped"],
        ["[b]", "0 of 2", "failed"],
    ]


def test_stages_1_that_differ_are_no_seeds_of_one():
    firsts = [Job("stage1", "stage 1", config(evaluation=Evaluation(top_k=k)), f"s{k}", "data") for k in (3, 4)]
    runs = [Job("train", arm, config(), arm, "data", (f"s{k}",)) for arm, k in (("none", 3), ("A", 4), ("[b]", 4))]
    found = {job.fingerprint: outcome(0.6) for job in (*firsts, *runs)}
    table = results_table(space(), "voc2007", [*firsts, *runs], found)
    assert [row[:2] for row in rows(table)][:2] == [["stage 1 of none", "1"], ["stage 1 of A, [b]", "1"]]


def test_published_numbers_are_marked_unless_measured_exactly_so():
    same = entry("none", mAP=71.0, views="one", classifier="network")
    elsewhere = entry("[b]", dataset="coco2014", split="val2014")
    known = entry("none"), same, entry("none", dataset="coco2014"), entry("A"), elsewhere
    table = results_table(space(*known), "voc2007", plan(arms=tuple(ARMS)), {})
    assert [row[-1] for row in rows(table)] == ["", "71.0", "90.0 *", "90.0 **"]
    text = words(table)
    assert " * RMA Table 4: voc2007 test, N=512, ten views, svm" in text
    assert "** RMA Table 4: coco2014 val2014, N=512, ten views, svm" in text


@pytest.mark.parametrize("changed", [{"split": "val"}, {"scale": 640}, {"views": "ten"}, {"classifier": "svm"}])
def test_any_difference_in_the_protocol_marks(changed):
    known = entry("A", **{"views": "one", "classifier": "network", **changed})
    assert rows(results_table(space(known), "voc2007", plan(), {}))[2][-1] == "90.0 *"


def spent(parameters: float, multiply_adds: float) -> Outcome:
    found = outcome(0.6)
    return Outcome({**found.metrics, "cost/parameters": parameters, "cost/multiply_adds": multiply_adds})


def test_costs_are_told_where_arms_differ_in_them():
    found = {"s0": spent(136e6, 15.5e9), "none0": spent(134_260_544, 16.04e9), "A0": spent(14.1e6, 15.4e9)}
    table = results_table(space(), "voc2007", plan(), found)
    assert [row[-2:] for row in rows(table)] == [["136", "15.5"], ["134", "16"], ["14.1", "15.4"]]
    assert "params (M) ┃ MACs (G)" in words(table)

    alike = {**found, "A0": spent(134_260_600, 16.1e9)}  # stage 1 is no arm
    assert "MACs" not in words(results_table(space(), "voc2007", plan(), alike))
    dearer = {**found, "A0": spent(134_260_600, 17e9)}
    assert rows(results_table(space(), "voc2007", plan(), dearer))[2][-2:] == ["134", "17"]
    del dearer["none0"]
    assert "MACs" not in words(results_table(space(), "voc2007", plan(), dearer))


def test_arms_that_share_a_run_share_a_row_and_what_is_published_of_either():
    jobs = [replace(job, also=("A",)) if job.setting == "none" else job for job in plan(arms=("none", "[b]"))]
    table = results_table(space(entry("A", mAP=91.3)), "voc2007", jobs, {"none0": outcome(0.6)})
    assert [row[:1] + row[-1:] for row in rows(table)] == [["stage 1", ""], ["none = A", "91.3 *"], ["[b]", ""]]


def with_whole(seeds: int) -> list[Job]:
    """Of arms `A`, and `none` that is just stage 1; as a plan has them."""
    first, *runs = [job for job in reversed(plan(seeds)) if (job.setting, job.seed) != ("none", 0)]
    return [replace(first, also=("none",)), *reversed(runs)]


def test_an_arm_that_is_just_stage_1_has_one_row_with_all_its_seeds():
    found = {"s0": outcome(0.5), "none1": outcome(0.54), "A0": outcome(0.6), "A1": outcome(0.6)}
    table = results_table(space(entry("none", mAP=91.3)), "voc2007", with_whole(2), found)
    assert [(*row[:3], row[-1]) for row in rows(table)] == [
        ("stage 1", "1", "50.0", ""),
        ("none", "2", "52.0 ± 25.4", "91.3 *"),  # 12.706·(4/√2)/√2
        ("A", "2", "60.0 ± 0.0", ""),
    ]
    assert "whose variance it excludes" in words(table)  # of A


def test_with_stage_1s_seed_alone_it_shares_its_row():
    table = results_table(space(entry("none", mAP=91.3)), "voc2007", with_whole(1), {"s0": spent(136e6, 15e9)})
    assert [(*row[:3], row[6]) for row in rows(table)] == [
        ("stage 1 = none", "1", "60.0", "91.3 *"),
        ("A", "0 of 1", "–", ""),
    ]
    costs = {"s0": spent(136e6, 15e9), "A0": spent(14e6, 15e9)}  # of an arm as well, which stage 1 alone is not
    assert "params (M)" in words(results_table(space(), "voc2007", with_whole(1), costs))


def test_an_arm_that_only_the_study_knows_does_not_vanish():
    """It is evaluated by another one, as a model that is no arm would be."""
    jobs = [*plan(arms=("old", "A")), Job("evaluate", "none", config(), "e0", "data", ("old0",))]
    found = {"old0": outcome(0.6), "e0": outcome(0.7)}
    without = [row[0] for row in rows(results_table(space(), "voc2007", jobs, found))]
    assert without == ["stage 1", "A", "none"]
    known = [row[0] for row in rows(results_table(space(), "voc2007", jobs, found, ["old", "A", "none"]))]
    assert known == ["stage 1", "old", "A", "none"]


def regions(epoch: int, mirrored: float, area: float, distance: float | None = None) -> dict[str, float]:
    found = {"epoch": epoch, "selection/mirrored_share": mirrored, "selection/region_area": area}
    found["selection/outside_share"] = 0.25 * epoch
    return found if distance is None else {**found, "selection/anchor_distance": distance, "selection/redundancy": 0.5}


def test_the_faults_go_from_the_start_to_the_last_epoch_as_means_over_seeds():
    histories = {
        "s0": [{"epoch": 1, "selection/mAP": 0.5}],
        "none0": [regions(2, 0.4, 3.0, 2.0), regions(0, 0.5, 1.0, 1.0)],  # the order is of no account
        "none1": [regions(0, 0.7, 2.0, 3.0), regions(2, 0.2, 5.0, 4.0)],
        "A0": [regions(1, 0.5, 0.25)],  # one region has no anchors
        "A1": [],
    }
    table = mechanism_table(plan(2), histories)
    assert rows(table) == [
        ["none", "0.60 → 0.30", "1.50 → 4.00", "2.00 → 3.00", "0.00 → 0.50", "0.50 → 0.50"],
        ["A", "0.50 → 0.50", "0.25 → 0.25", "– → –", "0.25 → 0.25", "– → –"],
    ]


def looked(own: float, shuffled: float, low: float, high: float) -> Outcome:
    found = {"": own, "_shuffled": shuffled, "_anchors": 0.5, "_centre": 0.25, "_random": 0.125}
    margin = {"": own - shuffled, "_low": low, "_high": high}
    metrics = {f"test/coverage{name}": value for name, value in found.items()}
    metrics |= {f"test/coverage_own_minus_shuffled{name}": value for name, value in margin.items()}
    metrics |= {f"test/centres_on_objects_own_minus_shuffled{name}": value / 2 for name, value in margin.items()}
    metrics["test/centres_on_objects"] = own / 2
    return Outcome({**metrics, "test/attends": float(low > 0)})


def test_attention_of_one_seed_has_the_interval_over_its_images():
    table = attention_table(plan(), {"none0": looked(0.65, 0.6, 0.015, 0.085), "A0": outcome(0.6), "s0": outcome(0.5)})
    own = "32.5", "+2.5 [+0.8, +4.2]"
    assert rows(table) == [["none", "65.0", "60.0", "+5.0 [+1.5, +8.5]", "1 of 1", "50.0", "25.0", "12.5", *own]]
    assert "95 % interval (over images)" in words(table)


def test_attention_of_several_seeds_has_the_interval_over_them():
    # +2 and +4: mean 3; t(0.975, 1) = 12.706; 12.706·√2/√2 = 12.7
    seeds = {"A0": looked(0.62, 0.6, -0.01, 0.05), "A1": looked(0.64, 0.6, 0.01, 0.07)}
    table = attention_table(plan(2), {**seeds, "none0": looked(0.1, 0.2, -0.2, 0.0)})
    assert rows(table)[1][1:5] == ["63.0", "60.0", "3.0 ± 12.7", "1 of 2"]
    assert rows(table)[1][-2:] == ["31.5", "1.5 ± 6.4"]
    assert rows(table)[0][3:5] == ["-10.0 [-20.0, +0.0]", "0 of 1"]
    assert "of several seeds, over these" in words(table)


def test_attention_recorded_before_centres_were_has_none():
    metrics = {name: value for name, value in looked(0.65, 0.6, 0.01, 0.09).metrics.items() if "centres" not in name}
    table = attention_table(plan(), {"none0": Outcome(metrics)})
    assert rows(table)[0][-3:] == ["12.5", "–", "–"]


def test_without_boxes_there_is_no_table_of_attention():
    assert attention_table(plan(), {"none0": outcome(0.6)}) is None


def test_without_regions_there_is_no_table_of_faults():
    assert mechanism_table(plan(), {"none0": [{"epoch": 1, "selection/mAP": 0.5}]}) is None
    assert mechanism_table(plan(), {}) is None


def test_failures_are_named_in_the_plans_order():
    found = {
        "A0": Outcome(error="a.b.NotFiniteError: the loss is nan.\nLower it."),
        "none0": Outcome(error="lost"),
        "s0": outcome(0.5),
    }
    assert failures(plan(), found) == [
        "FAILED none · seed 0: lost",
        "FAILED A · seed 0: NotFiniteError: the loss is nan.",
    ]
