"""Options of drafters and rules, read from a recipe: names and types are checked first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any

from graftline.errors import GraftlineError, nearest


def options_of(kind: type) -> dict[str, Field[Any]]:
    """Fields of a dataclass that a recipe may set: those `__init__` takes and that are shown."""
    return {f.name: f for f in fields(kind) if f.init and f.repr and not f.name.startswith("_")}


def check_options(name: str, kind: type, options: Mapping[str, object]) -> None:
    """Raise GraftlineError for an unknown option (the nearest is named) or one of another type."""
    known = options_of(kind)
    for option, value in options.items():
        if option not in known:
            raise GraftlineError(f"{name} has no option '{option}'{nearest(option, known)}")
        wanted = type(known[option].default)
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise GraftlineError(f"{name}: {option}={value!r} must be of type {wanted.__name__}")
