"""Generated inspection scenes: photographs of an assembled housing whose truth is known to the pixel.

A fixed layout of twelve kinds of components (bolts of ten pixels to a hose of a hundred and thirty, at 320x240) on
a cast housing, each intact, damaged, covered, or absent; scratches, pits and stains as categories of their own; any
resolution; label errors of four kinds at chosen rates with the truth kept beside them.

    scene = generate_scene(SynthConfig(), index=0, seed=0)
    write_synth(Path("scenes"), SynthConfig(noise=LabelNoise(missing=0.1)), splits={"train": 200, "val": 50}, seed=0)

What is boxed: in COCO's layout the *visible* extent, exactly the hull of the mask; parts of which less than
`min_visible` shows, and absent parts, have no annotation. In DelftBikes' layout the *whole* extent of every part
under its slot's name with its state, absent parts where they should be; surface defects have no entry.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from scantling.data.io import atomic_write, write_json
from scantling.data.samples.dataset import rng_for
from scantling.data.workers import TaskStream
from scantling.errors import UsageError
from scantling.synth.labels import corrupt, corrupt_entries, true_entries, true_labels
from scantling.synth.layout import CATEGORY_IDS
from scantling.synth.records import SceneRecord, coco_documents, delftbikes_documents
from scantling.synth.scene import LabelNoise, Part, Scene, SynthConfig, generate_scene
from scantling.synth.sheet import contact_sheet

__all__ = [
    "CATEGORY_IDS",
    "LabelNoise",
    "Part",
    "Scene",
    "SynthConfig",
    "contact_sheet",
    "generate_scene",
    "write_synth",
]

SPLIT_STRIDE = 1_000_000
KNOWN_SPLITS = ("train", "val", "test")  # scenes from 0, from 1,000,000, from 2,000,000


class _Task(NamedTuple):
    """One picture to make and write."""

    number: int
    file_name: str
    noisy: bool


def write_synth(
    out: Path,
    config: SynthConfig,
    *,
    splits: Mapping[str, int],
    seed: int,
    workers: int = 0,
    layout: Literal["coco", "delftbikes"] = "coco",
    overwrite: bool = False,
) -> dict[str, Path]:
    """Write a data set of generated scenes.

    Args:
        out: Folder to write to; made if need be, must be empty unless `overwrite`.
        config: What the scenes are like.
        splits: Number of pictures by split name. The scenes of a split do not depend on which others are made,
            and no scene is in two splits.
        seed: Same seed, same files, byte for byte, whatever `workers`.
        workers: Processes that make pictures; 0 makes everything in this one.
        layout: `coco`: `images/`, `annotations/SPLIT.json` with RLE masks and part states, and for badly labelled
            splits `SPLIT_clean.json` (the truth, with the same ids) and `SPLIT_corruptions.json` (what was done to
            which id). `delftbikes`: `images/`, `SPLIT_annotations.json`, likewise `SPLIT_annotations_clean.json`
            and `SPLIT_corruptions.json`.
        overwrite: Write into a folder that holds something; files of other names stay.

    Returns:
        The annotation file of every split.

    Raises:
        UsageError: No pictures asked for, an impossible split name, or a folder that is not empty.
    """
    _check_splits(splits)
    _claim(out, overwrite=overwrite)
    stream = TaskStream(partial(_make, config, seed), workers)
    files = {}
    for split, count in splits.items():
        noisy = config.noise.active and split in config.noise.splits
        tasks = _tasks(split, count, config.image_format, noisy=noisy)
        pictures = _write_images(out / "images", stream.run(tasks))
        if layout == "coco":
            folder, documents = (
                out / "annotations",
                coco_documents(split, pictures, config, seed, noisy=noisy),
            )
        else:
            folder, documents = out, delftbikes_documents(split, pictures, noisy=noisy)
        for name, document in documents.items():
            write_json(folder / name, document)
        files[split] = folder / next(iter(documents))
    stream.close()
    return files


def _check_splits(splits: Mapping[str, int]) -> None:
    for name, count in splits.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise UsageError(f"split name {name!r}: use letters, digits, - and _")
        if not 0 <= count <= SPLIT_STRIDE:
            raise UsageError(f"split {name!r}: expected 0 to {SPLIT_STRIDE} pictures, found {count}")
    if not any(splits.values()):
        raise UsageError(
            "no pictures asked for", hint="Give at least one split a number of pictures above 0."
        )


def _claim(out: Path, *, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; expected a folder to write to")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UsageError(f"{out} is not empty", hint="Choose another folder, or allow overwriting.")


def _tasks(split: str, count: int, image_format: str, *, noisy: bool) -> list[_Task]:
    start = SPLIT_STRIDE * _split_number(split)
    return [_Task(start + number, f"{split}_{number:06d}.{image_format}", noisy) for number in range(count)]


def _split_number(split: str) -> int:
    """Its place among the known splits, or a number of its own made from its name."""
    if split in KNOWN_SPLITS:
        return KNOWN_SPLITS.index(split)
    return len(KNOWN_SPLITS) + int.from_bytes(blake2b(split.encode(), digest_size=3).digest(), "little")


def _make(config: SynthConfig, seed: int, task: _Task) -> tuple[SceneRecord, bytes]:
    """Generate one picture; return what is known about it and its file's content."""
    scene = generate_scene(config, task.number, seed)
    content = _encode(scene.image, config)
    labels, entries = true_labels(scene), true_entries(scene)
    if not task.noisy:
        return SceneRecord(task.number, task.file_name, labels, [], entries, []), content
    rng, entry_rng = (rng_for(seed, 0, task.number, f"synth {kind} errors") for kind in ("label", "entry"))
    errors = corrupt(labels, config.noise, config.size_hw, rng)
    entry_errors = corrupt_entries(entries, config.noise, config.size_hw, entry_rng)
    return SceneRecord(task.number, task.file_name, labels, errors, entries, entry_errors), content


def _write_images(folder: Path, made: Iterable[tuple[SceneRecord, bytes]]) -> list[SceneRecord]:
    """Write pictures as they come; threads wait for the disk while the next ones are made."""
    pictures = []
    writing: deque[Future[None]] = deque()
    with ThreadPoolExecutor(4) as disk:
        for picture, content in made:
            pictures.append(picture)
            writing.append(disk.submit(atomic_write, folder / picture.file_name, content))
            while writing and (writing[0].done() or len(writing) > 64):
                writing.popleft().result()
        for written in writing:
            written.result()
    return pictures


def _encode(image: NDArray[np.uint8], config: SynthConfig) -> bytes:
    quality = {
        "jpg": (cv2.IMWRITE_JPEG_QUALITY, config.jpeg_quality),
        "png": (cv2.IMWRITE_PNG_COMPRESSION, 3),
    }
    upright = np.ascontiguousarray(image[..., ::-1])
    return cv2.imencode(f".{config.image_format}", upright, quality[config.image_format])[1].tobytes()
