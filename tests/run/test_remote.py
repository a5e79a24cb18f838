"""Stages done elsewhere, here in this process: in a folder of their own, under a lease, with the same files as ever."""

from __future__ import annotations

import io
import logging
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from reference.forked import Forked, fork_workers
from reference.masked_parts import write_masked_parts
from scantling.data.io import atomic_write
from scantling.errors import DataError, UsageError
from scantling.recipe.recipe import parse_recipe
from scantling.run.context import Workplace
from scantling.run.engines import remote
from scantling.run.engines.choice import Engine
from scantling.run.engines.nodes import versions_here
from scantling.run.engines.remote import RemoteOrder, Versions, Workshop, do_my_part
from scantling.run.engines.schedule import Ended, do_all
from scantling.run.engines.worker import Done, Failed
from scantling.run.folder import _require_sight, open_run
from scantling.run.leases import LeaseLost, Leases
from scantling.run.pipeline import prepared_run, run_recipe, stages_of
from scantling.run.running import log_of_stage
from scantling.run.several import RunsContext, stages_of_runs
from scantling.run.stage import Stage
from scantling.synth.synth import SynthConfig, write_synth

pytestmark = pytest.mark.timeout(300)

BOXES = """
pretrain: {epochs: 1, batch_size: 8, side: 32, queue: 16, embedding: 8, workers: 0}
members:
  one:
    model: {name: faster_rcnn_r18_small, backbone: test_resnet, init: pretrain, fpn_channels: 16, fc_channels: 16,
            num_train_proposals: 50, num_test_proposals: 30, num_rois: 16}
    augment: {short_side: 48, long_side: 64}
    train: {epochs: 1, batch_size: 4, workers: 0, warmup_steps: 2}
    predict: {scales: 48, long_side: 64, suppress: {score_threshold: 0.0, max_per_image: 12}}
combine: {tune: {}, ensemble: {}, eliminate: {}}
refine: {model: {backbone: test_resnet, side: 32}, train: {epochs: 1, repeats: 1}}
audit: {}
evaluate: {bootstrap: 10}
"""
MASKS = """
members:
  one:
    model: {name: mask_rcnn_r18_small, backbone: test_resnet, fpn_channels: 16, fc_channels: 16,
            num_train_proposals: 50, num_test_proposals: 30, num_rois: 16, mask_channels: 8, mask_convs: 1}
    augment: {short_side: 48, long_side: 64}
    train: {epochs: 1, batch_size: 4, workers: 0, warmup_steps: 2, lr: 0.05}
    predict: {scales: 48, long_side: 72, suppress: {score_threshold: 0.0, max_per_image: 6}}
  light:
    segmenter: {name: fpn_r18_small, backbone: test_resnet, channels: 16}
    augment: {short_side: 48, long_side: 64}
    train: {epochs: 1, batch_size: 4, workers: 0, warmup_steps: 2}
    predict: {scales: 48, long_side: 72}
data: {folds: 2}
combine: {tune: {}, semantic: {}, eliminate: {}}
evaluate: {bootstrap: 10}
"""
TWO = """
members:
  one:
    model: {name: faster_rcnn_r18_small, backbone: test_resnet, fpn_channels: 16, fc_channels: 16,
            num_train_proposals: 50, num_test_proposals: 30, num_rois: 16}
    augment: {short_side: 48, long_side: 64}
    train: {epochs: 1, batch_size: 1, workers: 0, warmup_steps: 2}
    predict: {scales: 48, long_side: 64, suppress: {score_threshold: 0.0, max_per_image: 12}}
combine: {tune: {}}
evaluate: {bootstrap: 10}
"""
OWN = {"env.json", "run.log", "status.json", "report.html", "done.json"}


class OneElsewhere:
    """A crew of one workshop that shares nothing with the scheduler but the folder, though the process is this one."""

    def __init__(self, workshop: Workshop) -> None:
        self.workshop, self.busy = workshop, list[str]()

    @property
    def is_free(self) -> bool:
        return not self.busy

    def wants(self, *, company: bool) -> bool:
        return True

    def start(self, stage: Stage) -> None:
        self.busy.append(stage.title)

    def ended(self) -> Ended:
        title = self.busy.pop()
        outcome = self.workshop.do(title)
        return Ended([title], {}) if isinstance(outcome, Done) else Ended([], {title: outcome.as_error()})


