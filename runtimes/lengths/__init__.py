"""Draft-length policies by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from graftline.errors import GraftlineError, nearest
from graftline.runtimes.lengths.acceptance_head import AcceptanceHead
from graftline.runtimes.lengths.length import Length as Length
from graftline.runtimes.lengths.length_class import LengthClass
from graftline.runtimes.lengths.running import Running
from graftline.runtimes.lengths.thresholds import Confidence, Entropy
from graftline.runtimes.options import check_options, options_of

LENGTHS: dict[str, type[Any]] = {
    "confidence": Confidence,
    "entropy": Entropy,
    "running": Running,
    "specdec++": AcceptanceHead,
    "speckv": LengthClass,
}
"""Dataclasses that are `Length`s. One with a method `equip(tuned)` is handed what `graftline tune`
stored."""


def make_length(text: str, tuned: Mapping[str, Any] | None = None) -> Length:
    """The policy of a text like `confidence` or `running{first=3,most=8}`.

    Raises GraftlineError for an unknown name or option, a value that is no number, and a trained
    policy without `tuned`.
    """
    form = re.fullmatch(r"\s*([^\s{}]+)\s*(?:\{(.*)\})?\s*", text)
    if form is None:
        raise GraftlineError(f"length '{text}' cannot be read; write name or name{{option=value}}")
    name, given = form[1], form[2] or ""
    if name not in LENGTHS:
        raise GraftlineError(f"unknown length '{name}'{nearest(name, LENGTHS)}")
    kind = LENGTHS[name]
    options = {
        key.strip(): _number(name, key.strip(), value.strip(), kind)
        for key, _, value in (part.partition("=") for part in given.split(",") if part.strip())
    }
    check_options(f"length {name}", kind, options)
    length = kind(**options)
    if hasattr(length, "equip"):
        length.equip(tuned)
    return length


def _number(name: str, option: str, text: str, kind: type) -> float | int:
    field = options_of(kind).get(option)
    whole = field is not None and isinstance(field.default, int)
    try:
        return int(text) if whole else float(text)
    except ValueError:
        sort = "whole number" if whole else "number"
        raise GraftlineError(f"length {name}: {option}={text} is not a {sort}") from None
