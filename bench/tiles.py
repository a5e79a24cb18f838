"""Peak memory of predicting a 10,000 x 10,000 image in tiles of 1024, small model, one process.

python bench/tiles.py [SIDE]            writes the picture, then
python bench/tiles.py [SIDE] --file F   measures, in a process that has not held the picture's noise
"""  # noqa: D208

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from scantling.data.coco import ImageRecord
from scantling.models.zoo import ModelConfig, build_model
from scantling.predict.predictor import PredictConfig, Predictor


def peak_mib() -> float:
    """Largest resident size of this process so far, MiB."""
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(peak[1]) / 1024 if peak else float("nan")


def write_picture(path: Path, side: int) -> None:
    """Rows of noise: no tile is like another."""
    rng = np.random.default_rng(0)
    block = rng.integers(0, 256, (500, side // 10 + 1, 3), dtype=np.uint8)
    rows = cv2.resize(block, (side, 500), interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(path), np.tile(rows, (-(-side // 500), 1, 1))[:side])


def main() -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", type=int, nargs="?", default=10_000)
    parser.add_argument("--file", type=Path, help="the picture, made in another process")
    given = parser.parse_args()
    file = given.file or Path(tempfile.mkdtemp()) / "large.jpg"
    if given.file is None:
        write_picture(file, given.side)
        print(f"picture written to {file}; measure with --file {file}")  # noqa: T201 - a script
        return
    torch.set_num_threads(1)
    start, before = time.perf_counter(), peak_mib()
    model = build_model(ModelConfig(name="faster_rcnn_r18_small"), 3)
    config = PredictConfig(scales=1024, tile=1024, overlap=0.2)
    record = ImageRecord(id=1, file_name=file.name, path=file, size_hw=(given.side, given.side))
    ((_, found),) = Predictor(model, config, ("a", "b", "c")).predict_records([record])
    seconds = time.perf_counter() - start
    print(
        f"{given.side} px: peak {peak_mib():.0f} MiB (imports {before:.0f}), {seconds:.0f} s, {len(found)} objects"
    )  # noqa: T201, E501 - a script


if __name__ == "__main__":
    main()
