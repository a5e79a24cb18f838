"""Pictures of 10, 12 and 14 bits in files of 16: what is white, by the file or by the whole set."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from scantling.api import audit
from scantling.data.coco import Category, read_coco
from scantling.data.health.check import check_data
from scantling.data.images.open import open_image
from scantling.data.images.white import white_of
from scantling.data.splits import DataConfig, describe_run_data, read_run_data
from scantling.errors import DataError
from scantling.pretrain.config import PretrainConfig
from scantling.pretrain.source import read_crops
from scantling.refine.apply import ApplyConfig, refine_truth
from scantling.refine.bbrefinement import Refiner, RefinerConfig
from scantling.run.predictions import predict_source
from scantling.structures.instances import Instances

RAMP = np.arange(4096, dtype=np.uint16).reshape(32, 128)  # every value of a camera of 12 bits
EXPECTED = np.round(RAMP / 4095 * 255)


def png(pixels, depth=None):
    data = cv2.imencode(".png", pixels)[1].tobytes()
    if depth is None:
        return data
    chunk = b"sBIT" + bytes([depth])
    return data[:33] + struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


def tiff(pixels, white=None):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "TIFF", tiffinfo={} if white is None else {281: white})
    return stream.getvalue()


def packed_tiff(pixels):
    """Twelve bits per sample, as the file itself says."""
    height, width = pixels.shape
    bits = np.unpackbits(pixels.astype(">u2").view(np.uint8).reshape(height, width, 2), axis=2)[:, :, 4:]
    body = np.packbits(bits.reshape(height, -1), axis=1).tobytes()
    return plain_tiff((height, width), body, bits=12, bands=1)


def plain_tiff(size_hw, body, *, bits, bands):
    height, width = size_hw
    fields = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: 1,
        273: 122,
        277: bands,
        278: height,
        279: len(body),
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4) + body


SAID = {
    "TIFF MaxSampleValue": lambda: tiff(RAMP, 4095),
    "TIFF of 12 bits": lambda: packed_tiff(RAMP),
    "PNG sBIT, as the camera gave it": lambda: png(RAMP, 12),
    "PNG sBIT, scaled up": lambda: png(RAMP << 4 | RAMP >> 8, 12),
    "PNG sBIT, moved up": lambda: png(RAMP << 4, 12),
}


@pytest.mark.parametrize("kind", SAID)
@pytest.mark.parametrize("white", [None, 1023])
def test_what_the_file_says_decides(tmp_path, kind, white):
    (tmp_path / "a").write_bytes(SAID[kind]())
    pixels = open_image(tmp_path / "a", white=white)
    assert np.abs(pixels[..., 0] - EXPECTED).max() <= 1
    assert len(np.unique(pixels)) == 256


def test_what_the_file_says_is_not_believed_against_its_pixels(tmp_path):
    (tmp_path / "a").write_bytes(tiff(RAMP << 4, 1023))
    assert np.abs(open_image(tmp_path / "a")[..., 0] - EXPECTED).max() <= 1


def test_without_a_word_the_range_is_the_full_one_unless_the_caller_knows(tmp_path):
    (tmp_path / "a").write_bytes(png(RAMP))
    assert open_image(tmp_path / "a").max() == 16
    assert np.abs(open_image(tmp_path / "a", white=4095)[..., 0] - EXPECTED).max() <= 1
    assert open_image(tmp_path / "a", white=1023).max() == 16  # more is there than that


def data_set(root, brightest, dtype=np.uint16):
    """Train and val; the pictures of val are dark ones, as a set has them too."""
    (root / "annotations").mkdir(parents=True)
    (root / "images").mkdir()
    for split, peaks in (("train", brightest), ("val", [brightest[0] // 8])):
        images = []
        for number, peak in enumerate(peaks, start=1):
            name = f"{split}{number}.png"
            pixels = np.random.default_rng(number).integers(0, peak + 1, (40, 60)).astype(dtype)
            pixels[0, 0] = peak
            (root / "images" / name).write_bytes(png(pixels))
            images.append({"id": number, "file_name": name, "width": 60, "height": 40})
        annotations = [
            {"id": image["id"], "image_id": image["id"], "category_id": 1, "bbox": [5, 5, 30, 20]}
            for image in images
        ]
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dent"}]}
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    ("brightest", "white"), [([900, 1000], 1023), ([3000, 4095], 4095), ([4096], 16383), ([300, 65535], None)]
)
def test_one_rule_for_all_pictures_of_a_set(tmp_path, brightest, white):
    root = data_set(tmp_path / "data", brightest)
    data = read_run_data(DataConfig(root=str(root)), "val")
    assert data.white == white
    for dataset in data.splits.values():
        for record in dataset.images:
            stored = cv2.imread(str(record.path), cv2.IMREAD_UNCHANGED)
            seen = open_image(record.path, size_hw=record.size_hw, white=record.white)
            assert np.abs(seen[..., 0] - stored / (white or 65535) * 255).max() <= 1
    assert [entry.get("white") for entry in describe_run_data(data).values()] == [white, white]
    findings = check_data(str(root)).findings
    assert [f.value for f in findings if f.code == "image-range"] == ([white] if white else [])
    assert {image.white for image in read_crops(root, PretrainConfig()).images} == {white}


def test_the_user_s_word_wins_and_decides_what_is_computed_anew(tmp_path):
    root = data_set(tmp_path / "data", [3000])
    found = read_run_data(DataConfig(root=str(root)), "val")
    full = read_run_data(DataConfig(root=str(root), white=65535), "val")
    assert (found.white, full.white) == (4095, 65535)
    assert found.hashes["train"] != full.hashes["train"]
    assert {record.white for record in full.train.images} == {65535}


def test_pictures_of_eight_bits_are_left_alone(tmp_path):
    root = data_set(tmp_path / "data", [90], dtype=np.uint8)
    data = read_run_data(DataConfig(root=str(root)), "val")
    assert data.white is None
    assert white_of([]) is None
    assert "image-range" not in {finding.code for finding in check_data(str(root)).findings}


def test_five_bands_are_no_damage(tmp_path):
    (tmp_path / "a.tif").write_bytes(plain_tiff((8, 9), bytes(8 * 9 * 5), bits=8, bands=5))
    with pytest.raises(DataError) as error:
        open_image(tmp_path / "a.tif")
    (finding,) = error.value.findings
    assert (finding.code, finding.message) == ("image-format", "5 bands for each pixel, not gray or RGB")


def test_a_picture_that_is_too_large_is_not_to_get_another_size(tmp_path):
    record = {"id": 1, "file_name": "a.png", "width": 20_000, "height": 20_000}
    (tmp_path / "a.json").write_text(json.dumps({"images": [record], "annotations": [], "categories": []}))
    with pytest.raises(DataError) as error:
        read_coco(tmp_path / "a.json")
    (finding,) = (f for f in error.value.findings if f.severity == "error")
    assert "tiles" in finding.hint
    assert "size of the file" not in finding.hint


class Looker:
    """Finds nothing, and keeps the records that it was to look at."""

    def __init__(self, white):
        self.white, self.seen = white, []
        self.categories = (Category(1, "dent"),)

    def predict(self, records):
        self.seen += records
        for record in records:
            boxes, labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
            yield record, Instances(size_hw=record.size_hw, boxes=boxes, labels=labels, scores=torch.zeros(0))

    def take_findings(self):
        return ()


@pytest.mark.parametrize("white", [None, 4095])
def test_prediction_sees_with_the_white_of_training(tmp_path, white):
    root = data_set(tmp_path / "data", [1000])
    for source in (root / "images", root / "images" / "train1.png", root / "annotations" / "val.json"):
        looker = Looker(white)
        predict_source(source, looker)
        assert {record.white for record in looker.seen} == {white}


def in_8_bits(root, copy, white):
    """The same set with the pictures that a picture of 16 bits becomes, in files of 8."""
    shutil.copytree(root, copy)
    for path in (copy / "images").iterdir():
        stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        path.write_bytes(png(np.round(stored / white * 255).astype(np.uint8)))
    return copy / "annotations" / "train.json"


def test_an_audit_looks_at_the_same_pictures_as_the_refiner_has_learned_from(tmp_path):
    root = data_set(tmp_path / "deep", [3000, 4095])
    deep, plain = root / "annotations" / "train.json", in_8_bits(root, tmp_path / "plain", 4095)
    torch.manual_seed(0)
    refiner = Refiner(RefinerConfig(backbone="test_resnet", side=32, hidden=8), ("dent",), white=4095).eval()
    torch.nn.init.normal_(refiner.output.weight, std=0.3)
    seen = [refine_truth(read_coco(file), refiner, ApplyConfig()) for file in (deep, plain)]
    np.testing.assert_allclose(*seen, atol=1e-4)
    assert np.abs(seen[0] - [5, 5, 35, 25]).max() > 0.1

    boxes = {
        1: ([5, 5, 30, 20], [38, 10, 20, 25]),
        2: ([5, 5, 30, 20],),
    }  # the second one of image 1 has no label
    found = [
        {"image_id": image, "category_id": 1, "bbox": box, "score": 0.99}
        for image in boxes
        for box in boxes[image]
    ]
    (tmp_path / "found.json").write_text(json.dumps(found))
    sheets = []
    for file in (deep, plain):
        out = tmp_path / f"audit-{file.parts[-3]}"
        assert audit(file, out, predictions=tmp_path / "found.json", overrides=["min_score=0"]).audit.suspects
        sheets.append((out / "suspects.jpg").read_bytes())
    assert sheets[0] == sheets[1]
