"""Imports go one way, and what must start fast loads nothing heavy."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from PIL import Image

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


LABELS = {
    "images": [{"id": n, "file_name": f"{n}.png", "width": 32, "height": 32} for n in (1, 2)],
    "categories": [{"id": 1, "name": "dent"}],
    "annotations": [
        {
            "id": n,
            "image_id": n,
            "category_id": 1,
            "bbox": [2, 2, 9, 9],
            "segmentation": [[2, 2, 11, 2, 11, 11]],
        }
        for n in (1, 2)
    ],
}
LIGHT_VERBS = (
    "check DATA",
    "evaluate DATA/found.json --data DATA:val --bootstrap 10",
    "compare DATA/found.json DATA/found.json --data DATA:val --bootstrap 10",
    "convert DATA --to yolo --out DATA/yolo",
    "convert DATA/yolo --to voc --out DATA/voc",
    "check DATA/voc",
    "split DATA:val --out DATA/splits",
    "recipes show bccd-cpu",
    "status DATA/run",
)
NOT_FOR_LABELS = ("torch", "torchvision", "timm", "accelerate", "matplotlib", "scantling.models")


def test_verbs_about_labels_and_results_load_no_torch(tmp_path):
    """One process does one verb after the other and says after each which of the heavy modules it has by then."""
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "val.json").write_text(json.dumps(LABELS))
    (tmp_path / "images").mkdir()
    for record in LABELS["images"]:
        Image.new("RGB", (32, 32), (0, 90 * record["id"], 9)).save(tmp_path / "images" / record["file_name"])
    found = [{"image_id": 1, "category_id": 1, "bbox": [2, 2, 9, 9], "score": 0.5}]
    (tmp_path / "found.json").write_text(json.dumps(found))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text('{"state": "done", "stages": {"report": "done"}}')
    verbs = [verb.replace("DATA", str(tmp_path)).split() for verb in LIGHT_VERBS]
    script = (
        "import contextlib, io, sys\nfrom scantling.cli import main\n"
        f"for verb in {verbs!r}:\n    sys.argv = ['scantling', *verb]\n    ended = None\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n"
        "        try: main()\n        except SystemExit as end: ended = end.code\n"
        f"    print(verb[0], ended, *[name for name in {NOT_FOR_LABELS!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines() == [f"{verb[0]} 0" for verb in verbs], done.stderr
