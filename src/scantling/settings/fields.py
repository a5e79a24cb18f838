"""Kinds of numbers that sections of settings hold, each written once."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Fraction = Annotated[float, Field(strict=True, ge=0, le=1)]
"""A share, a probability, a threshold of scores or overlaps."""

Count = Annotated[int, Field(strict=True, ge=1)]
"""At least one of something."""

Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
"""A size, a scale, a rate."""

NonNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
"""A weight, which may be 0."""
