"""The progress of a search: what is printed, what is drawn, and how the time left is reckoned."""

from __future__ import annotations

import io

from rich.console import Console

from ram_tune.config import Config, Training
from ram_tune.search.display import Display
from ram_tune.search.jobs import Job

METRICS = {
    "train/loss": 0.5,
    "train/images_per_second": 90.0,
    "selection/loss": 0.4,
    "selection/mAP": 0.65,
    "selection/CF1": 0.55,
    "selection/OF1": 0.6,
}
TEST = {"test/mAP": 0.7, "test/CF1": 0.6, "test/OF1": 0.61, "best_epoch": 3.0}


def jobs(count: int = 2, epochs: int = 10) -> list[Job]:
    config = Config(training=Training(epochs=epochs))
    stage1 = Job("stage1", "stage 1", config, "s", "data")
    return [stage1, *(Job("train", f"arm {n}", config, f"{n}", "data", ("s",)) for n in range(1, count + 1))]


class Search:
    """A display on a screen of paper, and a clock that is turned by hand."""

    def __init__(
        self, terminal: bool, plan: list[Job] | None = None, finished: int = 0, height: int = 25, quiet: bool = False
    ):
        self.paper, self.now = io.StringIO(), 0.0
        self.console = Console(
            file=self.paper,
            force_terminal=terminal,
            width=120,
            height=height,
            color_system=None,
            _environ={"TERM": "xterm"},
        )
        self.display = Display(self.console, plan or jobs(), finished, clock=lambda: self.now, quiet=quiet)

    def tell(self, kind: str, run: str = "1", at: float | None = None, **values) -> None:
        self.now = self.now if at is None else at
        self.display.handle({"type": kind, "run": run, **values})

    def step(self, epoch: int, step: int, at: float) -> None:
        self.tell("step", at=at, epoch=epoch, step=step, steps=100, loss=0.9)

    def epoch(self, epoch: int, at: float, mAP: float = 0.65) -> None:
        self.tell("epoch", at=at, epoch=epoch, metrics={**METRICS, "selection/mAP": mAP})

    def printed(self) -> list[str]:
        return self.paper.getvalue().splitlines()

    def drawn(self) -> list[str]:
        """The live part, as it would be drawn now."""
        with self.console.capture() as text:
            self.console.print(self.display)
        return [" ".join(line.replace("━", "").split()) for line in text.get().splitlines()]


def test_without_a_terminal_lines_are_printed_and_aligned():
    search = Search(terminal=False)
    with search.display:
        search.tell("started", "s")
        search.tell("cluster", text="2 of 4 CPU in use")
        search.tell("finished", "s", metrics=TEST)
        search.tell("started")
        search.tell("state", text="convolving 300/600")
        search.step(1, 50, at=1)
        search.epoch(1, at=2)
        search.epoch(1, at=3)  # again
        search.tell("failed", error='Traceback (most recent call last):\n  File "x"\nValueError: [b]no\n')
        search.tell("stopped", "2")
        search.tell("notice", text="MLflow does not answer")
    assert search.printed() == [
        "stage 1         started",
        "stage 1         finished  test mAP 0.7000 CF1 0.6000 OF1 0.6100",
        "1 of 3 runs finished · 0 s left · 2 of 4 CPU in use",
        "arm 1 · seed 0  started",
        "arm 1 · seed 0  epoch   1/10  loss 0.5000  selection loss 0.400 mAP 0.650 CF1 0.550 OF1 0.600",
        "arm 1 · seed 0  FAILED  ValueError: [b]no",
        "arm 2 · seed 0  stopped",
        "MLflow does not answer",
    ]


def test_quiet_only_what_goes_wrong_is_said_but_all_of_it_is_kept(caplog):
    for terminal in (False, True):
        caplog.clear()
        caplog.set_level("INFO", "ram_tune.search")
        search = Search(terminal, quiet=True)
        with search.display:
            search.tell("started", "s")
            search.epoch(1, at=2)
            search.tell("finished", "s", metrics=TEST)
            search.tell("stalled", "s", text="arm 1 has not moved for 10 min")
            search.tell("failed", error="ValueError: no")
        assert search.printed() == ["arm 1 has not moved for 10 min", "arm 1 · seed 0  FAILED  ValueError: no"]
        kept = "\n".join(caplog.messages)
        for words in ("stage 1", "started", "epoch   1/10", "finished  test mAP", *search.printed()):
            assert words in kept


