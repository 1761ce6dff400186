"""One run, completely: a frozen, typed tree.

Every field carries its meaning, the paper's symbol, its unit, where the default comes from and the default itself.
Sources: [RMA] Wang et al., ICCV 2017 (the default of every field is the paper's, where it says one);
[VGG] Simonyan and Zisserman, 2015; [ASL] Ridnik et al., ICCV 2021; [EB] Zitnick and Dollár, ECCV 2014; [CSRA] Zhu and Wu,
"Residual Attention: A Simple but Effective Method for Multi-Label Recognition", ICCV 2021; [Q2L] Liu et al., "Query2Label",
2021; [MLD] Ridnik et al., "ML-Decoder", 2021; *decided*: the papers are silent, the choice is ours.

A field in `execution`, or marked "not hashed", says how or where a run is executed, not what it computes, and is left out
of the fingerprint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ram_tune.config.model import CSRA as CSRA
from ram_tune.config.model import Backbone as Backbone
from ram_tune.config.model import Model
from ram_tune.config.model import QueryDecoder as QueryDecoder
from ram_tune.config.model import Reinforced as Reinforced
from ram_tune.config.section import NOT_HASHED, Section, digest
from ram_tune.config.section import file_digest as file_digest

Share = Annotated[float, Field(ge=0, lt=1)]
ImageSize = Annotated[int, Field(ge=32, le=4096)]
Epoch = Annotated[int, Field(ge=1)]

RESULT_VERSION = 1
"""Raised by hand whenever a change of the code changes what a configuration computes: it makes every fingerprint new."""


class Data(Section):
    """Which images, and how they reach the model."""

    format: Literal["scenes", "voc", "coco", "table"] = Field(default="voc", json_schema_extra=NOT_HASHED)
    """How the dataset is written down. Set by `--data`. Not hashed: the dataset's own fingerprint is. Default voc."""
    name: str = Field(default="", json_schema_extra=NOT_HASHED)
    """What the dataset is called in records. Set by `--data`. Not hashed. Default: the file's name or the format's."""
    root: str = Field(default="", json_schema_extra=NOT_HASHED)
    """Folder of the dataset, or its URL (`--data-root`). Not hashed. Default: none; `scenes` is rendered in the cache folder."""
    file: str = Field(default="", json_schema_extra=NOT_HASHED)
    """A single CSV or COCO JSON with all images (or its URL), for own data. Not hashed. Default: none, the format's layout."""
    train_split: str = Field(default="trainval", json_schema_extra=NOT_HASHED)
    """Images to learn from. Not hashed (covered by the dataset's fingerprint). [RMA] VOC 2007 trainval."""
    selection_split: str = Field(default="", json_schema_extra=NOT_HASHED)
    """Images that choose the epoch, steer a search and calibrate. Empty: drawn from train. Not hashed. *Decided*."""
    test_split: str = Field(default="test", json_schema_extra=NOT_HASHED)
    """Images read once, when a run is finished. Not hashed. [RMA] VOC 2007 test."""
    selection_fraction: float = Field(default=0.1, gt=0, lt=1, json_schema_extra=NOT_HASHED)
    """Share of train drawn for selection, seeded and stratified, when no selection split is named. Not hashed. *Decided*: 0.1."""
    test_fraction: float = Field(default=0.2, gt=0, lt=1, json_schema_extra=NOT_HASHED)
    """Share of a single `data.file` drawn for test when the file names no splits. Not hashed. *Decided*: 0.2."""
    split_seed: int = Field(default=0, ge=0, json_schema_extra=NOT_HASHED)
    """Seed of every draw of images (limit, selection, test), apart from the run's seed. Not hashed. Default 0."""
    limit: int = Field(default=0, ge=0, json_schema_extra=NOT_HASHED)
    """At most so many images of each split, drawn seeded; 0: all. Not hashed. Default 0."""
    image_size: ImageSize = 512
    """Side to which an image is resized, aspect ratio not kept. N, pixels. [RMA] 512 or 640. Default 512."""
    crop_margin: int = Field(default=64, ge=0)
    """A crop is a square of side N minus this. Pixels. [RMA] 64."""
    crop: Literal["pixels", "map"] = "pixels"
    """What is cropped: the image, or the cached conv map of a frozen backbone in whole cells. *Decided*: pixels."""
    mirror: bool = True
    """Mirror half of the training images left to right. [RMA] on."""
    max_image_pixels: int = Field(default=100_000_000, gt=0, json_schema_extra=NOT_HASHED)
    """Images with more pixels are refused before they are decoded. Not hashed. *Decided*: 100 million."""

    @property
    def crop_side(self) -> int:
        """Pixels."""
        return self.image_size - self.crop_margin


