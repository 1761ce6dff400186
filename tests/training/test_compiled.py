"""A compiled backbone computes what a plain one does, and where there is no compiler the plain one goes on."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from ram_tune.config import Config
from ram_tune.presets import configure, parse_set
from ram_tune.training.loop import fit
from ram_tune.training.run import Run, prepare

EXACT = "stage1.epochs=0", "training.precision=fp32", "training.epochs=1"


@pytest.fixture
def config(pictures: Path, tiny: list[str]) -> Config:
    return configure(str(pictures), overrides=parse_set([*tiny, *EXACT]))


def compiled(config: Config) -> Config:
    return config.model_copy(update={"execution": config.execution.model_copy(update={"compile": True})})


def after_an_epoch(config: Config, cache_dir: Path) -> tuple[Run, dict[str, float]]:
    run = prepare(config, cache_dir)
    (report,) = fit(run)
    del report.metrics["train/images_per_second"]
    return run, report.metrics


def test_it_learns_the_same(config, tmp_path, monkeypatch):
    """All but the last step, which has C++ or Triton compiled for half a minute: `benchmarks.gpu` has that, in its test."""
    plain, expected = after_an_epoch(config, tmp_path)
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda plain, **how: real(plain, **how, backend="aot_eager_decomp_partition"))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "execution.compile")
        run, found = after_an_epoch(compiled(config), tmp_path)
    assert run.fingerprint == plain.fingerprint and found == pytest.approx(expected, rel=1e-3)
    torch.testing.assert_close(run.weights()["network"], plain.weights()["network"], rtol=1e-3, atol=1e-4)


def test_where_the_compiler_fails_one_line_says_so_and_nothing_changes(config, tmp_path, monkeypatch):
    def broken(graph, inputs):
        raise FileNotFoundError("no g++")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda plain, **how: real(plain, **how, backend=broken))
    with pytest.warns(UserWarning, match=r"^execution\.compile: the backbone is not compiled \(.*no g\+\+") as told:
        run, found = after_an_epoch(compiled(config), tmp_path)
    assert sum("execution.compile" in str(one.message) for one in told) == 1
    plain, expected = after_an_epoch(config, tmp_path)
    assert found == expected
    torch.testing.assert_close(run.weights()["network"], plain.weights()["network"], rtol=0, atol=0)


def test_other_errors_are_not_the_compilers(config, tmp_path, monkeypatch):
    def full(images):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "compile", lambda plain, **how: full)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        after_an_epoch(compiled(config), tmp_path)
    assert not issubclass(torch.OutOfMemoryError, BackendCompilerFailed)
