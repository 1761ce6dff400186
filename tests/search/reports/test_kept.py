"""What is read of a search that is over: from its study and its folders, also of older or unfinished ones."""

from __future__ import annotations

import optuna
import pytest
from finished import ARMS, Finished, space
from tables import rows

from ram_tune.errors import BadInput
from ram_tune.search import space as spaces
from ram_tune.search.reports.document import document
from ram_tune.search.reports.kept import _space, note, opened, read
from ram_tune.search.reports.listing import _asked, _attributes, find, listed
from ram_tune.search.study import Study


def kept(search: Finished):
    return read(opened(search.storage, search.name), search.folder)


@pytest.fixture
def search(tmp_path) -> Finished:
    return Finished(tmp_path / "runs", space())


@pytest.mark.parametrize("name", spaces.names())
@pytest.mark.parametrize("data", ["scenes", "voc2007"])
def test_a_space_is_noted_whole(name, data):
    study = Study(optuna.create_study())
    of = spaces.read(name).on(data)
    note(study, name, data, of, "search", 7)
    assert _space(study.note("about"), "whatever") == of


def test_the_arms_come_in_their_order_with_every_seed_that_was_asked_for(search):
    search.run("A_1", 0)
    search.run("none", 1)
    found = kept(search)
    assert (found.dataset, found.epochs, found.reference) == ("scenes", 3, "none")
    assert [(job.setting, job.seed, found.finished(job)) for job in found.jobs] == [
        ("none", 0, False),
        ("A_1", 0, True),
        ("none", 1, True),
        ("A_1", 1, False),
        ("none", 2, False),
        ("A_1", 2, False),
    ]
    assert {job.config.loss.anchor for job in found.jobs if job.setting == "none"} == {False}
    assert {job.config.data.image_size for job in found.jobs} == {160}
    assert {job.dataset for job in found.jobs} == {"data-print"}
    assert list(found.histories) == ["A_1-0", "none-1"]
    assert [epoch["epoch"] for epoch in found.histories["A_1-0"]] == [1, 2, 3]


def test_arms_that_compute_the_same_have_one_run(search):
    job = search.run("none", 0, also=["A_1"])
    found = kept(search)
    assert [(one.arms, one.seed) for one in found.jobs] == [("none = A_1", seed) for seed in range(3)]
    assert [one.fingerprint for one in found.jobs if found.finished(one)] == [job.fingerprint]
    assert list(found.arms) == ["none", "A_1"]


def test_arms_are_the_same_also_where_an_earlier_run_was_of_one_of_them_alone(search):
    search.run("A_1", 0)  # by --arms A_1; nobody knew that `none` would be the same
    search.run("none", 1, also=["A_1"])
    found = kept(search)
    assert [(one.arms, found.finished(one)) for one in found.jobs] == [
        ("none = A_1", True),
        ("none = A_1", True),
        ("none = A_1", False),
    ]


def test_an_arm_that_is_just_stage_1_is_an_arm_with_every_seed(tmp_path):
    search = Finished(tmp_path, space(arms={"whole": {"model.name": "whole_image"}, "attended": {}}))
    search.run("stage 1", 0, kind="stage1", also=["whole"])
    search.run("whole", 1)
    found = kept(search)
    assert [(one.kind, one.setting, one.seed, found.finished(one)) for one in found.jobs if one.seed < 2] == [
        ("stage1", "stage 1", 0, True),
        ("train", "whole", 0, True),
        ("train", "attended", 0, False),
        ("train", "whole", 1, True),
        ("train", "attended", 1, False),
    ]
    assert {one.config.model.name for one in found.jobs if one.setting == "whole"} == {"whole_image"}
    assert {one.dataset for one in found.jobs} == {"data-print"}


def test_the_order_of_arms_is_the_spaces_whatever_was_run_first(tmp_path):
    arms = {name: {"model.regions": number} for number, name in enumerate("abcd", start=1)}
    search = Finished(tmp_path, space(arms=arms))
    search.study.study.set_user_attr("arms", {"e": {}, "c": arms["c"], "b": arms["b"]})  # --arms c b; e is of long ago
    assert (list(kept(search).arms), kept(search).reference) == (["b", "c", "e"], "b")
    note(search.study, "constraints", "scenes", space(arms=arms, reference="c"), "search", 3)
    assert kept(search).reference == "c"
    note(search.study, "constraints", "scenes", space(arms=arms, reference="d"), "search", 3)
    assert kept(search).reference == "b"  # d was not run


def test_stage_1_and_models_that_are_only_evaluated_are_kept_with_what_needs_them(search):
    search.run("stage 1", 0, kind="stage1")
    search.run("A_1 (training)", 0, needs=["stage-1-0"])
    search.run("A_1", 0, kind="evaluate", needs=["A_1-(training)-0"])
    found = {job.setting: job for job in kept(search).jobs if job.seed == 0}
    assert found["A_1"].needs == ("A_1-(training)-0",)
    assert found["stage 1"].kind == "stage1"