class Loss(Section):
    """What is minimised: L = L_cls + gamma * (l_S + lambda1 * l_A + lambda2 * l_P), [RMA] equations 6 to 11; by RARL
    L_cls + rho * (policy + baseline)."""

    classification: Literal["euclidean", "bce", "asymmetric"] = "euclidean"
    """L_cls: squared distance of softmax and y/|y|, binary cross-entropy, or [ASL]. [RMA] euclidean."""
    anchor: bool = True
    """A: pull regions 2..K to K-1 anchors on a circle. [RMA] on."""
    scale: bool = True
    """S: keep |sx|, |sy| below alpha. [RMA] on."""
    positive: bool = True
    """P: keep sx, sy above beta, so that nothing is mirrored. [RMA] on."""
    anchor_radius: float = Field(default=math.sqrt(2) / 2, gt=0)
    """Radius of the anchors' circle; 1 is half the crop. [RMA] sqrt(2)/2."""
    scale_threshold: float = Field(default=0.5, gt=0)
    """Largest half-size that costs nothing. alpha. [RMA] 0.5."""
    positive_threshold: float = Field(default=0.1, ge=0)
    """Smallest signed half-size that costs nothing. beta. [RMA] 0.1."""
    anchor_weight: float = Field(default=0.01, ge=0)
    """lambda1. [RMA] 0.01."""
    positive_weight: float = Field(default=0.1, ge=0)
    """lambda2. [RMA] 0.1."""
    localization_weight: float = Field(default=0.1, ge=0)
    """gamma. [RMA] 0.1."""
    reinforcement_weight: float = Field(default=0.1, ge=0)
    """Weight of RARL's policy and baseline. rho. *Decided*: 0.1."""
    asymmetric_positive_focus: float = Field(default=0.0, ge=0)
    """Focusing exponent of present labels, gamma+ of [ASL]. Default 0."""
    asymmetric_negative_focus: float = Field(default=4.0, ge=0)
    """Focusing exponent of absent labels, gamma- of [ASL]. Default 4."""
    asymmetric_margin: float = Field(default=0.05, ge=0, lt=1)
    """Probability below which an absent label costs nothing, m of [ASL]. Default 0.05."""


class Training(Section):
    """How it is minimised."""

    epochs: int = Field(default=45, ge=1)
    """Passes over train. [RMA] 45."""
    batch_size: int = Field(default=16, ge=1)
    """Images per optimiser step, over all workers. [RMA] 16."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Adam's step size. [RMA] 1e-5."""
    lr_steps: tuple[Epoch, ...] = (30,)
    """Epochs after which the learning rate is multiplied by `lr_factor`. [RMA] after 30."""
    lr_factor: float = Field(default=0.1, gt=0)
    """See `lr_steps`. [RMA] 0.1."""
    localization_lr_multiplier: float = Field(default=1.0, ge=0)
    """Learning rate of the layer that says the next region, relative to the others. *Decided*: 1."""
    backbone_lr_multiplier: float = Field(default=1.0, ge=0)
    """Learning rate of the backbone, relative to the others. [RMA] 1."""
    adam_betas: tuple[Share, Share] = (0.9, 0.999)
    """Adam's decay rates. [RMA] 0.9 and 0.999."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty of Adam. *Decided*: 0."""
    clip_norm: float = Field(default=0.0, ge=0)
    """Largest norm of the gradient; 0: not clipped. *Decided*: 0."""
    select_by: Literal["loss", "mAP", "CF1", "OF1"] = "loss"
    """Quantity on the selection split whose best epoch is kept. [RMA] lowest loss."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Arithmetic of the forward pass: autocast to bfloat16 (on GPUs that have it), or single, without TF32. *Decided*: bf16."""
    seed: int = Field(default=0, ge=0)
    """Seed of weights, order, crops and mirrors. Default 0."""


class Stage1(Section):
    """Training of the whole-image head (and backbone) that RMA starts from; what is not here is as in `training`."""

    epochs: int = Field(default=10, ge=0)
    """Passes over train; 0: no stage 1, RMA starts from the backbone's weights alone. *Decided*: 10."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Adam's step size. *Decided*: as [RMA], 1e-5."""
    lr_steps: tuple[Epoch, ...] = ()
    """As `training.lr_steps`. *Decided*: none."""
    batch_size: int = Field(default=16, ge=1)
    """Images per optimiser step. *Decided*: as [RMA], 16."""
    classification: Literal["euclidean", "bce", "asymmetric"] = "euclidean"
    """L_cls of stage 1. [RMA] the same, euclidean."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on fc6 and fc7 in stage 1. Probability. *Decided*: 0, as `model.dropout`; VGG itself was trained with 0.5."""
    trainable: Literal["all", "last_block", "none"] = "all"
    """Which layers of the backbone learn in stage 1. [RMA] all."""
    seed: int = Field(default=0, ge=0)
    """Seed of stage 1, apart from the run's: runs of several seeds share one stage 1. Default 0."""
    per_seed: bool = False
    """Train a stage 1 for each seed of the run (its seed is added to `stage1.seed`): intervals over seeds then contain its
    variance too. Default off."""


