"""The text decoder's tensors of a composite checkpoint, under the decoder's own names."""

from __future__ import annotations

from collections import Counter
from typing import Any

from graftline.errors import CheckpointError
from graftline.models.weights import Stored, WeightSource


def decoder_part(model: Any, source: WeightSource) -> WeightSource:
    """The source with the prefix taken off under which the decoder's weights are stored.

    That is the prefix most of them have (`language_model.`, `model.language_model.`). Raises
    CheckpointError where two tensors would have one name.
    """
    own = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    own |= {n.removeprefix(model.base_model_prefix + ".") for n in own}
    counts: Counter[str] = Counter()
    for key in source.stored:
        parts = key.split(".")
        for at in range(len(parts)):
            if ".".join(parts[at:]) in own:
                counts["".join(f"{part}." for part in parts[:at])] += 1
                break
    if not counts:
        return source
    prefix = counts.most_common(1)[0][0]
    stored: dict[str, Stored] = {}
    for key, tensor in source.stored.items():
        name = key.removeprefix(prefix)
        if name in stored:
            raise CheckpointError(
                f"checkpoint: '{prefix}{name}' and '{name}' both name the decoder's '{name}'; the "
                "folder mixes two checkpoints, keep one"
            )
        stored[name] = tensor
    return WeightSource(stored, source.block)
