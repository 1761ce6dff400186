"""A run made ready on one machine: data, model, criterion, optimiser, each from its part of the configuration."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ram_tune.config import Config, digest
from ram_tune.data.annotations import Annotations
from ram_tune.data.batches import Batch, Source
from ram_tune.data.cache import feature_maps, resized_images
from ram_tune.data.given import boxes_of
from ram_tune.data.images import upright_sizes
from ram_tune.data.proposals import EdgeBoxes
from ram_tune.data.remote import is_remote
from ram_tune.data.roles import Dataset, load
from ram_tune.errors import BadInput
from ram_tune.models.backbone import state_fingerprint
from ram_tune.models.network import Network, build, check
from ram_tune.models.regions import of_crops
from ram_tune.models.reinforced import RARL
from ram_tune.presets import edge_fingerprint, from_json, weights_fingerprint
from ram_tune.training import checkpoint
from ram_tune.training.adam import Adam
from ram_tune.training.compiled import compile_backbone
from ram_tune.training.device import autocast, device_of, set_arithmetic
from ram_tune.training.losses import Criterion
from ram_tune.training.ranks import ALONE, Ranks


@dataclass
class Run:
    """One training run: what `prepare` built, and how far it is."""

    config: Config
    dataset: Dataset
    fingerprint: str
    cache_dir: Path
    device: torch.device
    network: Network
    criterion: Criterion
    optimizer: torch.optim.Optimizer
    epoch: int = 0  # finished epochs
    best_epoch: int = 0
    best_value: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)  # the metrics of each finished epoch
    start: dict[str, float] = field(default_factory=dict)  # `selection/…`: what its regions did before the first epoch
    ranks: Ranks = ALONE  # the processes that train it together

    @cached_property
    def model(self) -> nn.Module:
        """The network, its gradients averaged over ranks where there are several."""
        if self.ranks.world == 1:
            return self.network
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(self.network, device_ids=devices)

    def annotations(self, role: str) -> Annotations:
        """The images of `train`, `selection` or `test`."""
        return getattr(self.dataset, role)

    @cached_property
    def train(self) -> Source:
        return self._source(self.dataset.train, mirror=self.config.data.mirror)

    @cached_property
    def selection(self) -> Source:
        return self._source(self.dataset.selection, mirror=False)

    @cached_property
    def test(self) -> Source:
        """The test images. Nothing but the final evaluation asks for them."""
        return self._source(self.dataset.test, mirror=False)

    def whole(self, role: str) -> Source:
        """The images of a role for views other than the centre: cached maps with those of the mirrored images, if needed."""
        rule = self.config.evaluation
        needed = self.config.data.crop == "map" and rule.views == "ten" and rule.mirror == "exact"
        return self._source(self.annotations(role), mirror=needed)

    def given(self, batch: Batch) -> Tensor | None:
        """(B, K, 4): the regions that a model which does not find them is given on these crops."""
        return of_crops(batch.boxes, batch.crops, self.config.data.image_size)

    def sizes(self, role: str) -> np.ndarray:
        """(n, 2) width and height of the original images of a role."""
        if role not in self._sizes:
            self._sizes[role] = upright_sizes(self.annotations(role).files())
        return self._sizes[role]

    @cached_property
    def _sizes(self) -> dict[str, np.ndarray]:
        return {}

    @property
    def attends(self) -> bool:
        """Whether the model looks at regions."""
        return hasattr(self.network.head, "regions")

    def autocast(self) -> contextlib.AbstractContextManager:
        """See the function of this name."""
        return autocast(self.config, self.device)

    def cache(self) -> None:
        """Have all that will be read in the cache, test too: a full disk is then noticed before the first epoch."""
        for role in ("train", "selection", "test"):
            self._source(self.annotations(role), mirror=role == "train" and self.config.data.mirror)

    def _source(self, annotations: Annotations, mirror: bool) -> Source:
        data = self.config.data
        images = array = resized_images(annotations, data, self.cache_dir)
        if data.crop == "map":
            array = feature_maps(images, self._encode, self._encoder, mirror, self.cache_dir)
        boxes = boxes_of(self.config, annotations, images, self.cache_dir)
        return Source(array, annotations.targets, data, self.device.type == "cuda", boxes)

    @cached_property
    def _encoder(self) -> str:
        """Fingerprint of all that makes a frozen backbone's maps what they are."""
        name = self.config.model.backbone.model_dump(include={"name", "layer"})
        how = [self.config.training.precision, self.device.type]
        return digest([state_fingerprint(self.network.backbone), name, how])

    @torch.inference_mode()
    def _encode(self, images: Tensor) -> Tensor:
        self.network.backbone.eval()
        with self.autocast():
            return self.network.backbone(images.to(self.device))

    def restore(self, state: Mapping) -> None:
        """Go on where `state`, the content of a `last.pt`, was made."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.best_epoch, self.best_value = state["epoch"], state["best_epoch"], state["best_value"]
        self.history, self.start = state["history"], state["start"]

    def state(self) -> dict:
        """What `restore` takes."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_value": self.best_value,
            "history": self.history,
            "start": self.start,
        }

    def weights(self) -> dict:
        """What a finished model needs: weights and the names of its labels."""
        return {
            "network": self.network.state_dict(),
            "categories": list(self.dataset.categories),
            "epoch": self.epoch,
            "dataset": self.dataset.fingerprint,
        }


