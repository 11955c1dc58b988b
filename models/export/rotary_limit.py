"""Rotary embeddings whose frequencies change with the text's length: served up to that length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from graftline.errors import CheckpointError

LONGROPE = "longrope"
DYNAMIC = "dynamic"


def frozen_limit(config: Any) -> int | None:
    """The most positions over which every frequency is the one of a short text; None: all.

    longrope has one set of factors up to the original length and another beyond (the same set is
    no change); dynamic scaling starts past max_position_embeddings.
    """
    text = config.get_text_config(decoder=True)
    limits: list[int] = []
    for rope in _rotary(text):
        kind = str(rope.get("rope_type"))
        if kind == LONGROPE and rope.get("short_factor") != rope.get("long_factor"):
            limits.append(int(rope["original_max_position_embeddings"]))
        elif DYNAMIC in kind:
            limits.append(int(text.max_position_embeddings))
    return min(limits, default=None)


def freeze(model: Any) -> None:
    """Keep a model's rotary modules at the frequencies of a short text, which they begin with."""
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, dict):
            kinds = cast("dict[str, str]", kind)
            module.rope_type = {layer: _static(name) for layer, name in kinds.items()}
        elif isinstance(kind, str):
            module.rope_type = _static(kind)


def check_frequencies(model: Any) -> None:
    """Raise CheckpointError where a rotary module's frequencies are not finite numbers."""
    for module in model.modules():
        if not hasattr(module, "rope_type"):
            continue
        for name, value in module.named_buffers(recurse=False):
            if not bool(value.isfinite().all()):
                raise CheckpointError(
                    f"config.json: '{name}' of {type(module).__name__} is not finite, by "
                    f"rope_parameters={model.config.rope_parameters}; correct it"
                )


def _static(kind: str) -> str:
    return "default" if kind == LONGROPE or DYNAMIC in kind else kind


def _rotary(config: Any) -> Iterator[dict[str, Any]]:
    """The rope parameters: one set, or one for each type of layer."""
    found: Any = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in found or "rope_theta" in found:
        yield found
        return
    for value in found.values():
        if isinstance(value, dict):
            yield cast("dict[str, Any]", value)
