"""One word for one thing: abbreviations and foreign names that must not come in."""

from __future__ import annotations

import ast
from collections.abc import Iterator

BANNED_WORDS = {
    "img": "image",
    "imgs": "images",
    "bbox": "box (except in COCO's own keys, which are strings)",
    "bboxes": "boxes",
    "gt": "truth / targets",
    "gts": "truths / targets",
    "conf": "score",
    "confs": "scores",
    "thr": "score_threshold / iou_threshold",
    "thrs": "thresholds",
    "thresh": "threshold",
    "cls": "class / labels / logits",
    "reg": "deltas",
    "priors": "anchors",
    "segm": "masks (except in COCO's own keys, which are strings)",
    "cfg": "config",
    "nms_cfg": "suppression",
    "num_cls": "num_classes",
    "dets": "detections",
    "preds": "predictions",
    "anno": "annotation",
    "anns": "annotations",
    "utils": "a name that says what it does",
    "helper": "a name that says what it does",
    "helpers": "a name that says what it does",
    "misc": "a name that says what it holds",
}
ALLOWED = {"cls", "max_dets"}
"""`cls` alone is Python's own name in class methods; as a part of a longer name it is banned. `max_dets` is COCO's own
parameter (maxDets), by which users know the option and the key of a recipe."""


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
    return next((word for word in snake.strip("_").split("_") if word in BANNED_WORDS), None)


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
