"""The report as a page: everything in one file, nothing from elsewhere, names that cannot break it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from finished import Finished, space
from PIL import Image
from simulated import Simulated
from simulated import space as sampled

from ram_tune.evaluation.pictures import contact_sheet
from ram_tune.search.reports.document import document
from ram_tune.search.reports.drawings import Apart, Curve, curve, curves, forest
from ram_tune.search.reports.kept import Kept, opened, read
from ram_tune.search.reports.page import leave, page
from ram_tune.search.reports.pictures import strips
from ram_tune.search.reports.plots import plots
from ram_tune.search.statistics import Interval

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or ""


def kept(search: Finished) -> Kept:
    return read(opened(search.storage, search.name), search.folder)


@pytest.fixture(scope="module")
def search(tmp_path_factory) -> Finished:
    arms = {"none": {"loss.anchor": False}, "<A> & b": {}}
    found = Finished(tmp_path_factory.mktemp("runs"), space(arms=arms, title="<i>T</i>")).all(seeds=2, pictures=True)
    found.failed("none", 2, "ValueError: <b>broken</b>")
    return found


class Tags(HTMLParser):
    """Tags that are opened and closed as they should be, and what they refer to."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_and_refers_to_nothing_outside_it(search):
    text = page(document(kept(search)))
    found = Tags(text)
    assert found.open == []
    assert "script" not in found.seen and "iframe" not in found.seen
    assert found.links and all(link.startswith("data:") for link in found.links)
    assert not re.search(r"https?://|@import|url\(", text)
    assert found.seen.count("svg") == 2  # intervals and curves
    for heading in ("The answer", "Differences", "Curves", "Labels", "What the regions do", "Failed runs"):
        assert heading in found.text


def test_names_are_text_and_nothing_else(search):
    found = Tags(page(document(kept(search))))
    assert "<i>T</i> on scenes" in found.text and "i" not in found.seen
    assert "<A> & b" in found.text and "a" not in found.seen
    assert "ValueError: <b>broken</b>" in found.text and "b" not in found.seen


def test_an_unfinished_search_without_any_run_has_a_page(tmp_path):
    empty = Finished(tmp_path, space())
    empty.failed("none", 0)
    text = Tags(page(document(kept(empty)))).text
    assert "incomplete: none (0 of 3 seeds), A_1 (0 of 3 seeds)" in text
    assert "FAILED none" in text


def test_pictures_stand_arm_beside_arm(search):
    none, arm = strips(kept(search))
    assert (none.arm, none.seed, none.epoch) == ("none", 0, 3)
    assert len(none.pictures) == len(arm.pictures) == 4
    for number, source in enumerate(none.pictures):
        picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert abs(picture.width - 50) <= 2 and abs(picture.height - 40) <= 2  # without the margins of its cell
        assert picture.getpixel((20, 20)) == pytest.approx(colour_of(search, number), abs=12)


def colour_of(search: Finished, number: int) -> tuple:
    with Image.open(search.folder / "runs" / "none-0" / "pictures" / "003.jpg") as sheet:
        return sheet.getpixel((4 + 60 * number + 20, 24))


@pytest.mark.parametrize("images", [20, 6, 3])
def test_sheets_are_cut_where_there_are_fewer_images_than_were_asked_for(tmp_path, images):
    search = Finished(tmp_path, space())
    folder = search.folder / "runs" / search.run("none", 0, pictures=True).fingerprint
    summary = json.loads((folder / "metrics.json").read_text())
    summary["images"]["selection"] = images
    (folder / "metrics.json").write_text(json.dumps(summary))
    greys = [(20 * number,) * 3 for number in range(min(images, 8))]
    contact_sheet([Image.new("RGB", (50, 40), grey) for grey in greys]).save(folder / "pictures" / "003.jpg")
    (strip,) = strips(kept(search))
    assert len(strip.pictures) == min(images, 4)
    for source, grey in zip(strip.pictures, greys, strict=False):
        picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert abs(picture.width - 50) <= 2 and abs(picture.height - 40) <= 2
        assert picture.getpixel((20, 20)) == pytest.approx(grey, abs=6)


def test_an_evaluation_shows_the_model_that_it_evaluates(tmp_path):
    search = Finished(tmp_path, space())
    search.run("none (training)", 0, pictures=True)
    search.run("none", 0, kind="evaluate", needs=["none-(training)-0"])
    (strip,) = strips(kept(search))
    assert strip.arm == "none"


def test_a_curve_is_the_mean_with_a_band_of_all_seeds():
    one = [{"epoch": 1, "m": 0.2}, {"epoch": 2, "m": 0.4}]
    other = [{"epoch": 1, "m": 0.4}, {"epoch": 2, "m": float("nan")}, {"epoch": 3}]
    found = curve("A", [one, other], "m")
    assert (found.epochs, found.low, found.high) == ([1, 2], [20, 40], [40, 40])
    assert found.middle == pytest.approx([30, 40])
    assert curve("A", [[{"epoch": 1}]], "m") is None


