"""What a run cannot do that has no validation split, or trains on several splits together."""

from __future__ import annotations

from scantling.errors import ConfigError
from scantling.recipe.recipe import Recipe


def check_without_val(recipe: Recipe) -> None:
    """Refuse what would choose by images that there are none of, all of it at once.

    Args:
        recipe: Without `auto`.

    Raises:
        ConfigError: A section chooses on `val`, and there is none; or the labels of several files are to be audited.
    """
    if recipe.audit is not None and len(recipe.data.entries("train")) > 1:
        raise ConfigError(
            "audit: names labels by the ids of one file, but data.train has several splits",
            hint="Audit each of them in a run of its own.",
        )
    if recipe.data.has_val:
        return
    combining, folds, faults = recipe.combining, recipe.data.folds, list[str]()
    if combining.tune is not None and folds is None:
        faults.append("combine.tune chooses on `val`; with data.folds it chooses on held-out training images")
    if recipe.refine is not None:
        faults.append("refine trains a refiner for as long as it gains on `val`")
    for name, member in recipe.members.items():
        if not member.is_trained or folds is not None:
            continue
        if member.train.early_stopping is not None:
            faults.append(f"members.{name}.train.early_stopping looks at `val`")
        if member.train.schedule == "plateau":
            faults.append(f"members.{name}.train.schedule: plateau looks at `val`")
    if faults:
        listed = "\n  ".join(faults)
        raise ConfigError(
            f"there is no validation split (data.val), and without one this cannot be done:\n  {listed}",
            hint="Leave it out, or train on the training split alone.",
        )