def files_in(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in OWN]
    named = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: held for name, held in named.items() if not name.startswith(("leases/", "logs/"))}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_every_kind_of_stage_says_all_that_it_needs_and_leaves_the_same_files(tmp_path, kind):
    """In a folder of its own a stage sees no other files than those it names."""
    data = tmp_path / "data"
    if kind == "boxes":
        write_synth(
            data, SynthConfig(size_hw=(72, 96)), splits={"train": 8, "val": 3}, seed=0, layout="delftbikes"
        )
    else:
        write_masked_parts(data, {"train": 8, "val": 4}, seed=0)
    recipe = parse_recipe({"boxes": BOXES, "masks": MASKS}[kind], file="r.yaml").on(data=data)
    run_recipe(recipe, tmp_path / "alone", device="cpu")
    root = tmp_path / "shared"
    with prepared_run(recipe, root, device="cpu", overwrite=False) as (context, run):
        workshop = Workshop(RemoteOrder.of(context, stages_of))
        do_all(stages_of(context), run, OneElsewhere(workshop))
        run.require_all()
    first, second = files_in(root), files_in(tmp_path / "alone")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    page = (root / "report.html").read_text()
    assert "scantling-" not in page, "no path of a folder that is gone"


@dataclass(frozen=True, kw_only=True)
class Words(Workplace):
    """What the stages below look at."""

    word: str = "one"


def build(context: Words) -> Sequence[Stage]:
    def stage(name: str, needs: tuple[str, ...] = (), **options) -> Stage:
        outputs = (f"{name}/out.txt", f"{name}/more/last.txt")
        action = partial(write, context, name)
        return Stage(
            folder=name, name=name, inputs=dict, needs=needs, outputs=outputs, action=action, **options
        )

    return [stage("a"), stage("b", ("a/out.txt",)), stage("bad"), stage("c", working_files=("c/state",))]


def write(context: Words, name: str) -> None:
    folder = context.root / name
    (folder / "more").mkdir(parents=True, exist_ok=True)
    if name == "bad":
        (folder / "out.txt").write_text("half")
        raise DataError("bad is bad", hint="Mend it.")
    seen = sorted(path.relative_to(context.root).as_posix() for path in context.root.rglob("*.txt"))
    (folder / "out.txt").write_text(f"{context.word} sees {seen}")
    (folder / "more/last.txt").write_text("last")
    (folder / "extra.txt").write_text("beside")
    logging.getLogger("scantling.test").info("%s was here", name)


@pytest.fixture
def words(tmp_path) -> Words:
    console = Console(file=io.StringIO())
    return Words(root=tmp_path / "run", device=torch.device("cpu"), console=console)


def test_work_is_done_in_a_folder_of_its_own_and_moved_as_a_whole(words, tmp_path):
    with open_run(words.root):
        workshop = Workshop(RemoteOrder.of(words, build))
        assert workshop.do("a") == Done()
        assert workshop.do("b") == Done()
        failed = workshop.do("bad")
    assert (words.root / "a/out.txt").read_text() == "one sees []"
    assert (words.root / "b/out.txt").read_text() == "one sees ['a/out.txt']"
    assert (words.root / "b/extra.txt").read_text() == "beside"
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, DataError)
    assert not (words.root / "bad/out.txt").exists()
    assert "b was here" in log_of_stage(words.root, "b").read_text()
    assert "b was here" not in log_of_stage(words.root, "a").read_text()


def test_a_stage_of_many_runs_has_the_stages_of_its_own_run_listed_and_no_others(words):
    listed = []

    def build_and_note(context: Words) -> Sequence[Stage]:
        listed.append(context.root)
        return build(context)

    whole = RunsContext(
        root=words.root,
        device=words.device,
        console=words.console,
        runs={name: words for name in ("set", "set-1", "set-10")},
        build=build_and_note,
    )
    with open_run(words.root):
        workshop = Workshop(RemoteOrder.of(whole, stages_of_runs))
        listed.clear()
        assert workshop.do("set-1/a") == Done()
    assert [root.name for root in listed] == ["set-1"]
    assert (words.root / "set-1/a/out.txt").read_text() == "one sees []"


def test_what_has_a_state_works_in_the_shared_folder(words):
    with open_run(words.root):
        workshop = Workshop(RemoteOrder.of(words, build))
        assert workshop.do("a") == Done()
        assert workshop.do("c") == Done()
    assert "a/more/last.txt" in (words.root / "c/out.txt").read_text()


def test_nothing_is_moved_once_the_lease_is_lost(words, monkeypatch):
    """Another process takes the stage over while it is being done."""
    usual = write

    def slow(context: Words, name: str) -> None:
        usual(context, name)
        others = Leases(root=words.root, patience=0.0)
        while others.take(name) is None:
            pass

    monkeypatch.setattr(f"{__name__}.write", slow)
    with open_run(words.root):
        outcome = Workshop(RemoteOrder.of(words, build)).do("a")
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, LeaseLost)
    assert not (words.root / "a/out.txt").exists()


def test_a_folder_that_is_not_the_same_everywhere_is_refused(words, tmp_path, monkeypatch):
    monkeypatch.setattr("scantling.run.engines.remote.SIGHT_SECONDS", 0.0)
    with open_run(words.root):
        order = RemoteOrder.of(words, build)
    elsewhere = replace(order, context=replace(words, root=tmp_path / "elsewhere"))
    with pytest.raises(UsageError, match="does not see what the scheduling process writes there"):
        Workshop(elsewhere)
    with pytest.raises(UsageError, match="does not see"):
        Workshop(replace(order, token="another"))


