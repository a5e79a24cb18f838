"""The order of what happens after prediction is known to one module."""

from __future__ import annotations

import ast
from collections.abc import Iterator

STEPS = "run/steps.py"
DONE_BY_STEPS = {"ensemble_detections", "fuse_semantic", "eliminate", "refine_results"}
"""What fuses, cleans and refines detections: within a run only steps call it, so only their list has an order."""


def imported(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """What a module takes of these, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scantling."):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name in DONE_BY_STEPS)


def test_within_a_run_only_steps_fuse_clean_and_refine(modules):
    own = {module.name: module for module in modules if module.layer in ("run", "report")}
    assert {name for name, _ in imported(own[STEPS].tree)} == DONE_BY_STEPS
    others = [
        f"{name}:{line}: {found}: iterate over run.steps.steps_of"
        for name, module in own.items()
        if name != STEPS
        for found, line in imported(module.tree)
    ]
    assert others == []


def test_no_part_of_a_run_goes_by_the_age_of_files(modules):
    found = [m.name for m in modules if m.layer in ("run", "report") and "st_mtime" in m.text]
    assert found == []


def test_the_rule_catches_what_it_should():
    tree = ast.parse(
        "from scantling.combine.eliminate import eliminate, learn_relations\n"
        "def f():\n    from scantling.refine.apply import refine_results\n"
    )
    assert list(imported(tree)) == [("eliminate", 1), ("refine_results", 3)]
