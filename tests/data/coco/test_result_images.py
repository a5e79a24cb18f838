"""Which image a result is about, where numbers can mean several things: the right image, or a refusal."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest

from scantling.data.coco import check_results, read_coco, read_results, write_results
from scantling.data.coco.results import with_names
from scantling.data.formats.locations import Location, read_location, write_split_file
from scantling.errors import DataError
from scantling.evaluate.coco_eval import evaluate_results

SIZES = [(100, 80), (60, 90), (120, 50), (70, 70), (40, 160)]
"""Width and height of images 1 to 5: a box in one corner fits its own image only."""


@pytest.fixture
def make(tmp_path):
    """A data set with one object in the far corner of each image, and its exact results."""

    def make(names, ids, sizes=SIZES):
        images = [
            {"id": i, "file_name": name, "width": w, "height": h}
            for i, name, (w, h) in zip(ids, names, sizes, strict=False)
        ]
        truths = [
            {"id": n, "image_id": image["id"], "category_id": 1, "bbox": corner(image)}
            for n, image in enumerate(images, start=1)
        ]
        content = {"images": images, "annotations": truths, "categories": [{"id": 1, "name": "bolt"}]}
        (tmp_path / "set.json").write_text(json.dumps(content))
        exact = [
            {"image_id": image["id"], "category_id": 1, "bbox": corner(image), "score": 0.9}
            for image in images
        ]
        return read_coco(tmp_path / "set.json"), exact

    return make


def corner(image):
    return [image["width"] - 30.0, image["height"] - 30.0, 28.0, 28.0]


def average_precision(results, dataset, **options):
    records = check_results(results, dataset, **options).records
    return evaluate_results(dataset, records, backend="pycocotools").metrics["AP"]


def codes(found):
    return [finding.code for finding in found.findings]


def refusal(results, dataset, **options):
    """Code and full text of a refusal."""
    with pytest.raises(DataError) as error:
        check_results(results, dataset, **options)
    (finding,) = [f for f in error.value.findings if f.severity == "error"]
    return finding.code, str(error.value)


NUMBERED = ["3.jpg", "5.jpg", "1.jpg", "4.jpg", "2.jpg"]
"""In the order of their ids 1 to 5."""


def by_file_number(results, names=NUMBERED):
    """The same results by a tool that takes the number out of the file's name."""
    return [{**result, "image_id": int(names[result["image_id"] - 1][:-4])} for result in results]


class TestFileNames:
    def test_the_file_counts_where_another_numbering_is_given(self, make):
        dataset, exact = make(["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"], [1, 2, 3, 4, 5])
        named = with_names(exact, dataset.images, dataset.categories)
        shifted = [{**result, "image_id": result["image_id"] % 5 + 1} for result in named]
        found = check_results(shifted, dataset)
        assert codes(found) == ["results-image-differs"]
        assert "5 of 5 predictions" in found.findings[0].message
        assert found.records == named
        assert average_precision(shifted, dataset) == pytest.approx(1)

    def test_what_was_written_before_a_picture_was_added_is_still_right(self, make, tmp_path):
        """In YOLO and VOC sets ids are places in the order of the names, so that one picture shifts them all."""
        before, exact = make(["b.jpg", "c.jpg", "d.jpg"], [1, 2, 3], SIZES[1:])
        write_results(exact, tmp_path / "found.json", before)
        after, _ = make(["a.jpg", "b.jpg", "c.jpg", "d.jpg"], [1, 2, 3, 4])
        records = read_results(tmp_path / "found.json", after)
        assert [record["image_id"] for record in records] == [2, 3, 4]

    @pytest.mark.parametrize("folder", ["", "/data/val/", "C:\\photos\\", "val/"])
    def test_folders_before_the_name_do_not_matter(self, make, folder):
        dataset, exact = make(["val/a.jpg", "val/b.jpg"], [1, 2])
        named = [{**result, "file_name": f"{folder}{'ab'[result['image_id'] - 1]}.jpg"} for result in exact]
        assert [r["image_id"] for r in check_results(named, dataset).records] == [1, 2]

    def test_a_converted_picture_is_the_picture_unless_there_are_both(self, make):
        dataset, (result, _) = make(["a.jpg", "b.jpg"], [1, 2])
        assert check_results([{**result, "file_name": "b.PNG"}], dataset).records[0]["image_id"] == 2
        dataset, (result, _) = make(["b.jpg", "b.png"], [1, 2])
        assert check_results([{**result, "file_name": "b.png"}], dataset).records[0]["image_id"] == 2

    def test_of_files_of_one_name_the_folder_or_the_id_decides(self, make):
        dataset, (result, _) = make(["left/a.jpg", "right/a.jpg"], [1, 2])
        by_folder = {**result, "file_name": "/x/right/a.jpg", "image_id": 1}
        assert check_results([by_folder], dataset).records[0]["image_id"] == 2
        assert check_results([{**result, "file_name": "a.jpg"}], dataset).records[0]["image_id"] == 1
        unclear = {**result, "file_name": "a.jpg", "image_id": 77}
        assert refusal([unclear], dataset)[0] == "results-image-unknown"

    def test_a_file_of_another_data_set_is_unknown_though_its_number_is_not(self, make):
        dataset, exact = make(["a.jpg", "b.jpg"], [1, 2])
        code, told = refusal([{**exact[0], "file_name": "z.jpg"}], dataset)
        assert (code, "'z.jpg' (file_name)" in told) == ("results-image-unknown", True)

    def test_a_name_is_enough(self, make):
        dataset, exact = make(["a.jpg", "b.jpg"], [1, 2])
        named = with_names(exact, dataset.images, dataset.categories)
        without = [{key: value for key, value in result.items() if key != "image_id"} for result in named]
        assert sorted(r["image_id"] for r in check_results(without, dataset).records) == [1, 2]