class Evaluation(Section):
    """How scores become numbers."""

    top_k: int = Field(default=3, ge=1)
    """Labels an image may be given at most. [RMA] 3."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Probability a given label must reach. [RMA] 0.5."""
    normalize: bool = True
    """Rank images by log softmax(s) where L_cls is euclidean: it does not see a constant added to all scores of an image,
    so raw ones do not compare between images. *Decided*: on."""
    views: Literal["one", "ten"] = "one"
    """Crops of an image that are seen: the centre; or four corners and the centre, and their mirrors. *Decided*: one."""
    mirror: Literal["exact", "feature"] = "exact"
    """Maps of mirrored views: convolved from the mirrored image, or the upright image's map mirrored. *Decided*: exact."""
    scales: tuple[ImageSize, ...] = ()
    """Values of N of which one model each is trained, then fused; empty: `data.image_size` alone. [RMA] 512 and 640.
    Default: none."""
    scale_fusion: Literal["mean_decision", "concatenate"] = "mean_decision"
    """How several scales are fused: the mean of their decision values, or one classifier on their representations side
    by side. *Decided*: mean_decision ([RMA] says only that they are fused)."""
    classifier: Literal["network", "svm"] = "network"
    """What decides: the network's own fused scores, or linear SVMs on its representations of train. [RMA] svm.
    Default network."""
    svm_c: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(0.01, 0.1, 1.0, 10.0), min_length=1)
    """The SVMs' C, one for all labels: of several, the one of best cross-validated mAP on train. *Decided*."""
    svm_folds: int = Field(default=3, ge=2)
    """Folds of that cross-validation. *Decided*: 3."""


FINAL_ONLY = ("views", "mirror", "scales", "scale_fusion", "classifier", "svm_c", "svm_folds")
"""Fields of `evaluation` that only the final test knows: epochs are judged by one view and the network's own scores."""


FILES = {"weights": "model.backbone.weights", "edges": "model.proposals.edge_model"}
"""What a file is called in a fingerprint's `contents` → the field that names it."""


class Execution(Section):
    """How a run is carried out. Nothing in here is hashed."""

    device: str = "auto"
    """`auto`: a GPU where there is one; or a torch device. Default auto."""
    workers: int = Field(default=1, ge=0, le=1024)
    """Processes that train one run of a search, each with its share of every batch; 0, none of its own: many small runs,
    one after another, share a process and its start. Default 1."""
    fewest_workers: int = Field(default=0, ge=0)
    """A run may go on with so few of its workers where there is room for no more; 0: with all of them. Default 0."""
    cpus_per_worker: float = Field(default=0, ge=0)
    """CPUs reserved for each of them; 0: an equal share of the cluster for each run at hand. Default 0."""
    gpus_per_worker: float | None = Field(default=None, ge=0)
    """GPUs reserved for each of them; not set: one where there are any. Default not set."""
    accumulate: int = Field(default=1, ge=1)
    """Pieces in which a batch is processed, to save memory. Default 1."""
    evaluation_batch_size: int = Field(default=32, ge=1)
    """Images per forward pass when nothing is learned. Default 32."""
    pictures: int = Field(default=8, ge=0, le=64)
    """Selection images on which the regions are drawn, for up to a dozen epochs of a run. Default 8."""
    threads: int = Field(default=0, ge=0)
    """Torch threads; 0: as many as the process may use. Default 0."""
    deterministic: bool = False
    """On a GPU: only operations that give the same bits again, where PyTorch has such (the gradients of region sampling have
    none), at the price of speed. On a CPU all of them do. Default off."""
    compile: bool = False
    """`torch.compile` the backbone for training. It takes half a minute at the start, and did not pay on the CPUs it was tried
    on; `python -m benchmarks.gpu` says whether it does on a GPU. Default off."""


