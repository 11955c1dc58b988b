"""The model of a config as torch exports it: without weights, its attention as one operator."""

from __future__ import annotations

import copy
import sys
from typing import Any, cast

import torch
import transformers
from accelerate import init_empty_weights
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from graftline.errors import CheckpointError, NotApplicable
from graftline.models.export.rotary_limit import freeze

ATTENTION = "graftline"
EXPERTS = {"experts_implementation": "batched_mm"}
"""Mixtures of experts gather the chosen experts' weights: the only form without a Python loop."""
PLACES = {"position_ids", "cache_position"}
"""Tensors models pass to their attention that the mask already expresses."""


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention as one ONNX Attention: heads [B, heads, N, D] -> [B, N, heads, D]."""
    other = sorted(k for k, v in options.items() if torch.is_tensor(v) and k not in PLACES)
    if other:
        raise NotApplicable(f"attention takes {', '.join(other)}, which ONNX Attention lacks")
    if query.shape[-1] != value.shape[-1]:
        raise NotApplicable(
            f"attention has keys of {key.shape[-1]} numbers a head and values of {value.shape[-1]} "
            "(as multi-head latent attention has), and a cache here has one width for both; give a "
            "decoder whose keys and values are equally wide"
        )
    out = torch.onnx.ops.attention(
        query,
        key,
        value,
        attention_mask,
        scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        softcap=softcap or 0.0,
        is_causal=attention_mask is None,
    )[0]
    return out.transpose(1, 2).contiguous(), None


def _mask(*args: Any, **options: Any) -> torch.Tensor | None:
    """The model's own mask for unpadded sequences, always as an explicit boolean tensor."""
    options["allow_is_causal_skip"] = False
    options["attention_mask"] = None
    return sdpa_mask(*args, **options)


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _mask)


def first_position(model: torch.nn.Module) -> int:
    """The position a model gives the first token of a text where it counts them itself.

    Some tables leave rows for padding in front. Raises NotApplicable where the model's own count of
    a text without padding is not consecutive.
    """
    found = {0}
    for module in model.modules():
        count: Any = getattr(module, "create_position_ids_from_input_ids", None)
        padding: Any = getattr(module, "padding_idx", None)
        if count is None or padding is None:
            continue
        counted = count(torch.full((1, 6), int(padding) + 1, device="cpu"), padding)
        first = int(counted[0, 0])
        if not torch.equal(counted, torch.arange(first, first + 6)[None].to(counted.dtype)):
            raise NotApplicable(f"{type(module).__name__} counts positions out of order")
        found = {first}
    return found.pop()


def empty_model(config: Any, dtype: str = "float32") -> Any:
    """The model of a config with its parameters on the meta device and its buffers computed."""
    kind = getattr(torch, dtype)
    for attention in (ATTENTION, "eager"):
        try:
            with init_empty_weights(include_buffers=False):
                model = cast(
                    Any,
                    transformers.AutoModelForCausalLM.from_config(
                        copy.deepcopy(config),
                        attn_implementation=attention,
                        dtype=kind,
                        **EXPERTS,
                    ),
                )
        except KeyError as error:
            if error.args != (attention,):
                raise CheckpointError(f"config.json: {error} is missing or unknown") from error
            continue
        except ValueError as error:
            if attention != "eager" and "attn_implementation" in str(error):
                continue
            raise CheckpointError(first_line(f"config.json: {error}")) from error
        except (ArithmeticError, RuntimeError, MemoryError, AssertionError) as error:
            reason = first_line(str(error)) or type(error).__name__
            raise CheckpointError(
                f"config.json: transformers cannot build a model of these sizes ({reason}); "
                "compare it with the original's"
            ) from error
        if attention == ATTENTION and not uses_interface(model):
            continue
        model.tie_weights()
        freeze(model)
        return model.eval()
    raise AssertionError("transformers refuses its own eager attention")


def uses_interface(model: Any) -> bool:
    """False for a model with attention of its own, which must see a real implementation."""
    names = vars(sys.modules[type(model).__module__])
    return any(value is ALL_ATTENTION_FUNCTIONS for value in names.values())


def first_line(text: str) -> str:
    """The first line of what a library says."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else text
