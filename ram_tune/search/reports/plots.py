"""A sampled search in Optuna's own plots: its history, what mattered, how the parameters went together, the Pareto front."""

from __future__ import annotations

import base64
import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ram_tune.search.findings import comparable_study
from ram_tune.search.parameters import distributions, short
from ram_tune.search.reports.kept import Kept
from ram_tune.search.settings import tried

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SLICES = 4
"""Parameters side by side in one plot: more would be too small to read."""

INCH = 9.4, 3.6  # of a plot, at the width of the page


@dataclass(frozen=True)
class Plot:
    """A picture with what it shows."""

    caption: str
    source: str  # for an <img>, the picture itself in it


def plots(kept: Kept) -> list[Plot]:
    """Those that the study has enough settings for."""
    import matplotlib

    with matplotlib.rc_context({"backend": "agg"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna's, that these functions may change
        return list(_plots(kept))


def _plots(kept: Kept) -> Iterator[Plot]:
    import optuna.visualization.matplotlib as draw
    from optuna.importance import FanovaImportanceEvaluator

    study, space = kept.study.study, kept.space
    names = [f"{name} (selection)" for name in space.objectives]
    settings = tried(kept.study)
    varied = [name for name in space.parameters if any(name in one.values for one in settings)]
    wanted: list[tuple[str, Callable[[], Any]]] = []
    single = len(space.objectives) == 1
    target = {"target": lambda trial: trial.values[0], "target_name": names[0]} if not single else {}
    named = target or {"target_name": names[0]}
    wanted.append(
        ("Every setting in the order in which it was tried", lambda: draw.plot_optimization_history(study, **named))
    )
    if len(names) in (2, 3):
        front = "The Pareto front: no setting is as good in every objective and better in one"
        wanted.append((front, lambda: draw.plot_pareto_front(study, target_names=names)))
    if compared := comparable_study(settings, distributions(space.parameters)):
        evaluator = FanovaImportanceEvaluator(seed=0)  # as in the table
        why = "What the differences are explained by (fANOVA)"
        wanted.append((why, lambda: draw.plot_param_importances(compared, evaluator=evaluator, target_name=names[0])))
    wanted.append(("Every setting as a line", lambda: draw.plot_parallel_coordinate(study, params=varied, **named)))
    for some in (varied[start : start + SLICES] for start in range(0, len(varied), SLICES)):
        shown = ", ".join(short(name, space.parameters) for name in some)
        wanted.append((f"By {shown}", lambda some=some: draw.plot_slice(study, params=some, **named)))
    if single:
        wanted.append(("Every setting by epoch", lambda: draw.plot_intermediate_values(study)))
    for caption, drawn in wanted:
        with contextlib.suppress(ValueError, RuntimeError):  # too few settings, or all of one value
            yield Plot(caption, _picture(drawn()))


def _picture(axes: Any) -> str:
    import numpy as np
    from matplotlib import pyplot

    figure: Figure = np.asarray(axes).flat[0].figure
    try:
        figure.set_size_inches(*INCH)
        figure.suptitle("")
        for number, ax in enumerate(figure.axes):
            for side in ("left", "center"):
                ax.set_title("", loc=side)
            ax.set_facecolor("white" if number == 0 else "none")  # others may lie over the first
            ax.grid(visible=False, which="both")
            if number == 0:
                ax.grid(visible=True, color="#e4e4e4", linewidth=0.6)
            ax.set_axisbelow(True)
            ax.tick_params(labelsize=7)
            ax.set_xlabel(ax.get_xlabel(), fontsize=8)
            ax.set_ylabel(ax.get_ylabel(), fontsize=9)
            ax.yaxis.set_minor_formatter("")
            if (legend := ax.get_legend()) and len(legend.get_texts()) > 6:
                legend.remove()
        stream = io.StringIO()
        with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ram_tune", "font.family": "sans-serif"}):
            figure.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None})
    finally:
        pyplot.close(figure)
    return f"data:image/svg+xml;base64,{base64.b64encode(stream.getvalue().encode()).decode()}"
