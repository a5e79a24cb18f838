"""Prediction against a detector whose answer is known: geometry, pooling, faults, and what is left behind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from reference.colour_detector import CLASS_NAMES, ColourDetector
from scantling.data.coco import Category, to_results
from scantling.data.samples.geometry import View, render
from scantling.errors import ConfigError, DataError, Severity
from scantling.models.suppression import SuppressConfig, suppress_instances
from scantling.predict import views as views_module
from scantling.predict.predictor import PredictConfig, Predictor, read_sample
from scantling.structures.masks import RoiMasks
from scantling.structures.sample import Batch

BOXES = {0: (13, 21, 74, 60), 1: (80, 5, 119, 48), 2: (40, 66, 100, 81)}


def predict(records, model=None, *, skip_invalid=False, **settings):
    predictor = Predictor(model or ColourDetector(), PredictConfig(**settings), CLASS_NAMES)
    found = dict(
        (record.id, instances)
        for record, instances in predictor.predict_records(records, skip_invalid=skip_invalid)
    )
    return found, predictor


def assert_boxes(instances, expected, atol=0.15):
    """Exactly these labels, each once, with these boxes."""
    assert sorted(instances.labels.tolist()) == sorted(expected)
    for label, box in zip(instances.labels.tolist(), instances.boxes, strict=True):
        np.testing.assert_allclose(box, expected[label], atol=atol)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("scales", "atol"), [(89, 0.01), (200, 0.05), ((97, 150, 231), 0.1), ((64, 120), 0.25)]
)
def test_boxes_come_back_in_original_pixels_from_every_scale_and_flipped(paint, scales, atol, flip):
    """Bilinear samples of a reduced edge are up to a quarter of a pixel off; enlarged ones are nearly exact."""
    record = paint("a.png", (89, 131), BOXES)
    found, _ = predict([record], scales=scales, long_side=999, flip=flip)
    assert_boxes(found["a.png"], BOXES, atol)
    assert found["a.png"].size_hw == (89, 131)
    assert found["a.png"].scores.tolist() == pytest.approx([0.9] * 3)


def test_detections_are_the_models_own_candidates_suppressed_in_original_pixels(paint):
    """The same whether the candidates come straight from the model or from a run's file."""
    model, record = ColourDetector(), paint("a.png", (89, 131), BOXES)
    config = PredictConfig(scales=150, suppress=SuppressConfig(method="soft_linear", iou_threshold=0.3))
    ((_, found),) = Predictor(model, config, CLASS_NAMES).predict_records([record])
    sample = read_sample(record)
    resized = render(sample, View.of(sample).resized((150, 221)))
    encoded = model.eval().encode(Batch.collate([resized]))
    (direct,) = model.candidates(encoded, config.suppress.limits(CLASS_NAMES))
    expected = suppress_instances(resized.frame.invert(direct), config.suppress, CLASS_NAMES)
    assert len(expected) == 6  # soft-NMS keeps the doubles, with lower scores
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.labels, expected.labels)


def test_several_scales_find_what_one_alone_cannot(paint):
    """The detector sees sizes of 20 to 60 px only: small objects need the large scale and the reverse."""
    model = ColourDetector(lambda box, _hw: 20 <= box[2] - box[0] <= 60)
    objects = {0: (10, 10, 20, 20), 1: (30, 10, 130, 90), 2: (140, 20, 180, 60)}
    record = paint("a.png", (100, 200), objects)
    assert sorted(predict([record], model, scales=100)[0]["a.png"].labels.tolist()) == [2]
    found, _ = predict([record], model, scales=(50, 100, 250))
    assert_boxes(found["a.png"], objects, atol=0.3)


def test_the_flipped_view_finds_what_the_plain_one_cannot(paint):
    model = ColourDetector(lambda box, hw: box[2] < hw[1] / 2)
    objects = {0: (10, 10, 40, 40), 1: (150, 20, 190, 70)}
    record = paint("a.png", (100, 200), objects)
    assert predict([record], model, scales=100)[0]["a.png"].labels.tolist() == [0]
    assert_boxes(predict([record], model, scales=100, flip=True)[0]["a.png"], objects)


def test_suppression_happens_once_over_all_views_with_the_thresholds_of_each_category(paint):
    """The doubles overlap by about 0.9: kept where the category's threshold is above that."""
    record = paint("a.png", (89, 131), BOXES)
    suppress = SuppressConfig(iou_threshold={"red": 0.97, "default": 0.5})
    found, _ = predict([record], scales=(89, 178), suppress=suppress)
    assert sorted(found["a.png"].labels.tolist()) == [0, 0, 1, 2]
    best = predict([record], scales=(89, 178), suppress=SuppressConfig(max_per_image=2))[0]["a.png"]
    assert len(best) == 2


