"""Biases of the scores: slopes of other heads, added twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import (
    above,
    attentions,
    constant,
    op,
    rewired,
)
from faults.mutant import Edit, Mutant, after
from faults.passes import CANONICALIZE, KV, LOWER, MASK, PLAIN, TREE

Change = Callable[[Any], Any]


def _slopes(change: Change) -> Edit:
    """The slopes of the heads, wherever they stand."""

    def edit(model: ir.Model) -> int:
        done = 0
        masks = [n.inputs[3] for n in attentions(model) if len(n.inputs) > 3]
        for maker in {n for mask in masks for n in above(mask)}:
            for place, value in enumerate(maker.inputs):
                tensor = value.const_value if value is not None else None
                if tensor is None or tensor.size != 4 or not tensor.dtype.is_floating_point():
                    continue
                array = tensor.numpy()
                new = change(array.reshape(-1)).reshape(array.shape)
                done += rewired(maker, place, constant(model, new, array.dtype))
        return done

    return edit


def _slopes_said(change: Change) -> Edit:
    """And what is said of them."""

    def edit(model: ir.Model) -> int:
        for node in attentions(model):
            says = json.loads(node.metadata_props.get(MASK, "{}"))
            if "slopes" in says:
                new = change(np.asarray(says["slopes"]))
                node.metadata_props[MASK] = json.dumps({**says, "slopes": new.tolist()})
        return _slopes(change)(model)

    return edit


def _reversed(slopes: Any) -> Any:
    return slopes[::-1].copy()


def _second_head(slopes: Any) -> Any:
    return np.where(np.arange(len(slopes)) == 1, slopes * 1.05, slopes)


def _bias_twice(model: ir.Model) -> int:
    """What is added to the scores is added once more."""
    done = 0
    for node in attentions(model):
        if node.op_type == "GroupQueryAttention" and len(node.inputs) > 10:
            bias = node.inputs[10]
            done += rewired(node, 10, op(model, node, "Add", [bias, bias]))
    return done


BIASES = [
    Mutant(
        "slopes-permuted", "canonicalize: read_mask", "the slopes of the heads are in reverse",
        "bloom", "masks", after(CANONICALIZE, _slopes_said(_reversed)),
    ),
    Mutant(
        "slope-of-one-head", "canonicalize: read_mask", "one head's slope is 5 % too steep",
        "alibi", "masks", after(CANONICALIZE, _slopes_said(_second_head)),
    ),
    Mutant(
        "slopes-permuted-over-slots", "kv-cache: SlotMasks._alibi",
        "the slopes of the heads are in reverse",
        "alibi", "neutral", after(KV, _slopes(_reversed)), PLAIN,
    ),
    Mutant(
        "slope-of-one-head-in-tree", "tree-mask: SlotMasks._alibi",
        "one head's slope is 5 % too steep",
        "alibi", "neutral", after(TREE, _slopes(_second_head)),
    ),
    Mutant(
        "bias-added-twice", "lower-ort: Lengths.bias", "the bias of the scores is added twice",
        "alibi", "neutral", after(LOWER, _bias_twice),
    ),
]  # fmt: skip
