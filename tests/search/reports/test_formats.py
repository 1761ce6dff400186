"""Tables in every format: what they say, and that names cannot break them."""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
import subprocess

import pytest
from finished import Finished, space
from rich.table import Table
from tables import rows, shown, words

from ram_tune.config import Config
from ram_tune.search.published import Published
from ram_tune.search.reports import formats
from ram_tune.search.reports.compare import Comparison, Row, compare
from ram_tune.search.reports.document import document, markdown
from ram_tune.search.reports.kept import opened, read
from ram_tune.search.reports.tables import difference_table, gains_table, labels_table, published_table, verdicts
from ram_tune.search.statistics import Interval, Paired, paired, t_interval

PUBLISHED = Published(
    arm="A", dataset="voc2007", split="test", scale=512, views="ten", classifier="svm", source="RMA Table 4", mAP=91.3
)


def row(name: str, *values: float, base: tuple[float, ...] = (), **more) -> Row:
    found = Row(
        name, "study", "train", 3, dict(enumerate(values)), Config(), mean=t_interval(values) if values else None
    )
    if base:
        tested = paired(values[: len(base)], base[: len(values)])
        more = {"paired": tested, "holm": tested.p, "difference": Interval(tested.difference.mean, 0.25, 3.0), **more}
    return Row(**{**vars(found), **more})


NONE = 70.0, 71.0, 72.0
BASE = row("none", *NONE, reference=True, labels={"cat": 60.0, "dog": 80.0, "cow": math.nan})
ARM = row(
    "A", 72.0, 73.5, 74.0, base=NONE, published=PUBLISHED, known=91.3, differs="12 epochs, not 45",
    labels={"cat": 63.0, "dog": 79.0, "cow": math.nan},
)  # fmt: skip


def comparison(*others: Row, metric: str = "mAP") -> Comparison:
    return Comparison(metric, "scenes", "none", [BASE, *others])


def test_differences_by_seed_and_over_images():
    # 2, 2.5, 2: mean 2.167, s = 0.2887; 4.303·0.2887/√3 = 0.717; t = 13.0, p = 0.0059 by SciPy
    assert rows(difference_table(comparison(ARM))) == [
        ["A", "3", "+2.2 [+1.4, +2.9]", "0.006", "0.006", "0.25 (≥ 0.25)", "+2.2 [+0.2, +3.0]"]
    ]
    text = words(difference_table(comparison(ARM)))
    assert "mAP against none, in points" in text
    assert "p adjusted for 1 comparison;" in text
    assert "95 % of 1,000 resamples" in text


def test_one_seed_says_that_seeds_are_not_known():
    one = row("A", 72.0, base=(70.0,))
    table = difference_table(comparison(one))
    assert rows(table) == [["A", "1", "+2.0", "", "", "", "+2.0 [+0.2, +3.0]"]]
    assert "one seed: that another seed would say the same is not known" in words(table)


@pytest.mark.parametrize(
    ("seeds", "said"), [(5, "0.0625 (≥ 0.0625)"), (12, "0.000488 (≥ 0.000488)"), (4, "0.125 (≥ 0.125)")]
)
def test_the_permutation_p_is_never_written_below_its_floor(seeds, said):
    base = tuple(70.0 + seed for seed in range(seeds))
    arm = row("A", *(value + 1 + 0.01 * value for value in base), base=base)  # better with every seed
    assert rows(difference_table(comparison(arm)))[0][5] == said


def test_one_seed_in_common_is_said_to_be_that():
    one = row("A", 72.0, 71.0, base=(70.0,))
    assert "one seed in common: that another seed would say" in words(difference_table(comparison(one)))


def test_the_footnote_of_one_seed_stands_only_where_there_is_a_pair():
    elsewhere = row("other: B", 50.0, unpaired="unpaired: other images (voc2007)")
    stage1 = row("stage 1", 50.0, kind="stage1", difference=Interval(-20, -22, -18))
    for other in (elsewhere, stage1):
        text = words(difference_table(comparison(other)))
        assert "one seed" not in text and "in common" not in text


def test_disjoint_seeds_are_said_to_be_that():
    table = difference_table(comparison(row("A", 72.0, difference=Interval(1.0, 0.5, 1.5)), ARM))
    assert rows(table)[0] == ["A", "0", "–", "", "", "", "+1.0 [+0.5, +1.5]"]
    assert "A: no seed in common with none, so that none is its pair" in words(table)
    assert "one seed" not in words(table)


MISSING = Comparison("mAP", "scenes", "none", [row("none", reference=True), row("A", 72.0, 73.0), row("B")])


def test_a_reference_without_a_finished_run_is_said_to_have_none():
    assert difference_table(MISSING) is None
    assert verdicts(MISSING) == ["none, the reference, has no finished run: name another with --reference"]
    nothing = [row("none", reference=True), row("stage 1", 50.0, kind="stage1")]
    assert verdicts(Comparison("mAP", "scenes", "none", nothing)) == []  # there is no other


