"""A draft head as a torch module: exported without its weights, and run as its own reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Feed
from graftline.head_notes import NEVER
from graftline.models.export.export import export
from graftline.models.heads.eagle_shapes import our_name
from graftline.models.heads.vocabulary import DRAFT_IDS
from graftline.models.host import Watch
from graftline.models.reference import Own, OwnModel
from graftline.ports import FEATURES
from graftline.tensors import numbers

if TYPE_CHECKING:
    from torch import nn

    MakeModule = Callable[[int], nn.Module]
    """Makes the module for texts of so many positions. It is called as (tokens [B, N], what rows
    see [B, 1, N, N] or None, positions [B, N], features [B, N, H]); its answer has `logits` and
    `state`."""


def export_module(
    make: MakeModule, positions: int, watch: Watch
) -> tuple[ir.Model, frozenset[str]]:
    """The raw graph without weights, and what its weights are called."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        module = make(positions)
    exported = export(module.eval(), watch)
    return exported.model, exported.weights


def own_model(
    make: MakeModule, tensors: Mapping[str, ir.TensorProtocol], vocabulary: int, masked: bool
) -> OwnModel:
    """The module itself, run by torch: ids, features [B, N, H] and, of a module that is `masked`,
    what rows see [B, 1, N, N] in; logits of the target's `vocabulary` ids out."""

    def run(feed: Feed, say: Watch) -> Own | str:
        import torch

        module = make(feed["tokens"].shape[1])
        state: dict[str, Any] = {
            name: torch.from_numpy(np.array(numbers(tensors[our_name(name)]), np.float32))
            for name in module.state_dict()
        }
        module.load_state_dict(state, assign=True)
        tokens, features = (torch.from_numpy(feed[name].copy()) for name in ("tokens", FEATURES))
        seen = torch.from_numpy(feed["mask"].copy()) if masked else None
        places = torch.arange(tokens.shape[1])[None].expand_as(tokens)
        with torch.no_grad():
            out = module.eval()(tokens, seen, places, features)
        logits, ids = out.logits[0].numpy(), tensors.get(DRAFT_IDS)
        if ids is not None:
            drafted = logits
            logits = np.full((len(drafted), vocabulary), NEVER, np.float32)
            logits[:, ids.numpy()] = drafted
        return Own(logits, {0: out.state[0].numpy()})

    return run
