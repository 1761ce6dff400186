"""What a person does in MLflow's own pages with a search, and what is on the screen then.

    python tests/screens.py http://127.0.0.1:5000 constraints-scenes docs/pictures

leaves the pictures of the docs, of a search that was run before.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from ram_tune.search.browsing import KEY, PICTURES
from ram_tune.search.record import REPORT

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or ""
CARD = "[data-testid=experiment-view-compare-runs-card]"
PATIENCE = 60_000  # milliseconds; a page's scripts are megabytes


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = chromium.new_page(viewport={"width": 1440, "height": 860}, device_scale_factor=1)
        page.set_default_timeout(PATIENCE)
        yield page
        chromium.close()


class Pages:
    """The pages of one experiment at an address; each method ends with a picture in `folder`."""

    def __init__(self, page: Any, address: str, experiment: str, folder: Path):
        self.page, self.address, self.folder = page, address, folder
        self.client = MlflowClient(address)
        found = self.client.get_experiment_by_name(experiment)
        assert found is not None, experiment
        self.id = found.experiment_id
        self.runs = {run.info.run_name: run for run in self.client.search_runs([self.id])}
        self.parent = next(run for run in self.runs.values() if run.data.tags["ram_tune.role"] == "search")
        self.first = True
        folder.mkdir(parents=True, exist_ok=True)

    def open(self, place: str) -> None:
        self.page.goto("about:blank")  # else only what is behind the # would change
        self.page.goto(f"{self.address}/#/experiments/{self.id}{place}")
        if self.first:  # of a new browser: training rather than language models, and nobody who wants to help
            self.page.get_by_role("button", name="Close").click()
            self.page.get_by_text("Model training", exact=True).click()
            self.first = False
            self.open(place)

    def picture(self, name: str) -> None:
        self.page.wait_for_timeout(1500)  # what is faded in
        self.page.screenshot(path=self.folder / f"{name}.png")

    def rows(self) -> list[str]:
        """The names of the runs, from top to bottom."""
        return [name for name in self.page.locator(".ag-row a").all_inner_texts() if name in self.runs]

    def row(self, name: str) -> Any:
        return self.page.get_by_role("row").filter(has_text=name)

    def leaderboard(self) -> list[str]:
        """The view whose address a search prints → the runs in its order."""
        self.open(f"/runs?viewStateShareKey={KEY}")
        self.page.get_by_role("button", name="Hide banner").click()
        self.page.get_by_text("test/mAP").first.wait_for()
        self.page.get_by_text("stage 1").first.wait_for()
        self.picture("runs")
        return self.rows()

    def charts(self) -> list[str]:
        """The same runs as curves → their titles."""
        self.open(f"/runs?viewStateShareKey={KEY}&compareRunsMode=CHART")
        self.page.get_by_role("button", name="Hide banner").click()
        self.page.get_by_text("Recognition").first.wait_for()  # a section of ours
        self.page.locator(".js-plotly-plot").first.wait_for()
        self.picture("curves")
        return self.page.locator(f"{CARD} h4").all_inner_texts()

    def regions(self) -> tuple[int, int, int]:
        """Of these charts the runs' regions, on the whole screen, at the last epoch → its number, the first one's, images."""
        self.page.locator(CARD).filter(has_text=re.compile(f"^{PICTURES}")).get_by_role("button").first.click()
        shown = self.page.get_by_role("dialog")
        shown.locator("img").first.wait_for()
        slider = shown.get_by_role("slider").first

        def at(which: str = "now") -> int:
            return int(slider.get_attribute(f"aria-value{which}"))

        first, last = at(), at("max")
        while at() < last:  # from picture to picture; over the last one MLflow would lose its way
            slider.press("ArrowRight")
            self.page.wait_for_timeout(700)
        self.page.wait_for_timeout(2000)  # other pictures are loaded
        self.picture("regions")
        return at(), first, shown.locator("img").count()

    def expanded(self) -> list[str]:
        """MLflow's own start page of an experiment; the parent unfolded → the runs in its order."""
        self.open("/runs")
        self.row(self.parent.info.run_name).get_by_role("button").first.click()
        self.page.get_by_text("stage 1").first.wait_for()
        self.picture("tree")
        return self.rows()

    def compared(self, one: str, other: str) -> str:
        """Two runs of the unfolded parent, compared → what the page says."""
        for name in (one, other):
            self.row(name).get_by_role("checkbox").first.check()
        self.page.get_by_role("button", name="Compare").click()
        self.page.get_by_text("Comparing 2 Runs").first.wait_for()
        self.picture("compared")
        return self.page.inner_text("body")

    def description(self) -> str:
        """The parent's own page → its text."""
        self.open(f"/runs/{self.parent.info.run_id}")
        self.page.get_by_text("Description").first.wait_for()
        self.picture("parent")
        return self.page.inner_text("body")

    def report(self) -> str:
        """The report, in MLflow's viewer → its text."""
        self.open(f"/runs/{self.parent.info.run_id}/artifacts")
        self.page.get_by_text(REPORT).first.click()
        frame = self.page.frame_locator("iframe").first
        frame.locator("h1").wait_for()
        self.picture("report")
        return frame.locator("body").inner_text()


def main(address: str, experiment: str, folder: str) -> None:
    with browser() as page:
        pages = Pages(page, address, experiment, Path(folder))
        for step in (pages.leaderboard, pages.charts, pages.regions, pages.description, pages.report):
            print(step.__name__, str(step())[:200])


if __name__ == "__main__":
    main(*sys.argv[1:])
