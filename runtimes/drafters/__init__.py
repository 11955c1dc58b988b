"""Drafters by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftline.errors import GraftlineError, nearest
from graftline.runtimes.drafter import Drafter
from graftline.runtimes.drafters.none import NoDrafts
from graftline.runtimes.drafters.prompt_lookup import PromptLookup
from graftline.runtimes.drafters.suffix import Suffix
from graftline.runtimes.drafters.token_recycling import TokenRecycling
from graftline.runtimes.options import check_options
from graftline.runtimes.resources import Resources

DRAFTERS: dict[str, type[Any]] = {
    "none": NoDrafts,
    "prompt-lookup": PromptLookup,
    "suffix": Suffix,
    "token-recycling": TokenRecycling,
}
"""Dataclasses that are `Drafter`s. One with a method `equip(resources)` is handed the resources."""


def make_drafter(
    name: str, options: Mapping[str, object], resources: Resources | None = None
) -> Drafter:
    """The named drafter with these options. Raises GraftlineError for an unknown name or option, a
    value of another type, or a resource that is needed and not there."""
    if name not in DRAFTERS:
        raise GraftlineError(f"no drafter is called '{name}'{nearest(name, DRAFTERS)}")
    kind = DRAFTERS[name]
    check_options(name, kind, options)
    drafter = kind(**options)
    if hasattr(drafter, "equip"):
        drafter.equip(resources or Resources())
    return drafter
