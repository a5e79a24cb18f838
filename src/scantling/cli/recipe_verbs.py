"""Verbs about recipes: recipes list, recipes show."""

from __future__ import annotations

from typing import Annotated

import typer

from scantling.cli.shell import JsonOption, show, verb

recipes = typer.Typer(help="List the recipes that come with scantling, or print one.", no_args_is_help=True)


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