def test_what_is_unknown_or_comes_too_late_is_ignored():
    search = Search(terminal=False)
    search.tell("tea")
    search.tell("started", "of another search")
    search.tell("finished", metrics=TEST)
    printed = search.printed()
    search.tell("finished", metrics=TEST)
    search.epoch(1, at=1)
    assert search.printed() == printed
    assert search.drawn() == ["1 of 3 runs finished"]


def test_on_a_terminal_a_running_job_has_a_row():
    search = Search(terminal=True, finished=1)
    search.tell("started")
    assert search.drawn() == ["arm 1 · seed 0 starting", "1 of 3 runs finished"]
    search.tell("state", text="convolving 300/600")
    assert search.drawn()[0] == "arm 1 · seed 0 convolving 300/600"
    search.step(1, 100, at=1)
    assert search.drawn()[0] == "arm 1 · seed 0 epoch 1/10 loss 0.9000 9 s left"
    search.epoch(1, at=2, mAP=0.7)
    search.epoch(2, at=4, mAP=0.6)
    assert search.drawn()[0] == "arm 1 · seed 0 epoch 2/10 loss 0.5000 mAP 0.600 best 0.700 16 s left"
    search.tell("stopped")
    assert search.drawn() == ["1 of 3 runs finished, 1 stopped"]


def test_on_a_terminal_ends_and_notices_stay_and_the_rest_is_drawn():
    search = Search(terminal=True)
    with search.display:
        search.tell("started")
        search.epoch(1, at=5)
        search.tell("finished", "s", metrics=TEST)
        search.tell("failed", "2", error="not run: what it starts from failed")
        search.tell("notice", text="MLflow does not answer")
    text = search.paper.getvalue()
    assert "stage 1         finished  test mAP 0.7000" in text
    assert "arm 2 · seed 0  FAILED  not run: what it starts from failed" in text
    assert "MLflow does not answer" in text
    assert "1 of 3 runs finished, 1 failed" in text
    assert "selection loss" not in text and "started" not in text
    assert "epoch 1/10" in text  # drawn


def test_a_jobs_time_left_runs_on_between_its_events():
    search = Search(terminal=True)
    search.tell("started", at=100)
    search.tell("state", at=160, text="convolving 600/600")  # a minute that no epoch takes again
    search.step(1, 50, at=165)
    assert search.drawn()[0].endswith("2 min left")  # half an epoch in 5 s: 95 s for the rest of ten
    search.epoch(1, at=180)  # an epoch takes 20 s, evaluation included
    assert search.drawn()[0].endswith("3 min left")
    search.step(2, 100, at=190)  # without its evaluation: the pace stays
    search.now = 330
    assert search.drawn()[0].endswith("30 s left")
    search.now = 400
    assert search.drawn()[0].endswith("0 s left")


def test_a_resumed_job_does_not_look_faster_by_the_epochs_it_had():
    for first in ("step", "epoch"):
        search = Search(terminal=True)
        search.tell("started", at=0)
        if first == "step":
            search.step(7, 50, at=30)
        search.epoch(7, at=60)
        assert search.drawn()[0].endswith("3 min left")  # epochs 8 to 10, a minute each


def test_the_searchs_time_left_comes_from_the_jobs_that_finished_here():
    search = Search(terminal=True, plan=jobs(count=5), finished=1)
    search.tell("started", "1", at=0)
    search.tell("started", "2", at=0)
    assert search.drawn()[-1] == "1 of 6 runs finished"
    search.tell("finished", "1", at=600, metrics=TEST)
    search.tell("failed", "2", at=600, error="no")
    search.tell("started", "3", at=600)
    search.tell("started", "4", at=600)
    assert search.drawn()[-1] == "2 of 6 runs finished, 1 failed · 15 min left"  # 3 left of 10 min each, 2 at a time
    search.now = 900
    assert search.drawn()[-1].endswith("10 min left")
    for run in "345":
        search.tell("finished", run, at=4500, metrics=TEST)
    assert search.drawn() == ["5 of 6 runs finished, 1 failed"]


def test_more_running_jobs_than_the_screen_has_lines_do_not_hide_the_last_line():
    search = Search(terminal=True, plan=jobs(count=8), height=5)
    for run in "12345678":
        search.tell("started", run)
    drawn = search.drawn()
    assert len(drawn) == 5
    assert drawn[-2:] == ["and 5 more", "0 of 9 runs finished"]
