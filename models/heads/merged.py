"""One view of keys that some files write in a block of their own and others at the top level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graftline.models.heads.config import Config


def merged(config: Config, blocks: Sequence[str], outer: Sequence[str]) -> Config:
    """The keys of `blocks` and, of the top level, those of `outer`.

    Raises CheckpointError where two places give a key different values.
    """
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    top = {key: config.raw[key] for key in outer if config.has(key)}
    config.read |= set(outer)
    for place, keys in [("", top), *((b, config.inner(b).raw) for b in blocks)]:
        for key, value in keys.items():
            if value is None:
                continue
            if key in values and values[key] != value:
                config.refuse(
                    f"{places[key] or 'the top level'} says {key}={values[key]!r}, {place} says "
                    f"{value!r}; correct one"
                )
            values[key], places[key] = value, place
    named = [block for block in blocks if config.has(block)]
    where = f"config.json: {named[0]}" if named else "config.json"
    return Config(config.place, values, where, decided=config.decided)
