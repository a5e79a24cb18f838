"""What ships with scantling: recipes, suites of them (`suites/`), and settings of refiners (`refiners/`).

One YAML file each, complete and readable on its own.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from scantling.errors import ConfigError, did_you_mean


def shipped_recipes() -> dict[str, Path]:
    """File of every shipped recipe by name, in alphabetical order."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def shipped_suites() -> dict[str, Path]:
    """File of every shipped suite by name, in alphabetical order."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "suites").glob("*.yaml"))}


def shipped_refiners() -> dict[str, Path]:
    """File of every shipped set of settings of a refiner by name, in alphabetical order."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "refiners").glob("*.yaml"))}


def find_recipe(source: str | Path) -> Path:
    """Path of a recipe given as a file or by a shipped name.

    Raises:
        ConfigError: There is neither such a file nor such a recipe.
    """
    if str(source) in shipped_suites():
        hint = f"Run it on a folder of data sets: `scantling suite {shlex.quote(str(source))} --data FOLDER`."
        raise ConfigError(f"{source} is a suite, not a recipe", hint=hint)
    return _find(source, "recipe", shipped_recipes())


def find_recipe_or_suite(source: str | Path) -> Path:
    """Path of a recipe or a suite given as a file or by a shipped name.

    Raises:
        ConfigError: There is neither such a file nor such a name.
    """
    return _find(source, "recipe or suite", shipped_suites() | shipped_recipes())


def find_refiner(source: str | Path) -> Path:
    """Path of the settings of a refiner given as a file or by a shipped name.

    Raises:
        ConfigError: There is neither such a file nor such a name.
    """
    return _find(source, "set of refiner settings", shipped_refiners())


def _find(source: str | Path, what: str, shipped: dict[str, Path]) -> Path:
    path = Path(source)
    if str(source) in shipped:
        return shipped[str(source)]
    if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1 or path.exists():
        return path
    raise ConfigError(
        f"no {what} is called {str(source)!r}{did_you_mean(str(source), shipped)}",
        hint=f"Shipped ones: {', '.join(shipped)}. A file of your own must end in .yaml.",
    )


def read_recipe(path: Path) -> str:
    """Text of a recipe's file; a byte order mark is accepted.

    Raises:
        ConfigError: It is missing, a folder, or not text.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file (byte {error.start} is not UTF-8)") from error
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
