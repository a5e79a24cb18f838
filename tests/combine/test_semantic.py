"""Fusion of masks with score maps: derived by hand, pixel by pixel, and what it does to mask AP."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from combine.planted import detections_from
from reference import slow_masks
from scantling.combine.semantic import SemanticConfig, fuse_semantic
from scantling.combine.tune import TuneConfig
from scantling.combine.tune_semantic import tune_semantic
from scantling.combine.tuned import read_tuned, write_tuned
from scantling.data.coco import ReadOptions, parse_coco
from scantling.data.detections import results_of
from scantling.errors import ConfigError, DataError, UsageError
from scantling.evaluate.coco_eval import evaluate_results
from scantling.ops.rle import rle_decode, rle_encode
from scantling.structures.detections import Detections, object_column
from scantling.structures.sample import Frame
from scantling.structures.score_maps import CERTAIN, ScoreMap, ScoreMaps

SIZE_HW = (8, 16)
NAMES = ("dent", "spot")


def strip(x1, x2, y1=0, y2=2):
    mask = np.zeros(SIZE_HW, dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


def map_of(foreground, labels=None) -> ScoreMap:
    """A map at the image's own resolution; one plane, or one of each label."""
    planes = np.asarray(foreground, dtype=np.uint8).reshape(-1, *np.shape(foreground)[-2:]) * CERTAIN
    return ScoreMap(planes=planes, labels=labels, frame=Frame.identity(planes.shape[1:]))


def maps_of(*maps: ScoreMap | None) -> ScoreMaps:
    return ScoreMaps(len(maps), lambda position: maps[position])


def instances(*rows, images=None) -> Detections:
    """(score, box, mask, or with a label) of one image, or of those given."""
    given = [
        (0 if images is None else images[n], row[3] if len(row) > 3 else 0, row[0], row[1])
        for n, row in enumerate(rows)
    ]
    return detections_from(given).replace(masks=object_column([rle_encode(row[2]) for row in rows]))


def fused(rows: Detections, *maps, **settings):
    found = fuse_semantic(rows, maps_of(*maps), SemanticConfig(**settings), NAMES)
    assert found.detections.boxes.tolist() == rows.boxes.tolist()
    assert found.detections.scores.tolist() == rows.scores.tolist()
    return [rle_decode(mask) for mask in found.detections.masks]


class TestOneInstance:
    own, box = strip(2, 5), (1.0, 0.0, 8.0, 2.0)
    foreground = strip(3, 12, 0, 4)

    @pytest.mark.parametrize(
        ("mode", "expected"),
        [("union", strip(2, 8)), ("replace", strip(3, 8)), ("intersect", strip(3, 5))],
    )
    def test_modes(self, mode, expected):
        found = fuse_semantic(
            instances((0.9, self.box, self.own)),
            maps_of(map_of(self.foreground)),
            SemanticConfig(mode=mode),
            NAMES,
        )
        assert (rle_decode(found.detections.masks[0]) == expected).all()
        assert found.gained.tolist() == [(expected & ~self.own).sum()]
        assert found.lost.tolist() == [(self.own & ~expected).sum()]

    def test_what_scores_too_low_stays(self):
        rows = instances((0.5, self.box, self.own), (0.51, (9.0, 0.0, 12.0, 2.0), strip(9, 10)))
        first, second = fused(rows, map_of(self.foreground))
        assert (first == self.own).all()
        assert (second == strip(9, 12)).all()
        first, _ = fused(rows, map_of(self.foreground), score_threshold={"default": 0.4, "spot": 1.0})
        assert (first == strip(2, 8)).all()

    def test_an_instance_never_loses_all(self):
        rows, nothing = instances((0.9, self.box, self.own)), map_of(strip(0, 0))
        for mode in ("union", "replace", "intersect"):
            (mask,) = fused(rows, nothing, mode=mode)
            assert (mask == self.own).all()

    def test_small_parts_are_dropped_and_the_largest_stays(self):
        foreground = strip(2, 5) | strip(7, 8, 1, 2)
        rows = instances((0.9, (0.0, 0.0, 16.0, 8.0), strip(2, 4)))
        for min_part, expected in ((0, foreground), (1, foreground), (2, strip(2, 5)), (50, strip(2, 5))):
            (mask,) = fused(rows, map_of(foreground), min_part=min_part)
            assert (mask == expected).all(), min_part
        diagonal = strip(2, 5) | strip(5, 6, 2, 3)  # meets a corner
        (mask,) = fused(rows, map_of(diagonal), min_part=3)
        assert (mask == diagonal).all()

    def test_planes_by_category_count_for_their_own(self):
        planes = map_of([strip(0, 6), strip(6, 16)], labels=(0, 1))
        box, own = (0.0, 0.0, 16.0, 2.0), strip(5, 7)
        (dent,) = fused(instances((0.9, box, own)), planes)
        (spot,) = fused(instances((0.9, box, own, 1)), planes)
        assert (dent == strip(0, 7)).all()
        assert (spot == strip(5, 16)).all()

    def test_modes_by_category(self):
        rows = instances((0.9, self.box, self.own), (0.9, self.box, self.own, 1))
        config = {"default": "intersect", "spot": "replace"}
        dent, spot = fused(rows, map_of(self.foreground), mode=config)
        assert (dent == strip(3, 5)).all()
        assert (
            spot == strip(5, 8)
        ).all()  # the dent is as near to columns 3 and 4 and comes first; 5 to 7 too

    def test_a_coarse_map_and_its_threshold(self):
        planes = np.array([[[255, 0], [0, 0]]], dtype=np.uint8)
        frame = Frame.identity(SIZE_HW).then(np.array([[1 / 8, 0, 0], [0, 1 / 4, 0]]), (2, 2))
        coarse = ScoreMap(planes=planes, labels=None, frame=frame)
        rows = instances((0.9, (0.0, 0.0, 16.0, 8.0), strip(0, 1)))
        (half,) = fused(rows, coarse, mode="replace")
        (less,) = fused(rows, coarse, mode="replace", map_threshold=0.1)
        assert half[0, :8].all()
        assert not half[0, 8:].any()
        assert less.sum() > half.sum()


