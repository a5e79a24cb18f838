"""Results of another tool as a member of a run: taken over in the data set's ids, or refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from scantling.data.coco import read_coco
from scantling.errors import DataError
from scantling.recipe.recipe import MemberConfig
from scantling.run.stages.detecting import import_stage


@pytest.mark.parametrize(("image_ids", "files"), [("id", ["2.jpg", "1.jpg"]), ("file", ["1.jpg", "2.jpg"])])
def test_a_recipe_says_what_numbers_are(tmp_path, image_ids, files):
    images = [{"id": 1 + n, "file_name": f"{2 - n}.jpg", "width": 50, "height": 40} for n in range(2)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "bolt"}]}
    (tmp_path / "set.json").write_text(json.dumps(content))
    results = [{"image_id": n, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5} for n in (1, 2)]
    (tmp_path / "yolo.json").write_text(json.dumps(results))

    def imported(**settings):
        member = MemberConfig(predictions=str(tmp_path / "yolo.json"), **settings)
        context = SimpleNamespace(
            root=tmp_path,
            member=lambda _name: member,
            detections_file=lambda _name, _split: "taken.json",
            recipe=SimpleNamespace(data=SimpleNamespace(skip_invalid=False)),
            data=SimpleNamespace(evaluated="val", splits={"val": read_coco(tmp_path / "set.json")}),
        )
        stage = import_stage(context, "yolo")
        stage.action()
        return stage.inputs(), json.loads((tmp_path / "taken.json").read_text())

    with pytest.raises(DataError, match=r"members\.NAME\.image_ids"):
        imported()
    inputs, taken = imported(image_ids=image_ids)
    assert [result["file_name"] for result in taken] == files
    assert inputs["image_ids"] == image_ids
