"""Where refining helps: measured on validation (or out-of-fold) predictions, kept as a small file, obeyed later.

    results ── refine all ──► before and after ── IoU with the label each result is meant for ──► gain per cell
                                    └── AP of each category without and with all of its boxes refined
    cell = category x size (small, medium, large) x score band

Four rules say which cells are open, from the coarsest to the finest:

    all         every cell
    category    the cells of each category whose AP rose with all of its boxes refined
    size        the cells of each size and score band whose mean gain of IoU, over all categories, is above 0
    cell        the cells whose gain of IoU is expected to be above 0, where each borrows from its category and from all
                (`gate_pooling`)

Which rule is used is cross-validated as in `combine/selection.py`: for each fold of the images a rule looks at the
others, and the results of all folds together give an AP on images that decided nothing. The rule with the highest is
used if its gain over unrefined boxes is above 0 beyond doubt: if the lower end of its 95 % interval over the images is;
of equal ones the one that opens less. Otherwise everything stays closed. The finer rules never open a cell without a
result that is meant for a label. (The paper finds that small objects and precise detectors can lose.) Sizes are COCO's,
by the area of the box before refining.

C: categories, S: sizes, Q: score bands, I: images, N: results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

from scantling.data.coco.records import labels_by_name
from scantling.refine.apply import ApplyConfig
from scantling.refine.crops import Boxes
from scantling.settings import yaml as strict_yaml
from scantling.settings.fields import Fraction
from scantling.structures.detections import Detections

Size = Literal["small", "medium", "large"]
SIZES: tuple[Size, ...] = ("small", "medium", "large")
LIMITS = (32.0**2, 96.0**2)

Measured = tuple[float, float, float]
"""A value and the ends of its 95 % interval."""
Rule = Literal["all", "category", "size", "cell"]
RULES: tuple[Rule, ...] = get_args(Rule)


class GateConfig(BaseModel):
    """How a gate is measured.

    Attributes:
        bands: Scores at which a new band begins, rising.
        min_overlap: A result is meant for the label of its category that it overlaps most, if by at least this IoU.
        min_matches: Fewer results that are meant for a label say nothing: those of a category to the rule `category`,
            those of a size and band to the rule `size`, those of all to the rules `all` and `cell`.
        min_images: The same for the number of images they come from.
        pool: Let cells borrow, and try the coarser rules. False judges every cell alone, by its own results: it then
            needs `min_matches` and `min_images`, and a gain of IoU above 0 beyond doubt.
        folds: Parts of the images on which a rule is tried after looking at the others.
        bootstrap: Resamples of the images.
        seed: Of the folds and resamples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bands: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(strict=False)] = (0.3, 0.6)
    min_overlap: Fraction = 0.3
    min_matches: Annotated[int, Field(ge=2)] = 20
    min_images: Annotated[int, Field(ge=2)] = 8
    pool: bool = True
    folds: Annotated[int, Field(ge=2, le=100)] = 5
    bootstrap: Annotated[int, Field(ge=100, le=100_000)] = 1000
    seed: Annotated[int, Field(ge=0)] = 0

    @field_validator("bands")
    @classmethod
    def _rising(cls, bands: tuple[float, ...]) -> tuple[float, ...]:
        if list(bands) != sorted(set(bands)):
            raise ValueError(f"must rise, found {list(bands)}")
        return bands


class GateRequest(GateConfig):
    """How a gate is measured, and how boxes are refined for it."""

    apply: ApplyConfig = ApplyConfig()