class TestNumbers:
    def test_ids_are_ids_where_only_they_fit(self, make):
        dataset, exact = make(NUMBERED, [1, 2, 3, 4, 5])
        assert check_results(exact, dataset) == (exact, ())

    def test_numbers_of_files_are_read_where_only_they_fit(self, make):
        dataset, exact = make(NUMBERED, [1, 2, 3, 4, 5])
        found = check_results(by_file_number(exact), dataset)
        assert codes(found) == ["results-image-named"]
        assert sorted(r["image_id"] for r in found.records) == [1, 2, 3, 4, 5]
        assert average_precision(by_file_number(exact), dataset) == pytest.approx(1)

    def test_numbers_that_are_no_ids_are_those_of_files(self, make):
        names = ["000000000139.jpg", "000000000285.jpg"]
        dataset, exact = make(names, [1, 2], [(100, 80)] * 2)
        numbered = [{**result, "image_id": {1: 139, 2: 285}[result["image_id"]]} for result in exact]
        assert [r["image_id"] for r in check_results(numbered, dataset).records] == [1, 2]

    def test_masks_tell_their_images_size(self, make):
        dataset, exact = make(NUMBERED, [1, 2, 3, 4, 5])
        size_of = {image.id: list(image.size_hw) for image in dataset.images}
        masks = [
            {
                "image_id": result["image_id"],
                "category_id": 1,
                "score": 0.5,
                "segmentation": {"size": size_of[result["image_id"]], "counts": [0, 10, area - 10]},
            }
            for result in exact
            for area in (size_of[result["image_id"]][0] * size_of[result["image_id"]][1],)
        ]
        found = check_results(by_file_number(masks), dataset).records
        assert sorted(r["image_id"] for r in found) == [1, 2, 3, 4, 5]

    def test_two_readings_are_refused_both_named_and_the_user_decides(self, make):
        dataset, exact = make(NUMBERED, [1, 2, 3, 4, 5], [(100, 80)] * 5)
        code, told = refusal(exact, dataset, skip_invalid=True)
        assert code == "results-image-ambiguous"
        assert "as the data set's ids: 5 of 5 known, 0 do not fit their image" in told
        assert "as the numbers that the files are called by: 5 of 5 known, 0 do not fit their image" in told
        as_ids = check_results(exact, dataset, image_ids="id")
        assert as_ids.records == exact
        as_files = check_results(by_file_number(exact), dataset, image_ids="file")
        assert sorted(r["image_id"] for r in as_files.records) == [1, 2, 3, 4, 5]

    def test_numbers_beside_names_of_files_are_files_too(self, make):
        """As Ultralytics wrote `image_id`: the number if the file is called by one, else its name."""
        dataset, exact = make(["2.jpg", "b.jpg", "1.jpg"], [1, 2, 3], [(100, 80)] * 3)
        mixed = [{**result, "image_id": {1: 2, 2: "b", 3: 1}[result["image_id"]]} for result in exact]
        found = check_results(mixed, dataset).records
        assert [r["image_id"] for r in found] == [1, 2, 3]

    def test_places_in_the_order_of_the_names_are_no_guess(self, make):
        dataset, exact = make(["a.jpg", "b.jpg", "c.jpg"], [1, 2, 3])
        from_zero = [{**result, "image_id": result["image_id"] - 1} for result in exact]
        code, told = refusal(from_zero, dataset)
        assert code == "results-image-unknown"
        assert "places in the order of the files' names, from 0: 3 of 3 known" in told
        dataset, exact = make(["a.jpg", "b.jpg", "c.jpg"], [3, 1, 2])
        order = {3: 1, 1: 2, 2: 3}
        code, told = refusal([{**r, "image_id": order[r["image_id"]]} for r in exact], dataset)
        assert code == "results-image-ambiguous"
        assert "places in the order of the files' names, from 1: 3 of 3 known, 0 do not fit" in told

    def test_boxes_far_outside_are_told(self, make):
        dataset, exact = make(["a.jpg", "b.jpg"], [1, 2])
        beyond = [{**exact[0], "bbox": [300.0, 10.0, 20.0, 20.0]}, exact[1]]
        found = check_results(beyond, dataset)
        assert codes(found) == ["results-boxes-outside"]
        assert "1 of 2 predictions" in found.findings[0].message

    def test_a_little_outside_is_what_detectors_do(self, make):
        dataset, exact = make(["a.jpg", "b.jpg"], [1, 2])
        x, y, width, height = exact[0]["bbox"]
        over = [{**exact[0], "bbox": [x, y, width + 5, height]}, exact[1]]
        assert check_results(over, dataset).findings == ()


