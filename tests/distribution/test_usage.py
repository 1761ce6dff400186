"""Where a worker runs, as others are told."""

from __future__ import annotations

import subprocess
import sys

import torch

from ram_tune.distribution.usage import whereabouts

DRIVING = """
import sys
import ram_tune.distribution.trial, ram_tune.search.books, ram_tune.search.executor
print("torch" in sys.modules)
"""


def test_what_is_said_of_a_worker_is_plain_text():
    said = whereabouts(torch.device("cpu"))
    assert said["torch"] == torch.__version__
    assert {type(value) for value in said.values()} == {str}  # a version of PyTorch's own kind brings PyTorch along


def test_whoever_drives_runs_or_keeps_the_books_does_without_pytorch():
    done = subprocess.run([sys.executable, "-c", DRIVING], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
