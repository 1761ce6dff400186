"""Where the time goes: the parts of a step, each charged with its own work."""

from __future__ import annotations

import gzip
import json
from types import SimpleNamespace

import pytest
import torch

from ram_tune.errors import BadInput
from ram_tune.presets import configure, parse_set
from ram_tune.train import main
from ram_tune.training import profile
from ram_tune.training.run import prepare


def run_of(pictures, tiny, folder, *more):
    return prepare(configure(str(pictures), overrides=parse_set([*tiny, "stage1.epochs=0", *more])), folder)


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only where a test lets it: `clock.now += 1`."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(profile, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def wait(clock, seconds):
    clock.now += seconds


@pytest.mark.parametrize(("part", "wanted"), [("backbone", profile.CONVOLUTIONS), ("head", profile.HEAD)])
def test_a_part_that_takes_long_is_the_one_that_is_charged(pictures, tiny, tmp_path, clock, part, wanted):
    run = run_of(pictures, tiny, tmp_path)
    getattr(run.network, part).register_forward_hook(lambda *_: wait(clock, 2.0), prepend=True)
    found = profile.profiled(run, tmp_path)
    assert found.seconds == {**dict.fromkeys(profile.PARTS, 0.0), wanted: pytest.approx(2.0)}
    assert found.share(wanted) == 1
    assert found.images_per_second == pytest.approx(4)  # 8 of a batch


@pytest.mark.parametrize("pieces", [1, 2])
def test_gradients_are_charged_to_what_they_pass_and_adam_to_itself(pictures, tiny, tmp_path, clock, pieces):
    run = run_of(pictures, tiny, tmp_path, f"execution.accumulate={pieces}")

    def first_convolution(module, inputs, output):  # its gradient comes last
        output.register_hook(lambda _: wait(clock, 2.0))

    run.network.backbone.layers[0].register_forward_hook(first_convolution)
    run.network.head.classifier.weight.register_hook(lambda _: wait(clock, 3.0))  # once a step: it is summed before
    run.optimizer.register_step_post_hook(lambda *_: wait(clock, 5.0))
    found = profile.profiled(run, tmp_path).seconds
    assert found == pytest.approx(
        {profile.CONVOLUTIONS: 2 * pieces, profile.HEAD: 3 * pieces, profile.OPTIMISER: 5, profile.INPUT: 0}
    )


def test_cached_maps_are_not_convolved(pictures, tiny, tmp_path):
    run = run_of(pictures, tiny, tmp_path, "data.crop=map", "model.backbone.trainable=none")
    found = profile.profiled(run, tmp_path).seconds
    assert found[profile.CONVOLUTIONS] == 0 < min(found[profile.INPUT], found[profile.HEAD])


def test_a_trace_is_left_and_the_summary_names_it(pictures, tiny, tmp_path, capsys):
    main(["--data", str(pictures), "--cache-dir", str(tmp_path), "--out", str(tmp_path), "--profile", "--set", *tiny])
    said = " ".join(capsys.readouterr().out.split())
    for words in ("convolutions", "head and loss", "optimiser", "input", "aten::", "images/s", profile.TRACE):
        assert words in said
    events = json.loads(gzip.decompress((tmp_path / profile.TRACE).read_bytes()))["traceEvents"]
    assert any("conv" in event.get("name", "") for event in events)
    assert not (tmp_path / "config.yaml").exists()  # the folder can still be a run's


def test_what_does_not_fit_and_what_does_not_go_with_it_are_one_line(pictures, tiny, tmp_path, capsys, monkeypatch):
    def full(run, folder):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(profile, "profiled", full)
    command = ["--data", str(pictures), "--cache-dir", str(tmp_path), "--out", str(tmp_path), "--profile"]
    assert main([*command, "--set", *tiny]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: out of memory with training.batch_size=")
    with pytest.raises(BadInput, match="--stage1: found both this and --profile"):
        main([*command, "--stage1", "best.pt"])


def test_the_hooks_are_gone_afterwards(pictures, tiny, tmp_path):
    run = run_of(pictures, tiny, tmp_path)
    profile.profiled(run, tmp_path)
    for module in (run.network.backbone, run.network.head):
        assert not module._forward_hooks and not module._forward_pre_hooks
