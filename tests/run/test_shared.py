"""One run by several processes through its folder: each stage once at a time, taken over from the dead."""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from run import shared_stages as stages
from scantling import api
from scantling.errors import Interrupted, TrainingError, UsageError
from scantling.run.engines.choice import Engine
from scantling.run.engines.shared_folder import Terms
from scantling.run.folder import open_run
from scantling.run.leases import current_leases, read_log

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, and seen to be gone"),
]
DONE = dict.fromkeys(("all/a1", "all/a2", "all/a3", "all/b", "all/c"), "done")
FORK = multiprocessing.get_context("fork")
"""So that what takes seconds to import is there."""


def together(root: Path, number: int, launch: str | None = None) -> list[int]:
    """Have the run done by so many processes; their exit codes, sorted."""
    options = {"launch": launch}
    processes = [FORK.Process(target=stages.take_part, args=(root,), kwargs=options) for _ in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return sorted(process.exitcode for process in processes)


def files_in(root: Path) -> dict[str, bytes]:
    """What the stages left: outputs and records."""
    return {path.name: path.read_bytes() for path in (root / "all").iterdir() if path.is_file()}


def require_one_at_a_time(root: Path) -> None:
    """From the log of leases: nobody takes a stage before its holder has given it back, or has died."""
    for title in DONE:
        events = [entry for entry in read_log(root) if entry["stage"] == title]
        assert [entry["generation"] for entry in events if entry["event"].startswith("taken")] == list(
            range(1, 1 + len([entry for entry in events if entry["event"].startswith("taken")]))
        )
        for before, after in pairwise(events):
            if after["event"] == "taken":
                assert before["event"] in ("done", "failed", "stopped"), events


def status_of(root: Path) -> dict:
    return json.loads((root / "status.json").read_text())


def test_one_process_alone_does_all_and_does_nothing_again(tmp_path):
    root = tmp_path / "run"
    assert stages.take_part(root) == DONE
    assert (root / "all/b.txt").read_text() == "learned a2 a3"
    assert status_of(root)["state"] == "done"
    assert status_of(root)["stages"] == DONE
    assert stages.take_part(root) == dict.fromkeys(DONE, "kept")
    assert (tmp_path / "begun").read_text() == "0\n"
    assert not (root / ".lock").exists()
    assert len(list((root / "logs").iterdir())) == 1


def test_three_processes_do_each_stage_once_and_leave_what_one_alone_leaves(tmp_path):
    (tmp_path / "one").mkdir()
    stages.take_part(tmp_path / "one/run")
    root = tmp_path / "three"
    assert together(root, 3, "x") == [0, 0, 0]
    assert files_in(root) == files_in(tmp_path / "one/run")
    assert (tmp_path / "begun").read_text() == "0\n"
    assert (status_of(root)["state"], status_of(root)["stages"].keys()) == ("done", DONE.keys())
    assert set(status_of(root)["stages"].values()) == {"done"}
    require_one_at_a_time(root)
    assert {state.outcome for state in current_leases(root).values()} == {"done"}
    assert not (root / ".lock").exists()
    assert len(list((root / "logs").iterdir())) == 3


def test_what_a_killed_process_was_doing_is_taken_over_and_goes_on_from_its_state(tmp_path):
    (tmp_path / "one").mkdir()
    stages.take_part(tmp_path / "one/run")
    (tmp_path / "scenario").write_text("killed")
    root = tmp_path / "two"
    assert together(root, 2, "x") == [-signal.SIGKILL, 0]
    assert (tmp_path / "begun").read_text() == "0\n5\n"
    assert files_in(root) == files_in(tmp_path / "one/run")
    require_one_at_a_time(root)
    assert [entry["event"] for entry in read_log(root) if entry["stage"] == "all/a1"] == [
        "taken",
        "taken over",
        "done",
    ]
    assert (status_of(root)["state"], set(status_of(root)["stages"].values())) == ("done", {"done"})


def test_what_was_stopped_goes_on_in_the_next_process(tmp_path):
    (tmp_path / "scenario").write_text("stopped")
    with pytest.raises(Interrupted):
        stages.take_part(tmp_path / "run")
    assert current_leases(tmp_path / "run")["all/a1"].outcome == "stopped"
    assert (status_of(tmp_path / "run")["state"], status_of(tmp_path / "run")["stages"]) == (
        "interrupted",
        {"all/a1": "interrupted"} | dict.fromkeys(("all/a2", "all/a3", "all/b", "all/c"), "waiting"),
    )
    assert stages.take_part(tmp_path / "run") == DONE
    assert (tmp_path / "begun").read_text() == "0\n5\n"


def test_what_failed_for_one_has_failed_for_all_and_is_tried_again_by_the_next_launch(tmp_path):
    (tmp_path / "scenario").write_text("broken")
    root = tmp_path / "run"
    assert together(root, 2, "x") == [1, 1]
    told = "".join(path.read_text() for path in (root / "logs").iterdir())
    assert (tmp_path / "begun").read_text() == "0\n"
    assert "ValueError: it does not work" in told
    assert "all/a1 failed in process" in told
    assert status_of(root)["state"] == "failed"
    assert status_of(root)["stages"] == {**DONE, "all/a1": "failed", "all/b": "left", "all/c": "left"}
    assert stages.take_part(root)["all/c"] == "done"


def test_a_failure_is_told_with_what_the_other_process_said(tmp_path):
    (tmp_path / "scenario").write_text("broken")
    with pytest.raises(ValueError, match="does not work"):
        stages.take_part(tmp_path / "run", launch="first")
    log = status_of(tmp_path / "run")["failures"]["all/a1"]["log"]
    assert "ValueError: it does not work" in (tmp_path / "run" / log).read_text()
    here = current_leases(tmp_path / "run")["all/a1"].owner
    lease = next((tmp_path / "run/leases/all/a1").glob("*.json"))
    lease.write_text(lease.read_text().replace(log, "logs/elsewhere.7.log"))
    with pytest.raises(TrainingError, match=f"all/a1 failed in {here.title}: ValueError: it does not work"):
        stages.take_part(tmp_path / "run", launch="first")
    assert status_of(tmp_path / "run")["failures"]["all/a1"]["log"] == "logs/elsewhere.7.log"
    assert stages.take_part(tmp_path / "run", launch="second")["all/c"] == "done"


class Held:
    """Another process that works in a folder until it is let go."""

    def __init__(self, work, root: Path) -> None:
        self._here, self._go = FORK.Event(), FORK.Event()
        self._process = FORK.Process(target=work, args=(root, self._here, self._go))

    def __enter__(self) -> None:
        self._process.start()
        assert self._here.wait(stages.PATIENCE)

    def __exit__(self, *_) -> None:
        self._go.set()
        self._process.join()
        assert self._process.exitcode == 0


def work_alone(root: Path, here, go) -> None:
    with open_run(root):
        here.set()
        go.wait(stages.PATIENCE)


def work_with_others(root: Path, here, go) -> None:
    def stay(_: Path) -> None:
        here.set()
        go.wait(stages.PATIENCE)

    stages.end_at_the_fifth_step = stay
    stages.take_part(root)


def test_a_run_that_is_not_shared_is_not_joined(tmp_path):
    with Held(work_alone, tmp_path / "run"), pytest.raises(UsageError, match="does not share it"):
        stages.take_part(tmp_path / "run")


def test_an_ordinary_run_does_not_begin_where_one_is_shared_and_is_told_how_to_join(tmp_path):
    root = tmp_path / "run"
    with Held(work_with_others, root):
        with pytest.raises(UsageError, match="several processes") as caught, open_run(root):
            pytest.fail("it was given away")
        assert "--engine shared" in str(caught.value.hint)
    assert status_of(root)["stages"] == DONE


def test_another_recipe_is_refused_with_the_differences_and_the_others_go_on(tmp_path):
    root = tmp_path / "run"
    other = stages.recipe_of(stages.RECIPE.replace("faster_rcnn_r18_small", "faster_rcnn_r50"))
    with Held(work_with_others, root):
        before = status_of(root)
        found = r'members.one.model.name: was "faster_rcnn_r18_small", is now "faster_rcnn_r50"'
        with pytest.raises(UsageError, match=found):
            stages.take_part(root, other)
        assert status_of(root) == before
    assert status_of(root)["stages"] == DONE


def test_what_is_open_is_as_the_first_process_found_it(tmp_path):
    given = stages.recipe_of(
        "members: {one: {model: {name: faster_rcnn_r18_small}, train: {epochs: 2, batch_size: auto}}}"
    )

    def with_batch(size: int, epochs: int = 2):
        one = given.members["one"]
        train = one.train.model_copy(update={"batch_size": size, "epochs": epochs})
        return given.model_copy(update={"members": {"one": one.model_copy(update={"train": train})}})

    def terms(recipe) -> Terms:
        return Terms(given=given.to_dict(), recipe=recipe, device=torch.device("cpu"))

    (tmp_path / "recipe.yaml").write_text(with_batch(4).to_yaml())
    recorded = terms(with_batch(4)).recorded("x")
    assert terms(with_batch(8)).agreed(tmp_path, recorded) == with_batch(4)
    with pytest.raises(UsageError, match=r"epochs: was 2, is now 3"):
        terms(with_batch(8, epochs=3)).agreed(tmp_path, recorded)
    with pytest.raises(UsageError, match=r'device: was "cuda", is now "cpu"'):
        terms(with_batch(4)).agreed(tmp_path, {**recorded, "device": "cuda"})


def test_options_that_do_not_go_with_it_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--jobs is for --engine local"):
        Engine(name="shared", jobs=2)
    with pytest.raises(UsageError, match="--address is for --engine ray"):
        Engine(name="shared", address="auto")
    with pytest.raises(UsageError, match="--overwrite does not go with --engine shared"):
        Engine(name="shared").check_overwrite(overwrite=True)
    with pytest.raises(UsageError, match="not for demo"):
        api.demo(tmp_path / "out", jobs=Engine(name="shared"))
    assert list(tmp_path.iterdir()) == []