def test_what_a_stage_needs_is_awaited_until_it_is_seen(words, monkeypatch):
    """A network folder shows it late, or never."""
    with open_run(words.root):
        workshop = Workshop(RemoteOrder.of(words, build))
        late = threading.Timer(0.5, atomic_write, [words.root / "a/out.txt", "late"])
        late.start()
        assert workshop.do("b") == Done()
        late.join()
        assert (words.root / "b/out.txt").read_text() == "one sees ['a/out.txt']"
        (words.root / "a/out.txt").unlink()
        monkeypatch.setattr("scantling.run.engines.remote.SIGHT_SECONDS", 0.0)
        failed = workshop.do("b")
        assert workshop.do("b", ["a/out.txt"]) == Done(), "the scheduler has begun it all the same"
    assert isinstance(failed.error, UsageError)
    assert "does not see what it needs: a/out.txt" in failed.error.message


def test_relative_paths_begin_where_the_scheduler_works(words, tmp_path, monkeypatch):
    def build_from(context: Words) -> Sequence[Stage]:
        needs = (str(Path("theirs.json").absolute()),)  # as of a file of another tool that a recipe names
        return [replace(stage, needs=needs) for stage in build(context)]

    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "here/theirs.json").write_text("[]")
    monkeypatch.chdir(tmp_path / "here")
    with open_run(words.root):
        order = RemoteOrder.of(words, build_from)
        monkeypatch.chdir(tmp_path / "there")
        assert Workshop(order).do("a") == Done()
        monkeypatch.chdir(tmp_path / "there")
        monkeypatch.setattr("scantling.run.engines.remote.SIGHT_SECONDS", 0.0)
        failed = Workshop(replace(order, cwd=tmp_path / "only-there")).do("a")
    assert isinstance(failed, Failed)
    assert f"does not see what it needs: {tmp_path}/there/theirs.json" in str(failed.error)


def test_other_versions_are_refused(words):
    with open_run(words.root):
        order = RemoteOrder.of(words, build)
        versions = Versions.here()
        other = replace(order, versions=versions._replace(torch="1.0"))
        with pytest.raises(UsageError, match=r"other versions .*: torch 1\.0, here ") as caught:
            Workshop(other)
    assert "Install the same" in str(caught.value.hint)
    assert versions.differences(versions) == []
    assert versions._asdict() == versions_here(), "doctor tells of the same"
    assert versions._replace(torchvision=None).differences(versions) == [
        f"torchvision not installed, here {versions.torchvision}"
    ]


def test_a_gpu_elsewhere_is_the_first_that_is_seen_there():
    assert remote._device_here(torch.device("cuda:3")) == torch.device("cuda:0")
    assert remote._device_here(torch.device("cpu")) == torch.device("cpu")


def told_by_torchrun(world: int) -> list[dict[str, str]]:
    """The environment of each of so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    common |= {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
    return [{**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


@pytest.mark.slow
def test_a_training_on_several_gpus_of_a_machine_is_that_of_torchrun(tmp_path, monkeypatch):
    """Here two processes without GPUs, told what torchrun tells its own."""
    fork_workers(monkeypatch)
    write_synth(tmp_path / "data", SynthConfig(size_hw=(72, 96)), splits={"train": 4, "val": 2}, seed=0)
    recipe = parse_recipe(TWO, file="r.yaml").on(data=tmp_path / "data")
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    command = ["run", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "two"), "--device", "cpu"]
    ranks = [Forked(command, tmp_path, environment=told) for told in told_by_torchrun(2)]
    assert [rank.wait(250) for rank in ranks] == [0, 0]
    root = tmp_path / "shared"
    engine = Engine(name="ray", gpus=2)  # Ray itself is not asked for anything
    with prepared_run(recipe, root, device="cpu", overwrite=False, engine=engine) as (context, run):
        workshop = Workshop(RemoteOrder.of(context, stages_of, gpus=2))
        do_all(stages_of(context), run, OneElsewhere(workshop))
        run.require_all()
        failed = do_my_part(RemoteOrder.of(context, stages_of), "no such stage", root)
    assert isinstance(failed.error, KeyError)
    first, second = files_in(root), files_in(tmp_path / "two")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    assert "one: training" in log_of_stage(root, "members/one/train").read_text()


def test_a_process_of_torchrun_that_does_not_see_the_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("scantling.run.folder.SIGHT_SECONDS", 0.0)
    with open_run(tmp_path) as run:
        _require_sight(tmp_path, run.started)
        for unseen, started in ((tmp_path / "elsewhere", run.started), (tmp_path, "another run")):
            with pytest.raises(UsageError, match="does not see what the main process writes there"):
                _require_sight(unseen, started)