class TestIdsThatAreNone:
    def test_a_missing_id_is_told_as_missing(self, make):
        dataset, exact = make(["a.jpg", "b.jpg"], [1, 2])
        del exact[0]["image_id"]
        code, told = refusal(exact, dataset)
        assert (code, "1 of 2 predictions have no image_id" in told) == ("results-image-missing", True)
        assert check_results(exact, dataset, skip_invalid=True).records == exact[1:]

    def test_a_number_as_text_is_told_as_text(self, make):
        dataset, exact = make(["a.jpg", "b.jpg"], [1, 2])
        code, told = refusal([{**result, "image_id": str(result["image_id"])} for result in exact], dataset)
        assert code == "results-image-unknown"
        assert "the data set's are numbers" in told
        assert "same split" not in told

    def test_a_missing_category_is_told_as_missing(self, make):
        dataset, exact = make(["a.jpg", "b.jpg"], [1, 2])
        del exact[0]["category_id"]
        assert refusal(exact, dataset)[0] == "results-category-missing"


def test_the_name_of_a_category_counts(content, write):
    """SAHI writes both; its numbers are the model's, which count from 0."""
    dataset = read_coco(write(content))
    names = {category.id: category.name for category in dataset.categories}
    results = [
        {
            "image_id": 7,
            "category_id": number,
            "category_name": names[right],
            "bbox": [1, 1, 9, 9],
            "score": 0.5,
        }
        for number, right in ((0, 3), (3, 90), (90, 90))
    ]
    found = check_results(results, dataset)
    assert [record["category_id"] for record in found.records] == [3, 90, 90]
    (told,) = [f for f in found.findings if f.code == "results-category-differs"]
    assert told.message.startswith("in 2 of 3 predictions")


def test_images_whose_predictions_are_faulty_are_not_told_as_without(make):
    dataset, exact = make(["a.jpg", "b.jpg"], [1, 2])
    faulty = [{**result, "bbox": [1, 2, 3]} for result in exact]
    with pytest.raises(DataError) as error:
        check_results(faulty, dataset)
    assert {finding.code for finding in error.value.findings} == {"results-box"}
    with pytest.raises(DataError, match="1 of 2 images have no prediction: b.jpg"):
        check_results(faulty[:1], dataset)


