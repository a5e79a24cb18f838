"""Functions and modules stay small enough to be read at once."""

from __future__ import annotations

import ast
import statistics

MAX_BODY, MAX_MODULE, MAX_PARAMETERS, MAX_WITH_KEYWORDS = 60, 400, 7, 9
MEDIAN_BODY, P90_BODY = 12, 35


def body_lines(function: ast.FunctionDef) -> int:
    """Lines from the first statement after the docstring to the last."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body:
        return 0
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


def parameters(function: ast.FunctionDef) -> tuple[int, int]:
    """How many can be given by position, and how many there are with those that are given by name alone."""
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
    by_position = len([name for name in names if name not in {"self", "cls"}])
    return by_position, by_position + len(function.args.kwonlyargs)


def test_no_function_is_longer_than_the_limit(modules):
    long = {
        f"{m.name}:{f.lineno} {f.name}": n
        for m in modules
        for f in m.functions()
        if (n := body_lines(f)) > MAX_BODY
    }
    assert long == {}


def test_most_functions_are_short(modules):
    lengths = sorted(body_lines(f) for m in modules for f in m.functions())
    assert statistics.median(lengths) <= MEDIAN_BODY
    assert lengths[int(0.9 * len(lengths))] <= P90_BODY


def test_no_function_takes_too_many_parameters(modules):
    """The options of a verb are its parameters, so `cli` is left out."""
    many = {
        f"{m.name}:{f.lineno} {f.name}": n
        for m in modules
        if m.layer != "cli"
        for f in m.functions()
        if (n := parameters(f)) and (n[0] > MAX_PARAMETERS or n[1] > MAX_WITH_KEYWORDS)
    }
    assert many == {}


def test_parameters_by_position_and_by_name_are_told_apart():
    method = ast.parse("def f(self, a, b, *, c, d, e): pass").body[0]
    assert parameters(method) == (2, 5)


def test_no_module_is_too_long(modules):
    assert {m.name: n for m in modules if (n := len(m.text.splitlines())) > MAX_MODULE} == {}


def test_lengths_are_counted_without_the_docstring():
    tree = ast.parse('def f(self, a, *, b):\n    """Doc."""\n    x = 1\n\n    return x\n')
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    assert (body_lines(function), parameters(function)) == (3, (1, 2))
