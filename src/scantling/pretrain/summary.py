"""What a pretraining reached, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BACKBONE, METRICS = "backbone.safetensors", "metrics.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainSummary:
    """What a pretraining reached.

    Attributes:
        out: Its folder.
        metrics: Content of `metrics.json`.
    """

    out: Path
    metrics: Mapping[str, Any]

    @property
    def weights(self) -> Path:
        """The file for `init`."""
        return self.out / BACKBONE

    def to_text(self) -> str:
        """For people: what was learned, and how to use it."""
        m = self.metrics
        lines = [
            f"{m['crops']} crops, {m['epochs']} epoch(s): InfoNCE {_shown(m['info_nce'])}, "
            f"own key first in {_shown(m['queue_accuracy'])}"
        ]
        if m["knn"] is not None:
            lines += [
                "k-NN accuracy on held-out crops   accuracy  balanced",
                *(
                    f"  {name:<30}  {m[key]['accuracy']:8.3f}  {m[key]['balanced']:8.3f}"
                    for name, key in (("before pretraining", "knn_untrained"), ("after", "knn"))
                ),
                f"  always the most frequent        {m['knn']['majority']:8.3f}",
            ]
        return "\n".join([*lines, f"weights: {self.weights} (in a recipe: model.init)"])

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {"out": str(self.out), "weights": str(self.weights), "metrics": dict(self.metrics)}


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