class Config(Section):
    """One run, completely. A run's identity is (search, generation, fingerprint)."""

    data: Data = Data()
    """Which images, and how they reach the model."""
    model: Model = Model()
    """Feature map to label scores."""
    loss: Loss = Loss()
    """What is minimised."""
    training: Training = Training()
    """How it is minimised."""
    stage1: Stage1 = Stage1()
    """What RMA and RARL start from."""
    evaluation: Evaluation = Evaluation()
    """How scores become numbers."""
    execution: Execution = Field(default=Execution(), json_schema_extra=NOT_HASHED)
    """How the run is carried out. Not hashed."""

    @model_validator(mode="after")
    def _fields_agree(self) -> Config:
        data, backbone = self.data, self.model.backbone
        if data.crop_margin >= data.image_size:
            raise ValueError(
                f"data.crop_margin: found {data.crop_margin}; expected less than data.image_size ({data.image_size}), "
                "else the crop is empty. Lower the margin or raise the size."
            )
        if data.crop == "map" and backbone.trainable != "none":
            raise ValueError(
                f"data.crop: found map with model.backbone.trainable={backbone.trainable}; expected trainable=none: "
                "cached maps are those of a backbone that does not change. Set model.backbone.trainable=none or data.crop=pixels."
            )
        if self.model.name == "proposals" and self.model.proposals.max_boxes < self.model.regions:
            raise ValueError(
                f"model.proposals.max_boxes: found {self.model.proposals.max_boxes}; expected at least model.regions "
                f"({self.model.regions}). Raise it."
            )
        scales = self.evaluation.scales
        if len(set(scales)) < len(scales):
            raise ValueError(
                f"evaluation.scales: found {list(scales)}; expected each scale once. Leave out the others."
            )
        shortest, longest = self.model.random_sides
        if shortest > longest:
            raise ValueError(
                f"model.random_sides: found {shortest}, {longest}; expected the shortest side first. Exchange them."
            )
        return self

    def flat(self) -> dict[str, Any]:
        """Dotted field name → plain value (tuples as lists), in the order of the tree."""
        return dict(_leaves(self.model_dump(mode="json")))

    def fingerprint(self, contents: Mapping[str, str]) -> str:
        """Canonical hash (16 hex digits) of what the run computes.

        `contents` are the fingerprints of the files the run reads, by name: `dataset`, `weights` where
        `model.backbone.weights` is a file, and `edges` where there is a `model.proposals.edge_model` (their content then
        counts, not their path). Fields equal to their defaults do not enter, so adding a field with a default changes no
        hash.
        """
        default = Config().flat()
        unhashed = {name for name, info in fields() if not info["hashed"]}
        unhashed |= {field for name, field in FILES.items() if name in contents}
        changed = {name: v for name, v in self.flat().items() if name not in unhashed and v != default[name]}
        return digest({"result_version": RESULT_VERSION, "fields": changed, "contents": dict(contents)})

    def stage1_config(self) -> Config | None:
        """The run that trains stage 1 of this one, or None where there is none: an ordinary whole-image run.

        Everything that only the regions need is at its default, so that arms which differ there share one stage 1.
        """
        if self.model.name == "whole_image" or self.stage1.epochs == 0:
            return None
        first = self.stage1
        kept = {"epochs", "learning_rate", "lr_steps", "batch_size"}
        seed = first.seed + (self.training.seed if first.per_seed else 0)
        backbone = self.model.backbone.model_copy(update={"trainable": first.trainable})
        kind = {name for name in Loss.model_fields if name.startswith("asymmetric_")}
        asymmetric = self.loss.model_dump(include=kind) if first.classification == "asymmetric" else {}
        crop = self.data.crop if first.trainable == "none" else "pixels"
        return Config(
            data=self.data.model_copy(update={"crop": crop}),
            model=Model(
                name="whole_image",
                sample_size=self.model.sample_size,
                projection_size=self.model.projection_size,
                dropout=first.dropout,
                backbone=backbone,
            ),
            loss=Loss(classification=first.classification, **asymmetric),
            training=self.training.model_copy(
                update={**first.model_dump(include=kept), "seed": seed, "localization_lr_multiplier": 1.0}
            ),
            evaluation=self.evaluation.model_copy(update=Evaluation().model_dump(include=set(FINAL_ONLY))),
            execution=self.execution,
        )


def fields(section: type[Section] = Config, prefix: str = "", hashed: bool = True) -> Iterator[tuple[str, dict]]:
    """Every leaf field: (dotted name, {description, default, annotation, hashed})."""
    for name, info in section.model_fields.items():
        counts = hashed and info.json_schema_extra != NOT_HASHED
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from fields(kind, f"{prefix}{name}.", counts)
        else:
            about = {"description": info.description, "default": info.default, "annotation": kind, "hashed": counts}
            yield f"{prefix}{name}", about


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
