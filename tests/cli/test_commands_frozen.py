"""Verbs and options change on purpose only: they are compared with a text under version control."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import typer

from scantling import api
from scantling.cli.app import app

SNAPSHOT = Path(__file__).with_name("commands.txt")
SHOWN_ONLY = {"help", "json", "quiet", "debug", "plan", "watch", "interval"}
"""Options that change what is shown, not what is done; `plan` shows it and does nothing (`api.plan`)."""
TRANSLATED = {
    "count_difficult",
    "skip_invalid",
    "image_ids",
    "map_values",
    "strict",
    "folds",
    "tile",
    "overlap",
    "tuned",
    "method",
    "iou",
    "backbone",
    "norm",
    "deform",
    "init",
    "pretrained",
    "engine",
    "address",
    "shards",
    "shard_size",
    "shard",
    "jobs",
    "resume",
    "retry_unread",
    "partition",
    "gpus",
    "cpus",
    "memory",
    "hours",
    "executor",
}
"""Options that the command line turns into overrides of the recipe, of prediction, an ensemble or pretraining; into an
`Engine`, which the argument `jobs` takes; into the `Shards` of `api.predict_shards`; into an `Allocation`, which
`slurm` takes.
"""
NAMES = {"recipes list": "recipes", "recipes show": "recipe_text", "recipes suggest": "suggest"}


def commands(group=None, path: str = "") -> Iterator[tuple[str, object]]:
    """Every verb with its full name, in the order in which help lists them."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        full = f"{path} {name}".strip()
        if hasattr(command, "commands"):
            yield from commands(command, full)
        else:
            yield full, command


def describe(command) -> Iterator[str]:
    for parameter in command.params:
        names = (
            ", ".join(sorted(parameter.opts))
            if parameter.param_type_name == "option"
            else parameter.name.upper()
        )
        required = " (required)" if parameter.required else ""
        several = " (repeatable)" if getattr(parameter, "multiple", False) else ""
        yield f"    {names}{required}{several}"


def test_the_commands_are_those_of_the_snapshot():
    text = "\n".join(line for name, command in commands() for line in (name, *describe(command))) + "\n"
    if os.environ.get("SCANTLING_UPDATE_COMMANDS"):
        SNAPSHOT.write_text(text, encoding="utf-8")
    assert text == SNAPSHOT.read_text(encoding="utf-8")


def test_every_verb_is_an_api_function_with_the_same_arguments():
    for name, command in commands():
        function = getattr(api, NAMES.get(name, name.replace("-", "_").replace(" ", "_")))
        options = {parameter.name for parameter in command.params} - SHOWN_ONLY
        arguments = set(inspect.signature(function).parameters)
        assert options - (TRANSLATED - arguments) == arguments, name


def test_every_verb_and_option_is_explained():
    for name, command in commands():
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, f"{name} {parameter.name}"
