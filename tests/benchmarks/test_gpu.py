"""The GPU's measurements run on a CPU at small sizes, and with PyTorch alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ABSENT = ("ray", "mlflow", "optuna", "pycocotools", "sklearn", "pandas")
WITHOUT = f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))\nfrom benchmarks.gpu import main\nmain()"
SMALL = ["--device", "cpu", "--sizes", "128", "--images", "1", "--batches", "2", "--side", "64", "--rounds", "1"]


def test_it_runs_on_a_cpu_where_only_pytorch_is_installed():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *SMALL, "--json"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {what: value for what, value, _ in json.loads(done.stdout)["lines"]}
    assert all(value > 0 for value in found.values())
    assert {"ten views, N = 128, mirror exact", "training, 64², batch 2"} <= found.keys()
    assert any("with execution.compile" in what for what in found)
    assert 0 < found["training, 64², batch 2: of what the device reaches"] < 150
