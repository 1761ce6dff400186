"""Published numbers, each with all that it is a number of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ram_tune.config import Config
from ram_tune.search.fields import Part


@dataclass(frozen=True)
class Protocol:
    """How a number was measured: two are comparable only where all of this is the same."""

    dataset: str
    split: str
    scales: tuple[int, ...]
    views: str
    classifier: str
    edges: str = ""  # those that object proposals were found by

    @classmethod
    def of(cls, config: Config) -> Protocol:
        """How a run of `config` is measured in the end."""
        data, rule = config.data, config.evaluation
        return cls(
            data.name,
            data.test_split,
            rule.scales or (data.image_size,),
            rule.views,
            rule.classifier,
            config.model.edges,
        )

    def words(self) -> str:
        scales = " and ".join(map(str, self.scales))
        views = "one view" if self.views == "one" else "ten views"
        edges = f", edges: {self.edges}" if self.edges else ""
        return f"{self.dataset} {self.split}, N={scales}, {views}, {self.classifier}{edges}"


class Published(Part):
    """A published number, in percent, and all that it is a number of."""

    arm: str
    dataset: str
    split: str
    scale: int | list[int]
    views: Literal["one", "ten"]
    classifier: Literal["svm", "network"]
    source: str
    edges: Literal["", "structured forest", "gradient"] = ""
    mAP: float | None = None  # noqa: N815
    CF1: float | None = None
    OF1: float | None = None

    def protocol(self) -> Protocol:
        """What it is a number of."""
        scales = (self.scale,) if isinstance(self.scale, int) else tuple(self.scale)
        return Protocol(self.dataset, self.split, scales, self.views, self.classifier, self.edges)


class Other(Part):
    """A published number, in percent, of a system that is none of the arms."""

    system: str
    dataset: str
    source: str
    mAP: float | None = None  # noqa: N815
    CF1: float | None = None
    OF1: float | None = None
