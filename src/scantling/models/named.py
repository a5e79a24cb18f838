"""The settings of a model that has a name: the name, where its weights come from, and what is different from it.

    model: {name: htc_r50, init: pretrained, semantic: false}
                                              └─ an option of that model's method, checked as its own

What is left out keeps the named model's number.
"""

from __future__ import annotations

import difflib
import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator

from scantling.errors import ConfigError


class NamedConfig(BaseModel):
    """A named model and the options of its method that are different.

    Attributes:
        name: Of a model that `presets` has.
        init: Where the weights come from.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    SECTION: ClassVar[str] = "model"
    """What the section is called in a recipe."""

    name: str
    init: str = "random"

    @classmethod
    @abstractmethod
    def presets(cls) -> Mapping[str, BaseModel]:
        """The options of every named model."""

    @property
    def options(self) -> dict[str, Any]:
        """What is different from the named model, by the names of its options."""
        return dict(self.model_extra or {})

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Every option with its value: the named model's, or what is different.

        Raises:
            ConfigError: There is no such model.
        """
        return {**dict(self.preset_options()), **self.options}

    def preset_options(self) -> BaseModel:
        """The options of the named model, without the changes.

        Raises:
            ConfigError: There is no such model.
        """
        known = self.presets()
        if self.name not in known:
            near = difflib.get_close_matches(self.name, known, n=1)
            listed = f"Known: {', '.join(known)}"
            hint = f"Did you mean {near[0]!r}? {listed}" if near else listed
            raise ConfigError(f"{self.SECTION}.name: unknown model {self.name!r}", hint=hint)
        return known[self.name]

    def with_options(self, **options: Any) -> Self:
        """The same with these options changed.

        Raises:
            ValidationError: The model has no such option, or not with this value.
        """
        return type(self)(**{**self.model_dump(), **options})

    @classmethod
    def known_keys(cls, value: object = None) -> list[str]:
        """The keys of this section, given its other values; those of every model where these are not known."""
        known = cls.presets()
        own = known.get(str(value.get("name", cls._default_name()))) if isinstance(value, dict) else None
        options = dict.fromkeys(
            key for preset in (known.values() if own is None else [own]) for key in type(preset).model_fields
        )
        return [*cls.model_fields, *options]

    @classmethod
    def _default_name(cls) -> Any:
        return cls.model_fields["name"].default

    @model_validator(mode="before")
    @classmethod
    def _check_options(cls, value: Any, info: ValidationInfo) -> Any:
        """Options are checked as the named model's own; null leaves one out."""
        if not isinstance(value, dict):
            return value
        own = {key: part for key, part in value.items() if key in cls.model_fields}
        given = {key: part for key, part in value.items() if key not in cls.model_fields and part is not None}
        preset = cls.presets().get(own.get("name", cls._default_name()))
        if preset is None:  # told when the model is built
            return own | given
        kind = type(preset)
        if info.mode == "json":  # a file that a person wrote: numbers are no texts, lists are tuples
            checked = kind.model_validate_json(json.dumps(given), strict=True)
        else:
            checked = kind.model_validate(given)
        return own | {key: getattr(checked, key) for key in given}
