"""The loop: resumed equals uninterrupted, test is read once, faults are named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ram_tune.config import Config, Training
from ram_tune.data.batches import training_batches
from ram_tune.errors import BadInput
from ram_tune.presets import configure, parse_set
from ram_tune.training import checkpoint
from ram_tune.training.judging import NotFiniteError, finish, write_pictures
from ram_tune.training.local import train_in_folder
from ram_tune.training.loop import fit, learning_rate, optimise, train_epoch
from ram_tune.training.run import Run, prepare


@pytest.fixture
def config(pictures: Path, tiny: list[str]) -> Config:
    return configure(str(pictures), overrides=parse_set(tiny))


def changed(config: Config, *assignments: str) -> Config:
    from ram_tune.presets import from_fields

    return from_fields(config.flat() | parse_set(assignments))


def assert_same_state(one: dict, other: dict) -> None:
    torch.testing.assert_close(one["network"], other["network"], rtol=0, atol=0)
    torch.testing.assert_close(one["optimizer"]["state"], other["optimizer"]["state"], rtol=0, atol=0)


@pytest.mark.parametrize("extra", [[], ["model.dropout=0.5", "training.precision=fp32", "execution.accumulate=2"]])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(config, tmp_path, extra):
    config = changed(config, "stage1.epochs=0", *extra)
    whole = prepare(config, tmp_path)
    histories = [report.metrics for report in fit(whole)]

    first = prepare(config, tmp_path)
    next(iter(fit(first)))
    checkpoint.save(tmp_path / "last.pt", first.state(), config, first.fingerprint)
    second = prepare(config, tmp_path)
    second.restore(checkpoint.load(tmp_path / "last.pt", config, second.fingerprint))
    rest = [report.metrics for report in fit(second)]

    assert_same_state(whole.state(), second.state())
    assert len(rest) == 2
    for after, expected in zip(rest, histories[1:], strict=True):
        del after["train/images_per_second"], expected["train/images_per_second"]
        assert after == expected
    assert (whole.best_epoch, whole.best_value) == (second.best_epoch, second.best_value)


def test_an_interrupted_folder_ends_as_an_uninterrupted_one(config, tmp_path):
    def stop(stage, config, report):
        if stage == "rma" and report.epoch == 2:
            raise KeyboardInterrupt

    whole = train_in_folder(config, tmp_path / "whole", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train_in_folder(config, tmp_path / "parts", tmp_path, on_epoch=stop)
    assert not (tmp_path / "parts" / "metrics.json").exists()
    parts = train_in_folder(config, tmp_path / "parts", tmp_path)
    assert parts["test"] == whole["test"]
    assert [epoch["epoch"] for epoch in parts["history"]] == [1, 2, 3]
    assert not list((tmp_path / "parts").rglob("last.pt"))
    assert train_in_folder(config, tmp_path / "parts", tmp_path) == parts  # nothing left to do


def test_the_model_learns_colours(config, tmp_path):
    longer = "training.epochs=40", "training.lr_steps=[]", "training.learning_rate=3e-3", "loss.classification=bce"
    config = changed(config, "model.name=whole_image", *longer)
    summary = train_in_folder(config, tmp_path / "run", tmp_path)
    assert summary["test"]["mAP"] > summary["test"]["chance"] + 0.15
    assert summary["history"][-1]["train/loss"] < 0.5 * summary["history"][0]["train/loss"]


def test_scores_are_kept_and_give_the_metrics_again(config, tmp_path):
    from sklearn.metrics import average_precision_score

    summary = train_in_folder(config, tmp_path / "run", tmp_path)
    with np.load(tmp_path / "run" / "scores.npz", allow_pickle=False) as kept:
        scores, targets = kept["test_scores"], kept["test_targets"]
        assert kept["test_ids"].tolist() == [f"{i}.png" for i in range(28, 36)]
        assert kept["categories"].tolist() == ["blue", "green", "red"]
        assert kept["test_regions"].shape == (8, 2, 4)
        assert kept["selection_scores"].shape == (8, 3)
    assert summary["test"]["mAP"] == pytest.approx(average_precision_score(targets, scores, average="macro"))
    rows = (tmp_path / "run" / "per_label.csv").read_text().splitlines()
    assert rows[0] == "label,positives,AP,AP_11"
    assert np.mean([float(row.split(",")[2]) for row in rows[1:]]) == pytest.approx(summary["test"]["mAP"], abs=1e-5)


def test_nothing_but_the_final_evaluation_reads_test(config, tmp_path, monkeypatch):
    read = []
    source = Run._source
    monkeypatch.setattr(
        Run, "_source", lambda run, images, mirror: (read.append(images.ids), source(run, images, mirror))[1]
    )
    run = prepare(changed(config, "stage1.epochs=0"), tmp_path)
    for _ in fit(run):
        assert run.dataset.test.ids not in read
    finish([run])
    assert read.count(run.dataset.test.ids) == 1


def test_accumulating_pieces_is_the_same_step(config, tmp_path):
    gradients = []
    for pieces in (1, 3):
        run = prepare(
            changed(config, "stage1.epochs=0", "training.precision=fp32", f"execution.accumulate={pieces}"), tmp_path
        )
        batch = next(training_batches(run.train, 8, 0, 1))
        optimise(run, batch)
        gradients.append(torch.cat([p.grad.flatten() for p in run.network.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_names_epoch_batch_and_term(config, tmp_path):
    run = prepare(changed(config, "stage1.epochs=0"), tmp_path)
    with torch.no_grad():
        run.network.head.localization.bias.fill_(1e30)  # its square is beyond single precision
    with pytest.raises(NotFiniteError, match=r"epoch 4, batch 1: the scale term of the loss is inf"):
        train_epoch(run, 4, lambda *_: None)


def test_the_learning_rate_steps_down_after_its_epochs():
    config = Training(learning_rate=1e-3, lr_steps=(30, 40), lr_factor=0.1)
    assert [learning_rate(config, e) for e in (1, 30, 31, 40, 41)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5])


def test_groups_have_their_share_of_the_learning_rate(config, tmp_path):
    run = prepare(
        changed(
            config, "stage1.epochs=0", "training.localization_lr_multiplier=0.1", "training.backbone_lr_multiplier=0"
        ),
        tmp_path,
    )
    before = {name: p.detach().clone() for name, p in run.network.named_parameters()}
    train_epoch(run, 1, lambda *_: None)
    moved = {name: (p.detach() - before[name]).abs().max().item() for name, p in run.network.named_parameters()}
    assert max(value for name, value in moved.items() if name.startswith("backbone")) == 0
    assert 0 < moved["head.localization.weight"] < 0.2 * moved["head.classifier.weight"]


def test_stage_2_starts_from_stage_1s_convolutions_and_fc6(config, tmp_path):
    train_in_folder(config, tmp_path / "run", tmp_path)
    best = tmp_path / "run" / "stage1" / "checkpoint" / "best.pt"
    first = checkpoint.load(best)["network"]
    run = prepare(config, tmp_path, best)
    torch.testing.assert_close(run.network.head.project.weight, first["head.fc6.weight"])
    torch.testing.assert_close(run.network.backbone.state_dict()["layers.0.weight"], first["backbone.layers.0.weight"])


def test_cached_maps_give_what_convolving_gives(config, tmp_path):
    """With a frozen backbone and stride-aligned crops that reach no border, the two ways agree; here: in the metrics' reach."""
    frozen = ("stage1.epochs=0", "model.backbone.trainable=none", "training.precision=fp32", "data.crop_margin=0")
    by_pixels = prepare(changed(config, *frozen, "data.mirror=off"), tmp_path)
    by_map = prepare(changed(config, *frozen, "data.mirror=off", "data.crop=map"), tmp_path)
    one = train_epoch(by_pixels, 1, lambda *_: None)
    other = train_epoch(by_map, 1, lambda *_: None)
    assert one["loss"] == pytest.approx(other["loss"], rel=5e-3)  # maps are kept in bfloat16


