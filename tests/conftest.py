"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """VOC 2007, a COCO sample and VGG-16's weights; tests that need them are skipped where they are not."""
    place = os.environ.get("RAM_TUNE_TEST_DATA")
    if not place:
        pytest.skip("RAM_TUNE_TEST_DATA is not set")
    return Path(place)
