"""Prediction of many images in shards, and their results in one file, as functions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from scantling.api.run import require_run
from scantling.errors import UsageError
from scantling.run.engines.choice import Engine
from scantling.settings.paths import (
    Written,
    is_url,
    require_existing,
    require_folder,
    require_output,
    require_source,
)
from scantling.settings.shards import GivenShards, Shards

if TYPE_CHECKING:
    from scantling.run.shards.merge import Merged
    from scantling.run.shards.summary import ShardSummary

_KINDS: dict[str, Written] = {".jsonl": "file of results in lines", ".parquet": "parquet file"}


def predict_shards(
    source: str | Path | None,
    shards: GivenShards,
    *,
    run: str | Path | None = None,
    checkpoint: str | Path | None = None,
    overrides: Iterable[str] = (),
    device: str = "auto",
    jobs: int | Engine = 1,
    skip_invalid: bool = False,
) -> ShardSummary:
    """Detect objects in many images, a fixed number at a time; what is done is not done again.

    Args:
        source: What to look at, as in `predict`; None goes on with what was planned.
        shards: Folder for the shards, or a `Shards` that also says how they are shared out.
        run: As in `predict`.
        checkpoint: As in `predict`.
        overrides: As in `predict`.
        device: As in `run`.
        jobs: Shards done side by side, each in a process of its own (and on a GPU of its own where there are several).
            An `Engine` has them done by a cluster.
        skip_invalid: As in `predict`.

    Returns:
        How the whole prediction stands. A shard that failed is among its `failures`, and the others are done.

    Raises:
        ScantlingError: The source, the checkpoint or a setting cannot be used, or the folder holds another prediction.
    """
    given = Shards.of(shards)
    if run is not None and checkpoint is not None:
        raise UsageError("give either --run DIR or --checkpoint FILE")
    if not given.resume and (source is None or (run is None and checkpoint is None)):
        raise UsageError(
            "a prediction begins with SOURCE, and --run DIR or --checkpoint FILE",
            hint=f"To go on with one as it was planned: {Shards(folder=given.folder, part=given.part).command}",
        )
    if source is not None:
        require_source(source)
    if checkpoint is not None:
        require_existing(Path(checkpoint), "checkpoint")
    from scantling.run.shards.model import ChosenModel
    from scantling.run.shards.predict import ShardRequest, predict_in_shards

    model = None
    if run is not None or checkpoint is not None:
        model = ChosenModel(
            run=None if run is None else require_run(Path(run)),
            checkpoint=None if checkpoint is None else Path(checkpoint),
            settings=tuple(overrides),
        )
    elif list(overrides):
        raise UsageError(
            "settings belong to a run or a checkpoint", hint="Give --run DIR or --checkpoint FILE, too."
        )
    request = ShardRequest(
        shards=given, source=None if source is None else str(source), model=model, skip_invalid=skip_invalid
    )
    return predict_in_shards(request, device=device, engine=Engine.of(jobs))


def merge(folder: str | Path, out: str | Path, *, partial: bool = False) -> Merged:
    """Put the results of all shards into one file, in the order of the source.

    Args:
        folder: Of a prediction in shards.
        out: `.json`: a COCO results list; `.jsonl`: one result a line; `.parquet`: one row a result. May be a URL
            (`s3://`, `gs://`).
        partial: Take the shards that are done, where some are missing.

    Raises:
        ScantlingError: Shards are missing or damaged, or the file cannot be written.
    """
    require_folder(Path(folder), "prediction in shards")
    if is_url(str(out)):
        from scantling.run.shards.merge import merge_to_url

        return merge_to_url(Path(folder), str(out), partial=partial)
    require_output(Path(out), _KINDS.get(Path(out).suffix.lower(), "results file"), [])
    from scantling.run.shards.merge import merge_shards

    return merge_shards(Path(folder), Path(out), partial=partial)