class TestClaims:
    def test_a_contested_pixel_goes_to_the_nearest_mask(self):
        left, right, everywhere = strip(0, 2), strip(12, 16), strip(0, 16)
        box = (0.0, 0.0, 16.0, 2.0)
        first, second = fused(instances((0.6, box, left), (0.9, box, right)), map_of(everywhere))
        assert (first == strip(0, 7)).all()  # column 6 is 5 from 1 and 6 from 12
        assert (second == strip(7, 16)).all()

    def test_of_equally_near_ones_the_higher_score_then_the_earlier_row(self):
        left, right, everywhere = strip(0, 2), strip(13, 16), strip(0, 16)  # column 7 is 6 from both
        box = (0.0, 0.0, 16.0, 2.0)
        for scores, owner in (((0.6, 0.9), 1), ((0.9, 0.6), 0), ((0.7, 0.7), 0)):
            rows = instances(*((score, box, mask) for score, mask in zip(scores, (left, right), strict=True)))
            found = fused(rows, map_of(everywhere))
            assert [mask[0, 7] for mask in found] == [owner == 0, owner == 1]

    def test_only_what_is_fused_claims(self):
        box, everywhere = (0.0, 0.0, 16.0, 2.0), strip(0, 16)
        first, second = fused(
            instances((0.9, box, strip(0, 2)), (0.4, box, strip(12, 16))), map_of(everywhere)
        )
        assert (first == everywhere).all()
        assert (second == strip(12, 16)).all()

    def test_a_union_leaves_everyone_its_own_pixels(self):
        box, shared = (0.0, 0.0, 16.0, 2.0), strip(4, 8)
        found = fused(instances((0.9, box, shared), (0.8, box, shared)), map_of(strip(0, 16)))
        assert (found[0] == strip(0, 16)).all()
        assert (found[1] == shared).all()

    def test_images_do_not_meet(self):
        box, rows = (0.0, 0.0, 16.0, 2.0), (strip(0, 2), strip(12, 16))
        found = instances(*((0.9, box, mask) for mask in rows), images=[0, 1])
        first, second = fused(found, map_of(strip(0, 16)), map_of(strip(0, 16)))
        assert (first == strip(0, 16)).all()
        assert (second == strip(0, 16)).all()

    @pytest.mark.parametrize("mode", ["union", "replace", "intersect"])
    def test_as_told_pixel_by_pixel(self, mode):
        rng = np.random.default_rng(0)
        for _ in range(12):
            foreground, rows = rng.random(SIZE_HW) < 0.7, []
            for _ in range(5):
                corner, sides = rng.uniform(0, [10, 5]), rng.uniform(2, [9, 5])
                x, y = corner.astype(int)
                mask = strip(x, x + int(sides[0] * 0.7), y, y + int(sides[1] * 0.7))
                rows.append((float(rng.choice([0.3, 0.6, 0.7])), (*corner, *(corner + sides)), mask))
            found = fused(instances(*rows), map_of(foreground), mode=mode)
            scores, boxes, masks = zip(*rows, strict=True)
            expected = slow_masks.fuse(masks, boxes, scores, foreground, mode, 0.5)
            for one, other in zip(found, expected, strict=True):
                assert (one == other).all()