def test_candidates_are_capped_per_view_before_they_are_pooled(paint):
    record = paint("a.png", (89, 131), BOXES)
    capped = SuppressConfig(max_candidates=1, iou_threshold=1.0)
    found, _ = predict([record], scales=(80, 120), flip=True, suppress=capped)
    assert len(found["a.png"]) == 4  # one from each of four views


def test_images_of_all_shapes_and_batches_give_the_same_result(paint):
    records = [
        paint(f"{i}.png", size, {i % 3: (5, 5 + i, 40, 30 + i)})
        for i, size in enumerate([(60, 90), (90, 60), (61, 200), (200, 61), (75, 75)])
    ]
    one, _ = predict(records, scales=(60, 90), long_side=240)
    many, _ = predict(records, scales=(60, 90), long_side=240, batch_size=3)
    elsewhere, _ = predict(records, scales=(60, 90), long_side=240, batch_size=3, workers=2)
    assert set(one) == {record.id for record in records}
    for i, record in enumerate(records):
        assert_boxes(one[record.id], {i % 3: (5, 5 + i, 40, 30 + i)})
        for other in (many, elsewhere):
            assert torch.equal(one[record.id].boxes, other[record.id].boxes)


def test_an_image_without_objects_and_no_images_at_all(paint):
    found, _ = predict([paint("empty.png", (50, 50), {})], scales=(50, 70), flip=True)
    assert found["empty.png"].boxes.shape == (0, 4)
    assert predict([], scales=50)[0] == {}


def test_long_side_null_fits_images_into_squares(paint):
    model = ColourDetector()
    predict([paint("a.png", (50, 100), {})], model, scales=(64, 128), long_side=None)
    assert model.seen == [(32, 64), (64, 128)]


def damaged(record):
    record.path.write_bytes(record.path.read_bytes()[:60])
    return record


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_a_finding_and_the_rest_goes_on(paint, workers):
    good = [paint(f"{i}.png", (50, 60), {0: (5, 5, 30, 30)}) for i in range(3)]
    bad = damaged(paint("bad.png", (50, 60), {}))
    settings = {"scales": 50, "batch_size": 2, "workers": workers}
    found, predictor = predict([good[0], bad, *good[1:]], skip_invalid=True, **settings)
    assert set(found) == {"0.png", "1.png", "2.png"}
    assert [finding.severity for finding in predictor.findings] == [Severity.WARNING]
    assert "bad.png" in predictor.findings[0].file
    with pytest.raises(DataError, match=r"bad\.png"):
        predict([good[0], bad, *good[1:]], **settings)


def test_when_no_image_can_be_read_each_is_a_finding(paint):
    records = [damaged(paint(f"bad{i}.png", (50, 60), {})) for i in range(3)]
    found, predictor = predict(records, scales=50, batch_size=2, skip_invalid=True)
    assert (found, len(predictor.findings)) == ({}, 3)


def test_images_are_read_only_when_their_turn_comes(paint, monkeypatch):
    """Memory does not grow with the number of images: nothing is read ahead of the consumer."""
    opened = []
    original = views_module.open_image
    monkeypatch.setattr(
        views_module, "open_image", lambda path, **k: opened.append(path) or original(path, **k)
    )
    record = paint("a.png", (50, 60), {})
    records = [replace(record, id=i) for i in range(50)]
    results = Predictor(
        ColourDetector(), PredictConfig(scales=50, batch_size=4), CLASS_NAMES
    ).predict_records(records)
    for expected in (4, 4, 4, 4, 8):
        next(results)
        assert len(opened) == expected
    results.close()


def test_the_model_is_left_as_it_was(paint):
    model = ColourDetector().train()
    config = PredictConfig(scales=50, suppress=SuppressConfig(max_per_image=3))
    results = Predictor(model, config, CLASS_NAMES).predict_records([paint("a.png", (50, 60), {})] * 3)
    next(results)
    assert not model.training
    results.close()
    assert model.training


def test_no_gradients_are_recorded_and_the_result_is_an_ordinary_tensor(paint):
    model = ColourDetector()
    found, _ = predict([paint("a.png", (50, 60), {0: (5, 5, 30, 30)})], model, scales=50)
    assert model.notes[0][0]
    assert not found["a.png"].boxes.is_inference()
    assert not found["a.png"].scores.is_inference()