class GateCell(BaseModel):
    """One cell and the evidence.

    Attributes:
        category: Name; the second of two categories of one name has (2) behind it.
        size: Of the box before refining.
        band: Scores from (included) and to.
        open: Whether to refine here.
        matches: Results that are meant for a label.
        images: Number of images they come from.
        gain: Mean change of their IoU with it, and its 95 % interval over the images; null where undefined.
        ap_gain: Change of the category's AP at this size when every box is refined; likewise.
        pooled: Open though its own results alone do not say beyond doubt that they got better.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    category: str
    size: Size
    band: Annotated[tuple[float, float], Field(strict=False)]
    open: bool
    matches: int
    images: int
    gain: Annotated[tuple[float, float, float] | None, Field(strict=False)] = None
    ap_gain: Annotated[tuple[float, float, float] | None, Field(strict=False)] = None
    pooled: bool = False


class RuleGain(BaseModel):
    """What a rule gives.

    Attributes:
        rule: Its name; `all` is refining without a gate.
        opened: Cells it opens.
        gain: Change of AP on images that the rule did not look at, and its 95 % interval over the images; null where
            undefined.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Rule
    opened: int
    gain: Annotated[tuple[float, float, float] | None, Field(strict=False)] = None


class RefineGate(BaseModel):
    """Where to refine.

    Attributes:
        refiner: SHA-256 of the refiner's checkpoint.
        apply: How boxes were refined when it was measured.
        ap: On the results it was measured on: AP `before`, with all boxes `refined`, and `gated` with this gate.
        rule: The one that says which cells are open; null where none surely helps.
        rules: What each gives.
        cells: Every cell that held results; what is not listed is closed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    refiner: str
    apply: ApplyConfig
    ap: dict[str, float | None] = Field(default_factory=dict)
    rule: Rule | None = None
    rules: tuple[RuleGain, ...] = ()
    cells: tuple[GateCell, ...] = ()

    def allows(self, detections: Detections, class_names: Sequence[str]) -> NDArray[np.bool_]:
        """For each detection (N,) whether its cell is open.

        Args:
            detections: With the boxes before refining.
            class_names: Of the data set they belong to; matched by name.
        """
        allowed = np.zeros(len(detections), dtype=bool)
        sizes = size_of(detections.boxes)
        labels = labels_by_name(class_names)
        for cell in self.cells:
            if cell.open and cell.category in labels:
                low, high = cell.band
                inside = (detections.scores >= low) & ((detections.scores < high) | (high >= 1))
                inside &= (detections.labels == labels[cell.category]) & (sizes == SIZES.index(cell.size))
                allowed |= inside
        return allowed

    def to_yaml(self) -> str:
        """As a file."""
        return strict_yaml.dump(self.model_dump(mode="json"))

    def to_text(self) -> str:
        """A table for people, open cells first."""
        opened = sum(cell.open for cell in self.cells)
        lines = [f"{opened} of {len(self.cells)} cells are open"]
        if self.ap:
            values = ("undefined" if v is None else f"{v:.3f}" for v in self.ap.values())
            lines.append("AP " + ", ".join(f"{n} {v}" for n, v in zip(self.ap, values, strict=True)))
        if self.rules:
            lines.append("change of AP on images that decided nothing:")
            lines += [f"  {line}" for line in self.rule_lines]
        lines += [_line(cell) for cell in sorted(self.cells, key=lambda cell: not cell.open)]
        return "\n".join(lines)

    @property
    def rule_lines(self) -> list[str]:
        """What each rule gives, in words; first what no gate would."""
        lines = []
        for found in self.rules:
            what = "no gate" if found.rule == "all" else f"by {found.rule}"
            used = "  used" if found.rule == self.rule else ""
            lines.append(f"{what:<12} {_shown(found.gain)}, {found.opened} cells{used}")
        return lines


def size_of(boxes: Boxes) -> NDArray[np.int64]:
    """Position in SIZES of each box (N, 4) xyxy."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.searchsorted(LIMITS, areas, side="left").astype(np.int64)


def _line(cell: GateCell) -> str:
    state = "refine" if cell.open else "keep"
    place = f"{cell.category}, {cell.size}, score {cell.band[0]:g} to {cell.band[1]:g}"
    results = f"{cell.matches} results" + (", together with others" if cell.pooled else "")
    return f"{state:<7} {place}: IoU {_shown(cell.gain)}, AP {_shown(cell.ap_gain)} ({results})"


def _shown(gain: tuple[float, float, float] | None) -> str:
    return "unknown" if gain is None else f"{gain[0]:+.3f} [{gain[1]:+.3f}, {gain[2]:+.3f}]"
