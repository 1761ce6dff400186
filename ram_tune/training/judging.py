"""Scores become numbers: the selection split after every epoch, and the final test as the paper has it (METHOD 6, 7).

Legend: n images, L labels, K regions, V views, D representation, T loss terms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ram_tune.config import Config, digest
from ram_tune.data.batches import Source, centre_crop, evaluation_batches, whole_images
from ram_tune.data.cache import rows
from ram_tune.data.given import content
from ram_tune.evaluation import metrics, svm
from ram_tune.evaluation.attention import attention, region_statistics
from ram_tune.evaluation.calibration import Platt, probabilities, sigmoid
from ram_tune.evaluation.pictures import contact_sheet, encode, pick, picture
from ram_tune.evaluation.views import Plan, represent
from ram_tune.models.backbone import state_fingerprint
from ram_tune.models.regions import anchors
from ram_tune.training.cost import cost
from ram_tune.training.results import write
from ram_tune.training.run import Run

REMEDY = "Lower training.learning_rate, or set training.clip_norm=1 or training.precision=fp32."


class NotFiniteError(RuntimeError):
    """A loss term became infinite or no number; the message names epoch, batch and term."""


@dataclass(frozen=True)
class Scores:
    """What is said of one role's images, in their order."""

    scores: np.ndarray  # (n, L) float32, comparable between images
    regions: np.ndarray | None  # (n, K, 4) float32, of the centre crop
    terms: np.ndarray | None = None  # (1 + T,): the loss and its unweighted terms, means over images; of single crops


@dataclass(frozen=True)
class Judged:
    """The final evaluation."""

    scores: dict[str, Scores]  # of `selection` and `test`
    metrics: dict[str, dict[str, float]]  # of both
    cost: dict[str, float]  # see training.cost
    platt: Platt | None = None  # where probabilities are not the sigmoid of the scores
    single: Platt | None = None  # the same of single crops by the first network: for whoever uses it alone


@torch.inference_mode()
def evaluate(run: Run, source: Source) -> Scores:
    """The network's scores of every image of `source`, single crop; each rank sees its share, and hears of the rest."""
    run.network.eval()
    ranks = run.ranks
    scores = [torch.empty(0, len(run.dataset.categories), device=run.device)]  # all that a rank without an image has
    regions = [torch.empty(0, getattr(run.network.head, "regions", 0), 4, device=run.device)]
    total = torch.zeros(1 + len(run.criterion.terms), device=run.device)
    batch_size = run.config.execution.evaluation_batch_size
    for waiting in evaluation_batches(source, batch_size, ranks.rank, ranks.world):
        batch = waiting.to(run.device)
        with run.autocast():
            prediction = run.network(batch.inputs, run.given(batch))
        loss, terms = run.criterion(prediction, batch.targets)
        total += torch.cat([loss[None], terms])
        scores.append(comparable(run.config, prediction.scores.float()))
        if prediction.regions is not None:
            regions.append(prediction.regions.float())
    found = ranks.gather(torch.cat(scores).cpu().numpy())
    if not np.isfinite(found).all():  # the last step's update can have broken the weights
        raise NotFiniteError(f"epoch {run.epoch + 1}: the scores after the last batch are not finite. {REMEDY}")
    return Scores(
        found,
        ranks.gather(torch.cat(regions).cpu().numpy()) if run.attends else None,
        (ranks.sum(total) / len(source)).cpu().numpy(),
    )


def comparable(config: Config, scores: Tensor) -> Tensor:
    """Scores (n, L) by which images can be ranked, see `evaluation.normalize`."""
    shift_free = config.loss.classification == "euclidean" and config.evaluation.normalize
    return scores.log_softmax(1) if shift_free else scores


def selection_metrics(run: Run, found: Scores) -> dict[str, float]:
    """Losses, metrics and what the regions do, on the selection split, calibrated on it."""
    assert found.terms is not None
    losses = dict(zip(("loss", *run.criterion.terms), found.terms.tolist(), strict=True))
    likely = _likely(run, found, calibrate(run, found))
    return losses | label_metrics(run, "selection", found, likely) | region_metrics(run, "selection", found)


