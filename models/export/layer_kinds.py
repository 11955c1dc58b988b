"""Which layers of a transformers model are of one kind. Reads the module tree, runs nothing."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Hashable
from typing import Any

import torch

IGNORED = {"layer_idx", "layer_index", "layer_id", "block_idx", "training"}
BUFFER_LIMIT = 1 << 20
"""Most bytes of a buffer that are compared by value; larger ones by shape."""


def layer_path(model: Any, layers: int) -> str | None:
    """The dotted path of the one ModuleList that holds the decoder's layers, or None."""
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == layers
    ]
    outer = [n for n in found if not any(n.startswith(other + ".") for other in found)]
    return outer[0] if len(outer) == 1 else None


def kinds(model: Any, path: str) -> list[int]:
    """For every layer the number of its kind: equal classes, shapes and simple attributes."""
    known: dict[Hashable, int] = {}
    types = getattr(model.config, "layer_types", None) or ()
    result: list[int] = []
    for index, layer in enumerate(model.get_submodule(path)):
        declared = types[index] if index < len(types) else None
        result.append(known.setdefault((declared, _signature(layer)), len(known)))
    return result


def _signature(layer: torch.nn.Module) -> Hashable:
    rows: list[Hashable] = []
    for name, module in layer.named_modules():
        simple = tuple(
            (key, value)
            for key, value in sorted(vars(module).items())
            if key not in IGNORED and isinstance(value, (bool, int, float, str, type(None)))
        )
        parameters = tuple(
            (key, tuple(value.shape), str(value.dtype))
            for key, value in module.named_parameters(recurse=False, remove_duplicate=False)
        )
        buffers = tuple((key, _content(b)) for key, b in module.named_buffers(recurse=False))
        rows.append((name, type(module).__qualname__, simple, parameters, buffers))
    return tuple(rows)


def _content(buffer: torch.Tensor) -> Hashable:
    size = buffer.numel() * buffer.element_size()
    if buffer.is_meta or size > BUFFER_LIMIT:
        return tuple(buffer.shape), str(buffer.dtype)
    raw = buffer.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return tuple(buffer.shape), str(buffer.dtype), hashlib.sha256(raw).hexdigest()


def prefix_length(of: list[int]) -> int:
    """Layers in the smallest prefix from which all others can be stamped.

    It holds every kind, and the kind of layer 0 twice where it recurs: what comes before the first
    layer (scaled or normalised embeddings) must not be taken for a part of it.
    """
    last = max(of.index(kind) for kind in set(of))
    again = of.index(of[0], 1) if of[0] in of[1:] else 0
    return min(len(of), max(2, last + 1, again + 1))


def shortened(config: Any, layers: int) -> Any:
    """The config of the same model cut to its first `layers` layers."""
    short = copy.deepcopy(config)
    full = config.num_hidden_layers
    for key, value in vars(config).items():
        if isinstance(value, list) and len(value) == full:
            setattr(short, key, value[:layers])
    short.num_hidden_layers = layers
    return short
