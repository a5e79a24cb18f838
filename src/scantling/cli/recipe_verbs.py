"""Verbs about recipes: recipes list, recipes show, recipes suggest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scantling.cli.shell import DeviceOption, JsonOption, show, verb

recipes = typer.Typer(
    help="List the recipes that come with scantling, print one, or have one written.", no_args_is_help=True
)


@recipes.command("list")
@verb
def list_recipes(json: JsonOption = False) -> None:
    """Name every shipped recipe and say what it is for."""
    from scantling import api

    about = api.recipes()
    width = max(map(len, about))
    show("\n".join(f"{name:<{width}}  {text}" for name, text in about.items()), about, as_json=json)


@recipes.command("show")
@verb
def show_recipe(
    name: Annotated[str, typer.Argument(help="Name of a shipped recipe, or a YAML file.")],
    json: JsonOption = False,
) -> None:
    """Print a recipe as it is written: a file to start your own from."""
    from scantling import api

    text = api.recipe_text(name)
    show(text.rstrip("\n"), {"name": name, "yaml": text}, as_json=json)


@recipes.command("suggest")
@verb
def suggest_recipe(
    data: Annotated[Path, typer.Argument(help="Folder of a data set with the splits train and val.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY.PATH=VALUE", help="Replace a value; may be repeated."),
    ] = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
) -> None:
    """Print the recipe that `train` would choose for a data set, and why."""
    from scantling import api

    text = api.suggest(data, overrides=overrides or (), device=device)
    show(text, {"data": str(data), "yaml": text}, as_json=json)