def finish(runs: Sequence[Run]) -> Judged:
    """Evaluate trained networks on selection and, this once, on test, as the `evaluation` of the first one says.

    Of several runs, one for each scale, the decisions are fused. The caller has loaded the best weights. The network's
    scores are calibrated on selection, SVMs are fitted on train (METHOD 6, 7).
    """
    run, rule = runs[0], runs[0].config.evaluation
    if len(runs) == 1 and rule.views == "one" and rule.classifier == "network":
        found = {role: evaluate(run, getattr(run, role)) for role in ("selection", "test")}
    else:
        seen = [_Seen(one) for one in runs]
        decide = _by_svm(seen) if rule.classifier == "svm" else _by_network(seen)
        found = {role: Scores(decide(role), seen[0].regions(role)) for role in ("selection", "test")}
    platt = calibrate(run, found["selection"]) if rule.classifier == "network" else None
    others = run.config.loss.classification == "euclidean" and found["selection"].terms is None  # no single crops
    single = calibrate(run, evaluate(run, run.selection)) if others else platt
    judged = {
        role: label_metrics(run, role, scores, _likely(run, scores, platt)) | region_metrics(run, role, scores)
        for role, scores in found.items()
    }
    if (terms := found["selection"].terms) is not None:
        judged["selection"] |= dict(zip(("loss", *run.criterion.terms), terms.tolist(), strict=True))
    return Judged(found, judged, cost(runs), platt, single)


class _Seen:
    """What a network makes of whole roles, in the views of its run: rows of representation, scores and regions.

    They lie in the cache, memory-mapped, so that evaluations which differ only in what follows share them.
    """

    def __init__(self, run: Run):
        self.run, self.plan = run, Plan.of(run.config)
        self.name = digest([state_fingerprint(run.network), run.config.evaluation.normalize, vars(self.plan)])

    def representations(self, role: str) -> np.ndarray:
        """(n, D)."""
        return self._rows(role)[:, : self.width]

    def scores(self, role: str) -> np.ndarray:
        """(n, L): the network's own, averaged over views."""
        labels = len(self.run.dataset.categories)
        return np.array(self._rows(role)[:, self.width : self.width + labels])

    def regions(self, role: str) -> np.ndarray | None:
        """(n, K, 4) of the centre crop."""
        found = self._rows(role)[:, self.width + len(self.run.dataset.categories) :]
        return np.array(found).reshape(len(found), -1, 4) if found.shape[1] else None

    @property
    def width(self) -> int:
        """D."""
        return self.run.network.head.classifier.in_features  # type: ignore[union-attr, return-value]

    def _rows(self, role: str) -> np.ndarray:
        run, source = self.run, self.run.whole(role)
        shape = len(source), self.width + len(run.dataset.categories) + 4 * getattr(run.network.head, "regions", 0)
        cached, boxes = Path(source.array.filename).stem, content(source.boxes)  # type: ignore[attr-defined]
        key = digest([self.name, cached, boxes, run.config.training.precision, run.device.type])
        return rows(
            run.cache_dir, f"seen-{key}", shape, lambda: self._look(source), f"{role}: {self.plan.views} view(s)"
        )

    @torch.inference_mode()
    def _look(self, source: Source) -> Iterator[np.ndarray]:
        run = self.run
        run.network.eval()
        for images, boxes in whole_images(source, run.config.execution.evaluation_batch_size):
            boxes = boxes if boxes is None else boxes.to(run.device)
            with run.autocast():
                views = represent(run.network, images.to(run.device), self.plan, boxes)
            parts = [views.representations, comparable(run.config, views.scores)]
            if not all(part.isfinite().all() for part in parts):
                raise NotFiniteError(f"what the network of epoch {run.epoch} makes of images is not finite. {REMEDY}")
            if views.regions is not None:
                parts.append(views.regions[:, CENTRE if views.regions.shape[1] > 1 else 0].flatten(1))
            yield torch.cat(parts, dim=1).cpu().numpy()


CENTRE = 4
"""Which of ten views is the upright centre."""


def _by_network(seen: Sequence[_Seen]):
    """role → (n, L): the networks' own scores, mean over scales."""
    return lambda role: np.mean([one.scores(role) for one in seen], axis=0)


