from __future__ import annotations

import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

from scantling.data.coco import read_coco
from scantling.data.score_maps import load_score_maps, save_score_maps
from scantling.errors import DataError
from scantling.structures.sample import Frame
from scantling.structures.score_maps import ScoreMap

SIZE = (80, 100)
TENTH = np.array([[0.1, 0, 0], [0, 0.1, 0]])


@pytest.fixture
def dataset(content, write):
    return read_coco(write(content))


def of_image(seed: int, labels: tuple[int, ...] | None) -> ScoreMap:
    count = 1 if labels is None else len(labels)
    planes = np.random.default_rng(seed).integers(0, 256, (count, 8, 10), dtype=np.uint8)
    return ScoreMap(planes=planes, labels=labels, frame=Frame.identity(SIZE).then(TENTH, (8, 10)))


@pytest.mark.parametrize("labels", [[None, None], [(0, 1), (1,)], [(), (0,)]])
def test_a_file_gives_back_what_was_saved(labels, dataset, tmp_path):
    maps = [of_image(seed, some) for seed, some in enumerate(labels)]
    save_score_maps(maps, tmp_path / "maps")
    loaded = load_score_maps(tmp_path / "maps", dataset)
    assert len(loaded) == 2
    for before, after in zip(maps, pickle.loads(pickle.dumps(loaded)), strict=True):
        assert after is not None
        assert np.array_equal(after.planes, before.planes)
        assert after.labels == before.labels
        assert np.array_equal(after.frame.matrix, before.frame.matrix)
        assert (after.frame.original_hw, after.frame.size_hw) == (SIZE, (8, 10))


def test_equal_maps_give_equal_files_and_an_image_may_have_none(dataset, tmp_path):
    for name in ("a", "b"):
        save_score_maps(iter([None, of_image(3, None)]), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = load_score_maps(tmp_path / "a", dataset)
    assert loaded[0] is None
    assert loaded[1] is not None


def test_smooth_maps_are_small(dataset, tmp_path):
    rows, columns = np.mgrid[:128, :128]
    blob = (255 * np.exp(-((rows - 60) ** 2 + (columns - 70) ** 2) / 300)).astype(np.uint8)[None]
    frame = Frame.identity((512, 512)).then(np.array([[0.25, 0, 0], [0, 0.25, 0]]), (128, 128))
    save_score_maps([ScoreMap(planes=blob, labels=None, frame=frame)] * 10, tmp_path / "maps")
    assert (tmp_path / "maps").stat().st_size < 10 * 128 * 128 / 4


def test_maps_of_other_images_are_refused(dataset, tmp_path):
    save_score_maps([of_image(0, None)] * 3, tmp_path / "three")
    with pytest.raises(DataError, match="of 3 images, the data set has 2"):
        load_score_maps(tmp_path / "three", dataset)
    other = ScoreMap(planes=np.zeros((1, 5, 5), np.uint8), labels=None, frame=Frame.identity((5, 5)))
    save_score_maps([of_image(0, None), other], tmp_path / "other")
    with pytest.raises(DataError, match=r"a\.png is of an image of \(5, 5\)"):
        load_score_maps(tmp_path / "other", dataset)


def test_what_is_no_file_of_score_maps_is_refused(dataset, tmp_path):
    (tmp_path / "text").write_text("hello")
    save_file({"boxes": np.zeros(3)}, tmp_path / "boxes")
    save_score_maps([of_image(0, None)] * 2, tmp_path / "cut")
    whole = (tmp_path / "cut").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-200])
    for name in ("text", "boxes", "cut", "missing"):
        with pytest.raises(DataError, match="not a file of score maps"):
            load_score_maps(tmp_path / name, dataset)


def test_a_damaged_map_is_told_when_it_is_read(dataset, tmp_path):
    path = tmp_path / "maps"
    save_score_maps([of_image(0, None)] * 2, path)
    content = path.read_bytes()
    start = content.index(b"\x89PNG")
    path.write_bytes(content[: start + 8] + bytes(60) + content[start + 68 :])
    maps = load_score_maps(path, dataset)
    assert maps[1] is not None
    with pytest.raises(DataError, match="position 0 is damaged"):
        maps[0]
