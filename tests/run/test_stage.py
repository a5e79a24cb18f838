"""Stages: done once, done again when something changed, never thrown away silently when costly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scantling.data.io import temporary_beside
from scantling.errors import ConfigError, Interrupted, UsageError
from scantling.run.folder import STATUS, check_run_folder, is_run_folder, open_run
from scantling.run.stage import Stage, differences


def counting_stage(run, done: list[str], inputs: dict, **changes) -> Stage:
    def work() -> None:
        done.append(json.dumps(inputs))
        run.path.joinpath("a", "out.txt").write_text(str(inputs["n"]))

    return Stage(
        folder="a", name="write", inputs=lambda: inputs, outputs=("a/out.txt",), action=work, **changes
    )


def status_of(path):
    return json.loads((path / STATUS).read_text())


def test_what_is_done_is_not_done_again(tmp_path):
    done: list[str] = []
    for _ in range(2):
        with open_run(tmp_path / "run") as run:
            run.do(counting_stage(run, done, {"n": 1, "sizes": (1, 2)}))
    assert len(done) == 1
    assert status_of(tmp_path / "run")["stages"] == {"a/write": "kept"}


@pytest.mark.parametrize("spoil", ["inputs", "changed output", "missing output", "damaged record"])
def test_what_changed_is_done_again(tmp_path, spoil):
    done: list[str] = []
    with open_run(tmp_path) as run:
        run.do(counting_stage(run, done, {"n": 1}))
    if spoil == "changed output":
        (tmp_path / "a/out.txt").write_text("x")
    if spoil == "missing output":
        (tmp_path / "a/out.txt").unlink()
    if spoil == "damaged record":
        (tmp_path / "a/done.json").write_text("{")
    with open_run(tmp_path) as run:
        run.do(counting_stage(run, done, {"n": 2 if spoil == "inputs" else 1}))
    assert len(done) == 2
    assert (tmp_path / "a/out.txt").read_text() == ("2" if spoil == "inputs" else "1")
    assert status_of(tmp_path)["state"] == "done"


def test_a_costly_stage_names_the_difference_instead(tmp_path):
    done: list[str] = []
    with open_run(tmp_path) as run:
        run.do(counting_stage(run, done, {"n": 1, "train": {"lr": 0.1, "epochs": 3}}, costly=True))
    with pytest.raises(ConfigError) as caught, open_run(tmp_path) as run:
        run.do(counting_stage(run, done, {"n": 1, "train": {"lr": 0.2, "epochs": 3}}, costly=True))
    assert "train.lr: was 0.1, is now 0.2" in str(caught.value)
    assert "epochs" not in str(caught.value)
    assert len(done) == 1


def test_an_interrupted_costly_stage_goes_on_only_with_the_same_inputs(tmp_path):
    def stop() -> None:
        raise Interrupted(15, "stopped")

    with pytest.raises(Interrupted), open_run(tmp_path) as run:
        run.do(
            Stage(folder="a", name="t", inputs=lambda: {"n": 1}, outputs=("a/x",), action=stop, costly=True)
        )
    assert status_of(tmp_path)["state"] == "interrupted"
    assert status_of(tmp_path)["stages"] == {"a/t": "interrupted"}
    other = Stage(folder="a", name="t", inputs=lambda: {"n": 2}, outputs=("a/x",), action=stop, costly=True)
    with pytest.raises(ConfigError, match="was 1, is now 2"):
        other.is_done(tmp_path)
    same = Stage(folder="a", name="t", inputs=lambda: {"n": 1}, outputs=("a/x",), action=stop, costly=True)
    assert not same.is_done(tmp_path)


def test_a_changed_output_of_a_costly_stage_is_an_error(tmp_path):
    done: list[str] = []
    with open_run(tmp_path) as run:
        run.do(counting_stage(run, done, {"n": 1}, costly=True))
    (tmp_path / "a/out.txt").write_text("other")
    with pytest.raises(ConfigError, match="a/out.txt: missing or changed"), open_run(tmp_path) as run:
        run.do(counting_stage(run, done, {"n": 1}, costly=True))


def test_a_record_is_the_same_whichever_step_ended_first(tmp_path):
    texts = []
    for names in ("xy", "yx"):
        root = tmp_path / names
        for name in names:
            stage = Stage(folder="a", name=name, inputs=lambda: {"n": 1}, outputs=(), action=list)
            stage.note_end(root, stage.inputs())
        texts.append((root / "a/done.json").read_text())
    assert texts[0] == texts[1]


def test_overwrite_removes_what_runs_wrote_and_nothing_else(tmp_path):
    done: list[str] = []
    with open_run(tmp_path) as run:
        run.do(counting_stage(run, done, {"n": 1}, costly=True, working_files=("a/state",)))
        (tmp_path / "a/state").write_text("s")
    (tmp_path / "a/notes.txt").write_text("mine")
    (tmp_path / "own.txt").write_text("mine")
    record = json.loads((tmp_path / "a/done.json").read_text())
    outside = tmp_path.parent / f"{tmp_path.name}-outside.txt"
    outside.write_text("not the run's")
    record["write"]["files"].append(f"../{outside.name}")
    (tmp_path / "a/done.json").write_text(json.dumps(record))
    with open_run(tmp_path, overwrite=True) as run:
        left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
        assert left - {".lock", "run.log", "status.json"} == {"a/notes.txt", "own.txt"}
        assert outside.exists()
        run.do(counting_stage(run, done, {"n": 2}, costly=True))
    assert (tmp_path / "a/out.txt").read_text() == "2"


def test_places_where_a_run_cannot_be_stay_as_they_are(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        check_run_folder(tmp_path / "file")
    with pytest.raises(UsageError, match="it holds thesis.txt and is not a run"):
        check_run_folder(tmp_path / "full")
    check_run_folder(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_a_folder_that_another_process_is_beginning_is_a_run_to_be(tmp_path, monkeypatch):
    """Its status is in the making; or it was not there yet when the folder was looked into, and now all is."""
    temporary_beside(tmp_path / STATUS).write_text("{")
    check_run_folder(tmp_path)
    listed = Path.iterdir

    def overtaken(folder: Path) -> list[Path]:
        (folder / STATUS).write_text("{}")
        (folder / "all").mkdir()
        return list(listed(folder))

    monkeypatch.setattr(Path, "iterdir", overtaken)
    check_run_folder(tmp_path)


def test_a_failure_is_in_the_status_and_its_traceback_in_the_log(tmp_path):
    with pytest.raises(ZeroDivisionError), open_run(tmp_path / "run"):
        _ = 1 / 0
    assert is_run_folder(tmp_path / "run")
    assert status_of(tmp_path / "run")["state"] == "failed"
    assert "ZeroDivisionError" in (tmp_path / "run" / "run.log").read_text()


def test_differences_are_named_by_their_path():
    before = {"a": {"b": 1, "c": [1]}, "gone": 1}
    after = {"a": {"b": 2, "c": [1]}, "new": None}
    assert list(differences(before, after)) == ["a.b: was 1, is now 2", "gone: was 1, is now null"]