class TestWhatHoldsAlways:
    def test_noise_changes_nothing_where_no_score_is_high_enough(self):
        rng = np.random.default_rng(0)
        rows = instances(*((1.0, (0.0, 0.0, 16.0, 8.0), rng.random(SIZE_HW) < 0.5) for _ in range(4)))
        noise = map_of(rng.random(SIZE_HW) < 0.5)
        for mode in ("union", "replace", "intersect"):
            config = SemanticConfig(mode=mode, score_threshold=1.0)
            found = fuse_semantic(rows, maps_of(noise), config, NAMES)
            assert found.detections.masks.tolist() == rows.masks.tolist()
            assert not found.is_fused.any()
        assert fuse_semantic(rows, maps_of(noise), SemanticConfig(), NAMES).is_changed.any()

    def test_nothing_no_masks_and_no_map(self):
        none = fuse_semantic(Detections.empty(), maps_of(), SemanticConfig(), NAMES)
        assert len(none.detections) == 0
        bare = detections_from([(0, 0, 0.9, (0, 0, 4, 4))])
        assert (
            fuse_semantic(bare, maps_of(map_of(strip(0, 4))), SemanticConfig(), NAMES).detections.masks
            is None
        )
        rows = instances(
            (0.9, (0.0, 0.0, 8.0, 2.0), strip(0, 2)), (0.9, (0.0, 0.0, 8.0, 2.0), strip(0, 2)), images=[0, 1]
        )
        found = fuse_semantic(rows, maps_of(None, map_of(strip(0, 4))), SemanticConfig(), NAMES)
        assert (found.num_unmapped, found.is_fused.tolist()) == (1, [False, True])
        empty = instances(
            (0.9, (4.2, 0.0, 4.4, 0.1), strip(0, 0))
        )  # neither pixels nor a pixel's centre in the box
        assert not fuse_semantic(
            empty, maps_of(map_of(strip(0, 16))), SemanticConfig(), NAMES
        ).is_changed.any()

    def test_the_keys_and_rows_without_masks_are_carried(self):
        rows = Detections.cat(
            [
                detections_from([(0, 0, 0.9, (0, 0, 4, 4))]),
                instances((0.9, (0.0, 0.0, 8.0, 2.0), strip(0, 2))),
            ]
        ).replace(extra=object_column([{"a": 1}, {"b": 2}]))
        found = fuse_semantic(rows, maps_of(map_of(strip(0, 4))), SemanticConfig(), NAMES).detections
        assert found.masks[0] is None
        assert found.extra.tolist() == [{"a": 1}, {"b": 2}]

    def test_a_category_that_does_not_exist(self):
        with pytest.raises(ConfigError, match="mode: unknown categories"):
            fuse_semantic(
                Detections.empty(),
                maps_of(),
                SemanticConfig(mode={"bolt": "union", "default": "union"}),
                NAMES,
            )