def identity(config: Config, dataset: Dataset) -> str:
    """The fingerprint of a run of `config` on `dataset`."""
    weights, edges = config.model.backbone.weights, config.model.proposals.edge_model
    files = {**weights_fingerprint(weights), **edge_fingerprint(edges)}
    return config.fingerprint({"dataset": dataset.fingerprint, **files})


def load_planned(config: Config, cache_dir: Path, fingerprint: str) -> Dataset:
    """The dataset of a run of that `fingerprint`, which was planned on another machine perhaps.

    A copy that this one made of a URL is used as it is, as long as it gives that fingerprint. Raises BadInput where what is
    there now does not.
    """
    dataset = load(config.data, cache_dir, kept=True)
    if is_remote(config.data) and identity(config, dataset) != fingerprint:
        dataset = load(config.data, cache_dir)
        if identity(config, dataset) != fingerprint:
            raise BadInput(
                config.data.root or config.data.file,
                found="other images or labels than when this run was planned",
                expected="a dataset that stays as it was",
                remedy="Start the search again: on what is there now it is another one.",
            )
    return dataset


def make_ready(config: Config, dataset: Dataset, cache_dir: Path) -> None:
    """Before hours of training: is the model one that can be built, and is every image of every role whole?

    Resizes the images, unless that has been done. Raises BadInput.
    """
    device_of(config.execution.device)
    check(config)
    if config.model.name == "proposals":
        EdgeBoxes(config.model.proposals)
    for role in ("train", "selection", "test"):
        resized_images(getattr(dataset, role), config.data, cache_dir)


def prepare(
    config: Config,
    cache_dir: Path,
    stage1: Path | None = None,
    dataset: Dataset | None = None,
    last: Path | None = None,
    ranks: Ranks = ALONE,
) -> Run:
    """Build a run; the same configuration and seed build the same one.

    `stage1` is the `best.pt` of `config.stage1_config()`, needed where that is not None, unless the run goes on from
    `last`, its own `last.pt`. Raises BadInput for data, weights and checkpoints that cannot be used.
    """
    set_arithmetic(config)
    device = device_of(config.execution.device)
    dataset = dataset or load(config.data, cache_dir)
    first = config.stage1_config()
    if first is None and stage1 is not None:
        raise BadInput(
            "stage 1",
            found=stage1,
            expected=f"none: model.name={config.model.name} with stage1.epochs={config.stage1.epochs} starts from no stage 1",
            remedy="Leave it out, or set stage1.epochs and a model.name with a stage 1, such as rma.",
        )
    start = None
    if first is not None and last is None:
        if stage1 is None:
            raise BadInput("stage 1", found="no checkpoint", expected="the best.pt of this run's stage 1")
        start = checkpoint.load(stage1, first, identity(first, dataset))["network"]
    run = assemble(config, dataset, cache_dir, device, identity(config, dataset), start)
    run.ranks = ranks
    if last is not None:
        run.restore(checkpoint.load(last, config, run.fingerprint))
    return run


