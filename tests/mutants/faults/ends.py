"""Embedding and head: other rows, lost scales and caps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import (
    factor,
    weight,
)
from faults.mutant import Edit, Mutant, after
from faults.passes import CANONICALIZE, LOWER
from graftline.passes.anchors.anchors import with_role


def _head(model: ir.Model) -> ir.Node:
    found = with_role(model.graph, "lm_head")
    if found:
        return found[0]
    value = model.graph.outputs[0]
    while True:
        maker = value.producer()
        assert maker is not None
        if maker.op_type in ("MatMul", "Gemm"):
            return maker
        value = next(v for v in maker.inputs if v is not None and v.const_value is None)


def _head_weight(change: Callable[[Any], Any]) -> Edit:
    def edit(model: ir.Model) -> int:
        return weight(model, _head(model), 1, change)

    return edit


def _head_unturned(model: ir.Model) -> int:
    """A square head is multiplied by as it lies."""
    return weight(model, _head(model), 1, lambda w: np.ascontiguousarray(w.T))


def _last_op_gone(*op_types: str) -> Edit:
    """What comes behind the head is left out."""

    def edit(model: ir.Model) -> int:
        done, order = 0, list(model.graph)
        for node in order[order.index(_head(model)) + 1 :]:
            if node.op_type in op_types:
                source = next(v for v in node.inputs if v is not None and v.const_value is None)
                source.type, source.shape = node.outputs[0].type, node.outputs[0].shape
                node.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
                done += 1
        if done:
            logits = model.graph.outputs[0]
            for value in (v for n in model.graph for v in n.outputs):
                if value.name == "logits" and value is not logits:
                    value.name = "logits.full"
            logits.name = "logits"
        return done

    return edit


def _embedding(model: ir.Model) -> ir.Node:
    tokens = next(v for v in model.graph.inputs if v.name == "tokens")
    return next(n for n in tokens.consumers() if n.op_type == "Gather")


def _embedding_shifted(model: ir.Model) -> int:
    """Every token has the next one's row; the last has its own."""
    return weight(model, _embedding(model), 0, lambda w: np.concatenate([w[1:], w[-1:]]))


def _ids_cut(model: ir.Model) -> int:
    """Ids go through 8 bits, as larger ones through 32."""
    return weight(model, _embedding(model), 0, lambda w: w[np.arange(len(w)) % 256])


def _learned_shifted(model: ir.Model) -> int:
    """Learned positions start one row later; the last has its own."""
    positions = next(v for v in model.graph.inputs if v.name == "positions")
    near = [n for node in positions.consumers() for n in (node, *node.outputs[0].consumers())]
    node = next(n for n in near if n.op_type == "Gather")
    return weight(model, node, 0, lambda w: np.concatenate([w[1:], w[-1:]]))


ENDS = [
    Mutant("embedding-scale-dropped", "canonicalize", "the embedding is not scaled",
           "gemma2", "neutral", after(CANONICALIZE, factor(8.0, 1.0))),
    Mutant("head-zeroed", "canonicalize: own_head_weight", "the lm_head is zero",
           "llama", "neutral", after(CANONICALIZE, _head_weight(np.zeros_like))),
    Mutant("head-zeroed-lowered", "lower-ort: fused_matmul", "the lm_head is zero",
           "plain", "neutral", after(LOWER, _head_weight(np.zeros_like))),
    Mutant("head-rows-shifted", "canonicalize: own_head_weight", "the lm_head is one row off",
           "llama", "neutral",
           after(CANONICALIZE, _head_weight(lambda w: np.roll(w, 1, axis=0)))),
    Mutant("head-of-other-rows", "canonicalize: own_head_weight", "two rows of the head swapped",
           "llama", "neutral",
           after(CANONICALIZE, _head_weight(lambda w: w[[*range(690), *range(699, 689, -1)]]))),
    Mutant("head-columns-permuted", "canonicalize", "the head reads the stream backwards",
           "llama", "neutral", after(CANONICALIZE, _head_weight(lambda w: w[:, ::-1].copy()))),
    Mutant("tied-head-unturned", "canonicalize: _separate", "a square tied head is not turned",
           "square", "neutral", after(CANONICALIZE, _head_unturned)),
    Mutant("logits-scale-dropped", "canonicalize: open_head", "the logits are not scaled",
           "granite", "neutral", after(CANONICALIZE, _last_op_gone("Mul", "Div"))),
    Mutant("logits-softcap-dropped", "canonicalize: open_head", "the logits are not capped",
           "gemma2", "neutral", after(CANONICALIZE, _last_op_gone("Tanh"))),
    Mutant("embedding-row-shifted", "canonicalize", "every token has the next one's row",
           "llama", "neutral", after(CANONICALIZE, _embedding_shifted)),
    Mutant("ids-cut-short", "canonicalize: enter", "ids go through a type too small for them",
           "llama", "neutral", after(CANONICALIZE, _ids_cut)),
    Mutant("learned-positions-shifted", "canonicalize: _learned", "positions start one row later",
           "gpt2", "neutral", after(CANONICALIZE, _learned_shifted)),
]  # fmt: skip
