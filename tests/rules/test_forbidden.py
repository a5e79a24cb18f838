"""What may not stand in the package: unsafe loading, silent failure, machine paths, undocumented functions."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

FORBIDDEN_CALLS = {
    "print": "log, or let the verb print",
    "eval": "never run data as code",
    "exec": "never run data as code",
    "compile": "never run data as code",
    "pickle.load": "never unpickle a user's file",
    "pickle.loads": "never unpickle a user's file",
    "joblib.load": "never unpickle a user's file",
    "yaml.load": "use strict_yaml",
    "yaml.safe_load": "use strict_yaml",
    "os.system": "no shell",
    "torch.hub.load": "no code from the network",
}
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|tmp|home|root|Users|mnt|media)/")


def dotted(node: ast.expr) -> str:
    """`torch.load` for the callee `torch.load`; empty for anything computed."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (inner := dotted(node.value)):
        return f"{inner}.{node.attr}"
    return ""


def offences(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and reason of everything forbidden in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            yield node.lineno, "assert: raise an error that the user understands"
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield node.lineno, "bare except"
        elif isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            yield node.lineno, "import *"
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, reason) for reason in call_offences(node))


def call_offences(call: ast.Call) -> Iterator[str]:
    name = dotted(call.func)
    keywords = {k.arg: k.value.value for k in call.keywords if isinstance(k.value, ast.Constant)}
    if name in FORBIDDEN_CALLS:
        yield f"{name}: {FORBIDDEN_CALLS[name]}"
    if name == "torch.load" and keywords.get("weights_only") is not True:
        yield "torch.load without weights_only=True"
    if name.endswith("load_state_dict") and keywords.get("strict") is False:
        yield "load_state_dict(strict=False): differences must be told"
    if keywords.get("shell") is True:
        yield "shell=True"
    if keywords.get("allow_pickle") is True:
        yield "allow_pickle=True"


def public_without_docstring(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Public functions, classes and their public methods that say nothing about themselves."""
    if ast.get_docstring(tree) is None:
        yield 1, "the module"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            inner = node.body if isinstance(node, ast.ClassDef) else []
            for part in (node, *inner):
                documented = isinstance(part, ast.FunctionDef | ast.ClassDef) and not part.name.startswith(
                    "_"
                )
                if documented and ast.get_docstring(part) is None:
                    yield part.lineno, part.name


def test_nothing_forbidden(modules):
    assert [f"{m.name}:{line}: {why}" for m in modules for line, why in offences(m.tree)] == []


def test_the_rule_catches_each_offence():
    text = (
        "assert x\ntry: pass\nexcept: pass\nfrom a import *\nprint(1)\npickle.load(f)\ntorch.load(f)\n"
        "m.load_state_dict(s, strict=False)\nrun(c, shell=True)\nnp.load(f, allow_pickle=True)\nyaml.safe_load(f)\n"
    )
    assert [line for line, _ in sorted(offences(ast.parse(text)))] == [1, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert list(offences(ast.parse("torch.load(f, weights_only=True)\nm.load_state_dict(s)\n"))) == []


def test_everything_public_is_documented(modules):
    missing = [
        f"{m.name}:{line}: {name}"
        for m in modules
        if not (m.path.name == "__init__.py" and not m.text.strip())
        for line, name in public_without_docstring(m.tree)
    ]
    assert missing == []


def test_no_path_of_somebodys_machine(modules):
    found = [
        f"{m.name}:{number}: {line.strip()}"
        for m in modules
        for number, line in enumerate(m.text.splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert found == []


def test_the_path_rule_catches_what_it_should():
    assert MACHINE_PATH.search("open('/home/me/data')")
    assert not MACHINE_PATH.search("members/cascade/best")
    assert not MACHINE_PATH.search("https://example.org/work/")


OWN_FILES = {"structures/detections.py", "structures/instances.py", "data/detections.py"}
"""Where a row becomes columns or comes out of a file; everywhere else rows change by `[]`, `cat` and `replace`."""


def constructions(tree: ast.Module, name: str) -> list[int]:
    """Lines on which a class is made from its fields."""
    return [
        node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and dotted(node.func) == name
    ]


def test_rows_are_never_put_together_field_by_field(modules):
    found = [
        f"{m.name}:{line}"
        for m in modules
        if m.name not in OWN_FILES
        for line in constructions(m.tree, "Detections")
    ]
    assert found == [], "a column would be lost without an error: use [], cat or replace"


def test_the_rule_sees_a_construction():
    assert constructions(ast.parse("a = Detections(images=i)\nb = Detections.cat([a])"), "Detections") == [1]