def load_trained(config: Config, cache_dir: Path, best: Sequence[Path], fingerprint: str) -> list[Run]:
    """Runs with trained weights, to be evaluated as `config` says, as a run of that `fingerprint`.

    Each `best` comes from a training that may differ from `config` in what is not hashed (places, splits, execution) and in
    `evaluation`, and, where that names several scales, in its image size; its labels must be the dataset's. Raises BadInput
    for any other.
    """
    set_arithmetic(config)
    dataset = load(config.data, cache_dir)
    runs = []
    for path in best:
        content = checkpoint.load(path)
        trained = from_json(content["config"], str(path))
        size = trained.data.image_size if config.evaluation.scales else config.data.image_size
        own = config.model_copy(update={"data": config.data.model_copy(update={"image_size": size})})
        if trained.model_copy(update={"evaluation": config.evaluation}).fingerprint({}) != own.fingerprint({}):
            checkpoint.load(path, own, fingerprint)  # says what differs
        if tuple(content["categories"]) != dataset.categories:
            raise BadInput(
                path,
                found=f"a model of {len(content['categories'])} labels ({', '.join(content['categories'][:3])}, …)",
                expected=f"the {len(dataset.categories)} labels of {dataset.name} ({', '.join(dataset.categories[:3])}, …)",
                remedy="Evaluate it on the dataset it was trained on, or one with the same labels.",
            )
        # The checkpoint has all weights: the file that the backbone's came from need not be there.
        run = assemble(own, dataset, cache_dir, device_of(config.execution.device), fingerprint, pretrained=False)
        run.network.load_state_dict(content["network"])
        run.epoch = run.best_epoch = content["epoch"]
        runs.append(run)
    return runs


def assemble(
    config: Config,
    dataset: Dataset,
    cache_dir: Path,
    device: torch.device,
    fingerprint: str,
    start: Mapping[str, Tensor] | None = None,
    *,
    pretrained: bool = True,
) -> Run:
    torch.manual_seed(config.training.seed)
    network = build(config, len(dataset.categories), start, pretrained=pretrained).to(device)
    pulled = (
        config.model.regions if config.model.name == "rma" else 0
    )  # where regions are given there is nothing to pull
    criterion = Criterion(config.loss, pulled, isinstance(network.head, RARL)).to(device)
    if config.execution.compile:
        compile_backbone(network.backbone)
    return Run(config, dataset, fingerprint, cache_dir, device, network, criterion, _adam(config, network))


def _adam(config: Config, network: Network) -> torch.optim.Optimizer:
    """Adam over what learns, in groups that differ in their share (`lr_scale`) of the learning rate."""
    training = config.training
    groups: dict[str, list[nn.Parameter]] = {"localization": [], "backbone": [], "head": []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            where = "localization" if ".localization." in name else name.split(".")[0]
            groups[where].append(parameter)
    scales = {
        "localization": training.localization_lr_multiplier,
        "backbone": training.backbone_lr_multiplier,
        "head": 1.0,
    }
    return Adam(
        [{"params": params, "lr_scale": scales[name]} for name, params in groups.items() if params],
        lr=training.learning_rate,
        betas=training.adam_betas,
        weight_decay=training.weight_decay,
        fused=True,
    )
