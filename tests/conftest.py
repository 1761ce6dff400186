"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from searches import STARTED, end


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests are shared out over processes: a file stays whole, and what needs Ray is all in one, which starts one."""
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True)
def _nothing_goes_on_behind_a_test() -> Iterator[None]:
    """A search that a failed test left would hold the machine under the next ones."""
    yield
    while STARTED:
        end(STARTED.pop())


@pytest.fixture(scope="session")
def real_data() -> Path:
    """VOC 2007, a COCO sample and VGG-16's weights; tests that need them are skipped where they are not."""
    place = os.environ.get("RAM_TUNE_TEST_DATA")
    if not place:
        pytest.skip("RAM_TUNE_TEST_DATA is not set")
    return Path(place)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 36 small pictures of three labels that can be told apart by colour: learnable within seconds."""
    root = tmp_path_factory.mktemp("own") / "pictures"
    root.mkdir()
    random = np.random.default_rng(0)
    lines = ["path,labels,split"]
    for index in range(36):
        present = [label for label in range(3) if random.random() < 0.5] or [int(random.integers(3))]
        pixels = random.integers(0, 60, (64, 64, 3), dtype=np.uint8)
        for label in present:
            y, x = random.integers(4, 40, 2)
            pixels[y : y + 20, x : x + 20, label] = 230
        Image.fromarray(pixels).save(root / f"{index}.png")
        split = "train" if index < 20 else "selection" if index < 28 else "test"
        lines.append(f"{index}.png,{';'.join(['red', 'green', 'blue'][label] for label in present)},{split}")
    (root / "labels.csv").write_text("\n".join(lines))
    return root / "labels.csv"


@pytest.fixture
def tiny(pictures: Path) -> list[str]:
    """`--set` arguments of a run that takes a second, on `pictures`."""
    return [
        "data.selection_split=selection",
        "data.image_size=64",
        "data.crop_margin=16",
        "model.backbone.name=small",
        "model.backbone.weights=none",
        "model.regions=2",
        "model.sample_size=3",
        "model.projection_size=16",
        "model.hidden_size=16",
        "model.feature_size=16",
        "training.epochs=3",
        "training.batch_size=8",
        "training.learning_rate=1e-3",
        "training.lr_steps=[2]",
        "stage1.epochs=2",
        "stage1.batch_size=8",
        "stage1.learning_rate=1e-3",
    ]


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[tuple]:
    """The session's one Ray instance, for tests that run in its workers; → its nodes."""
    from ram_tune.search.machines import ray_cluster

    with ray_cluster() as machines:
        yield machines
