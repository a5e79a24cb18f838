"""One word for one thing: what `docs/glossary.md` bans must not come in, and one class has one name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping

from rules.conftest import ROOT

GLOSSARY = ROOT / "docs" / "glossary.md"
ALLOWED = {"cls", "max_dets"}
"""`cls` alone is Python's own name in class methods; as a part of a longer name it is banned. `max_dets` is COCO's own
parameter (maxDets), by which users know the option and the key of a recipe."""


def banned_words(page: str) -> dict[str, str]:
    """From the tables of the glossary: banned word -> what to say; words between backticks in the last column."""
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| ")]
    return {word: said.strip() for said, *_, banned in rows for word in re.findall(r"`(\w+)`", banned)}


BANNED_WORDS = banned_words(GLOSSARY.read_text(encoding="utf-8"))


def identifiers(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every name a module gives: variables, parameters, functions, classes, attributes it sets, imports as."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            yield node.attr, node.lineno
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, 0


def is_self(node: ast.expr) -> bool:
    """Attributes of other objects may be other libraries' names."""
    return isinstance(node, ast.Name) and node.id == "self"


def banned_word(name: str) -> str | None:
    """The banned word in a snake_case or CamelCase name, if any."""
    if name in ALLOWED:
        return None
    snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
    parts = f"_{snake.strip('_')}_"
    return next((word for word in BANNED_WORDS if f"_{word}_" in parts), None)


def test_names_are_the_projects_own(modules):
    found = [
        f"{module.name}:{line}: {name}: say {BANNED_WORDS[word]}"
        for module in modules
        for name, line in identifiers(module.tree)
        if (word := banned_word(name))
    ]
    found += [f"{module.name}: {word}" for module in modules if (word := banned_word(module.path.stem))]
    assert found == []


def test_the_rule_catches_what_it_should():
    tree = ast.parse("def f(img, *, conf_thr): self.gt_bboxes = 1\nfor cls in x: NMSCfg: int = 1\n")
    caught = {name for name, _ in identifiers(tree) if banned_word(name)}
    assert {"img", "conf_thr", "gt_bboxes"} <= caught
    assert not banned_word("cls")
    assert not banned_word("image_hw")
    assert banned_word("fc_cls") == "cls"
    assert banned_word("find_near_twins") == "near_twins"
    assert banned_word("LearnedByHeart") == "learned_by_heart"
    assert not banned_word("heartbeat")


def test_the_glossary_says_what_to_say_instead():
    page = "| word | what it is | not |\n|---|---|---|\n| image | `pixels` | `img`, `imgs`; x |\n| box | xy | – |\n"
    assert banned_words(page) == {"img": "image", "imgs": "image"}
    assert BANNED_WORDS["mirrored"] == "flipped"
    assert len(BANNED_WORDS) > 40


def class_names(tree: ast.Module) -> set[str]:
    """Every class of a module, nested ones too."""
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


def given_twice(names_of: Mapping[str, set[str]]) -> dict[str, list[str]]:
    """Class name -> its modules, where there are several."""
    homes: dict[str, list[str]] = {}
    for module, names in names_of.items():
        for name in names:
            homes.setdefault(name, []).append(module)
    return {name: found for name, found in homes.items() if len(found) > 1}


def test_no_class_name_is_given_twice(modules):
    assert given_twice({module.name: class_names(module.tree) for module in modules}) == {}


def test_a_class_name_that_is_given_twice_is_caught():
    one, other = ast.parse("class View: ...\nclass Shot: ..."), ast.parse("def f():\n    class View: ...")
    assert given_twice({"a.py": class_names(one), "b.py": class_names(other)}) == {"View": ["a.py", "b.py"]}