def test_what_cannot_be_paired_says_so():
    other = row("other: B", 50.0, unpaired="unpaired: other images (voc2007)")
    assert rows(difference_table(comparison(ARM, other)))[1][:3] == ["other: B", "", "unpaired: other images (voc2007)"]


def test_a_metric_without_resamples_says_so():
    bare = row("A", 72.0, 73.0, base=NONE[:2], difference=None)
    assert "over images: not computed for mAP_11" in words(difference_table(comparison(bare, metric="mAP_11")))


def test_without_a_reference_or_another_arm_there_is_nothing_to_compare():
    assert difference_table(Comparison("mAP", "scenes", "", [ARM])) is None
    assert difference_table(comparison()) is None


def test_published_numbers_beside_measured_ones_with_what_differs():
    table = published_table(comparison(ARM))
    assert rows(table) == [["A", "73.2 ± 2.6", "–", "91.3 *", "-18.1"]]
    assert "* RMA Table 4; 12 epochs, not 45" in words(table)
    assert published_table(comparison()) is None


def test_labels_gained_and_lost():
    assert rows(gains_table(comparison(ARM))) == [["A", "cat +3.0", "dog -1.0"]]
    assert rows(labels_table(comparison(ARM))) == [
        ["cat", "60.0", "63.0"],
        ["dog", "80.0", "79.0"],
        ["cow", "–", "–"],
    ]


def test_the_verdict_in_words():
    said = verdicts(comparison(ARM))
    assert said[0] == "highest mAP: A with 73.2 ± 2.6; none, the reference, has 71.0 ± 2.5"
    assert said[1].startswith("A (+2.2) differs from the reference by more than seeds make")
    assert said[2].startswith("A (+2.2) differs from the reference by more than other test images would make")
    assert said[2].endswith("(95 % interval of 3 seeds)")
    same = row("B", 71.0, 70.0, 72.5, base=NONE, difference=Interval(0.2, -1, 1))
    assert [one.partition(" from")[0] for one in verdicts(comparison(same))[1:]] == ["no arm differs", "no arm differs"]
    assert verdicts(comparison()) == []


def test_the_verdict_over_images_says_of_how_many_seeds_and_comparisons():
    one = row("A", 72.0, base=(70.0,))
    assert verdicts(comparison(one))[-1].endswith("(95 % interval of 1 seed)")
    both = verdicts(comparison(one, row("B", 71.0, 70.0, 72.5, base=NONE)))
    assert both[-1].endswith("(95 % interval of 1 to 3 seeds, not corrected for 2 comparisons)")


def test_csv_has_every_figure():
    (head, none, arm) = csv.reader(io.StringIO(formats.csv_text(comparison(ARM))))
    found = dict(zip(head, arm, strict=True))
    assert (found["arm"], found["seeds"], found["seeds_asked"], found["reference"]) == ("A", "3", "3", "none")
    assert float(found["difference"]) == pytest.approx(2.1667, abs=1e-4)
    assert float(found["p_flips"]) == float(found["p_flips_floor"]) == 0.25
    assert (found["published"], found["measured_minus_published"], found["differs"]) == (
        "91.3000",
        "-18.1333",
        "12 epochs, not 45",
    )
    assert dict(zip(head, none, strict=True))["p"] == ""


@pytest.mark.parametrize("name", ["=1+1", "+P", "-A", "@SUM(A1)", "\tA"])
def test_a_spreadsheet_computes_no_name(name):
    base, arm = row(name, *NONE, reference=True), row("S+P", 72.0, 73.5, 74.0, base=NONE)
    text = formats.csv_text(Comparison("mAP", "scenes", name, [base, arm]))
    found = list(csv.DictReader(io.StringIO(text)))
    assert [one["arm"] for one in found] == [f"'{name}", "S+P"]
    assert {one["reference"] for one in found} == {f"'{name}"}
    lower = row("A", 60.0, 61.0, 62.0, base=NONE)
    assert "-10.0000" in formats.csv_text(comparison(lower)).split(",")  # a number stays one


def test_markdown_escapes_what_is_markup():
    table = Table(title="50\\[%]")
    table.add_column("a|b")
    table.add_column("n", justify="right")
    table.add_row("*x*_y_", "1")
    table.caption = "p < 0.05\nsecond"
    assert formats.markdown(table) == (
        "### 50\\[%\\]\n\n| a\\|b | n |\n| --- | ---: |\n| \\*x\\*\\_y\\_ | 1 |\n\np \\< 0.05  \nsecond  \n"
    )