class TestCategoriesWithoutIds:
    """VOC has names only: ids are counted in alphabetical order, and other tools count otherwise."""

    @pytest.fixture
    def voc(self, tmp_path):
        size = "<size><width>100</width><height>80</height></size>"
        edges = "<bndbox><xmin>11</xmin><ymin>11</ymin><xmax>40</xmax><ymax>30</ymax></bndbox>"
        for image, name in (("a", "nut"), ("b", "bolt"), ("c", "gasket")):
            text = f"<annotation>{size}<object><name>{name}</name>{edges}</object></annotation>"
            (tmp_path / "Annotations").mkdir(exist_ok=True)
            (tmp_path / "Annotations" / f"{image}.xml").write_text(text)
        return tmp_path

    FOUND: ClassVar = [
        {"image_id": image, "category_id": number, "bbox": [10, 10, 30, 20], "score": 0.9}
        for image, number in (("a", 1), ("b", 2), ("c", 3))
    ]
    """By a tool that counts nut, bolt, gasket."""

    def warned(self, results, voc):
        checked = check_results(results, read_location(voc))
        return [f.message for f in checked.findings if f.code == "results-category-counted"]

    def test_the_numbering_that_is_assumed_is_named(self, voc):
        (message,) = self.warned(self.FOUND, voc)
        assert message.startswith("3 of 3 predictions have no category_name")
        assert message.endswith("category_id is taken for 1 bolt, 2 gasket, 3 nut")
        with pytest.raises(DataError, match="results-category-counted"):
            check_results(self.FOUND, read_location(voc), strict=True)

    def test_names_or_stored_ids_settle_it(self, voc):
        names = {1: "nut", 2: "bolt", 3: "gasket"}
        named = [{**each, "category_name": names[each["category_id"]]} for each in self.FOUND]
        assert self.warned(named, voc) == []
        assert len(self.warned([*named[:2], self.FOUND[2]], voc)) == 1
        stored = [{"id": number, "name": name} for number, name in names.items()]
        (voc / "categories.json").write_text(json.dumps(stored[:2]))
        (message,) = self.warned(self.FOUND, voc)  # gasket is counted on from what is stored
        assert message.startswith("1 of 3")
        assert message.endswith("category_id is taken for 3 gasket")
        (voc / "categories.json").write_text(json.dumps(stored))
        assert self.warned(self.FOUND, voc) == []
        assert average_precision(self.FOUND, read_location(voc)) == pytest.approx(1)

    def test_what_scantling_wrote_has_names_and_outlives_another_numbering(self, voc, tmp_path):
        dataset = read_location(voc)
        right = [{**each, "category_id": number} for each, number in zip(self.FOUND, (3, 1, 2), strict=True)]
        own = [{**each, "image_id": dataset.images[row].id} for row, each in enumerate(right)]
        write_results(own, tmp_path / "found.json", dataset)
        written = json.loads((tmp_path / "found.json").read_text())
        assert [each["category_name"] for each in written] == ["nut", "bolt", "gasket"]
        assert self.warned(written, voc) == []
        (voc / "categories.json").write_text('[{"id": 1, "name": "nut"}, {"id": 2, "name": "bolt"}]')
        assert [r["category_id"] for r in check_results(written, read_location(voc)).records] == [1, 2, 3]

    def test_a_name_that_was_assumed_is_not_written_down(self, voc, tmp_path):
        """What a verb writes of such results is warned of again."""
        dataset = read_location(voc)
        write_results(check_results(self.FOUND, dataset).records, tmp_path / "found.json", dataset)
        written = json.loads((tmp_path / "found.json").read_text())
        assert [each.keys() & {"file_name", "category_name"} for each in written] == [{"file_name"}] * 3
        assert len(self.warned(written, voc)) == 1

    def test_one_class_cannot_be_mistaken(self, voc):
        for image in "bc":
            (voc / "Annotations" / f"{image}.xml").unlink()
        assert self.warned(self.FOUND[:1], voc) == []


class TestImagesOfASplitFile:
    """What is not in the list is said of the list, and in the words by which the results name their images."""

    def test_the_list_and_its_file_names_are_named(self, make, tmp_path):
        whole, exact = make(["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"], [1, 2, 3, 4, 5])
        lists = tmp_path / "some.json"
        write_split_file(lists, "some", Location(tmp_path / "set.json"), [2, 4])
        dataset = read_location(lists)
        code, told = refusal(with_names(exact, whole.images, whole.categories), dataset)
        assert code == "results-image-unknown"
        assert f"3 images not in {lists}: 'a.jpg' (file_name), 'c.jpg' (file_name)" in told
        assert "it has 'b.jpg', 'd.jpg'." in told
        assert (
            f"3 images not in {lists}: 1 (integer), 3 (integer), 5 (integer); it has 2, 4."
            in refusal(exact, dataset)[1]
        )
