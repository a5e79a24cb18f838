"""The shards' results in one file, in the order of the source, one shard in memory at a time.

.json      a COCO results list, to the bit what `predict --out` writes
.jsonl     one result a line
.parquet   one row a result, columns `image_id`, `file_name`, `category_id`, `category_name`, `bbox`, `score` and
           `segmentation`
"""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from scantling.data.findings import name_some
from scantling.data.io import replacing, sha256_of
from scantling.errors import DataError, UsageError
from scantling.predict.remote import open_url, store, without_file_protocol
from scantling.run.shards.plan import OWN_NAMES, ShardPlan, images_of, read_plan, shard_folder
from scantling.run.shards.stages import outputs_of
from scantling.run.shards.summary import named, summary_of
from scantling.run.stage import read_record
from scantling.settings.paths import is_url
from scantling.settings.shards import Shards

_ROWS = 1 << 16
"""Rows of a group in a parquet file, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What was put together.

    Attributes:
        out: The file, or its URL.
        num_results: In it.
        num_shards: They are of.
        missing: Indices of shards that are not done, and left out.
        unreadable: Images of the others that could not be read.
    """

    out: Path | str
    num_results: int
    num_shards: int
    missing: tuple[int, ...]
    unreadable: int

    def to_text(self) -> str:
        """For people."""
        done = self.num_shards - len(self.missing)
        less = f"; missing: {name_some(list(named(self.missing)))}" if self.missing else ""
        lost = f" (images that could not be read: {self.unreadable})" if self.unreadable else ""
        return f"{self.num_results} objects of {done} of {self.num_shards} shards{lost} in {self.out}{less}"

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        missing = [shard_folder(index) for index in self.missing]
        return {
            "out": str(self.out),
            "num_results": self.num_results,
            "num_shards": self.num_shards,
            "missing": missing,
            "num_unusable": self.unreadable,
        }


def merge_shards(folder: Path, out: Path, *, partial: bool = False) -> Merged:
    """Put the results of all shards into one file.

    Args:
        folder: Of a prediction in shards.
        out: `.json`, `.jsonl` or `.parquet`.
        partial: Take the shards that are done, where some are not.

    Raises:
        UsageError: Shards are missing, `out` has another ending or is a file of the prediction itself, or pyarrow is
            not installed.
        DataError: A shard is not as it was left.
    """
    write = _WRITERS.get(out.suffix.lower())
    if write is None:
        raise UsageError(f"{out}: expected a name that ends in {', '.join(_WRITERS)}")
    _refuse_own(folder, out)
    plan = read_plan(folder)
    standing = summary_of(Shards(folder=folder), plan)
    missing = standing.missing
    if missing and not partial:
        told = f"{len(missing)} of {plan.num_shards} shards are missing: {name_some(list(named(missing)))}"
        hint = f"`{Shards(folder=folder).command}` does them; --partial leaves them out."
        raise UsageError(f"{folder}: {told}", hint=hint)
    there = sorted(set(range(plan.num_shards)) - set(missing))
    with replacing(out) as temporary, temporary.open("wb") as stream:
        count = write(_DoneShards(folder, plan, there), stream)
    return Merged(
        out=out,
        num_results=count,
        num_shards=plan.num_shards,
        missing=missing,
        unreadable=standing.unreadable,
    )


def merge_to_url(folder: Path, url: str, *, partial: bool = False) -> Merged:
    """Put the results of all shards into one file that lies elsewhere; arguments and errors as of `merge_shards`.

    The file is made on this machine first, in its temporary folder, and copied as a whole.
    """
    local = without_file_protocol(url)
    if not is_url(local):
        return merge_shards(folder, Path(local), partial=partial)
    open_url(url)  # refuses what cannot be written to before the work
    with tempfile.TemporaryDirectory(prefix="scantling-") as name:
        merged = merge_shards(folder, Path(name) / url.rpartition("/")[2], partial=partial)
        store(Path(name) / url.rpartition("/")[2], url)
    return replace(merged, out=url)


