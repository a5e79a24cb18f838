"""The documentation as something to run: pages, their fenced blocks, and the commands in them.

A page's blocks are of these kinds, and of no other:

    console   lines that start with `$ ` are commands and are run; a line that ends in a backslash goes on in the
              next; `# exit 2` at the end says that the command is meant to fail. What stands between commands is
              their output, which differs from machine to machine and is not compared.
    python    is run whole, one block after the other with the same variables
    text, yaml, json, html    are shown only

`<!-- shortened -->` in the line before a console block: its trainings are of one epoch, on small images, so that the
page can show the command as a user needs it. `<!-- shortened: cascade, double_head -->` says which members a recipe has
that pretrains, combines and refines; a single name is that of the only member of a recipe that trains it and no more;
without names it is `detector`. A member called `segmenter` is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
RUN, SHOWN = {"console", "python"}, {"text", "yaml", "json", "html"}
_SMALLER_BACKBONE = "model.backbone=test_resnet"
_SHORTER_MEMBER = (
    "train.epochs=1",
    "train.repeats=1",
    "augment.short_side=64",
    "augment.close_epochs=0",
    "predict.scales=64",
    "predict.suppress.max_candidates=40",
    "predict.suppress.max_per_image=20",
    _SMALLER_BACKBONE,
    "model.fpn_channels=16",
    "model.fc_channels=16",
    "model.num_train_proposals=50",
    "model.num_rois=16",
)
_OF_BOXES = ("model.", "predict.suppress.")
_SHORTER_SEGMENTER = (
    *(s for s in _SHORTER_MEMBER if not s.startswith(_OF_BOXES)),
    "segmenter.channels=16",
    "segmenter.backbone=test_resnet",
)
_SHORTER_PRETRAINING = ("pretrain.epochs=1", "pretrain.side=32")
_SHORTER_REFINER = ("refine.train.epochs=1", "refine.train.repeats=1")
_MARK = re.compile(r"<!-- shortened(?:: ([\w, -]+))? -->")
_FENCE = re.compile(r"^ {0,3}```([^`\n]*)$")
_EXIT = re.compile(r"\s+# exit (\d+)$")
_LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)[^)]*\)")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        kind: The word after the fence.
        text: What is between the fences.
        line: Of the first line of the text.
        shortened: Members whose training is cut short; none if nothing is.
    """

    kind: str
    text: str
    line: int
    shortened: tuple[str, ...]

    def commands(self) -> Iterator[Command]:
        """The commands of a console block."""
        joined = self.text.replace("\\\n", "  ")
        for text in joined.splitlines():
            if text.startswith("$ "):
                found = _EXIT.search(text)
                line = text[2 : found.start()] if found else text[2:]
                yield Command(line.strip(), int(found[1]) if found else 0, self.shortened)


@dataclass(frozen=True)
class Command:
    """One command of a page and the exit code it is to have."""

    line: str
    code: int = 0
    shortened: tuple[str, ...] = ()

    @property
    def needs_shell(self) -> bool:
        """Whether it is more than the command scantling with its arguments."""
        plain = re.sub(
            r"""'[^']*'|"[^"$`]*\"""", "", self.line
        )  # what stands in quotes is for nobody but the command
        return not plain.startswith("scantling ") or bool(re.search(r"[|<>;&$*`~]", plain))

    @property
    def whole(self) -> str:
        """The command as it is run."""
        trains = re.match(r"(torchrun\s.*)?\bscantling (train|run|ablate)\b", self.line)
        if not (self.shortened and trains):
            return self.line
        whole = len(self.shortened) > 1
        keeps_backbone = ".backbone=" in self.line  # what it starts from has another one
        pretrains, refines = (whole and f"{part}=null" not in self.line for part in ("pretrain", "refine"))
        return " ".join(
            [
                self.line,
                *shorter(self.shortened, pretrains=pretrains, refines=refines, keeps_backbone=keeps_backbone),
            ]
        )


def shorter(
    members: tuple[str, ...], *, pretrains: bool, refines: bool = False, keeps_backbone: bool = False
) -> list[str]:
    """Options that make a training short."""
    settings = [
        f"members.{member}.{setting}"
        for member in members
        for setting in (_SHORTER_SEGMENTER if member == "segmenter" else _SHORTER_MEMBER)
        if not (keeps_backbone and setting == _SMALLER_BACKBONE)
    ]
    settings += _SHORTER_PRETRAINING if pretrains else ()
    settings += _SHORTER_REFINER if refines else ()
    return [f"--set {setting}" for setting in settings]


def pages() -> list[Path]:
    """Every page of the documentation, the index first."""
    return sorted(DOCS.glob("*.md"), key=lambda path: (path.name != "README.md", path.name))


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page.

    Raises:
        ValueError: A block is not closed.
    """
    found, kind, begun, shortened, before = [], None, 0, (), ""
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if kind is None and fence:
            kind, begun, shortened = fence[1].strip(), number, _shortened(before)
        elif kind is not None and fence and not fence[1].strip():
            body = "".join(f"{inner}\n" for inner in lines[begun : number - 1])
            found.append(Block(kind, body, begun + 1, shortened))
            kind = None
        before = line if line.strip() else before
    if kind is not None:
        raise ValueError(f"line {begun}: the block is not closed")
    return found


def _shortened(line: str) -> tuple[str, ...]:
    """Members named by the mark before a block."""
    mark = _MARK.fullmatch(line.strip())
    return tuple(re.split(r",\s*", mark[1] or "detector")) if mark else ()


def links(text: str) -> list[str]:
    """Targets of the links that stay inside the project, without anchors."""
    return _LINK.findall(text)