@pytest.mark.parametrize(("precision", "expected"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_precision_is_that_of_the_forward_pass(paint, precision, expected):
    model = ColourDetector()
    found, _ = predict([paint("a.png", (50, 60), {0: (5, 5, 30, 30)})], model, scales=50, precision=precision)
    assert model.notes == [(True, True, expected)]
    assert found["a.png"].boxes.dtype == torch.float32
    predict([paint("a.png", (50, 60), {})], model, scales=50)
    assert not model.notes[1][1]


def test_results_carry_the_data_sets_own_ids(paint):
    record = replace(paint("a.png", (89, 131), {1: BOXES[1]}), id=907)
    categories = [Category(id, name) for id, name in ((0, "red"), (7, "green"), (90, "blue"))]
    found, _ = predict([record], scales=178)
    (result,) = to_results(record.id, found[907], categories)
    assert (result["image_id"], result["category_id"]) == (907, 7)
    np.testing.assert_allclose(result["bbox"], [80, 5, 39, 43], atol=0.1)


def test_settings_that_cannot_work_are_refused_before_any_image_is_read():
    with pytest.raises(ConfigError, match="auto"):
        Predictor(ColourDetector(), PredictConfig(), CLASS_NAMES)
    unknown = PredictConfig(scales=50, suppress=SuppressConfig(iou_threshold={"pink": 0.5, "default": 0.5}))
    with pytest.raises(ConfigError, match="pink"):
        Predictor(ColourDetector(), unknown, CLASS_NAMES)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"scales": 0}, "scales"),
        ({"scales": True}, "scales"),
        ({"scales": []}, "scales"),
        ({"scales": "automatic"}, "scales"),
        ({"scales": [800, 1600], "long_side": 1333}, "larger than long_side"),
        ({"batch_size": 0}, "batch_size"),
        ({"workers": -1}, "workers"),
        ({"precision": "fp8"}, "precision"),
        ({"nms": 0.5}, "nms"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(given, part):
    with pytest.raises(ValidationError, match=part):
        PredictConfig.model_validate(given)


def test_settings_survive_a_round_trip_through_plain_data():
    config = PredictConfig(
        scales=[800, 900], long_side=2666, suppress=SuppressConfig(iou_threshold={"default": 0.4})
    )
    assert PredictConfig.model_validate(config.model_dump(mode="json")) == config


class Masked(ColourDetector):
    """Draws in each box a mask that is on in its left half, and notes which boxes it was asked for."""

    has_masks = True

    def masks(self, encoded, instances):
        assert torch.is_inference_mode_enabled()
        self.asked = [found.boxes.clone() for found in instances]
        left = (torch.arange(28) < 14).float().repeat(28, 1)
        return [RoiMasks(probabilities=left.repeat(len(found), 1, 1)) for found in instances]


def test_masks_are_drawn_for_the_boxes_that_are_kept_in_the_frame_of_the_view(paint):
    model, record = Masked(), paint("a.png", (89, 131), BOXES)
    config = PredictConfig(scales=178, long_side=None)
    ((_, found),) = Predictor(model, config, CLASS_NAMES).predict_records([record])
    plain = predict([record], scales=178, long_side=None)[0]["a.png"]
    assert torch.equal(found.boxes, plain.boxes)
    assert torch.equal(found.scores, plain.scores)
    scale = model.asked[0][:, 2] / found.boxes[:, 2]
    torch.testing.assert_close(model.asked[0], found.boxes * scale[:, None], rtol=1e-3, atol=0.05)
    assert float(scale.min()) > 1.2
    assert len(found.masks) == len(found) == 3
    areas = found.masks.to_image(found.boxes, record.size_hw).areas()
    sizes = found.boxes[:, 2:] - found.boxes[:, :2]
    torch.testing.assert_close(areas, sizes.prod(dim=1) / 2, rtol=0.1, atol=0)


def test_images_that_cannot_be_read_are_told_alike_with_masks(paint, tmp_path):
    good, broken = paint("a.png", (50, 60), {0: (10, 10, 20, 20)}), paint("b.png", (50, 60), {})
    broken.path.write_bytes(broken.path.read_bytes()[:60])
    predictor = Predictor(Masked(), PredictConfig(scales=50), CLASS_NAMES)
    found = dict(predictor.predict_records([good, broken], skip_invalid=True))
    assert list(found) == [good]
    assert [finding.severity.value for finding in predictor.findings] == ["warning"]
    with pytest.raises(DataError):
        list(predictor.predict_records([good, broken]))
