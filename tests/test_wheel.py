"""The wheel holds all that is needed: built and installed without a network, it works from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: object, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_is_whole(tmp_path):
    pytest.importorskip("hatchling")  # in the extra `dev`
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    if subprocess.run([*pip, "--version"], capture_output=True, check=False).returncode:
        pytest.skip("this environment has no pip")
    offline = ["--no-deps", "--no-index"]
    run(*pip, "wheel", ROOT, *offline, "--no-build-isolation", "--wheel-dir", tmp_path, folder=tmp_path)
    (wheel,) = tmp_path.glob("scantling-*.whl")
    target = tmp_path / "installed"
    run(*pip, "install", wheel, *offline, "--target", target, folder=tmp_path)
    source = ROOT / "src" / "scantling"
    data = {
        path.relative_to(source)
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert (
        data - {path.relative_to(target / "scantling") for path in (target / "scantling").rglob("*")} == set()
    )
    code = (
        "import scantling, sys; print(scantling.__file__); from scantling import api; print(*api.recipes())"
    )
    where, recipes = run(sys.executable, "-c", code, folder=tmp_path, PYTHONPATH=str(target)).splitlines()
    assert Path(where).is_relative_to(target)
    assert "bccd-cpu" in recipes.split()


def test_every_extra_has_code_behind_it():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    for name, packages in extras.items():
        names = "|".join(re.escape(package.split(">")[0]) for package in packages)
        assert name == "dev" or re.search(rf"import ({names})\b|import_module\(\"({names})\"\)", code), name
