"""`python -m ram_tune.report`: what a search found, with intervals, from its record alone."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ram_tune.errors import BadInput, command_line
from ram_tune.options import study_storage
from ram_tune.search.reports import METRICS

if TYPE_CHECKING:
    from ram_tune.search.reports.listing import Listed

FORMATS = "text", "markdown", "latex", "csv", "html"

EXAMPLES = """\
examples:
  python -m ram_tune.report                                         the searches that there are
  python -m ram_tune.report constraints                             the newest of that name, on any dataset
  python -m ram_tune.report constraints-voc2007 --reference A+S+P   every arm against the complete model
  python -m ram_tune.report constraints --metric CF1 --format latex --out table.tex
  python -m ram_tune.report constraints --format html --out report.html      one file, with curves and pictures
  python -m ram_tune.report constraints --compare views             another search's arms beside

exit code: 0 all is well, 2 the options or files cannot be used"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code; raises BadInput (code 2)."""
    options = _parser().parse_args(arguments)
    results = _results(options.results)
    if options.compare and not options.name:
        raise BadInput("NAME", found="nothing", expected="the search that others are compared with")

    from ram_tune.search.reports.listing import find, listed

    storage = study_storage(options.study_storage, results)
    if not options.name:
        _console(None).print(_list(listed(storage)))
        return 0

    def newest(begins: str, option: str = "NAME") -> str:
        *older, found = find(storage, begins, option)
        if older:
            print(f"the newest of {len(older) + 1} searches that begin with {begins}: {found}", file=sys.stderr)
        return found

    name = newest(options.name)
    others = list(dict.fromkeys(newest(other, "--compare") for other in options.compare))
    if name in others:
        raise BadInput("--compare", found=name, expected="another search than NAME")

    from ram_tune.search.reports.document import document
    from ram_tune.search.reports.kept import opened, read
    from ram_tune.training.results import write

    kept, *beside = (read(opened(storage, one), results / one) for one in (name, *others))
    found = document(kept, beside, options.metric, options.reference)
    if options.format == "text" and not options.out:
        from ram_tune.search.reports.document import show

        show(found, _console(None))
        return 0
    text = _written(found, options.format)
    if options.out:
        write(options.out.expanduser().absolute(), text)
        print(options.out)
    else:
        print(text, end="")
    return 0


def _results(option: Path | None) -> Path:
    """As `options.results_dir`, which makes the folder: who only reads leaves none behind."""
    return (option or Path(os.environ.get("RAM_TUNE_RESULTS") or "ram_tune_runs")).expanduser().absolute()


def _written(found, format: str) -> str:
    from ram_tune.search.reports import document, formats, page

    if format == "text":
        paper = _console(120)
        with paper.capture() as text:
            document.show(found, paper)
        return text.get()
    if format == "markdown":
        return document.markdown(found)
    if format == "latex":
        return formats.latex(found.comparison, found.title)
    if format == "csv":
        return formats.csv_text(found.comparison)
    return page.page(found)


def _console(width: int | None) -> Console:
    console = Console(width=width, color_system=None) if width else Console()
    return console if width or console.is_terminal else Console(width=120)


def _list(searches: Sequence[Listed]) -> Table:
    table = Table(title="Searches", caption="the newest last")
    for column in ("name", "finished", "pruned", "failed", "running"):
        table.add_column(column, justify="left" if column == "name" else "right")
    for one in searches:
        table.add_row(
            Text(one.name), *(str(one.runs[state] or "") for state in ("finished", "pruned", "failed", "running"))
        )
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ram_tune.report",
        description="Say what a search found: every arm with its intervals, and how it differs from a reference.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="a study, or the start of its name; none: list those that there are"
    )
    parser.add_argument("--compare", nargs="+", default=[], metavar="NAME", help="searches whose arms are set beside")
    parser.add_argument("--metric", choices=METRICS, default="mAP", help="what arms are compared by (default: mAP)")
    parser.add_argument(
        "--reference",
        default="",
        metavar="ARM",
        help="what arms are compared with (default: the search's own, its first)",
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="(default: text)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="(default: the terminal)")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="what searches left (default: $RAM_TUNE_RESULTS, else ram_tune_runs)",
    )
    parser.add_argument(
        "--study-storage",
        default="",
        metavar="URL",
        help="Optuna's database (default: $RAM_TUNE_STUDY_STORAGE, else studies.db in --results)",
    )
    return parser


if __name__ == "__main__":
    command_line(main)
