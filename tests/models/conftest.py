"""Golden cases as fixtures: MMDetection's numbers, and our model with its weights, as `import-weights` fills it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scantling.models.contract import Detector, Encoded
from scantling.models.weights.mmdet import ForeignCheckpoint
from scantling.models.zoo import ModelConfig
from scantling.predict.import_weights import take_over
from scantling.structures.instances import ImageMasks, Instances
from scantling.structures.sample import Batch, Frame

GOLDEN = Path(__file__).parents[1] / "golden"
MODEL_OF = {
    "double_head_r50": "double_head_rcnn_r50",
    "htc_r50": "htc_without_semantic_r50",
    "cb_resnet50": "faster_rcnn_r50",  # that there are two backbones is read off the file
}  # other cases have the name of their model
CLASSES = ("bolt", "nut", "washer")
NEVER_USED = tuple(
    f"backbone.cb_modules.1.bn1.{name}" for name in ("weight", "bias", "running_mean", "running_var")
)
"""The lead's stem, which CBNet deletes but for this layer."""


@dataclass(frozen=True)
class Golden:
    """One case: settings and losses, reference arrays, the scene, and our model with the case's weights."""

    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]
    scene: dict[str, np.ndarray]
    model: Detector

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name])

    @property
    def image(self) -> torch.Tensor:
        return torch.from_numpy(self.scene["image"])

    @cached_property
    def features(self) -> list[torch.Tensor]:
        """The pyramid of the scene, made once: no test changes the model's weights."""
        with torch.no_grad():
            return self.model.features(self.image)

    @property
    def proposals(self) -> torch.Tensor:
        return torch.from_numpy(self.scene["proposals"])

    @property
    def size_hw(self) -> tuple[int, int]:
        return int(self.image.shape[2]), int(self.image.shape[3])

    @property
    def truth(self) -> Instances:
        return Instances(
            size_hw=self.size_hw,
            boxes=torch.from_numpy(self.scene["gt_boxes"]),
            labels=torch.from_numpy(self.scene["gt_labels"]),
            masks=ImageMasks.from_dense(unpacked(self.scene["gt_masks"], 3, self.size_hw)),
        )

    def encoded(self, features: Sequence[torch.Tensor]) -> Encoded:
        """Levels with the case's own proposals."""
        return Encoded(levels=features, sizes_hw=[self.size_hw], proposals=[self.proposals])

    @property
    def batch(self) -> Batch:
        """The scene's ground truth; its image is a placeholder, since golden images are already normalised."""
        return Batch(
            images=torch.zeros(1, 3, *self.size_hw, dtype=torch.uint8),
            sizes_hw=[self.size_hw],
            instances=[self.truth],
            frames=[Frame.identity(self.size_hw)],
            image_ids=[0],
        )


def unpacked(bits: np.ndarray, count: int, size_hw: tuple[int, int]) -> np.ndarray:
    """(N, H, W) of the packed bits in which the cases keep masks."""
    return np.unpackbits(bits)[: count * size_hw[0] * size_hw[1]].reshape(count, *size_hw)


@lru_cache(maxsize=2)
def golden_state(case: str) -> dict[str, torch.Tensor]:
    """The case's weights by MMDetection's keys."""
    spec = importlib.util.spec_from_file_location("golden_weights", GOLDEN / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    facts = json.loads((GOLDEN / f"{case}.json").read_text())
    state = {k: torch.from_numpy(v) for k, v in module.state_dict_arrays(facts["state_dict"]).items()}
    for stage, head in enumerate(heads_of(facts)):
        if (
            head["loss_cls"]["type"] == "SeesawLoss"
        ):  # counts are in every such file; the case leaves zeros out
            counts = torch.zeros(facts["num_classes"] + 1)
            state[f"roi_head.bbox_head.{stage}.loss_cls.cum_samples"] = counts
    return state


def heads_of(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The reference's settings of the box heads of a cascade; none for others."""
    heads = facts["model"]["roi_head"]["bbox_head"]
    return heads if isinstance(heads, list) else []


def golden_shapes(case: str) -> dict[str, torch.Tensor]:
    """The same without values, on the meta device."""
    facts = json.loads((GOLDEN / f"{case}.json").read_text())
    return {entry["key"]: torch.empty(entry["shape"], device="meta") for entry in facts["state_dict"]}


def golden_checkpoint(case: str, folder: Path) -> Path:
    """Write the case's weights as MMDetection would, with the record of classes of its 3.x files."""
    state = golden_state(case)
    meta = {"dataset_meta": {"classes": CLASSES}, "mmdet_version": "3.3.0", "epoch": 12}
    path = folder / f"{case}.pth"
    torch.save({"meta": meta, "state_dict": state}, path)
    return path


@pytest.fixture(scope="session")
def load_golden():
    """A function case -> Golden, each case read once per session."""
    known: dict[str, Golden] = {}

    def load(case: str) -> Golden:
        if case not in known:
            held = ForeignCheckpoint(path=Path(case), weights=golden_state(case), class_names=CLASSES)
            made = take_over(held, ModelConfig(name=MODEL_OF.get(case, case)))
            listed = NEVER_USED if case == "cb_resnet50" else ()
            assert (made.conversion.unused, made.conversion.missing) == (listed, ())
            assert made.meta.class_names == CLASSES
            facts = json.loads((GOLDEN / f"{case}.json").read_text())
            known[case] = Golden(
                facts=facts,
                arrays=dict(np.load(GOLDEN / f"{case}.npz")),
                scene=dict(np.load(GOLDEN / "scene.npz")),
                model=made.detector.eval(),
            )
        return known[case]

    return load


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """Where the cases lie."""
    return GOLDEN


@pytest.fixture(scope="session")
def golden_checkpoint_of(tmp_path_factory: pytest.TempPathFactory):
    """A function case -> checkpoint file."""
    return lambda case: golden_checkpoint(case, tmp_path_factory.mktemp("golden"))
