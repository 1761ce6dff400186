"""A trained network without its dataset: from a run's folder to labels, probabilities and regions of any image.

Legend: B images, N image side in pixels, K regions, L labels, C H W feature map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ram_tune.config import Config
from ram_tune.data.batches import Source, evaluation_batches
from ram_tune.data.given import boxes_of_new
from ram_tune.data.images import to_rgb
from ram_tune.errors import BadInput
from ram_tune.evaluation.calibration import Platt, probabilities
from ram_tune.models.network import Network, build
from ram_tune.models.regions import of_crops, to_pixels
from ram_tune.presets import from_json
from ram_tune.training import checkpoint
from ram_tune.training.device import autocast, device_of, set_tf32
from ram_tune.training.judging import NotFiniteError, comparable
from ram_tune.training.local import CHECKPOINTS
from ram_tune.training.results import CALIBRATION, SINGLE


@dataclass(frozen=True, eq=False)
class Found:
    """What a trained network says of one image."""

    size: tuple[int, int]  # width and height, pixels
    scores: np.ndarray  # (L,) float32, those of scores.npz
    probabilities: np.ndarray | None  # (L,) float64; None where no calibration was found
    region: np.ndarray | None  # (L,) int64: which region scored the label highest, from 0; None without regions
    boxes: np.ndarray  # (K, 4) float64: x1, y1, x2, y2 in pixels; beyond the image where the region reaches beyond it
    steps: int = 0  # T where the boxes lie round so many places, one after another (RARL)

    @property
    def likely(self) -> np.ndarray:
        """By what labels are ranked (L,): probabilities, or scores where there are none."""
        return self.scores if self.probabilities is None else self.probabilities


@dataclass(frozen=True, eq=False)
class Trained:
    """A network and all that is needed to use it."""

    config: Config
    categories: tuple[str, ...]
    network: Network  # on `device`, in evaluation mode
    device: torch.device
    platt: Platt | None = None  # of single crops; only where scores are no log-odds

    @classmethod
    def load(cls, path: Path, device: str = "auto") -> Trained:
        """From a run's folder, or its best.pt; nothing in it is executed. Raises BadInput."""
        best = find_weights(path)
        content = checkpoint.load(best)
        if "categories" not in content:
            raise BadInput(
                best,
                found="the state of a training under way",
                expected="the weights of a trained model",
                remedy=f"Name its {checkpoint.BEST}.",
            )
        folders = [best.parent] + [best.parent.parent] * (best.parent.name == CHECKPOINTS)
        places = [folder / name for folder in folders for name in (SINGLE, CALIBRATION)]
        platt = next((Platt.read(file, len(content["categories"])) for file in places if file.is_file()), None)
        config = from_json(content["config"], str(best))
        return cls.of(config, content["categories"], content["network"], platt, device, str(best))

    @classmethod
    def of(
        cls,
        config: Config,
        categories: Sequence[str],
        state: Mapping[str, Tensor],
        platt: Platt | None,
        device: str,
        where: str,
    ) -> Trained:
        """From its parts; `where` they are from is named in the BadInput for weights that do not fit."""
        set_tf32(config)
        chosen = device_of(device)
        network = build(config, len(categories), pretrained=False)  # `state` has all weights
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise BadInput(
                where,
                found=str(error).splitlines()[-1].strip(),
                expected="the tensors of its configuration's model",
                remedy="Use the version of ram_tune that wrote it.",
            ) from error
        return cls(config, tuple(categories), network.to(chosen).eval(), chosen, platt)

    @property
    def has_probabilities(self) -> bool:
        """Whether there is a calibration, or none is needed."""
        return self.platt is not None or self.config.loss.classification != "euclidean"

    def predict(self, images: Sequence[Image.Image]) -> list[Found]:
        """What the network says of each image, resized and scored as a run does its test images.

        It sees the centre crop alone, whatever `evaluation` says of views, scales and SVMs. Raises NotFiniteError.
        """
        step = self.config.execution.evaluation_batch_size
        return [found for start in range(0, len(images), step) for found in self._batch(images[start : start + step])]

    def labels(self, found: Found, top: int | None = None, threshold: float = 0.0) -> list[dict[str, Any]]:
        """The labels of an image, likeliest first, ready for JSON: at most `top`, with probability ≥ `threshold`.

        Each has `label`, `probability`, `score`, `region` (from 1, as on pictures) and `box` (its x1, y1, x2, y2 in
        pixels); what there is none of is None. Without probabilities the threshold is not applied.
        """
        rows = []
        for label in np.argsort(-found.likely, kind="stable")[:top]:
            if found.probabilities is not None and found.probabilities[label] < threshold:
                break
            probability = None if found.probabilities is None else round(float(found.probabilities[label]), 6)
            region = None if found.region is None else int(found.region[label])
            rows.append(
                {
                    "label": self.categories[label],
                    "probability": probability,
                    "score": round(float(found.scores[label]), 6),
                    "region": None if region is None else region + 1,
                    "box": None if region is None else found.boxes[region].round(1).tolist(),
                }
            )
        return rows

    @torch.inference_mode()
    def _batch(self, images: Sequence[Image.Image]) -> list[Found]:
        config, N = self.config, self.config.data.image_size
        array = np.stack([np.asarray(to_rgb(each).resize((N, N), Image.Resampling.BILINEAR)) for each in images])
        given = boxes_of_new(config, images, array)
        if config.data.crop == "map":
            array = self._maps(array)
        unknown = np.zeros((len(images), len(self.categories)), bool)
        (waiting,) = evaluation_batches(Source(array, unknown, config.data, boxes=given), len(images))
        batch = waiting.to(self.device)
        with autocast(self.config, self.device):
            prediction = self.network(batch.inputs, of_crops(batch.boxes, batch.crops, N))
        values = comparable(config, prediction.scores.float()).cpu().numpy()
        if not np.isfinite(values).all():
            raise NotFiniteError("the network's scores are not finite: its training broke down.")
        likely = probabilities(values, config.loss.classification, self.platt) if self.has_probabilities else None
        if prediction.regions is None:
            region, boxes = None, np.empty((len(images), 0, 4))
        else:
            sizes = torch.tensor([each.size for each in images], device=self.device)
            region = prediction.region_scores.argmax(1).cpu().numpy()
            boxes = to_pixels(prediction.regions.double(), batch.crops, N, sizes).cpu().numpy()
        return [
            Found(
                each.size,
                values[i],
                None if likely is None else likely[i],
                None if region is None else region[i],
                boxes[i],
                getattr(self.network.head, "steps", 0),
            )
            for i, each in enumerate(images)
        ]

    def _maps(self, images: np.ndarray) -> np.ndarray:
        """(B, N, N, 3) uint8 → (B, 1, C, H, W), the bits of the bfloat16 maps that a cache of them would hold."""
        with autocast(self.config, self.device):
            maps = self.network.backbone(torch.from_numpy(images).to(self.device))
        return maps.to(torch.bfloat16).contiguous().cpu().view(torch.uint16).numpy()[:, None]


def find_weights(path: str | Path) -> Path:
    """The best.pt of the run in the folder `path`, or `path` itself where it is none. Raises BadInput."""
    path = Path(path)
    if not path.is_dir():
        return path
    for best in (path / checkpoint.BEST, path / CHECKPOINTS / checkpoint.BEST):
        if best.is_file():
            return best
    raise BadInput(
        path,
        found=f"a folder without {checkpoint.BEST} or {CHECKPOINTS}/{checkpoint.BEST}",
        expected="the folder of a trained run",
        remedy="Train it with `python -m ram_tune.train --out DIR`.",
    )
