"""The tensors of a checkpoint that its graph does not use: known to be irrelevant, or named."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

from graftline.errors import CheckpointError
from graftline.models.block_scales import ACTIVATIONS
from graftline.models.host import Watch
from graftline.models.ties import aliases, equal
from graftline.models.weights import WeightSource

IRRELEVANT = (
    (r"(^|\.)rotary_emb\.(inv_freq|cos_cached|sin_cached)$", "computed from the config"),
    (r"(^|\.)position_ids$", "0, 1, 2, ..."),
    (r"(^|\.)masked_bias$", "what a masked score is set to"),
)
"""Buffers that old versions of transformers saved, and what stands in them."""
CAUSAL = r"\.(attn|attention|self_attn)\.bias$"
"""Old versions also saved the causal mask, as [1, 1, N, N]."""
EXTRA_LAYERS = r"(nextn|mtp)"
"""Config keys that count layers of an extra head behind the decoder's own."""


def unread(source: WeightSource, used: Collection[str], model: Any) -> list[str]:
    """The stored names that neither the graph uses nor anything explains, sorted."""
    known = set(model.state_dict())
    known |= {n.removeprefix(model.base_model_prefix + ".") for n in known}
    scales = {s for key in used if (s := source.scale_of(key)) is not None}
    twins = _equal_twins(source, used, model)
    rest = source.stored.keys() - set(used) - scales - twins
    return sorted(n for n in rest if not _irrelevant(n, source) and n not in known - _tied(model))


def report(names: Iterable[str], model: Any, tell: Watch) -> None:
    """Name what is not read in one line; raise CheckpointError for what the decoder's own modules
    should have read: its output would be another."""
    beside: Counter[str] = Counter()
    for name in names:
        inside = _inside(name, model)
        if inside is not None:
            raise CheckpointError(
                f"checkpoint: tensor '{name}' lies in the decoder ({inside}), but as config.json "
                f"describes it {type(model).__name__} has no such weight; correct config.json, or "
                "export the model to ONNX yourself and give the .onnx file"
            )
        beside[_group(name)] += 1
    if beside:
        groups = ", ".join(f"{name} ({count})" for name, count in sorted(beside.items()))
        tell(f"not read: {groups}: tensors beside the decoder, which its output does not use")


def _irrelevant(name: str, source: WeightSource) -> bool:
    if any(re.search(pattern, name) for pattern, _ in IRRELEVANT):
        return True
    if source.block is not None and re.search(ACTIVATIONS, name):
        return True
    shape = source.stored[name].shape
    square = len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
    return bool(re.search(CAUSAL, name)) and square


def _tied(model: Any) -> set[str]:
    """Every name of a parameter that has several, with and without the base prefix."""
    names = {n for group in aliases(model).values() if len(group) > 1 for n in group}
    return names | {n.removeprefix(model.base_model_prefix + ".") for n in names}


def _equal_twins(source: WeightSource, used: Collection[str], model: Any) -> set[str]:
    """Stored names of tied weights that hold what the used name holds."""
    found: set[str] = set()
    for group in aliases(model).values():
        keys = {n for a in group for n in (a, a.removeprefix(model.base_model_prefix + "."))}
        stored = sorted(keys & source.stored.keys())
        mine = [k for k in stored if k in used]
        if mine:
            held = source.stored
            found |= {k for k in stored if k not in used and equal(held[k], held[mine[0]])}
    return found


def _inside(name: str, model: Any) -> str | None:
    """The module of the decoder that a stored tensor belongs to; None for what lies beside it."""
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    if any(re.search(pattern, name) for pattern in ignored):
        return None
    prefix = model.base_model_prefix
    parts = (name if name.startswith(prefix + ".") else f"{prefix}.{name}").split(".")
    for path in (name.split(".")[:-1], parts[:-1]):
        for end in range(len(path), 0, -1):
            place = ".".join(path[:end])
            module = _module(model, place)
            if module is None or place == prefix:
                continue
            if type(module).__name__ == "ModuleList":
                return None if _counts_extra_layers(model) else place
            return place
    return None


def _module(model: Any, place: str) -> Any:
    try:
        return model.get_submodule(place)
    except AttributeError:
        return None


def _counts_extra_layers(model: Any) -> bool:
    """True where the config says that a head's layers follow the decoder's last."""
    return any(
        re.search(EXTRA_LAYERS, key) and type(value) is int and value > 0
        for key, value in model.config.to_dict().items()
    )


def _group(name: str) -> str:
    """How a stored tensor is called in a summary: its first parts, numbers left out."""
    parts = name.split(".")
    if len(parts) < 3:
        return name
    return f"{parts[0]}.{parts[1]}.*" if parts[0] == "model" else f"{parts[0]}.*"