def test_the_whole_report_as_markdown_and_on_a_terminal(tmp_path):
    search = Finished(tmp_path, space()).all()
    search.failed("A_1", 7, "RuntimeError: out of [memory]")
    kept = read(opened(search.storage, search.name), search.folder)
    text = markdown(document(kept))
    assert text.startswith("# Constraints on scenes\n\nWhich?\n")
    assert "- highest mAP: A\\_1 with" in text
    assert "FAILED A\\_1 · seed 7: RuntimeError: out of \\[memory\\]" in text
    assert "3 of 4" in text  # seed 7 was asked for, too
    for table in document(kept).tables:
        assert shown(table)


# LaTeX

NAMES = "[b] 2pt", "A_1 & 50 % of {x}", "α·β ~ $5 \\ #2 ^", "a rather long name of an arm that wraps"


@pytest.mark.parametrize("name", NAMES)
def test_latex_escapes_names(name):
    text = formats.latex(comparison(row(name, 72.0, 73.5, 74.0, base=NONE)), f"{name} on scenes")
    (line,) = (line for line in text.splitlines() if "& 3 &" in line and "none" not in line)
    assert len(re.findall(r"(?<!\\)&", line)) == 4
    assert not re.search(r"(?<!\\)[%#~^]", re.sub(r"\\text\w+\{\}", "", line))


def test_latex_says_what_its_signs_are():
    text = formats.latex(comparison(ARM, row("B", 70.5)), "Constraints on scenes")
    assert "A & 3 & 73.2$\\,\\pm\\,$2.6 & $+2.2\\pm0.7$ & 0.006 & 91.3 \\\\" in text
    assert "Incomplete: B 1 of 3 seeds." in text
    assert "Measured otherwise than published: 12 epochs, not 45." in text
    assert "\\label{tab:constraints-on-scenes}" in text


def test_latex_has_a_row_for_an_arm_without_a_finished_run():
    text = formats.latex(comparison(row("B", published=PUBLISHED, known=91.3)), "T")
    assert "B & 0 & -- &  &  & 91.3 \\\\" in text
    assert "Incomplete: B 0 of 3 seeds." in text
    text = formats.latex(MISSING, "T")
    assert "none & 0 & -- & -- &  \\\\" in text
    assert "No $\\Delta$: none, the reference, has no finished run." in text and "against none" not in text
    empty = formats.latex(Comparison("mAP", "scenes", "none", [row("none", reference=True)]), "T")
    assert "One seed" not in empty


def differing(*ways: str) -> str:
    arms = [row(f"A{n}", 72.0, published=PUBLISHED, known=91.3, differs=way) for n, way in enumerate(ways)]
    return formats.latex(comparison(*arms), "T")


def test_latex_says_every_way_in_which_numbers_were_measured_otherwise():
    assert "Measured otherwise than published: 12 epochs." in differing("12 epochs", "12 epochs")
    text = differing("12 epochs", "9 epochs", "12 epochs")
    assert "Measured otherwise than published: A0, A2 (12 epochs); A1 (9 epochs)." in text
    assert "Measured otherwise than published: A1 (9 epochs)." in differing("", "9 epochs")
    assert "Published numbers were measured or trained otherwise, each in its own way." in differing("a", "b", "c")
    assert "otherwise" not in differing("", "")


def test_latex_says_that_seeds_start_from_one_stage_1(tmp_path):
    alone = Finished(tmp_path, space()).all(seeds=2)
    shared = Finished(tmp_path, space(), name="shared-scenes-00000000")
    shared.run("stage 1", 0, kind="stage1")
    shared.all(seeds=2, needs=["stage-1-0"])
    found = {
        search: formats.latex(compare(read(opened(search.storage, search.name), search.folder)), "T")
        for search in (alone, shared)
    }
    said = "all seeds start from one stage 1, whose variance it excludes"
    assert said not in found[alone] and said in found[shared]


PAPER = """\\documentclass[twocolumn]{article}
\\usepackage[utf8]{inputenc}
\\usepackage{booktabs,tabularx}
\\setlength{\\columnwidth}{237pt}
\\setlength{\\textwidth}{496pt}
\\begin{document}
%s
text
\\end{document}
"""


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex")
def test_latex_compiles_to_a_table_that_fits_a_column(tmp_path):
    arms = [row(name, 72.0, 73.5, 74.0, base=NONE, published=PUBLISHED, known=91.3) for name in NAMES]
    narrow = row("#19, confirmed", 100.0, 12.5, 74.0, base=NONE, published=PUBLISHED, known=91.3)
    text = formats.latex(comparison(ARM, narrow, row("B"), *arms), "Region constraints on scenes_1, 100 %")
    (tmp_path / "paper.tex").write_text(PAPER % text, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert (tmp_path / "paper.pdf").stat().st_size > 5000


def test_intervals_in_the_table_are_those_of_the_comparison(tmp_path):
    search = Finished(tmp_path, space()).all()
    found = compare(read(opened(search.storage, search.name), search.folder))
    assert isinstance(found.rows[1].paired, Paired)
    (line,) = rows(difference_table(found))
    assert line[2].startswith(f"{found.rows[1].paired.difference.mean:+.1f} [")
