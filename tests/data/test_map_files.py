"""Maps of pixels of any other tool: what is read, and what is told about what cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from scantling.data.coco import read_coco
from scantling.data.map_files import VALUES_KEY, read_score_maps
from scantling.data.score_maps import save_score_maps
from scantling.errors import DataError, UsageError

SIZE = (80, 100)
SCRATCH, DENT = 0, 1
"""Labels of the categories with the ids 3 and 90."""


@pytest.fixture
def dataset(content, write):
    """Images sub/b.png (position 0) and a.png (position 1)."""
    return read_coco(write(content))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "maps" / "sub").mkdir(parents=True)
    return tmp_path / "maps"


def put(folder, array, name="a.png", other="sub/b.png"):
    """A map of one image, and an empty one of the same kind for the other."""
    for file, content in ((name, array), (other, np.zeros_like(array))):
        path = (folder / file).with_suffix(".npy" if array.ndim == 3 or array.dtype.kind == "f" else ".png")
        np.save(path, content) if path.suffix == ".npy" else Image.fromarray(content).save(path)


def drawn(*values, size_hw=SIZE, dtype=np.uint8):
    """A map with one row of each value, from the top."""
    array = np.zeros(size_hw, dtype=dtype)
    for row, value in enumerate(values):
        array[row] = value
    return array


def codes(error) -> list[str]:
    return [finding.code for finding in error.value.findings]


class TestReadings:
    def test_category_ids(self, dataset, folder):
        put(folder, drawn(3, 90, 255))
        maps = read_score_maps(folder, dataset)
        assert maps[1].labels == (SCRATCH, DENT)
        assert [maps[1].scores(label)[:4, 0].tolist() for label in (SCRATCH, DENT)] == [
            [255, 0, 0, 0],
            [0, 255, 0, 0],
        ]
        assert maps[0].labels == ()

    def test_places_in_the_list_of_categories(self, dataset, folder):
        put(folder, drawn(1, 2))
        one = read_score_maps(folder, dataset)[1]
        assert one.scores(DENT)[:3, 5].tolist() == [0, 255, 0]

    def test_a_palette_holds_numbers_not_colours(self, dataset, folder):
        put(folder, drawn(1, 2))
        picture = Image.fromarray(drawn(1, 2), mode="P")
        picture.putpalette([200, 10, 30] * 256)
        picture.save(folder / "a.png")
        assert read_score_maps(folder, dataset)[1].labels == (SCRATCH, DENT)

    def test_black_and_white_is_the_foreground_of_all(self, dataset, folder):
        put(folder, drawn(255))
        one = read_score_maps(folder, dataset)[1]
        assert one.labels is None
        assert one.scores(DENT)[:2, 0].tolist() == [255, 0]

    def test_many_grays_are_scores(self, dataset, folder):
        put(folder, drawn(*range(80)))
        assert read_score_maps(folder, dataset)[1].scores(0)[:, 3].tolist() == list(range(80))

    def test_16_bits_are_scores_of_the_whole_range(self, dataset, folder):
        put(folder, (drawn(*range(80), dtype=np.uint16) * 257).astype(np.uint16))
        assert read_score_maps(folder, dataset)[1].scores(0)[:, 3].tolist() == list(range(80))

    def test_floats_are_scores(self, dataset, folder):
        put(folder, drawn(0.2, 1.0, dtype=np.float32))
        assert read_score_maps(folder, dataset)[1].scores(0)[:3, 0].tolist() == [51, 255, 0]

    @pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
    def test_planes_are_categories(self, dtype, dataset, folder):
        planes = np.stack([drawn(0), drawn(255 if dtype == np.uint8 else 1)]).astype(dtype)
        put(folder, planes)
        one = read_score_maps(folder, dataset)[1]
        assert (one.labels, int(one.scores(DENT)[0, 0])) == ((DENT,), 255)

    def test_a_smaller_map_covers_its_image(self, dataset, folder):
        small = np.zeros((41, 50), dtype=np.uint8)  # rounded up
        small[20:] = 255
        put(folder, small)
        seen = read_score_maps(folder, dataset)[1].scores(0)
        assert seen.shape == SIZE
        assert (seen[:37].max(), seen[42:].min()) == (0, 255)

    def test_numbers_can_be_told(self, dataset, folder):
        put(folder, drawn(1))
        with pytest.raises(DataError, match="category ids, places .* or the foreground") as error:
            read_score_maps(folder, dataset)
        assert codes(error) == ["maps-reading"]
        assert read_score_maps(folder, dataset, values="positions")[1].labels == (SCRATCH,)
        assert read_score_maps(folder, dataset, values="foreground")[1].labels is None
        assert int(read_score_maps(folder, dataset, values="scores")[1].scores(0).max()) == 1
        with pytest.raises(DataError, match="not all ids"):
            read_score_maps(folder, dataset, values="ids")

    def test_ids_that_are_also_other_places_are_not_guessed(self, content, write, folder):
        for record, number in zip(content["categories"], (2, 3), strict=True):
            record["id"] = number
        for annotation in content["annotations"]:
            annotation["category_id"] = 3
        dataset = read_coco(write(content))
        for numbers, labels in (((2, 3), (0, 1)), ((1, 2), (0, 1)), ((3,), (1,))):
            put(folder, drawn(*numbers))
            assert read_score_maps(folder, dataset)[1].labels == labels
        put(folder, drawn(2))  # the id of the first category, the place of the second
        with pytest.raises(DataError, match="category ids, places"):
            read_score_maps(folder, dataset)
        assert read_score_maps(folder, dataset, values="ids")[1].labels == (0,)
        assert read_score_maps(folder, dataset, values="positions")[1].labels == (1,)

    def test_a_file_of_our_own(self, dataset, folder, tmp_path):
        put(folder, drawn(3, 90))
        maps = read_score_maps(folder, dataset)
        save_score_maps(maps, tmp_path / "own.safetensors")
        again = read_score_maps(tmp_path / "own.safetensors", dataset)
        assert np.array_equal(again[1].planes, maps[1].planes)


class TestFaults:
    def refused(self, folder, dataset, code, match):
        with pytest.raises(DataError, match=match) as error:
            read_score_maps(folder, dataset)
        assert codes(error) == [code]

    def test_a_missing_map(self, dataset, folder, caplog):
        put(folder, drawn(255))
        (folder / "sub" / "b.png").unlink()
        self.refused(folder, dataset, "maps-missing", "1 of 2 images have no map: sub/b.png")
        maps = read_score_maps(folder, dataset, skip_invalid=True)
        assert (maps[0], maps[1].labels) == (None, None)
        assert "maps-missing" in caplog.text

    def test_maps_of_other_images_and_two_of_one(self, dataset, folder, caplog):
        put(folder, drawn(255))
        put(folder, drawn(255), "sub/c.png", "d.png")
        assert read_score_maps(folder, dataset)[1] is not None
        assert "2 maps are called like no image: d.png, c.png" in caplog.text
        np.save(folder / "a.npy", drawn(255))
        with pytest.raises(DataError, match="a.npy and a.png"):
            read_score_maps(folder, dataset)

    @pytest.mark.parametrize(
        ("size_hw", "told"), [((100, 80), "exchanged"), ((64, 64), r"\(64, 64\)"), ((80, 97), "100")]
    )
    def test_other_proportions(self, size_hw, told, dataset, folder):
        put(folder, drawn(255))
        Image.fromarray(drawn(255, size_hw=size_hw)).save(folder / "a.png")
        self.refused(folder, dataset, "maps-size", told)

    @pytest.mark.parametrize("value", [1.5, -0.1, np.nan, np.inf])
    def test_logits_and_what_is_no_number(self, value, dataset, folder):
        put(folder, drawn(value, dtype=np.float32))
        self.refused(folder, dataset, "maps-values", "sigmoid or softmax")

    def test_colours(self, dataset, folder):
        put(folder, drawn(255))
        Image.fromarray(np.dstack([drawn(255), drawn(0), drawn(0)])).save(folder / "a.png")
        self.refused(folder, dataset, "maps-file", "colours")
        Image.fromarray(np.dstack([drawn(255)] * 3)).save(folder / "a.png")
        assert read_score_maps(folder, dataset)[1].labels is None

    def test_a_plane_of_ground(self, dataset, folder):
        put(folder, np.zeros((3, *SIZE), np.float32))
        with pytest.raises(DataError, match="3 planes, while the data set has 2 categories") as error:
            read_score_maps(folder, dataset)
        assert codes(error) == ["maps-size"] * 2

    def test_files_that_hold_no_map(self, dataset, folder):
        put(folder, drawn(255))
        (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
        self.refused(folder, dataset, "maps-file", "header is cut off")
        (folder / "a.png").unlink()
        np.save(folder / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
        self.refused(folder, dataset, "maps-file", "no NPY of numbers")
        np.save(folder / "a.npy", np.zeros((2, 3, 4, 5)))
        self.refused(folder, dataset, "maps-file", "shape")

    def test_maps_of_several_kinds(self, dataset, folder):
        put(folder, drawn(255))
        (folder / "a.png").unlink()
        np.save(folder / "a.npy", drawn(0.5, dtype=np.float32))
        self.refused(folder, dataset, "maps-reading", "whole numbers")

    def test_labels_of_other_categories_are_not_taken_for_scores(self, dataset, folder):
        put(folder, drawn(1, 2, 7))
        self.refused(folder, dataset, "maps-reading", "0, 1, 2, 7, which are no categories")

    def test_scores_that_say_so_may_be_few(self, dataset, folder):
        """Those of scantling's own segmenters, one of which may be sure of nearly everything."""
        told = PngInfo()
        told.add_text(VALUES_KEY, "scores")
        for file, content in (("a.png", drawn(121, 129)), ("sub/b.png", drawn(121))):
            Image.fromarray(content).save(folder / file, pnginfo=told)
        one = read_score_maps(folder, dataset)[1]
        assert (one.labels, one.scores(0)[:3, 0].tolist()) == (None, [121, 129, 0])
        Image.fromarray(drawn(121)).save(folder / "sub/b.png")
        self.refused(folder, dataset, "maps-reading", "0, 121, 129, which are no categories")

    def test_categories_on_the_last_axis(self, dataset, folder):
        put(folder, np.zeros((*SIZE, 2), np.float32))
        with pytest.raises(DataError, match="the first axis here, not the last") as error:
            read_score_maps(folder, dataset)
        assert codes(error) == ["maps-size"] * 2

    def test_nothing_there(self, dataset, tmp_path):
        (tmp_path / "empty").mkdir()
        self.refused(tmp_path / "empty", dataset, "maps-file", "holds no map")
        kept = tmp_path / "empty" / "members" / "seg" / "maps-val.safetensors"
        kept.parent.mkdir(parents=True)
        kept.touch()
        with pytest.raises(DataError) as error:
            read_score_maps(tmp_path / "empty", dataset)
        assert str(kept) in error.value.findings[0].hint
        with pytest.raises(UsageError, match="no such file or folder of score maps"):
            read_score_maps(tmp_path / "nowhere", dataset)
