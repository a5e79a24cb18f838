"""How often each image is shown in a pass over the data: once, or images of rare classes more often.

    classes of each image ── Sampler ──► (N,) times in this (seed, epoch, pass) ── loader.epoch_order ──► entries

All passes of one sampler are equally long, so that an epoch has the same number of steps every time. Dims: N images,
K classes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate, cycle, islice
from typing import Annotated, Literal

from pydantic import Field

from scantling.data.coco import CocoDataset, ImageId
from scantling.data.samples.dataset import draw_key
from scantling.settings.section import Section


class SamplingConfig(Section):
    """Which images an epoch shows how often.

    Attributes:
        method: `uniform` shows each image once per pass. `repeat_factor` shows images with a rare class more often, all
            others once (Gupta et al. 2019, LVIS). `class_aware` shows each class equally often (Shen et al. 2016).
        threshold: Of `repeat_factor`: classes in a smaller share of the images are rare; one in the share f is shown
            sqrt(threshold / f) times as often. LVIS, with 100,000 images, uses 0.001, which in a thousand images is
            none at all.
    """

    method: Literal["uniform", "repeat_factor", "class_aware"] = "uniform"
    threshold: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.1


class Sampler:
    """How often each image is shown in each pass of each epoch; the same for any order of the records.

    Args:
        config: The method.
        image_ids: (N,) distinct ids in record order.
        labels: (N,) the classes of which each image has an object; may be empty sets.
        seed: Of the run.

    Attributes:
        length: Images shown in a pass.
    """

    def __init__(
        self,
        config: SamplingConfig,
        image_ids: Sequence[ImageId],
        labels: Sequence[frozenset[int]],
        *,
        seed: int,
    ) -> None:
        self._ids, self._labels, self._seed = image_ids, labels, seed
        self._method: Callable[[int, int], list[int]] = {
            "uniform": self._once,
            "repeat_factor": self._repeated,
            "class_aware": self._by_class,
        }[config.method]
        self.factors = repeat_factors(labels, config.threshold)
        repeated = config.method == "repeat_factor"
        self.length = math.ceil(round(math.fsum(self.factors), 6)) if repeated else len(image_ids)

    def times(self, epoch: int, repeat: int) -> list[int]:
        """(N,) how often each image is shown; their sum is `length`.

        Args:
            epoch: Counted from 0.
            repeat: Which of an epoch's passes, counted from 0.
        """
        return self._method(epoch, repeat)

    def _once(self, _epoch: int, _repeat: int) -> list[int]:
        return [1] * len(self._ids)

    def _repeated(self, epoch: int, repeat: int) -> list[int]:
        """Whole parts of the factors, and their fractions by chance.

        Factors are scaled by less than 1 + 1/N so that their sum is whole. Laid end to end in an order drawn by the
        ids, an image is shown once for each whole number plus u that lies in its length, u drawn from [0, 1): each
        fraction is rounded up with its own probability, and the sum is always the same.
        """
        order = self._drawn(range(len(self._ids)), epoch, f"repeats {repeat}")
        scale = self.length / math.fsum(self.factors) if self.factors else 1.0
        start = int.from_bytes(draw_key(self._seed, epoch, "", f"repeats {repeat}")[:6], "little") / 2**48
        ends = list(accumulate(scale * self.factors[position] for position in order))
        whole = [math.floor(end + start) for end in ends[:-1]] + [self.length] * bool(ends)
        times = [0] * len(self._ids)
        for position, before, after in zip(order, [0, *whole], whole, strict=False):
            times[position] = after - before
        return times

    def _by_class(self, epoch: int, repeat: int) -> list[int]:
        """Images without objects once; the others' number is dealt out equally over the classes that there are.

        A class goes through its images in an order drawn anew for each pass, and again from the start where it needs
        more. What does not divide goes to classes drawn by chance.
        """
        times = [int(not labels) for labels in self._labels]
        members: dict[int, list[int]] = {}
        for position, labels in enumerate(self._labels):
            for label in sorted(labels):
                members.setdefault(label, []).append(position)
        if not members:
            return times
        each, rest = divmod(len(times) - sum(times), len(members))
        drawn = sorted(members, key=lambda label: draw_key(self._seed, epoch, label, f"classes {repeat}"))
        for number, label in enumerate(drawn):
            order = self._drawn(members[label], epoch, f"class {label} {repeat}")
            for position in islice(cycle(order), each + (number < rest)):
                times[position] += 1
        return times

    def _drawn(self, positions: Sequence[int], epoch: int, purpose: str) -> list[int]:
        """The positions in an order that depends on the images' ids, not on the positions."""
        return sorted(positions, key=lambda at: draw_key(self._seed, epoch, self._ids[at], purpose))

    def to_text(self) -> str:
        """For the log: what is not uniform."""
        most = max(self.times(0, 0), default=0)
        return f"a pass shows {self.length} images, of {len(self._ids)} there are, one {most} times at most"


def labels_of(dataset: CocoDataset) -> list[frozenset[int]]:
    """For each image the classes of its objects; crowd regions and ignored objects are none."""
    return [frozenset(one.label for one in found if one.is_object) for found in dataset.annotations]


def repeat_factors(labels: Sequence[frozenset[int]], threshold: float) -> list[float]:
    """How often each image should be shown: the largest of its classes' factors, 1 for an image without objects.

    That of a class is max(1, sqrt(threshold / f)), f being the share of the images that have it.

    Args:
        labels: (N,) the classes of each image.
        threshold: In (0, 1].

    Source: Gupta et al. 2019 (LVIS), appendix B.2.
    """
    having = Counter(label for found in labels for label in found)
    factors = {label: math.sqrt(threshold * len(labels) / count) for label, count in having.items()}
    return [max([1.0, *(factors[label] for label in found)]) for found in labels]
