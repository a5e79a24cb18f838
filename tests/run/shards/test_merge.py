"""Shards in one file: complete or refused, in every format, with masks and ids of any kind."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import fsspec
import pytest
from pyarrow import parquet

from scantling import api
from scantling.cli.app import app
from scantling.data.io import sha256_of
from scantling.errors import DataError, UsageError
from scantling.run.shards import merge
from scantling.run.shards.plan import read_plan, shard_folder
from scantling.run.stage import RECORD


@pytest.fixture
def out(photos, weights, tmp_path) -> Path:
    """Four shards."""
    api.predict_shards(photos, api.Shards(folder=tmp_path / "out", size=3), checkpoint=weights, device="cpu")
    return tmp_path / "out"


def rewrite(out: Path, index: int, results: list[dict]) -> None:
    """Put other results into a shard, as if it had come to them."""
    folder = out / shard_folder(index)
    (folder / "predictions.jsonl").write_text("".join(json.dumps(result) + "\n" for result in results))
    record = json.loads((folder / RECORD).read_text())
    outputs = record[shard_folder(index)]["outputs"]
    outputs[f"{shard_folder(index)}/predictions.jsonl"] = sha256_of(folder / "predictions.jsonl")
    (folder / RECORD).write_text(json.dumps(record))


def merged(out: Path, suffix: str) -> list[dict]:
    path = out.parent / f"merged{suffix}"
    summary = api.merge(out, path)
    if suffix == ".parquet":
        rows = parquet.read_table(path).to_pylist()
        found = [{key: value for key, value in row.items() if value is not None} for row in rows]
    elif suffix == ".jsonl":
        found = [json.loads(line) for line in path.read_text().splitlines()]
    else:
        found = json.loads(path.read_text())
    assert summary.num_results == len(found)
    return found


def test_every_format_says_the_same(out, monkeypatch):
    """Also with masks, and in a parquet file of several groups of rows."""
    masked = {
        "image_id": "é.png",
        "file_name": "é.png",
        "category_id": 1,
        "bbox": [0.5, 1, 2, 3],
        "score": 0.1,
    }
    rewrite(out, 1, [{**masked, "segmentation": {"size": [40, 60], "counts": "\\0\u2028`<"}}, masked])
    monkeypatch.setattr(merge, "_ROWS", 4)
    expected = merged(out, ".json")
    assert expected[3]["segmentation"] == {"size": [40, 60], "counts": "\\0\u2028`<"}
    assert merged(out, ".jsonl") == expected
    assert merged(out, ".parquet") == expected
    assert parquet.ParquetFile(out.parent / "merged.parquet").num_row_groups > 1


def test_ids_that_are_numbers_stay_numbers(photos, weights, tmp_path):
    names = ("1.png", "2.png", "sub/3.png")
    images = [{"id": 10 * n, "file_name": name, "width": 60, "height": 40} for n, name in enumerate(names)]
    categories = [{"id": number, "name": name} for number, name in ((4, "blue"), (5, "red"), (6, "green"))]
    content = {"images": images, "annotations": [], "categories": categories}
    (photos / "val.json").write_text(json.dumps(content))
    shards = api.Shards(folder=tmp_path / "out", size=2)
    api.predict_shards(photos / "val.json", shards, checkpoint=weights, device="cpu")
    for suffix in (".json", ".parquet"):
        found = merged(tmp_path / "out", suffix)
        assert [(result["image_id"], result["category_id"]) for result in found] == [(0, 6), (10, 5), (20, 4)]


def test_missing_shards_are_refused_with_the_command_that_does_them(out, tmp_path, weights):
    (out / shard_folder(2) / RECORD).unlink()
    with pytest.raises(UsageError, match="1 of 4 shards are missing: 00002") as caught:
        api.merge(out, tmp_path / "merged.json")
    assert not (tmp_path / "merged.json").exists()
    whole = api.merge(out, tmp_path / "merged.json", partial=True)
    assert (whole.num_results, whole.missing) == (7, (2,))
    command = shlex.split(str(caught.value.hint).split("`")[1])
    with pytest.raises(SystemExit) as ended:
        app([*command[1:], "--device", "cpu"])
    assert ended.value.code in (0, None)
    assert api.merge(out, tmp_path / "merged.json").num_results == 10


def test_a_shard_that_was_changed_is_refused(out, tmp_path):
    with (out / shard_folder(1) / "predictions.jsonl").open("a") as stream:
        stream.write("{}\n")
    with pytest.raises(DataError, match=r"00001/predictions\.jsonl: was changed"):
        api.merge(out, tmp_path / "merged.json")
    assert not (tmp_path / "merged.json").exists()


def test_what_is_no_prediction_in_shards_is_refused(out, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no prediction in shards"):
        api.merge(tmp_path / "empty", tmp_path / "merged.json")
    with pytest.raises(UsageError, match="ends in"):
        api.merge(out, tmp_path / "merged.csv")
    (tmp_path / "thesis.json").write_text("{}")
    with pytest.raises(UsageError, match=r"thesis\.json"):
        api.merge(out, tmp_path / "thesis.json")
    plan = (out / "plan.json").read_text()
    (out / "plan.json").write_text(plan.replace('"format":1', '"format":9'))
    with pytest.raises(DataError, match="another version"):
        read_plan(out)
    (out / "plan.json").write_text(plan.replace('"shard_size"', '"size"'))
    with pytest.raises(DataError, match="damaged"):
        read_plan(out)


@pytest.mark.parametrize(
    "name", ["images.jsonl", "plan.json", "shards/00/all.json", "parts/1-of-1/status.json"]
)
def test_the_files_of_the_prediction_itself_are_not_written_over(out, tmp_path, name):
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (tmp_path / "link").symlink_to(out)
    for place in (out / name, tmp_path / "link" / name, out / "parts" / ".." / name):
        with pytest.raises(UsageError, match="belongs to the prediction"):
            merge.merge_shards(out, place)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert merge.merge_shards(out, out / "merged.json").num_results == 10


def test_what_a_parquet_file_needs_is_said(out, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="pyarrow") as caught:
        api.merge(out, tmp_path / "merged.parquet")
    assert "scantling[parquet]" in (caught.value.hint or "")


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_the_file_may_lie_elsewhere(out, tmp_path, suffix):
    api.merge(out, tmp_path / f"here{suffix}")
    url = f"memory://merged/{tmp_path.name}/found{suffix}"
    summary = api.merge(out, url)
    assert summary.out == url
    assert summary.to_text().endswith(url)
    assert fsspec.filesystem("memory").cat_file(url) == (tmp_path / f"here{suffix}").read_bytes()
    api.merge(out, f"file://{tmp_path}/there{suffix}")
    assert (tmp_path / f"there{suffix}").read_bytes() == (tmp_path / f"here{suffix}").read_bytes()


def test_a_url_that_cannot_be_written_is_a_mistake(out, monkeypatch):
    with pytest.raises(UsageError, match="there is no protocol nowhere://"):
        api.merge(out, "nowhere://bucket/found.json")
    with pytest.raises(UsageError, match="expected a name that ends in"):
        api.merge(out, "memory://bucket/found.txt")

    def refuse(*_, **__) -> None:
        raise PermissionError("no")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.put_file", refuse)
    with pytest.raises(
        UsageError, match="memory://bucket/found.json: cannot be written: PermissionError: no"
    ):
        api.merge(out, "memory://bucket/found.json")
