"""The configuration: documented, canonical, and clear about what is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ram_tune import config as module
from ram_tune.config import Config, Loss, Model, Stage1, Training, digest, fields
from ram_tune.errors import BadInput
from ram_tune.presets import (
    FOR_MODEL,
    PRESETS,
    configure,
    dataset_name,
    edge_fingerprint,
    from_fields,
    from_json,
    parse_set,
)

CONTENTS = {"dataset": "0123456789abcdef"}

# Written down once. They change only when RESULT_VERSION is raised; a new field with a default must not touch them.
GOLDEN = {
    (): "da8902cf6f830e61",
    (("model.regions", 3), ("loss.anchor", False)): "bcc2680cd1e15a83",
    (("training.learning_rate", 1e-4), ("training.lr_steps", (3, 5))): "55437c003328e752",
}


@pytest.mark.parametrize(("changes", "expected"), GOLDEN.items())
def test_golden_fingerprints(changes, expected):
    assert from_fields(dict(changes)).fingerprint(CONTENTS) == expected


def test_a_new_field_with_a_default_changes_no_fingerprint(monkeypatch):
    class Longer(Training):
        patience: int = 7
        """A field of the future."""

    class Later(Config):
        training: Longer = Longer()

    before = from_fields({"model.regions": 3}).fingerprint(CONTENTS)
    monkeypatch.setattr(module, "Config", Later)
    assert Later(model=Model(regions=3)).fingerprint(CONTENTS) == before
    assert Later(model=Model(regions=3), training=Longer(patience=8)).fingerprint(CONTENTS) != before


@pytest.mark.parametrize("name", [name for name, about in fields() if about["hashed"]])
def test_every_hashed_field_changes_the_fingerprint(name):
    about = dict(fields())[name]
    default = about["default"]
    choices = getattr(about["annotation"], "__args__", ())
    other = {bool: lambda d: not d, int: lambda d: d + 1, float: lambda d: d / 2 + 0.01, tuple: lambda d: (0.5, 0.5)}
    if name == "model.backbone.name":
        new = "resnet50"
    elif name in ("model.query_decoder.width", "model.query_decoder.heads"):
        new = 2 * default  # the one is a multiple of the other
    elif choices and all(isinstance(choice, str) for choice in choices):
        new = next(choice for choice in choices if choice != default)
    elif isinstance(default, str):
        new = default + "x"
    elif name.endswith("lr_steps"):
        new = (1, 2)
    elif name.endswith("scales"):
        new = (32, 64)
    else:
        new = other[type(default)](default)
    extra = {"model.backbone.trainable": "none"} if name == "data.crop" else {}
    base = from_fields(extra)
    assert from_fields({**extra, name: new}).fingerprint(CONTENTS) != base.fingerprint(CONTENTS)


@pytest.mark.parametrize(
    "change", [{"execution.device": "cuda:1"}, {"data.root": "/elsewhere"}, {"execution.accumulate": 4}]
)
def test_how_a_run_is_executed_is_not_hashed(change):
    assert from_fields(change).fingerprint(CONTENTS) == Config().fingerprint(CONTENTS)


def test_data_and_weights_count_by_their_content():
    config = from_fields({"model.backbone.weights": "/here/vgg.pth"})
    elsewhere = from_fields({"model.backbone.weights": "/there/vgg.pth"})
    content = {**CONTENTS, "weights": "aa"}
    assert config.fingerprint(content) == elsewhere.fingerprint(content)
    assert config.fingerprint(content) != config.fingerprint({**CONTENTS, "weights": "bb"})
    assert config.fingerprint(content) != config.fingerprint({**content, "dataset": "other"})


def test_an_edge_model_counts_by_its_content(tmp_path):
    one, other = (from_fields({"model.proposals.edge_model": f"/{place}/model.yml.gz"}) for place in ("here", "there"))
    assert one.fingerprint({**CONTENTS, "edges": "aa"}) == other.fingerprint({**CONTENTS, "edges": "aa"})
    assert one.fingerprint({**CONTENTS, "edges": "aa"}) != one.fingerprint({**CONTENTS, "edges": "bb"})
    file = tmp_path / "model.yml.gz"
    file.write_bytes(b"one")
    first = edge_fingerprint(str(file))
    file.write_bytes(b"another")
    assert edge_fingerprint(str(file)) != first and set(first) == {"edges"}
    assert edge_fingerprint("") == {}
    with pytest.raises(BadInput, match=r"model\.proposals\.edge_model: found no file"):
        edge_fingerprint(str(tmp_path / "gone"))


def test_given_regions_that_cannot_be_are_refused():
    with pytest.raises(BadInput, match=r"max_boxes: found 5; expected at least model\.regions \(6\)"):
        configure("voc2007", overrides={"model.name": "proposals", "model.regions": 6, "model.proposals.max_boxes": 5})
    with pytest.raises(BadInput, match="random_sides"):
        configure("voc2007", overrides=parse_set(["model.random_sides=[0.6, 0.2]"]))


def test_rarl_without_a_memory_is_refused():
    with pytest.raises(BadInput, match=r"model\.cell: found none with model\.name=rarl"):
        configure("voc2007", overrides={"model.name": "rarl", "model.cell": "none"})
    assert configure("voc2007", overrides={"model.cell": "none"}).model.cell == "none"


def test_every_field_is_documented_and_says_its_default_or_source():
    for name, about in fields():
        assert about["description"], name
        sources = ("[RMA]", "ecided", "efault", "Set by", "[ASL]", "[CSRA]", "[Q2L]", "[EB]")
        assert any(word in about["description"] for word in sources), name


def test_arms_that_differ_in_the_regions_share_stage_1():
    one = configure("voc2007", overrides={"loss.anchor": False, "training.seed": 3, "model.regions": 2})
    other = configure("voc2007", overrides={"training.learning_rate": 1e-3, "loss.classification": "bce"})
    # The run's own epochs and rates are stage 2's; stage 1 has its own.
    assert one.stage1_config() == other.stage1_config()
    first = one.stage1_config()
    assert first is not None
    assert (first.model.name, first.training.epochs, first.stage1_config()) == ("whole_image", 10, None)
    wider = configure("voc2007", overrides={"model.projection_size": 512}).stage1_config()
    assert wider != first


def test_without_epochs_there_is_no_stage_1():
    assert Config(stage1=Stage1(epochs=0)).stage1_config() is None


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name):
    assert from_json(configure(name).model_dump_json(), "test") == configure(name)


def test_what_a_preset_has_for_one_model_yields_to_whoever_sets_it():
    name, width = "model.query_decoder.width", configure("scenes").model.query_decoder.width
    theirs = configure("scenes", "", {"model.name": "query_decoder"})
    assert theirs.flat()[name] == FOR_MODEL["scenes"]["query_decoder"][name] != width
    for layer, overrides in (
        ({"model.name": "query_decoder"}, {name: 64}),
        ({name: 64}, {"model.name": "query_decoder"}),
    ):
        assert configure("scenes", "", layer, overrides=overrides).flat()[name] == 64


@pytest.mark.parametrize(("preset", "model"), [(one, model) for one, models in FOR_MODEL.items() for model in models])
def test_what_a_preset_has_for_one_model_leaves_all_with_one_stage_1(preset, model):
    assert configure(preset).stage1_config() is not None
    if model != "whole_image":
        assert configure(preset, overrides={"model.name": model}).stage1_config() == configure(preset).stage1_config()


def test_set_reads_values_as_yaml():
    values = parse_set(["training.learning_rate=1e-5", "loss.anchor=off", "training.lr_steps=[30, 40]", "data.root="])
    config = from_fields(values)
    assert config.training.learning_rate == 1e-5
    assert config.loss.anchor is False
    assert config.training.lr_steps == (30, 40)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("model.region=3", ["model.region", "Did you mean model.regions?"]),
        ("anchor_weight=3", ["Did you mean loss.anchor_weight?"]),
        ("regions", ["field=value"]),
        ("model.regions=many", ["model.regions", "'many'", "integer"]),
        ("model.regions=0", ["model.regions", "0", "greater than or equal to 1"]),
        ("model.cell=papr", ["model.cell", "'papr'", "'paper', 'standard' or 'none'"]),
        ("training.learning_rate=.nan", ["training.learning_rate", "finite"]),
        ("training.learning_rate=-1", ["training.learning_rate", "greater than 0"]),
        ("data.crop_margin=512", ["data.crop_margin", "image_size"]),
        ("data.crop=map", ["data.crop", "trainable=none"]),
        ("model={a: 1}", ["model"]),
        ("model.name=ral", ["model.name", "'ral'", "'rarl'"]),
        ("model.reinforced.steps=0", ["model.reinforced.steps", "0", "greater than or equal to 1"]),
        ("model.reinforced.sigma=0", ["model.reinforced.sigma", "0", "greater than 0"]),
        ("model.reinforced.sides=[]", ["model.reinforced.sides", "at least 1"]),
        ("model.reinforced.sides=[0.5, -0.1]", ["model.reinforced.sides.1", "-0.1", "greater than 0"]),
        ("model.reinforced.aspect_ratios=[0]", ["model.reinforced.aspect_ratios.0", "greater than 0"]),
        ("model.reinforced.aspect_ratios=2:1", ["model.reinforced.aspect_ratios", "tuple"]),
        ("loss.reinforcement_weight=-1", ["loss.reinforcement_weight", "greater than or equal to 0"]),
        ("model.steps=3", ["Did you mean model.reinforced.steps?"]),
        ("evaluation.scales=[16]", ["evaluation.scales.0", "16", "greater than or equal to 32"]),
        ("evaluation.scales=[512, 512]", ["evaluation.scales", "[512, 512]", "each scale once"]),
        ("training.lr_steps=[0]", ["training.lr_steps.0", "0", "greater than or equal to 1"]),
        ("stage1.lr_steps=[-3]", ["stage1.lr_steps.0", "-3", "greater than or equal to 1"]),
        ("model.regions=on", ["model.regions", "True", "a number"]),
        ("training.lr_steps=[yes]", ["training.lr_steps", "True", "a number"]),
        ("execution.gpus_per_worker=off", ["execution.gpus_per_worker", "False", "a number"]),
    ],
)
def test_bad_settings_name_field_found_and_expected(assignment, words):
    with pytest.raises(BadInput) as caught:
        configure("voc2007", overrides=parse_set([assignment]))
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(BadInput, match=r"voc07.*Did you mean voc2007\?"):
        configure("voc07")
    with pytest.raises(BadInput, match="no such file"):
        configure("nowhere/labels.csv")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("photos/labels.csv", "photos"),
        ("photos/birds.csv", "birds"),
        ("photos/Instances.json", "photos"),
        ("photos/annotations/instances.json", "photos"),
        ("photos/below/../labels.csv", "photos"),
    ],
)
def test_a_dataset_is_called_after_its_file_or_its_folder(tmp_path, monkeypatch, file, name):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    monkeypatch.chdir((tmp_path / file).parent)
    for place in (str(tmp_path / file), file.rpartition("/")[2], f"s3://bucket/{file}"):
        assert configure(place).data.name == name
    assert dataset_name("s3://bucket/data/labels.csv") == "bucket"


def test_later_layers_win():
    config = configure("scenes", "", {"model.regions": 3, "loss.scale": False}, overrides={"model.regions": 4})
    assert (config.model.regions, config.loss.scale, config.model.backbone.name) == (4, False, "small")


@pytest.mark.parametrize(("name", "count"), [("rma", 5), ("rarl", 18), ("whole_image", 0)])
def test_every_model_says_in_how_many_regions_it_sees_an_image(name, count):
    model = from_fields({"model.name": name, "model.reinforced.steps": 3, "model.reinforced.sides": [0.2, 0.4]}).model
    assert model.region_count == count


def test_a_preset_says_more_of_one_model_and_what_is_given_wins(monkeypatch):
    monkeypatch.setitem(FOR_MODEL["scenes"], "rarl", {"model.reinforced.steps": 2, "training.epochs": 3})
    plain, rarl = configure("scenes"), configure("scenes", "", {"model.name": "rarl"}, overrides={"training.epochs": 5})
    assert (rarl.model.reinforced.steps, rarl.training.epochs, rarl.training.batch_size) == (2, 5, 16)
    assert plain.model.reinforced.steps == configure("voc2007", "", {"model.name": "rarl"}).model.reinforced.steps == 5
    # An arm that is another model is that model.
    assert configure("scenes", "", {"model.name": "rarl"}, {"model.name": "rma"}) == plain


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValidationError):
        Config().loss.anchor = False  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Loss(anchr=True)  # type: ignore[call-arg]


@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()))
def test_digest_does_not_depend_on_order(values):
    assert digest(dict(reversed(values.items()))) == digest(values)
