"""What a prediction in shards consists of, written down once, before the first shard.

    source ── listed once ──► images.jsonl: one image a line
                              plan.json: where they are, what predicts, where each shard begins in images.jsonl

A shard reads its own lines alone, so that memory and time of a shard do not depend on how many there are. Whoever comes
first writes the plan; who comes later, on whatever machine, finds it, or is told in what it differs from what is asked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from scantling.data.coco import Category
from scantling.data.io import json_text, read_json, write_json
from scantling.errors import DataError, UsageError
from scantling.predict.listing import ListedImage, Listing
from scantling.run.stage import differences, hash_of
from scantling.train.rundir import LOCK_NAME

PLAN, IMAGES = "plan.json", "images.jsonl"
OWN_NAMES = frozenset({PLAN, IMAGES, LOCK_NAME, "shards", "parts"})
"""What a prediction in shards keeps in its folder."""
_FORMAT = 1
_FOLDERS_OF = 1000
"""Shards in a folder of their own: what a file system lists at once."""


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """What is predicted, with what, and in which shards.

    Attributes:
        source: As it was named.
        root: Folder or URL that the places of the images are relative to; each machine may have its own.
        model: Where the run or the checkpoint is, as it was named: `run` or `checkpoint`.
        identity: What decides the predictions besides the images: hashes of the model's files, its settings,
            whether faulty records are left out.
        categories: Of the data set, ids and names; none where it is no data set.
        findings: About the source as a whole.
        shard_size: Images of a shard, but perhaps of the last.
        num_images: In `images.jsonl`.
        images_sha256: Of `images.jsonl`.
        offsets: Byte at which each shard begins in `images.jsonl`, and its length.
    """

    source: str
    root: str
    model: dict[str, str]
    identity: dict[str, Any]
    categories: tuple[tuple[int, str], ...]
    findings: tuple[str, ...]
    shard_size: int
    num_images: int
    images_sha256: str
    offsets: tuple[int, ...]

    @property
    def num_shards(self) -> int:
        """How many there are."""
        return len(self.offsets) - 1

    @cached_property
    def compared(self) -> dict[str, Any]:
        """What two plans must have in common to be one; where files are may differ from machine to machine."""
        return {
            **self.identity,
            "categories": [list(each) for each in self.categories],
            "shard_size": self.shard_size,
            "num_images": self.num_images,
            "images_sha256": self.images_sha256,
        }

    @cached_property
    def sha256(self) -> str:
        """Hash of what the predictions depend on."""
        return hash_of(self.compared)

    @property
    def declared(self) -> tuple[Category, ...]:
        """The categories of the data set."""
        return tuple(Category(number, name) for number, name in self.categories)

    def images_in(self, index: int) -> int:
        """Number of images of a shard."""
        return min(self.shard_size, self.num_images - index * self.shard_size)

    def lines(self, folder: Path, index: int) -> bytes:
        """The lines of `images.jsonl` that are a shard's."""
        start, end = self.offsets[index : index + 2]
        with (folder / IMAGES).open("rb") as stream:
            stream.seek(start)
            return stream.read(end - start)


def shard_folder(index: int) -> str:
    """Folder of a shard, relative to that of the prediction: `shards/00/00012`."""
    return f"shards/{index // _FOLDERS_OF:02d}/{index:05d}"


def images_of(lines: bytes) -> list[ListedImage]:
    """The images of some lines of `images.jsonl`."""
    records = [json.loads(line) for line in lines.splitlines()]
    return [
        ListedImage(
            record["id"],
            record["file_name"],
            record["path"],
            (record["height"], record["width"]) if "height" in record else None,
        )
        for record in records
    ]


class ListedImages(NamedTuple):
    """What was written of a listing."""

    num_images: int
    sha256: str
    offsets: tuple[int, ...]


def plan_for(
    listing: Listing,
    images: ListedImages,
    *,
    source: str,
    model: dict[str, str],
    identity: dict[str, Any],
    size: int,
) -> ShardPlan:
    """The plan of a listing whose images were written.

    Raises:
        DataError: There is no image.
    """
    if not images.num_images:
        raise DataError(f"{source}: there is no image", findings=listing.findings)
    return ShardPlan(
        source=source,
        root=listing.root if "://" in listing.root else str(Path(listing.root).absolute()),
        model=model,
        identity=identity,
        categories=tuple((category.id, category.name) for category in listing.categories),
        findings=tuple(str(finding) for finding in listing.findings),
        shard_size=size,
        num_images=images.num_images,
        images_sha256=images.sha256,
        offsets=images.offsets,
    )


def write_images(images: Iterator[ListedImage], size: int, stream: BinaryIO) -> ListedImages:
    """Write one image a line.

    Args:
        images: One is in memory at a time.
        size: Images of a shard.
        stream: Where to.
    """
    digest, offsets, place, count = hashlib.sha256(), [0], 0, 0
    for image in images:
        record: dict[str, Any] = {"id": image.id, "file_name": image.file_name, "path": image.place}
        if image.size_hw is not None:
            record["height"], record["width"] = image.size_hw
        line = f"{json_text(record)}\n".encode()
        if count and count % size == 0:
            offsets.append(place)
        stream.write(line)
        digest.update(line)
        place, count = place + len(line), count + 1
    return ListedImages(count, digest.hexdigest(), (*offsets, place))


def write_plan(folder: Path, plan: ShardPlan) -> None:
    """Write `plan.json`, which makes the images that were listed a plan."""
    write_json(folder / PLAN, {"format": _FORMAT, **asdict(plan)}, indent=None)


def read_plan(folder: Path) -> ShardPlan:
    """The plan in a folder.

    Raises:
        UsageError: There is none.
        DataError: It is damaged, or of another version, or the images are not those that were planned.
    """
    if not (folder / PLAN).is_file():
        hint = "Give the folder that was given as --shards."
        raise UsageError(f"{folder}: there is no prediction in shards", hint=hint)
    content = cast("dict[str, Any]", read_json(folder / PLAN))
    try:
        if content.pop("format") != _FORMAT:
            raise DataError(f"{folder / PLAN}: written by another version of scantling")
        content["categories"] = tuple((number, name) for number, name in content["categories"])
        for name in ("findings", "offsets"):
            content[name] = tuple(content[name])
        plan = ShardPlan(**content)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise DataError(
            f"{folder / PLAN}: damaged: {error}", hint="Choose another folder for --shards."
        ) from error
    size = (folder / IMAGES).stat().st_size if (folder / IMAGES).is_file() else None
    if size != plan.offsets[-1]:
        raise DataError(
            f"{folder / IMAGES}: not the images that were planned", hint="Choose another folder for --shards."
        )
    return plan


def refuse_difference(folder: Path, before: ShardPlan, after: ShardPlan, *, resume: bool) -> None:
    """Refuse to go on with another plan than the one in the folder.

    Args:
        folder: Of the prediction.
        before: In it.
        after: What is asked for.
        resume: It was to be gone on with as planned.

    Raises:
        UsageError: With a sentence for each difference.
    """
    if before.compared == after.compared:
        return
    told = list(differences(before.compared, after.compared))
    planned = "leave out what differs" if resume else "go on with what was planned: --resume"
    raise UsageError(
        "\n  ".join([f"{folder}: another prediction was begun in there:", *told]),
        hint=f"Nothing was changed. Choose another folder for --shards, or {planned}.",
    )