def test_how_a_run_computes_is_not_left_to_the_next(config, tmp_path):
    def found() -> tuple[bool, ...]:
        cudnn = torch.backends.cudnn
        return torch.are_deterministic_algorithms_enabled(), cudnn.benchmark, cudnn.allow_tf32

    torch.backends.cudnn.benchmark = True
    exact = changed(config, "stage1.epochs=0", "execution.deterministic=on", "training.precision=fp32")
    prepare(exact, tmp_path)
    assert found() == (True, False, False)
    assert torch.is_deterministic_algorithms_warn_only_enabled()  # region sampling has no such gradient on a GPU
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    prepare(changed(config, "stage1.epochs=0"), tmp_path)
    assert found() == (False, False, True)


def test_deterministic_runs_end_in_the_same_bits(config, tmp_path):
    config = changed(config, "stage1.epochs=0", "execution.deterministic=on")
    ended = []
    for _ in range(2):
        run = prepare(config, tmp_path)
        list(fit(run))
        ended.append(run.state())
    torch.use_deterministic_algorithms(False)
    assert_same_state(*ended)


def test_a_device_that_is_not_there_is_named(config, tmp_path):
    with pytest.raises(BadInput, match=r"execution\.device: found 'gpu'"):
        prepare(changed(config, "stage1.epochs=0", "execution.device=gpu"), tmp_path)


