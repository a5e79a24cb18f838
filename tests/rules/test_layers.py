"""Imports go one way, and what must start fast loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

ORDER = (
    "errors",
    "given_paths",
    "strict_yaml",
    "ops",
    "structures",
    "data",
    "models",
    "train",
    "pretrain",
    "predict",
    "evaluate",
    "combine",
    "refine",
    "report",
    "recipes",
    "draft",
    "config",
    "resolve",
    "run_data",
    "auto_recipe",
    "stage",
    "run_folder",
    "stages",
    "pipeline",
    "prediction",
    "run_prediction",
    "weights_import",
    "doctor",
    "ablation",
    "api_data",
    "api_run",
    "api_pretrain",
    "api_combine",
    "api_refine",
    "api_audit",
    "api",
    "cli",
    "__init__",
    "__main__",
)
SIDE_BY_SIDE = {("pretrain", "predict"), ("predict", "pretrain")}
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


def test_every_module_has_a_layer(modules):
    assert {module.layer for module in modules} <= set(ORDER)


def test_imports_go_from_later_layers_to_earlier_ones(modules):
    against = [
        f"{module.name}:{line} imports {layer}"
        for module in modules
        if module.layer != "__init__"
        for layer, line in imported_layers(module.tree)
        if ORDER.index(layer) > ORDER.index(module.layer) or (module.layer, layer) in SIDE_BY_SIDE
    ]
    assert against == []


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