def test_curves_carry_their_names_apart_from_one_another():
    ended = [Curve(name, [1, 2], [10, 50 + 0.1 * place], [10, 50], [10, 51]) for place, name in enumerate("abcdefghi")]
    text = curves(ended, "label")
    places = sorted(float(y) for y in re.findall(r'<text x="808" y="([\d.]+)"', text))
    assert len(places) == 9
    assert all(after - before >= 15.9 for before, after in pairwise(places))
    assert min(places) > 0 and max(places) <= 420


def test_of_one_epoch_there_is_a_point():
    assert "<circle" in curves([Curve("a", [1], [50], [50], [50])], "label")


def test_intervals_lie_on_the_side_of_zero_where_they_are():
    text = forest([Apart("a", Interval(2, 1, 3), Interval(2, 1.5, 2.5)), Apart("b", Interval(-2), None)], "label")
    zero = float(re.search(r'<line x1="([\d.]+)"[^>]* stroke="#555"', text)[1])
    (low,) = re.findall(r'<rect x="([\d.]+)"', text)
    above, below = (float(x) for x in re.findall(r'<circle cx="([\d.]+)"', text))
    assert below < zero < float(low) < above
    assert text.count("<rect") == 1 and "+2.0" in text and "−2.0" in text


def drawn(tmp_path, objectives: int = 1) -> Kept:
    import optuna

    from ram_tune.search.study import Study

    parameters = {"loss.anchor_weight": {"float": [0.0, 1.0]}, "model.regions": {"int": [1, 3]}}
    names = ["mAP", "parameters"][:objectives]
    of = sampled(parameters=parameters, objectives=names, budget={"trials": 8}, confirm=2)
    directions = ["maximize", "minimize"][:objectives]
    made = optuna.create_study(study_name="drawn-scenes-00000000", directions=directions)
    search = Simulated(
        Study(made),
        of,
        lambda values, seed, epoch: values["loss.anchor_weight"] / 2 + 0.001 * seed,
        paper={"loss.anchor_weight": 0.1, "model.regions": 2},
        epochs=2,
        extra=lambda values, seed: {
            "cost/parameters": 100.0 * values["model.regions"],
            "test/CF1": 0.1,
            "test/OF1": 0.1,
        },
    )
    search.run()
    from ram_tune.search.reports.kept import note

    note(search.study, "drawn", "scenes", of, "search drawn", 2)
    return read(search.study, tmp_path)


def test_a_sampled_search_has_its_answer_optunas_plots_and_what_was_confirmed(tmp_path):
    found = document(drawn(tmp_path))
    assert found.comparison.reference == "the paper's, confirmed"
    (arm,) = (row for row in found.comparison.rows if not row.reference)
    assert arm.name.endswith(", confirmed") and arm.paired.n == 2 and arm.paired.difference.mean > 0
    assert "of the best setting" in found.said[0] and "2 fresh seeds" in found.said[0]
    captions = [one.caption for one in plots(found.kept)]
    assert captions[0] == "Every setting in the order in which it was tried"
    assert any("fANOVA" in one for one in captions) and "Every setting as a line" in captions
    assert "By anchor_weight, regions" in captions
    parsed = Tags(page(found))
    assert parsed.open == [] and all(link.startswith("data:") for link in parsed.links)


def test_several_objectives_have_a_front(tmp_path):
    captions = [one.caption for one in plots(drawn(tmp_path, objectives=2))]
    assert any(one.startswith("The Pareto front") for one in captions)


def test_a_report_that_cannot_be_made_is_one_sentence(tmp_path):
    search = Finished(tmp_path, space())
    search.run("none", 0)
    assert leave(search.study, search.folder) == ""
    assert (search.folder / "report.html").read_text().startswith("<!DOCTYPE html>")
    (search.folder / "runs" / "none-0" / "metrics.json").write_text("{")
    said = leave(search.study, search.folder)
    assert said.startswith("The report was not made: BadInput") and "\n" not in said


@pytest.mark.drill
@pytest.mark.skipif(not BROWSER, reason="no browser")
def test_a_browser_shows_it_without_a_network_or_a_complaint(search, tmp_path):
    (tmp_path / "report.html").write_text(page(document(kept(search))))
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
    offline = [
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1000,3000",
    ]
    picture = tmp_path / "report.png"
    command = [BROWSER, *options, *offline, f"--screenshot={picture}", f"file://{tmp_path / 'report.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    assert "CONSOLE" not in done.stderr
    with Image.open(picture) as shown:
        assert len(shown.convert("RGB").getcolors(2**24)) > 50  # letters, lines and pictures
