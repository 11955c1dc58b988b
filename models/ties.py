"""Tied weights: one matrix under several names, unless the file holds different values for them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import Any

import numpy as np

from graftline.models.host import Watch
from graftline.models.weights import Stored, WeightSource

CHUNK = 1 << 16
"""Rows compared at a time."""


def aliases(model: Any) -> dict[str, tuple[str, ...]]:
    """For every parameter its names, the asked one first."""
    groups: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(value), []).append(name)
    return {n: (n, *(o for o in g if o != n)) for g in groups.values() for n in g}


def key_of(names: Iterable[str], prefix: str, source: WeightSource) -> str | None:
    """The checkpoint's name of a weight: one of its own, with or without the base prefix."""
    for name in names:
        for key in (name, name.removeprefix(prefix + ".")):
            if key in source.stored:
                return key
    return None


def untie(config: Any, model: Any, source: WeightSource, tell: Watch) -> None:
    """Set `tie_word_embeddings` false where the file holds different values for tied names.

    transformers does the same: it ties only what is equal, and the file's values win.
    """
    for name, group in aliases(model).items():
        if name != group[0] or len(group) < 2 or not getattr(config, "tie_word_embeddings", False):
            continue
        keys = {key_of((n,), model.base_model_prefix, source) for n in group} - {None}
        for one, other in combinations(sorted(str(k) for k in keys), 2):
            if not equal(source.stored[one], source.stored[other]):
                config.tie_word_embeddings = False
                tell(
                    f"config.json ties '{one}' and '{other}', but the file holds other values for "
                    "each: they stay apart, as in transformers"
                )
                return


def equal(one: Stored, other: Stored) -> bool:
    """True when two stored tensors have the same shape and values."""
    if one.shape != other.shape:
        return False
    a, b = one.external(one.name).numpy(), other.external(other.name).numpy()
    return all(
        np.array_equal(a[i : i + CHUNK].astype(np.float32), b[i : i + CHUNK].astype(np.float32))
        for i in range(0, max(1, one.shape[0] if one.shape else 1), CHUNK)
    )
