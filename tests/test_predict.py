"""The command line that labels pictures: files, folders, patterns, broken ones, and the pictures it draws."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ram_tune.errors import BadInput
from ram_tune.models.network import Network
from ram_tune.predict import find_images, main, picture_names
from ram_tune.presets import configure, from_json, parse_set
from ram_tune.search.model import CHECKPOINT
from ram_tune.training import checkpoint
from ram_tune.training.local import train_in_folder
from ram_tune.training.trained import Trained


@pytest.fixture
def run(pictures, tiny, tmp_path, tmp_path_factory):
    """A trained run's folder, trained once for all tests."""
    made = tmp_path_factory.getbasetemp() / "run for predict"
    if not made.exists():
        quick = ["training.epochs=1", "stage1.epochs=1", "execution.pictures=0", "training.precision=fp32"]
        train_in_folder(configure(str(pictures), overrides=parse_set([*tiny, *quick])), made, made.parent / "cache")
    return Path(shutil.copytree(made, tmp_path / "ram_tune_runs" / "tiny"))


@pytest.fixture
def photos(pictures, tmp_path):
    """A folder with images, one below it, and files that are none."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name, source in (("b.png", 0), ("a.PNG", 1), ("sub/b.png", 2)):
        shutil.copy(pictures.parent / f"{source}.png", folder / name)
    Image.open(folder / "b.png").resize((200, 30)).save(folder / "b.jpg")
    (folder / "readme.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    return folder


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_folder_as_json(run, photos, capsys):
    assert main([str(photos), "--run", str(run), "--json", "--top", "2", "--threshold", "0"]) == 0
    said = lines(capsys)
    assert [each["path"] for each in said] == [str(photos / name) for name in ("a.PNG", "b.jpg", "b.png", "sub/b.png")]
    assert [each["size"] for each in said] == [[64, 64], [200, 30], [64, 64], [64, 64]]
    trained = Trained.load(run)
    expected = trained.predict([Image.open(each["path"]) for each in said])
    for each, found in zip(said, expected, strict=True):
        assert each["labels"] == trained.labels(found, 2)
        assert set(each["labels"][0]) == {"label", "probability", "score", "region", "box"}
        assert each["labels"][0]["region"] in (1, 2)


def test_readable_lines(run, photos, capsys):
    assert main([str(photos / "b.jpg"), "--run", str(run), "--threshold", "0"]) == 0
    out, err = capsys.readouterr()
    rows = Trained.load(run).labels(Trained.load(run).predict([Image.open(photos / "b.jpg")])[0])
    assert err == ""
    assert len(out.splitlines()) == 3
    for line, row in zip(out.splitlines(), rows, strict=True):
        box = " ".join(str(round(edge)) for edge in row["box"])
        expected = [
            f"{photos / 'b.jpg'}:",
            row["label"],
            f"{row['probability']:.3f}",
            "region",
            str(row["region"]),
            "box",
        ]
        assert line.split() == [*expected, *box.split()]
    main([str(photos / "b.jpg"), "--run", str(run), "--threshold", "1"])
    assert f"no label that probable (the likeliest: {rows[0]['label']}" in capsys.readouterr().out


def test_without_a_calibration_labels_are_ranked_by_score(run, photos, capsys):
    (run / "calibration.json").unlink(missing_ok=True)
    assert main([str(photos / "b.jpg"), "--run", str(run), "--json", "--threshold", "1", "--top", "2"]) == 0
    out, err = capsys.readouterr()
    labels = json.loads(out)["labels"]
    assert [row["probability"] for row in labels] == [None, None]
    assert labels[0]["score"] >= labels[1]["score"]
    assert "ranked by score" in err and err.count("\n") == 1
    main([str(photos / "b.jpg"), "--run", str(run)])
    assert f"{labels[0]['label']:<5}  score {labels[0]['score']:.3f}  region" in capsys.readouterr().out


def test_broken_images_are_reported_and_the_others_done(run, photos, capsys):
    (photos / "broken.jpg").write_bytes((photos / "b.jpg").read_bytes()[:300])
    (photos / "empty.png").touch()
    assert main([str(photos), "--run", str(run), "--json"]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 4
    assert "broken.jpg: found a damaged image" in err and "empty.png: found a file that is no image" in err
    assert "2 of 6 images could not be read" in err
    assert main([str(photos / "readme.txt"), "--run", str(run)]) == 1


def test_more_images_than_are_in_memory_at_a_time(run, pictures, capsys):
    assert main([str(pictures.parent), "--run", str(run), "--json"]) == 0
    assert len(lines(capsys)) == 36


def test_one_pixel(run, tmp_path, capsys):
    Image.new("L", (1, 1)).save(tmp_path / "dot.png")
    assert main([str(tmp_path / "dot.png"), "--run", str(run), "--save-pictures", str(tmp_path / "drawn")]) == 0
    assert Image.open(tmp_path / "drawn" / "dot.jpg").width == 512


def test_pictures_mirror_the_folders(run, photos, tmp_path, capsys):
    drawn = tmp_path / "drawn"
    command = [str(photos), "--run", str(run), "--json", "--save-pictures", str(drawn), "--threshold", "0"]
    assert main(command) == 0
    said = {each["path"]: each["picture"] for each in lines(capsys)}
    names = ["a.jpg", "b.jpg", "b-2.jpg", "sub/b.jpg"]
    assert [str(drawn / name) for name in names] == list(said.values())
    assert all(Image.open(drawn / name).width == 512 for name in names)
    before = {name: (drawn / name).read_bytes() for name in names}
    assert main(command) == 0
    assert before == {str(file.relative_to(drawn)): file.read_bytes() for file in drawn.rglob("*") if file.is_file()}


def test_pictures_of_a_model_without_regions(pictures, tiny, photos, tmp_path, capsys):
    fields = [*tiny, "model.name=whole_image", "loss.classification=bce", "training.epochs=1"]
    train_in_folder(configure(str(pictures), overrides=parse_set(fields)), tmp_path / "run", tmp_path / "cache")
    options = ["--run", str(tmp_path / "run"), "--save-pictures", str(tmp_path / "drawn"), "--threshold", "0"]
    assert main([str(photos / "b.png"), *options]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 3 and "region" not in out
    assert main([str(photos / "b.png"), *options, "--json"]) == 0
    assert {(row["region"], row["box"]) for row in lines(capsys)[0]["labels"]} == {(None, None)}
    assert Image.open(tmp_path / "drawn" / "b.jpg").height > 512  # the labels below it


def test_a_network_that_is_broken_or_does_not_fit_is_one_line(run, photos, monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr(Network, "forward", full)
        assert main([str(photos), "--run", str(run)]) == 1
    assert capsys.readouterr().err.startswith("error: out of memory")
    best = run / "checkpoint" / "best.pt"
    content = checkpoint.load(best)
    content["network"]["head.feature.bias"].fill_(torch.nan)
    checkpoint.save(best, content, from_json(content["config"], "test"), content["fingerprint"])
    assert main([str(photos), "--run", str(run)]) == 1
    assert capsys.readouterr() == ("", "error: the network's scores are not finite: its training broke down.\n")


# --- which images, and what their pictures are called


def test_each_image_once_in_the_order_given(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    files, base = find_images(["photos/b.png", "photos", str(photos / "a.PNG"), "photos/*.jpg"])
    assert [str(file) for file in files] == ["photos/b.png", "photos/a.PNG", "photos/b.jpg", "photos/sub/b.png"]
    assert base == photos


def test_patterns(photos):
    assert [file.name for file in find_images([str(photos / "*")])[0]] == ["a.PNG", "b.jpg", "b.png"]
    assert len(find_images([str(photos / "**" / "*.png")])[0]) == 2
    (photos / "[1].png").write_bytes((photos / "b.png").read_bytes())  # a file's own name is no pattern
    assert [file.name for file in find_images([str(photos / "[1].png")])[0]] == ["[1].png"]


def test_pictures_below_the_images_are_no_images(photos):
    (photos / "drawn").mkdir()
    shutil.copy(photos / "b.png", photos / "drawn")
    assert len(find_images([str(photos)], photos / "drawn")[0]) == 4
    assert len(find_images([str(photos / "drawn")], photos)[0]) == 1
    assert len(find_images([str(photos / "drawn")], photos / "drawn")[0]) == 1


def test_links_and_roundabout_names_stay_within_the_folder_of_pictures(photos, tmp_path, monkeypatch):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "x.png").symlink_to(photos / "sub" / "b.png")
    monkeypatch.chdir(photos)
    names = picture_names(*find_images(["sub/../b.png", "../links", "sub"]), tmp_path / "drawn")
    expected = ["photos/b.jpg", "links/x.jpg", "photos/sub/b.jpg"]
    assert list(names.values()) == [tmp_path / "drawn" / name for name in expected]


def test_no_picture_is_written_over_an_image_or_another_picture(photos, tmp_path):
    files, base = find_images([str(photos)])
    assert [each.name for each in picture_names(files, base, photos).values()] == [
        "a.jpg",
        "b-2.jpg",
        "b-3.jpg",
        "b.jpg",
    ]
    two = [str(tmp_path / name) for name in ("one", "two")]
    for name in two:
        shutil.copytree(photos, name)
    names = picture_names(*find_images(two), tmp_path / "drawn")
    assert len(set(names.values())) == 8
    assert names[tmp_path / "two" / "sub" / "b.png"] == tmp_path / "drawn" / "two" / "sub" / "b.jpg"


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["photos/c.png"], "no file photos/c.png"),
        (["photos/readm.txt"], r"Did you mean readme\.txt\?"),
        (["empty"], r"no image in empty; expected files such as \*\.jpg"),
        (["photos/*.gif"], r"no image in photos/\*\.gif"),
        (["photos", "--top", "0"], "--top"),
        (["photos", "--threshold", "50"], "--threshold"),
        (["photos", "--run", "ram_tune_runs/tny"], r"Did you mean ram_tune_runs/tiny\?"),
        (["photos", "--run", "tiny"], r"Did you mean ram_tune_runs/tiny\?"),
        (["photos", "--run", "empty"], r"without best\.pt"),
        (["photos", "--run", "photos/b.png"], "no checkpoint"),
        (["photos", "--run", "0" * 32], r"no file .*mlflow\.db; .*MLFLOW_TRACKING_URI"),
        (["photos", "--device", "abacus"], "'abacus'"),
        (["photos", "--save-pictures", "photos/readme.txt"], "--save-pictures"),
        (["photos/" + 300 * "x"], r"IMAGE: found photos/x+ \(File name too long\)"),
        (["photos", "--run", 300 * "x"], r"RUN: found x+ \(File name too long\)"),
    ],
)
def test_bad_input(run, photos, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAM_TUNE_RESULTS", raising=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=words):
        main(["--run", str(run), *arguments])
    assert not (tmp_path / "mlflow.db").exists()


def test_a_run_in_mlflow(run, photos, tmp_path, monkeypatch, capsys):
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = MlflowClient("sqlite:///mlflow.db")
    experiment = client.create_experiment("e")
    here = client.create_run(experiment, tags={CHECKPOINT: str(run)}).info.run_id
    assert main(["photos/b.png", "--run", here, "--json"]) == 0
    with_id = capsys.readouterr().out
    main(["photos/b.png", "--run", str(run), "--json"])
    assert capsys.readouterr().out == with_id

    client.create_registered_model("labels")
    version = client.create_model_version("labels", str(tmp_path), here).version
    client.set_registered_model_alias("labels", "best", version)
    main(["photos/b.png", "--run", "labels@best", "--json"])
    assert capsys.readouterr().out == with_id

    search = client.create_run(experiment).info.run_id
    gone = client.create_run(experiment, tags={CHECKPOINT: "/nowhere"}).info.run_id
    for run_id, words in (
        (search, "name one of those below it"),
        (gone, "no folder /nowhere"),
        ("f" * 32, "not found"),
        ("labels@worst", "RUN labels@worst: .*expected a registered model in MLflow"),
    ):
        with pytest.raises(BadInput, match=words):
            main(["photos/b.png", "--run", run_id])
    (tmp_path / "text.db").write_text("no database at all" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'text.db'}")
    with pytest.raises(BadInput, match="MLFLOW_TRACKING_URI"):
        main(["photos/b.png", "--run", here])


def test_the_shell_sees_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "ram_tune.predict"]
    done = subprocess.run([*command, str(tmp_path), "--run", "x"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: IMAGE: found no image in ")


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in ("examples:", "--run", "--json", "--save-pictures", "exit code"))