def test_an_arm_that_another_one_evaluates_has_its_row_where_the_space_was_cut(search):
    note(search.study, "constraints", "scenes", space(arms={"A_1": ARMS["A_1"]}), "search", 3)  # --arms A_1
    search.run("none", 0)
    search.run("A_1", 0, kind="evaluate", needs=["none-0"])
    found = document(kept(search))
    assert [row[0] for row in rows(found.answer[0])] == ["A_1", "none"]


def test_results_that_were_moved_are_found_again(search, tmp_path):
    search.run("none", 0)
    moved = tmp_path / "moved"
    search.folder.parent.rename(moved)
    storage = f"sqlite:///{moved / 'studies.db'}"
    found = read(opened(storage, search.name), moved / search.name)
    assert found.folders["none-0"] == moved / search.name / "runs" / "none-0"
    assert "none-0" in found.summaries


def test_a_study_older_than_its_note_goes_by_the_space_of_its_name(tmp_path):
    search = Finished(tmp_path, space(), noted=False)
    search.run("none", 0)
    found = kept(search)
    assert found.space == spaces.read("constraints").on("scenes")
    assert found.dataset == "scenes"
    assert list(found.arms) == list(ARMS)  # as the study knows them


def test_a_study_of_an_unknown_space_has_its_arms_all_the_same(tmp_path):
    search = Finished(tmp_path, space(), name="mine-scenes-01234567", noted=False)
    search.run("none", 0)
    found = kept(search)
    assert (found.space.title, list(found.arms), found.reference) == ("mine-scenes-01234567", list(ARMS), "none")


def test_the_space_may_name_its_reference(tmp_path):
    assert kept(Finished(tmp_path, space(reference="A_1"))).reference == "A_1"


@pytest.mark.parametrize(
    ("name", "data", "reference"),
    [
        ("attention", "scenes", "attended"),  # not its baseline, whole image
        ("constraints", "voc2007", "none"),
        ("paper", "voc2007", "512 ten"),
        ("paper", "scenes", "160 single"),  # there are no 512 pixels
        ("proposals", "voc2007", "attended"),
        ("views", "coco2014", "512 single"),
    ],
)
def test_each_packaged_space_is_compared_with_what_its_question_asks_of(tmp_path, name, data, reference):
    of = spaces.read(name).on(data)
    assert kept(Finished(tmp_path, of)).reference == reference


def test_searches_are_listed_with_their_runs_and_found_by_the_start_of_their_name(tmp_path):
    first = Finished(tmp_path, space())
    first.run("none", 0)
    first.failed("none", 1)
    second = Finished(tmp_path, space(), name="constraints-scenes-0a1b2c3d-2")
    second.run("none", 0)
    storage = first.storage
    assert [(one.name, one.runs) for one in listed(storage)] == [
        (first.name, {"finished": 1, "pruned": 0, "failed": 1, "running": 0}),
        (second.name, {"finished": 1, "pruned": 0, "failed": 0, "running": 0}),
    ]
    assert find(storage, first.name) == [first.name]
    assert find(storage, "constraints") == find(storage, "constraints-scenes") == [first.name, second.name]


def test_a_search_whose_name_begins_alike_is_another_one(tmp_path):
    theirs, mine, long = "constraints-scenes-0a1b2c3d", "constraints-mine-scenes-00000000", "my_own-scenes-00000000"
    for name, search in ((theirs, "constraints"), (mine, "constraints-mine"), (long, "my own")):
        made = Finished(tmp_path, space(), name=name)
        note(made.study, search, "scenes", made.space, "search", 3)
        made.run("none", 0)
    assert find(made.storage, "constraints") == find(made.storage, "constraints-scenes") == [theirs]
    assert find(made.storage, "constraints-mine") == find(made.storage, "constraints-mine-scenes") == [mine]
    assert find(made.storage, "my_own") == find(made.storage, "my_own-scenes") == find(made.storage, long) == [long]
    with pytest.raises(BadInput, match="no search 'my'"):
        find(made.storage, "my")


def test_a_search_older_than_its_note_is_found_by_the_start_of_its_name(tmp_path):
    old = Finished(tmp_path, space(), name="constraints-mine-scenes-00000000", noted=False)
    old.run("none", 0)
    assert find(old.storage, "constraints") == [old.name]


def test_an_unknown_name_is_refused_with_the_known_ones(search):
    search.run("none", 0)
    with pytest.raises(BadInput, match=r"no search 'constraint'.*constraints-scenes-0a1b2c3d.*Did you mean"):
        find(search.storage, "constraint")


def test_a_storage_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        listed(f"sqlite:///{tmp_path / 'none.db'}")
    assert not (tmp_path / "none.db").exists()


def test_optuna_and_its_own_tables_list_the_same(search):
    search.run("none", 0)
    search.failed("A_1", 2)
    by_optuna, by_us = (sorted(map(repr, found)) for found in (_asked(search.storage), _attributes(search.storage)))
    assert by_optuna == by_us
    assert len(by_us) == 3  # two runs, and what it is of


def test_a_file_that_is_no_storage_is_said_to_be_none(tmp_path):
    (tmp_path / "studies.db").write_bytes(b"x" * 200)
    with pytest.raises(BadInput, match="not a database"):
        listed(f"sqlite:///{tmp_path / 'studies.db'}")
