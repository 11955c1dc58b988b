"""Drafters by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from graftline.errors import GraftlineError, nearest
from graftline.runtimes.drafter import Drafter
from graftline.runtimes.drafters.none import NoDrafts
from graftline.runtimes.drafters.prompt_lookup import PromptLookup
from graftline.runtimes.drafters.suffix import Suffix
from graftline.runtimes.drafters.token_recycling import TokenRecycling

DRAFTERS: dict[str, type[NoDrafts | PromptLookup | Suffix | TokenRecycling]] = {
    "none": NoDrafts,
    "prompt-lookup": PromptLookup,
    "suffix": Suffix,
    "token-recycling": TokenRecycling,
}


def make_drafter(name: str, options: Mapping[str, object]) -> Drafter:
    """The named drafter with these options. Raises GraftlineError for an unknown name or option,
    or a value of another type."""
    if name not in DRAFTERS:
        raise GraftlineError(f"no drafter is called '{name}'{nearest(name, DRAFTERS)}")
    kind = DRAFTERS[name]
    known = {f.name: f for f in fields(kind) if f.init}
    for option, value in options.items():
        if option not in known:
            raise GraftlineError(f"{name} has no option '{option}'{nearest(option, known)}")
        if type(value) is not type(known[option].default):
            wanted = type(known[option].default).__name__
            raise GraftlineError(f"{name}: {option}={value!r} must be of type {wanted}")
    return kind(**options)  # type: ignore[arg-type]