def test_a_stage_1_for_a_model_that_needs_none_is_refused(config, tmp_path):
    with pytest.raises(BadInput, match="starts from no stage 1"):
        prepare(changed(config, "stage1.epochs=0"), tmp_path, tmp_path / "best.pt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["no checkpoint"]),
        (b"PK\x03\x04 nonsense", ["no checkpoint"]),
        (None, ["no such file"]),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, content, words):
    path = tmp_path / "best.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        checkpoint.load(path)
    assert all(word in str(caught.value) for word in [str(path), *words])


def test_a_pickle_is_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"format": checkpoint.FORMAT, "evil": Evil()}, tmp_path / "best.pt")
    with pytest.raises(BadInput, match="no checkpoint"):
        checkpoint.load(tmp_path / "best.pt")
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_another_configuration_is_refused_with_what_differs(config, tmp_path):
    train_in_folder(config, tmp_path / "run", tmp_path)
    other = changed(config, "model.projection_size=32")
    best = tmp_path / "run" / "stage1" / "checkpoint" / "best.pt"
    with pytest.raises(BadInput, match=r"another configuration \(model.projection_size 16 there, 32 here\)"):
        prepare(other, tmp_path, best)
    with pytest.raises(BadInput, match="run of another configuration"):
        train_in_folder(other, tmp_path / "run", tmp_path)


def test_a_damaged_metrics_file_is_named(config, tmp_path):
    train_in_folder(changed(config, "stage1.epochs=0", "training.epochs=1"), tmp_path / "run", tmp_path)
    path = tmp_path / "run" / "metrics.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(BadInput, match=r"metrics\.json"):
        train_in_folder(changed(config, "stage1.epochs=0", "training.epochs=1"), tmp_path / "run", tmp_path)


@pytest.mark.parametrize(
    ("size", "margin", "how", "words"),
    [
        (72, 8, "data.crop=pixels", "data.image_size"),
        (64, 8, "data.crop=map", "data.crop_margin"),
        (64, 8, "evaluation.views=ten", "data.crop_margin"),  # before training, not after it
    ],
)
def test_sizes_that_do_not_go_with_the_stride_are_refused(config, tmp_path, size, margin, how, words):
    bad = changed(
        config,
        f"data.image_size={size}",
        f"data.crop_margin={margin}",
        how,
        "model.backbone.trainable=none",
        "stage1.epochs=0",
    )
    with pytest.raises(BadInput, match=rf"{words}.*multiple of 16"):
        prepare(bad, tmp_path)


def test_a_picture_is_there_whole_or_not_at_all(config, tmp_path, monkeypatch):
    run = prepare(changed(config, "stage1.epochs=0"), tmp_path)
    run.epoch = 1
    monkeypatch.setattr(Path, "replace", lambda *_: None)  # killed just before
    write_pictures(run, tmp_path)
    assert not list(tmp_path.rglob("*.jpg"))
    monkeypatch.undo()
    write_pictures(run, tmp_path)
    assert [file.name for file in (tmp_path / "pictures").glob("*.jpg")] == ["001.jpg"]


def test_killed_while_an_epoch_is_saved_best_and_last_belong_together(config, tmp_path):
    run = prepare(changed(config, "stage1.epochs=0", "training.epochs=2"), tmp_path)
    places, old, state = {}, b"", {}
    for report in fit(run):
        if report.epoch == 1:
            checkpoint.save_epoch(tmp_path / "run", run.weights(), run.state(), config, "x")
            old = (tmp_path / "run" / "best.pt").read_bytes()
    state = run.state() | {"best_epoch": 2}
    for moment in ("before last", "after last"):
        places[moment] = tmp_path / moment
        places[moment].mkdir()
        (places[moment] / "best.pt").write_bytes(old)
        checkpoint.save(places[moment] / "next.pt", run.weights(), config, "x")
    checkpoint.save(places["before last"] / "last.pt", state | {"best_epoch": 1}, config, "x")
    checkpoint.save(places["after last"] / "last.pt", state, config, "x")
    for moment, epoch in (("before last", 1), ("after last", 2)):
        checkpoint.recover(places[moment])
        assert checkpoint.load(places[moment] / "best.pt")["epoch"] == epoch
        assert not (places[moment] / "next.pt").exists()