def scenes(num_images=24, size=96, seed=0):
    """Blobs of two categories, eroded masks of them as detections, and the exact foreground as maps."""
    rng = np.random.default_rng(seed)
    images, annotations, rows, masks, maps = [], [], [], [], []
    y, x = np.mgrid[:size, :size]
    for image in range(num_images):
        images.append({"id": image, "file_name": f"{image}.png", "width": size, "height": size})
        foreground = np.zeros((size, size), dtype=bool)
        for place in range(3):
            label, centre, radius = (
                int(rng.integers(2)),
                (16 + 32 * place, rng.uniform(20, 76)),
                rng.uniform(8, 15),
            )
            mask = np.hypot(x - centre[0], (y - centre[1]) * rng.uniform(0.8, 1.2)) < radius
            foreground |= mask
            columns, lines = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
            box = [columns[0], lines[0], columns[-1] + 1, lines[-1] + 1]
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image,
                    "category_id": label,
                    "bbox": [int(box[0]), int(box[1]), int(box[2] - box[0]), int(box[3] - box[1])],
                    "area": int(mask.sum()),
                    "segmentation": rle_encode(mask),
                }
            )
            eroded = cv2.erode(mask.astype(np.uint8), np.ones((5, 5), dtype=np.uint8))
            rows.append((image, label, rng.uniform(0.55, 1), box))
            masks.append(rle_encode(eroded))
        maps.append(map_of(foreground))
    categories = [{"id": label, "name": name} for label, name in enumerate(NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    dataset = parse_coco(content, "scenes.json", ".", ReadOptions(task="segmentation"))
    return dataset, detections_from(rows).replace(masks=object_column(masks)), maps


def exact(dataset, found, labels):
    """The detections with the truth's own masks for some categories; row i is of annotation i."""
    truths = [annotation.segmentation for own in dataset.annotations for annotation in own]
    masks = [
        truth if label in labels else mask
        for truth, label, mask in zip(truths, found.labels.tolist(), found.masks, strict=True)
    ]
    return found.replace(masks=object_column(masks))


def mask_ap(dataset, found):
    return evaluate_results(dataset, results_of(found, dataset), iou_type="segm").metrics["AP"]


class TestTuning:
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls):
        return scenes()

    def test_exact_maps_raise_the_ap_of_eroded_masks(self, case):
        dataset, found, maps = case
        after = fuse_semantic(found, maps_of(*maps), SemanticConfig(), NAMES).detections
        assert mask_ap(dataset, after) >= mask_ap(dataset, found) + 0.05
        assert mask_ap(dataset, after) > 0.95

    def test_fusion_is_chosen_where_it_helps(self, case):
        dataset, found, maps = case
        unused = SemanticConfig(score_threshold=1.0, min_part=3)
        config = TuneConfig(bootstrap=100, fusion_scores=(0.3, 0.5))
        tuned = tune_semantic(found, maps_of(*maps), dataset, unused, config)
        assert tuned.before == pytest.approx(mask_ap(dataset, found), abs=1e-9)
        assert tuned.config.score_threshold < 1
        assert tuned.config.mode in ("union", "replace")
        assert tuned.config.min_part == 3
        after = fuse_semantic(found, maps_of(*maps), tuned.config, NAMES).detections
        assert tuned.after == pytest.approx(mask_ap(dataset, after), abs=1e-9)
        assert tuned.rows[0].kept
        assert tuned.rows[0].interval[0] > 0

    def test_noise_is_not_used(self, case):
        dataset, found, maps = case
        found = exact(dataset, found, (0, 1))
        rng = np.random.default_rng(1)
        noise = [map_of(rng.random(one.planes.shape[1:]) < 0.5) for one in maps]
        config = TuneConfig(bootstrap=100, fusion_scores=(0.5,))
        for base in (SemanticConfig(), SemanticConfig(score_threshold=1.0)):
            tuned = tune_semantic(found, maps_of(*noise), dataset, base, config)
            assert tuned.config.score_threshold == 1.0
            assert tuned.after == pytest.approx(mask_ap(dataset, found), abs=1e-9)

    def test_a_category_whose_map_is_wrong_is_left_alone(self, case):
        dataset, found, maps = case
        found = exact(dataset, found, (1,))
        rng, planes = np.random.default_rng(2), []
        for one in maps:
            noise = rng.random(one.planes.shape[1:]) < 0.5
            planes.append(map_of([one.planes[0] > 0, noise], labels=(0, 1)))
        config = TuneConfig(bootstrap=100, fusion_scores=(0.5,), min_objects=5)
        tuned = tune_semantic(found, maps_of(*planes), dataset, SemanticConfig(), config)
        limits = tuned.config.score_thresholds(NAMES)
        assert limits.tolist() == [0.5, 1.0]

    def test_the_file_of_settings(self, case, tmp_path):
        config = SemanticConfig(mode={"default": "union", "spot": "replace"}, score_threshold=0.3)
        write_tuned(tmp_path / "tuned.yaml", semantic=config)
        assert read_tuned(tmp_path / "tuned.yaml").semantic == config
        (tmp_path / "tuned.yaml").write_text("semantic: {modus: union}\n")
        with pytest.raises(ConfigError, match="modus: unknown key"):
            read_tuned(tmp_path / "tuned.yaml")

    def test_nothing_to_tune_by(self, case):
        dataset, found, maps = case
        bare = found.replace(masks=None)
        with pytest.raises(DataError, match="no prediction has a mask"):
            tune_semantic(bare, maps_of(*maps), dataset, SemanticConfig(), TuneConfig())
        content = {**dataset.to_coco(), "annotations": []}
        unlabelled = parse_coco(content, dataset.file, dataset.image_root, ReadOptions())
        with pytest.raises(UsageError, match="no objects to tune on"):
            tune_semantic(found, maps_of(*maps), unlabelled, SemanticConfig(), TuneConfig())
