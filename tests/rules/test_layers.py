"""Imports go one way, and what must start fast loads nothing heavy."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from rules.conftest import ROOT

CONTRIBUTING = ROOT / "CONTRIBUTING.md"


def floors(text: str) -> list[list[str]]:
    """The line of CONTRIBUTING.md that says which folder may import which: names side by side share a floor."""
    line = re.search(r"^    errors ←[^\n]*(?:\n +[^\n]*←[^\n]*)*", text, re.MULTILINE)
    assert line, "CONTRIBUTING.md must hold the line of layers, indented, beginning with `errors ←`"
    return [[name.strip() for name in floor.split(",")] for floor in line[0].split("←")]


ORDER = {
    name: number
    for number, floor in enumerate(floors(CONTRIBUTING.read_text(encoding="utf-8")))
    for name in floor
}
HEAVY = ("torch", "torchvision", "timm", "cv2", "numpy", "matplotlib")


def imported_layers(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Layer and line of every import of the package's own modules, inside functions too."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: import by the full name, not relatively"
            direct = [f"scantling.{alias.name}" for alias in node.names if alias.name != "__version__"]
            names = direct if node.module == "scantling" else [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("scantling."):
                yield name.split(".")[1], node.lineno


def upwards(layer: str, tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Imports that do not go to an earlier floor (nor stay in their own folder)."""
    for imported, line in imported_layers(tree):
        if imported != layer and ORDER[imported] >= ORDER[layer]:
            yield imported, line


def test_every_module_has_a_layer(modules):
    assert {module.layer for module in modules} - {"__init__", "__main__"} == set(ORDER)


def test_imports_go_from_later_layers_to_earlier_ones(modules):
    against = [
        f"{module.name}:{line} imports {layer}"
        for module in modules
        if module.layer in ORDER
        for layer, line in upwards(module.layer, module.tree)
    ]
    assert against == []


def test_the_rule_catches_imports_upwards_and_sideways():
    tree = ast.parse(
        "from scantling.api import run\nfrom scantling import refine\nfrom scantling.ops import boxes\n"
    )
    assert [name for name, _ in upwards("combine", tree)] == ["api", "refine"]
    assert floors("    errors ← a, b\n      ← c\n\nelse") == [["errors"], ["a", "b"], ["c"]]


def test_the_walk_sees_an_import_inside_a_function():
    tree = ast.parse("def f():\n    from scantling.cli.app import app\n    from scantling import api\n")
    assert list(imported_layers(tree)) == [("cli", 2), ("api", 3)]


@pytest.mark.parametrize(
    "statement",
    [
        "import scantling",
        "import scantling.errors",
        "import scantling.api",
        "import scantling.cli.app",
        "import sys; sys.argv = ['scantling', '--help']; from scantling.cli import main; main()",
        "import sys; sys.argv = ['scantling', 'train', '--help']; from scantling.cli import main; main()",
        "import sys; sys.argv = ['scantling', 'recipes', 'list']; from scantling.cli import main; main()",
    ],
)
def test_start_up_loads_nothing_heavy(statement):
    check = f"import atexit, sys; atexit.register(lambda: print('LOADED', *[m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", f"{check}; {statement}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "LOADED"