def _by_svm(seen: Sequence[_Seen]):
    """role → (n, L): decision values of SVMs fitted on train, by scale and averaged, or on all scales side by side."""
    run, rule = seen[0].run, seen[0].run.config.evaluation
    groups = [seen] if rule.scale_fusion == "concatenate" else [[one] for one in seen]

    def together(group: Sequence[_Seen], role: str) -> np.ndarray:
        return np.concatenate([svm.unit(one.representations(role)) for one in group], axis=1)

    train = run.annotations("train")
    fitted = [
        svm.fit(together(group, "train"), train.targets, train.difficult, rule.svm_c, rule.svm_folds)
        for group in groups
    ]

    def decide(role: str) -> np.ndarray:
        return np.mean(
            [svm.decisions(one, together(group, role)) for one, group in zip(fitted, groups, strict=True)], axis=0
        )

    return decide


def calibrate(run: Run, selection: Scores) -> Platt | None:
    """Per-label Platt scaling where the loss gives scores no probability of their own (METHOD 7)."""
    if run.config.loss.classification != "euclidean":
        return None
    images = run.annotations("selection")
    return Platt.fit(selection.scores, images.targets, images.difficult)


def _likely(run: Run, found: Scores, platt: Platt | None) -> np.ndarray:
    """(n, L) probabilities: an SVM's decision value has the sigmoid's, as the scores of most losses."""
    if run.config.evaluation.classifier == "svm" and found.terms is None:
        return sigmoid(found.scores)
    return probabilities(found.scores, run.config.loss.classification, platt)


def label_metrics(run: Run, role: str, found: Scores, likely: np.ndarray) -> dict[str, float]:
    """mAP, mAP_11, CP … OF1 and their `_all` variants of one role's scores, and the mAP of chance."""
    images, rule = run.annotations(role), run.config.evaluation
    found_metrics = metrics.summary(found.scores, likely, images.targets, images.difficult, rule.top_k, rule.threshold)
    return found_metrics | {"chance": images.chance()}


def region_metrics(run: Run, role: str, found: Scores) -> dict[str, float]:
    """What the regions do, where there are any; and whether they attend to objects, where the dataset has boxes.

    `filled_share`: of the regions that were to be proposals, those for which none was found (the whole crop is there).
    """
    if found.regions is None:
        return {}
    points = anchors(found.regions.shape[1], run.config.loss.anchor_radius).numpy()
    pulled = points if run.config.model.name == "rma" else None
    statistics, images, data = region_statistics(found.regions, pulled), run.annotations(role), run.config.data
    if run.config.model.edges:
        given = run.whole(role).boxes
        assert given is not None
        statistics["filled_share"] = float(np.isnan(given).any(-1).mean())
    if images.boxes is None:
        return statistics
    crops = np.tile(centre_crop(data, run.network.backbone.stride), (len(images), 1))
    return statistics | attention(found.regions, points, images.boxes, run.sizes(role), crops, data.image_size)


PICTURES = "pictures"
PICTURED_EPOCHS = 10


def write_pictures(run: Run, folder: Path) -> None:
    """`pictures/003.jpg`: what the regions are on some selection images after epoch 3; up to a dozen over a run."""
    epochs = run.config.training.epochs
    due = run.epoch in (1, epochs) or run.epoch % -(-epochs // PICTURED_EPOCHS) == 0
    if run.attends and run.config.execution.pictures and due:
        write(folder / PICTURES / f"{run.epoch:03}.jpg", encode(contact_sheet(drawn(run))))


@torch.inference_mode()
def drawn(run: Run) -> list[Image.Image]:
    """The regions on the same few selection images for every model of a dataset, with the labels each scored highest."""
    images, crop = run.annotations("selection"), centre_crop(run.config.data, run.network.backbone.stride)
    chosen = pick(images, run.config.execution.pictures)
    batch = run.selection.crop(chosen, np.tile(crop, (len(chosen), 1))).to(run.device)
    run.network.eval()
    with run.autocast():
        prediction = run.network(batch.inputs, run.given(batch))
    regions, scores = prediction.regions.float().cpu().numpy(), prediction.region_scores.float().cpu().numpy()
    data, steps = run.config.data, getattr(run.network.head, "steps", 0)
    return [
        picture(images, index, regions[i], scores[i], crop, data.image_size, data.max_image_pixels, steps)
        for i, index in enumerate(chosen.tolist())
    ]
