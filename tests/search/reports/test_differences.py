"""In what a measured number is not a published one's like: how it was measured, and how it was trained."""

from __future__ import annotations

import dataclasses

from ram_tune.config import Config
from ram_tune.presets import from_fields
from ram_tune.search.published import Protocol, Published
from ram_tune.search.reports.compare import differences


def entry(**values) -> Published:
    how = {"dataset": "voc2007", "split": "test", "scale": 512, "views": "ten", "classifier": "svm", "source": "RMA"}
    return Published(arm="none", mAP=90.0, **{**how, **values})


def as_published(**fields) -> Config:
    paper = {"data.name": "voc2007", "evaluation.views": "ten", "evaluation.classifier": "svm"}
    return from_fields({**paper, **{name.replace("__", "."): value for name, value in fields.items()}})


def test_the_papers_own_setting_differs_in_nothing():
    assert differences(as_published(training__seed=3, stage1__seed=1), entry()) == ""
    assert differences(as_published(data__limit=600), entry()) == "600 images of each split"


def test_the_edges_that_proposals_are_found_by_are_compared():
    config, known = as_published(model__name="proposals"), entry(edges="structured forest")
    assert differences(config, known, ["model.name"]) == "edges: gradient, not structured forest"
    same = as_published(model__name="proposals", model__proposals__edge_model="model.yml.gz")
    assert differences(same, known, ["model.name"]) == ""
    assert differences(as_published(), known) == "edges: none, not structured forest"


def test_every_part_of_the_protocol_is_compared():
    theirs = Protocol.of(as_published())
    for field in dataclasses.fields(Protocol):
        changed = dataclasses.replace(theirs, **{field.name: (99,) if field.name == "scales" else "changed"})
        known = entry()
        object.__setattr__(known, "protocol", lambda changed=changed: changed)
        assert "not" in differences(as_published(), known), field.name


def test_other_fields_are_named_or_counted_but_for_the_arms_own():
    config = as_published(loss__classification="bce", model__backbone__weights="/a/vgg.pth")
    assert differences(config, entry()) == "model.backbone.weights=vgg.pth; loss.classification=bce"
    config = as_published(loss__classification="bce", model__projection_size=64, training__learning_rate=1)
    assert differences(config, entry()) == "3 fields of the configuration"
    assert differences(config, entry(views="one")) == "ten views, not one view; and 3 other fields"
    assert (
        differences(config, entry(), ["loss.classification"]) == "model.projection_size=64; training.learning_rate=1.0"
    )
    assert differences(as_published(loss__anchor=False), entry()) == "loss.anchor=off"
