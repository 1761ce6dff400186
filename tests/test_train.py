"""The command line: a whole run, its files, going on, and what it says to bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ram_tune.errors import BadInput
from ram_tune.train import main

# The packages the first floors must not need.
ABSENT = ("ray", "mlflow", "optuna", "pycocotools", "sklearn", "scipy", "pandas")
WITHOUT = f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))\nfrom ram_tune.train import main\nsys.exit(main())"


def run(*arguments: str, without: bool = False) -> subprocess.CompletedProcess:
    how = ["-c", WITHOUT] if without else ["-m", "ram_tune.train"]
    return subprocess.run([sys.executable, *how, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_a_whole_run_where_only_pytorch_is_installed(pictures, tiny, tmp_path):
    out = tmp_path / "out"
    done = run("--data", str(pictures), "--cache-dir", str(tmp_path), "--out", str(out), "--set", *tiny, without=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("stage1 ") == 2
    assert done.stdout.count("rma ") == 3
    final = json.loads((out / "metrics.json").read_text())
    assert f"mAP {final['test']['mAP']:.4f}" in done.stdout
    for name in (
        "config.yaml",
        "metrics.json",
        "per_label.csv",
        "scores.npz",
        "checkpoint/best.pt",
        "stage1/metrics.json",
    ):
        assert (out / name).is_file()
        assert name in done.stdout  # files are named at the end
    assert not list(tmp_path.rglob("*.partial"))


@contextmanager
def interrupted_in(model: str, epoch: int) -> Iterator[None]:
    """Ctrl-C after an epoch of the run that trains `model`."""
    from ram_tune.training import local

    def fit(run, progress):
        for report in original(run, progress):
            yield report
            if (run.config.model.name, report.epoch) == (model, epoch):
                raise KeyboardInterrupt

    original, local.fit = local.fit, fit
    try:
        yield
    finally:
        local.fit = original


@pytest.mark.parametrize(("model", "epoch"), [("whole_image", 1), ("rma", 2)])
def test_resume_goes_on_with_the_settings_of_the_folder(pictures, tiny, tmp_path, capsys, model, epoch):
    common = ["--cache-dir", str(tmp_path / "cache")]
    start = ["--data", str(pictures), *common, "--set", *tiny]
    main([*start, "--out", str(tmp_path / "whole")])
    whole = json.loads((tmp_path / "whole" / "metrics.json").read_text())

    out = str(tmp_path / "parts")
    with interrupted_in(model, epoch):
        assert main([*start, "--out", out]) == 130
    assert f"--resume {out}" in capsys.readouterr().err
    with pytest.raises(BadInput, match="another configuration"):
        main(["--resume", out, *common, "--set", "model.regions=1"])
    with pytest.raises(BadInput, match="--resume alone"):
        main(["--resume", out, *common, "--out", str(tmp_path / "elsewhere")])
    capsys.readouterr()
    assert main(["--resume", out, *common]) == 0
    lines = capsys.readouterr().out
    assert ("epoch   1/3" in lines) == (model == "whole_image")  # what was done is not done again
    parts = json.loads((tmp_path / "parts" / "metrics.json").read_text())
    assert parts["test"] == whole["test"]


def test_a_run_started_from_a_given_stage_1_resumes_without_it(pictures, tiny, tmp_path):
    common = ["--cache-dir", str(tmp_path / "cache")]
    main(["--data", str(pictures), *common, "--out", str(tmp_path / "a"), "--set", *tiny])
    best = tmp_path / "a" / "stage1" / "checkpoint" / "best.pt"
    start = ["--data", str(pictures), *common, "--stage1", str(best), "--out", str(tmp_path / "b"), "--set", *tiny]
    with interrupted_in("rma", 1):
        assert main(start) == 130
    assert main(["--resume", str(tmp_path / "b"), *common]) == 0
    assert not (tmp_path / "b" / "stage1").exists()
    a, b = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in "ab")
    assert a["test"] == b["test"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "voc2007"], "--data-root"),
        (["--data", "voc2007", "--data-root", "/nowhere"], "/nowhere"),
        (["--data", "coco2014", "--data-root", "/tmp"], "instances_train2014.json"),
        (["--data", "imagenet"], "coco2014, scenes, voc2007"),
        (["--set", "model.region=3"], "Did you mean model.regions?"),
        (["--resume", "/nowhere"], "config.yaml"),
        (["--set", "data.image_size=170"], "multiple of 16"),
        (["--set", "evaluation.scales=[160,192]"], "one training has one scale"),
        (["--set", "model.backbone.name=vit_b_16", "model.backbone.layer=encoder"], "feature map"),
        (["--set", "model.backbone.name=resnet18", "model.backbone.layer=fc"], "feature map"),
        (["--cache-dir", "/proc/nowhere"], "--cache-dir"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(arguments, words, tmp_path, monkeypatch):
    monkeypatch.setenv("RAM_TUNE_RESULTS", str(tmp_path))
    monkeypatch.setenv("RAM_TUNE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BadInput) as caught:
        main(arguments)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_default_dataset_needs_no_pycocotools(tmp_path):
    small = ["model.name=whole_image", "training.epochs=1", "data.image_size=32", "data.crop_margin=0", "data.limit=40"]
    out = str(tmp_path / "out")
    done = run("--cache-dir", str(tmp_path), "--out", out, "--set", *small, without=True)
    assert done.returncode == 0, done.stderr
    assert "scenes: 40 train, 40 selection, 40 test images, 16 labels" in done.stdout


def test_the_shell_sees_exit_code_2_and_one_line(tmp_path):
    done = run("--data", "voc2007", "--data-root", str(tmp_path / "gone"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_stage_1_of_another_run_is_refused(pictures, tiny, tmp_path):
    main(["--data", str(pictures), "--cache-dir", str(tmp_path), "--out", str(tmp_path / "a"), "--set", *tiny])
    best = tmp_path / "a" / "stage1" / "checkpoint" / "best.pt"
    arguments = ["--data", str(pictures), "--cache-dir", str(tmp_path), "--stage1", str(best)]
    assert main([*arguments, "--out", str(tmp_path / "b"), "--set", *tiny, "loss.anchor=off"]) == 0
    assert not (tmp_path / "b" / "stage1").exists()
    with pytest.raises(BadInput, match=r"model\.projection_size 16 there, 8 here"):
        main([*arguments, "--out", str(tmp_path / "c"), "--set", *tiny, "model.projection_size=8"])


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in ("examples:", "--data-root", "--resume", "--set", "--stage1"))
    main(["--fields"])
    assert "loss.anchor_weight = 0.01\n    lambda1. [RMA] 0.01." in capsys.readouterr().out


def test_the_command_line_starts_without_torch():
    code = "import sys, ram_tune.train; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_broken_test_image_is_found_before_training(pictures, tiny, tmp_path, capsys):
    shutil.copytree(pictures.parent, tmp_path / "own")
    broken = tmp_path / "own" / "35.png"  # of the test split
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(BadInput, match=r"35\.png: found a damaged image"):
        main(
            [
                "--data",
                str(tmp_path / "own" / "labels.csv"),
                "--cache-dir",
                str(tmp_path),
                "--out",
                str(tmp_path / "o"),
                "--set",
                *tiny,
            ]
        )
    assert "epoch" not in capsys.readouterr().out
    assert not list((tmp_path / "o").iterdir())