def _refuse_own(folder: Path, out: Path) -> None:
    """Refuse to write where the prediction keeps what it has done, whatever links lead there.

    Raises:
        UsageError: The file is, or would be, one of the prediction.
    """
    place = out.parent.resolve() / out.name
    for name in OWN_NAMES:
        for own in (folder.resolve() / name, (folder / name).resolve()):
            if place == own or own in place.parents:
                hint = "Nothing was changed. Choose another --out."
                raise UsageError(f"{out}: belongs to the prediction in {folder} itself", hint=hint)


@dataclass(frozen=True, slots=True)
class _DoneShards:
    """The shards that are put together."""

    folder: Path
    plan: ShardPlan
    indices: Sequence[int]

    def lines(self) -> Iterator[list[bytes]]:
        """The results of each shard, one a line.

        Raises:
            DataError: A shard is not as it was left.
        """
        for index in self.indices:
            name, record = outputs_of(index)[0], read_record(self.folder / shard_folder(index))
            path = self.folder / name
            if sha256_of(path) != record[shard_folder(index)]["outputs"][name]:
                hint = f"`{Shards(folder=self.folder).command}` does the shard again."
                raise DataError(f"{path}: was changed, or is damaged", hint=hint)
            yield path.read_bytes().splitlines()

    def has_text_ids(self) -> bool:
        """Whether any image of the whole prediction has an id that is no whole number."""
        return any(
            not isinstance(image.id, int)
            for index in range(self.plan.num_shards)
            for image in images_of(self.plan.lines(self.folder, index))
        )


def _write_json(parts: _DoneShards, stream: BinaryIO) -> int:
    count = 0
    stream.write(b"[")
    for lines in parts.lines():
        for line in lines:
            stream.write(b"," + line if count else line)
            count += 1
    stream.write(b"]\n")
    return count


def _write_lines(parts: _DoneShards, stream: BinaryIO) -> int:
    count = 0
    for lines in parts.lines():
        stream.writelines(line + b"\n" for line in lines)
        count += len(lines)
    return count


def _write_parquet(parts: _DoneShards, stream: BinaryIO) -> int:
    """One row a result; ids are numbers where all are whole numbers, else texts. Without a mask its column is null."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        hint = f"pip install 'scantling[parquet]', or --out {shlex.quote('FILE.jsonl')}."
        raise UsageError(
            "a parquet file needs the package pyarrow, which is not installed", hint=hint
        ) from error
    as_text = parts.has_text_ids()
    schema = pa.schema(
        [
            ("image_id", pa.string() if as_text else pa.int64()),
            ("file_name", pa.string()),
            ("category_id", pa.int64()),
            ("category_name", pa.string()),
            ("bbox", pa.list_(pa.float64(), 4)),
            ("score", pa.float64()),
            # a list of no fixed length: pyarrow 20 reads no list of two in a struct that is null
            ("segmentation", pa.struct([("size", pa.list_(pa.int64())), ("counts", pa.string())])),
        ]
    )
    count, rows = 0, list[dict[str, Any]]()
    with parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
        for lines in parts.lines():
            rows += map(json.loads, lines)
            if len(rows) >= _ROWS:
                count += _write_rows(writer, rows, schema, as_text=as_text)
                rows.clear()
        count += _write_rows(writer, rows, schema, as_text=as_text)
    return count


def _write_rows(writer: Any, rows: list[dict[str, Any]], schema: Any, *, as_text: bool) -> int:  # noqa: ANN401 - untyped library
    """Write rows as a group; how many they are."""
    import pyarrow as pa

    if as_text:
        rows = [{**row, "image_id": str(row["image_id"])} for row in rows]
    writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    return len(rows)


_WRITERS: dict[str, Callable[[_DoneShards, BinaryIO], int]] = {
    ".json": _write_json,
    ".jsonl": _write_lines,
    ".parquet": _write_parquet,
}
