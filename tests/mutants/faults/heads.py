"""Heads in another order, another scale or no cap of the scores."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from faults.graphs import (
    attentions,
    constant,
    of_layers,
    op,
    rewired,
)
from faults.mutant import Edit, Mutant, after
from faults.passes import CANONICALIZE, LOWER


def _heads(operands: Iterable[int], order: list[int], layers: Iterable[int] | None = None) -> Edit:
    """Heads [B, heads, N, D] of these operands of Attention in another order; 9 is its output."""

    def edit(model: ir.Model) -> int:
        done = 0
        for node in of_layers(attentions(model), layers):
            if node.op_type != "Attention":
                continue
            for operand in operands:
                at = constant(model, order, np.int64)
                if operand == 9:
                    users = list(node.outputs[0].uses())
                    new = op(model, users[0][0], "Gather", [node.outputs[0], at], axis=1)
                    new.type, new.shape = node.outputs[0].type, node.outputs[0].shape
                    for user, place in users:
                        user.replace_input_with(place, new)
                    done += 1
                else:
                    new = op(model, node, "Gather", [node.inputs[operand], at], axis=1)
                    done += rewired(node, operand, new)
        return done

    return edit


def _repeated_in_turn(model: ir.Model) -> int:
    """Query heads 0, 2 read KV head 0 and 1, 3 read 1: the heads interleave, and do not block."""
    order = [0, 2, 1, 3]
    return _heads([0, 9], order)(model)


def _scaled(factor: float, layers: Iterable[int] | None = None) -> Edit:
    def edit(model: ir.Model) -> int:
        done = 0
        for node in of_layers(attentions(model), layers):
            was = node.attributes.get_float("scale", 0.0) or 16**-0.5
            node.attributes["scale"] = ir.AttrFloat32("scale", was * factor)
            done += 1
        return done

    return edit


def _softcap_gone(model: ir.Model) -> int:
    return sum(bool(n.attributes.pop("softcap", None)) for n in attentions(model))


HEADS = [
    Mutant("heads-permuted", "canonicalize: trace_heads", "query heads are in reverse",
           "plain", "masks", after(CANONICALIZE, _heads([0], [3, 2, 1, 0]))),
    Mutant("heads-permuted-in-block-3", "canonicalize: trace_heads", "query heads are in reverse",
           "llama", "masks", after(CANONICALIZE, _heads([0], [3, 2, 1, 0], [3]))),
    Mutant("value-heads-permuted", "canonicalize: trace_heads", "value heads are in reverse",
           "llama", "neutral", after(CANONICALIZE, _heads([2], [1, 0]))),
    Mutant("kv-heads-interleaved", "canonicalize: trace_heads",
           "KV heads are repeated in turn, not in blocks",
           "llama", "masks", after(CANONICALIZE, _repeated_in_turn)),
    Mutant("scale-off", "canonicalize: _Scores", "the scores' scale is off by the root of two",
           "llama", "neutral", after(CANONICALIZE, _scaled(2**-0.5))),
    Mutant("scale-off-lowered", "lower-ort", "the scores' scale is off by the root of two",
           "plain", "neutral", after(LOWER, _scaled(2**-0.5))),
    Mutant("scale-off-in-block-4", "lower-ort", "the scores' scale is off by the root of two",
           "llama", "alike", after(LOWER, _scaled(2**-0.5, [4]))),
    Mutant("softcap-dropped", "canonicalize: _Scores", "the scores are not capped",
           "gemma2", "neutral", after(CANONICALIZE, _softcap_gone)),
    Mutant("softcap-dropped-lowered", "lower-ort", "the scores are not capped",
           "gemma2", "neutral", after(LOWER, _softcap_gone)),
]  # fmt: skip
