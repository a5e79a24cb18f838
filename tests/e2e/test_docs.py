"""Every command and every Python block of the documentation works; see `pages` for what a page may hold."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.pages import DOCS, RUN, SHOWN, Command, blocks, links, pages
from scantling.synth.synth import SynthConfig, write_synth

TINY = """
about: A few steps with a tiny detector.
members:
  detector:
    model: {name: faster_rcnn_r18_small, backbone: test_resnet, fpn_channels: 16, fc_channels: 16,
            num_train_proposals: 50, num_rois: 16}
    augment: {short_side: 64, long_side: 96}
    train: {epochs: 2, batch_size: 3, workers: 0, validate_every: 2, warmup_steps: 2, log_every: 1}
    predict: {scales: 64, long_side: 96, suppress: {score_threshold: 0.0, max_per_image: 20}}
"""
PAGES = pages()
RUN_FOLDER = "runs/parts"


@pytest.fixture(scope="session")
def parts(tmp_path_factory) -> Path:
    """A folder with the data set that the pages talk about: `parts`, 24 images."""
    world = tmp_path_factory.mktemp("docs") / "world"
    write_synth(world / "parts", SynthConfig(size_hw=(96, 128)), splits={"train": 18, "val": 6}, seed=0)
    (world / "tiny.yaml").write_text(TINY)
    return world


@pytest.fixture(scope="session")
def parts_and_run(parts, command, tmp_path_factory) -> Path:
    """The same with a finished run in `runs/parts`."""
    world = shutil.copytree(parts, tmp_path_factory.mktemp("docs") / "world")
    with contextlib.chdir(world):
        done = command("train", "parts", "--recipe", "tiny.yaml", "--out", RUN_FOLDER)
    assert done.exit_code == 0, done.output
    return world


@pytest.fixture(scope="session")
def shell(environment, tmp_path_factory):
    """Run a line with bash, with the commands `scantling` and `python` of this installation."""
    folder = tmp_path_factory.mktemp("bin")
    for name, target in (("scantling", "-m scantling"), ("python", "")):
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {target} "$@"\n')
        (folder / name).chmod(0o755)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), environment["PATH"]])

    def run(line: str) -> tuple[int, str]:
        arguments = ["bash", "-o", "pipefail", "-c", line]
        done = subprocess.run(
            arguments,
            check=False,
            env={**environment, "PATH": path},
            capture_output=True,
            text=True,
            timeout=240,
        )
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture
def execute(command, shell):
    """Run a command of a page: in this process where that is enough, which saves loading torch each time."""

    def run(page: Path, given: Command) -> None:
        if given.needs_shell:
            code, told = shell(given.whole)
        else:
            done = command(*shlex.split(given.whole, comments=True)[1:])
            code, told = done.exit_code, done.output
        assert code == given.code, f"{page.name}: $ {given.whole}\nexit code {code}\n{told}"
        assert "Traceback" not in told, f"{page.name}: $ {given.whole}\n{told}"

    return run


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_says_works(page, execute, request, tmp_path, monkeypatch):
    text = page.read_text(encoding="utf-8")
    found = [block for block in blocks(text) if block.kind in RUN]
    if not found:
        return
    makes_its_own = any(
        command.line == "scantling train parts" for block in found for command in block.commands()
    )
    needed = "parts_and_run" if RUN_FOLDER in text and not makes_its_own else "parts"
    monkeypatch.chdir(shutil.copytree(request.getfixturevalue(needed), tmp_path / "world"))
    variables: dict[str, object] = {"__name__": page.stem}
    for block in found:
        if block.kind == "python":
            place = "\n" * (block.line - 1)
            exec(compile(place + block.text, str(page), "exec"), variables)
        for command in block.commands() if block.kind == "console" else ():
            execute(page, command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_holds_no_block_that_is_not_run_unnoticed(page):
    for block in blocks(page.read_text(encoding="utf-8")):
        assert block.kind in RUN | SHOWN, f"{page.name}: line {block.line}: ```{block.kind}"
        if block.kind == "console":
            assert list(block.commands()), f"{page.name}: line {block.line}: no line starts with '$ '"
        else:
            wrong = [line for line in block.text.splitlines() if line.startswith(("$ ", "scantling "))]
            assert not wrong, f"{page.name}: commands belong into a console block: {wrong}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    broken = [target for target in links(page.read_text(encoding="utf-8")) if not (DOCS / target).exists()]
    assert broken == []


def test_the_index_lists_every_page():
    listed = set(links((DOCS / "README.md").read_text(encoding="utf-8")))
    assert listed >= {page.name for page in PAGES} - {"README.md"}


def test_a_page_is_read_as_it_is_meant():
    page = (
        "Look:\n<!-- shortened -->\n```console\n$ scantling train parts \\\n    --seed 1\nepoch 1\n"
        "$ scantling check nowhere  # exit 2\n$ ls runs > list\n"
        '$ scantling repair x --accept "a>0.9"\n```\n\n```yaml\na: 1\n```\n[x](y.md#z) [w](https://w)'
    )
    console, yaml = blocks(page)
    first, second, third, fourth = console.commands()
    assert (yaml.kind, yaml.text, yaml.line, yaml.shortened) == ("yaml", "a: 1\n", 13, ())
    assert shlex.split(first.whole)[:5] == ["scantling", "train", "parts", "--seed", "1"]
    assert "members.detector.train.epochs=1" in first.whole
    assert (second.line, second.code, second.whole) == (
        "scantling check nowhere",
        2,
        "scantling check nowhere",
    )
    assert [each.needs_shell for each in (first, second, third, fourth)] == [False, False, True, False]
    assert links(page) == ["y.md"]
    with pytest.raises(ValueError, match="line 1"):
        blocks("```text\nopen")


def test_a_command_that_fails_is_noticed(execute):
    for given in (
        Command("scantling recipes show nothing"),
        Command("false | cat"),
        Command("scantling -h", 2),
    ):
        with pytest.raises(AssertionError, match="exit code"):
            execute(DOCS / "x.md", given)
    execute(DOCS / "x.md", Command("scantling recipes show nothing", 2))
