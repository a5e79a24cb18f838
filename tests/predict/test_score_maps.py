"""Segmenters look at images: every way of looking says the same of the same pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from scantling.data.coco import ImageRecord
from scantling.errors import DataError
from scantling.models.contract import Segmenter
from scantling.predict.predictor import PredictConfig
from scantling.predict.score_maps import ScorePredictor, as_score_maps, find_score_maps, mean_of
from scantling.structures.sample import Frame


class Reads(Segmenter):
    """Its score is the brightness of the pixel; a second plane has that of the blue channel."""

    num_planes, by_category = 2, True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []
        self.weight = torch.nn.Parameter(torch.ones(()))

    def losses(self, batch):
        raise NotImplementedError

    def scores(self, batch):
        assert not self.training
        self.seen.append(tuple(batch.images.shape))
        maps = batch.images[:, [0, 2]].float() / 255 * self.weight
        return [m[:, :h, :w] for m, (h, w) in zip(maps, batch.sizes_hw, strict=True)]


@pytest.fixture
def records(tmp_path):
    """Three images of smooth colours, two of one size."""
    made = []
    for number, (h, w) in enumerate(((96, 128), (96, 128), (150, 70))):
        rows, columns = np.mgrid[:h, :w]
        red = 255 * columns / w
        blue = 127 + 100 * np.sin(rows / 40 + number)
        image = np.stack([red, np.zeros_like(red), blue], axis=-1).astype(np.uint8)
        path = tmp_path / f"{number}.png"
        Image.fromarray(image).save(path)
        made.append(ImageRecord(id=number, file_name=path.name, path=path, size_hw=(h, w)))
    return made


@pytest.mark.parametrize(
    "config",
    [
        {"scales": 96},
        {"scales": 64, "batch_size": 2},
        {"scales": (64, 80, 120), "flip": True},
        {"scales": 48, "tile": 48, "overlap": 0.25},
        {"scales": 64, "tile": 64, "overlap": 0.0, "overview": True, "flip": True, "batch_size": 3},
    ],
)
def test_every_way_of_looking_sees_the_same(records, config):
    found = dict(
        (record.id, one) for record, one in ScorePredictor(Reads(), PredictConfig(**config)).predict(records)
    )
    assert found.keys() == {0, 1, 2}
    for record in records:
        image, one = np.asarray(Image.open(record.path)), found[record.id]
        assert one.image_hw == record.size_hw
        for label, channel in enumerate((0, 2)):
            seen = one.scores(label).astype(int)
            assert np.abs(seen - image[..., channel])[2:-2, 2:-2].max() <= 5


def test_the_map_is_as_large_as_the_largest_view(records):
    ((_, one),) = ScorePredictor(Reads(), PredictConfig(scales=(48, 72))).predict(records[:1])
    assert one.planes.shape == (2, 72, 96)
    ((_, one),) = ScorePredictor(Reads(), PredictConfig(scales=96, tile=48)).predict(records[:1])
    assert one.planes.shape == (2, 192, 256)  # tiles are enlarged twice


def test_views_count_where_they_show_the_image():
    frame = Frame.identity((2, 4))
    left = frame.then(np.array([[1.0, 0, 0], [0, 1, 0]]), (2, 3))
    right = frame.then(np.array([[1.0, 0, -2], [0, 1, 0]]), (2, 2))
    ones = [(left, np.full((1, 2, 3), 0.2, np.float32)), (right, np.full((1, 2, 2), 0.6, np.float32))]
    np.testing.assert_allclose(mean_of(ones, frame), [[[0.2, 0.2, 0.4, 0.6]] * 2], atol=1e-6)


def test_the_predictor_leaves_the_model_in_its_mode_and_tells_damaged_images(records):
    model = Reads().train()
    predictor = ScorePredictor(model, PredictConfig(scales=64))
    records[1].path.write_bytes(b"nothing")
    assert {record.id for record, _ in predictor.predict(records, skip_invalid=True)} == {0, 2}
    assert model.training
    assert [finding.code for finding in predictor.findings] == ["image-format"]
    with pytest.raises(DataError):
        list(predictor.predict(records))
    assert list(predictor.predict(records[1:2], skip_invalid=True)) == []
    assert list(predictor.predict([])) == []


def test_a_data_set_in_its_own_order(records):
    class Listed:
        images = tuple(records)
        index_of = {record.id: place for place, record in enumerate(records)}

    packed = find_score_maps(Reads(), PredictConfig(scales=64), Listed(), torch.device("cpu"))
    maps = as_score_maps(packed)
    assert [one.image_hw for one in maps] == [record.size_hw for record in records]
