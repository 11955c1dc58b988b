"""Projections, their biases, their packing, activations and multipliers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from faults.graphs import (
    attentions,
    bypass,
    constant,
    factor,
    nodes,
    op,
    weight,
)
from faults.mutant import Edit, Mutant, after
from faults.passes import CANONICALIZE
from graftline.passes import GRAFTS

PACK = GRAFTS["pack-projections"]


def _matmuls(model: ir.Model, layer: int) -> list[ir.Node]:
    """Products by a weight after the attention of a layer, up to the next one."""
    order = list(model.graph)
    places = [order.index(n) for n in attentions(model)] + [len(order)]
    if layer >= len(places) - 1:
        return []
    part = order[places[layer] : places[layer + 1]]
    return [n for n in part if n.op_type in ("MatMul", "FusedMatMul", "Gemm")]


def _gate_and_up(model: ir.Model) -> int:
    """The activation goes over `up`, not over `gate`."""
    _, gate, up = _matmuls(model, 0)[:3]
    done = _exchanged(gate.outputs[0], up.outputs[0])
    model.graph.sort()
    return done


def _exchanged(one: ir.Value, other: ir.Value) -> int:
    """Whoever reads one value reads the other."""
    uses = [(u, p, other) for u, p in one.uses()] + [(u, p, one) for u, p in other.uses()]
    for user, place, new in uses:
        user.replace_input_with(place, new)
    return len(uses)


def _swapped_parts(parts: int, first: int, second: int) -> Edit:
    """Two parts of a packed projection change places."""

    def edit(model: ir.Model) -> int:
        splits = [n for n in nodes(model, "Split") if len(n.outputs) == parts]
        return sum(_exchanged(n.outputs[first], n.outputs[second]) for n in splits)

    return edit


def _biases(model: ir.Model, where: Callable[[ir.Node], bool] = lambda n: True) -> list[ir.Node]:
    """Adds of a constant vector to a product."""
    found: list[ir.Node] = []
    for node in nodes(model, "Add"):
        vectors = [v for v in node.inputs if v is not None and v.const_value is not None]
        others = [v.producer() for v in node.inputs if v is not None and v.const_value is None]
        product = any(m is not None and m.op_type in ("MatMul", "Gemm") for m in others)
        if vectors and product and len(vectors[0].const_value.shape) == 1 and where(node):  # type: ignore[union-attr]
            found.append(node)
    return found


def _bias_dropped(model: ir.Model) -> int:
    node = _biases(model)[0]
    return bypass(node, int(node.inputs[0].const_value is not None))  # type: ignore[union-attr]


def _bias_doubled(model: ir.Model) -> int:
    node = _biases(model)[0]
    return weight(model, node, int(node.inputs[1].const_value is not None), lambda b: 2 * b)  # type: ignore[union-attr]


def _packed_bias_gone(model: ir.Model) -> int:
    done = 0
    for node in nodes(model, "Add"):
        for place, value in enumerate(node.inputs):
            if value is not None and (value.name or "").endswith(".bias") and "packed" in (
                value.name or ""
            ):
                done += weight(model, node, place, np.zeros_like)
    return done


def _tanh_as_erf(model: ir.Model) -> int:
    """Gelu by its error function in place of the tanh approximation, or the other way round."""
    done = 0
    for node in nodes(model, "Gelu"):
        was = node.attributes.get_string("approximate", "none")
        node.attributes["approximate"] = ir.AttrString(
            "approximate", "none" if was == "tanh" else "tanh"
        )
        done += 1
    return done


def _quick_gelu(model: ir.Model) -> int:
    """x * sigmoid(1.702 x) in place of Gelu."""
    done = 0
    for node in nodes(model, "Gelu"):
        x = node.inputs[0]
        steep = op(model, node, "Mul", [x, constant(model, 1.702, np.float32)])
        made = op(model, node, "Mul", [x, op(model, node, "Sigmoid", [steep])])
        made.type, made.shape = node.outputs[0].type, node.outputs[0].shape
        node.outputs[0].replace_all_uses_with(made)
        done += 1
    return done


def _linear_gate(model: ir.Model) -> int:
    """Sigmoid replaced by its hard approximation."""
    node = nodes(model, "Sigmoid", "Swish")[0]
    hard = op(model, node, "HardSigmoid", [node.inputs[0]], alpha=0.25)
    if node.op_type == "Swish":
        hard = op(model, node, "Mul", [node.inputs[0], hard])
    hard.type, hard.shape = node.outputs[0].type, node.outputs[0].shape
    node.outputs[0].replace_all_uses_with(hard)
    return 1


PROJECTIONS = [
    Mutant("gate-and-up-swapped", "canonicalize", "the activation goes over the other projection",
           "llama", "neutral", after(CANONICALIZE, _gate_and_up)),
    Mutant("gate-and-up-packed-swapped", "pack-projections: _pack", "gate and up change places",
           "plain", "neutral", after(PACK, _swapped_parts(2, 0, 1)),
           {"passes": "kv-cache | select-rows | reduce-logits | pack-projections{mlp=true}"}),
    Mutant("query-and-key-packed-swapped", "pack-projections: _pack",
           "query and key change places", "qwen2", "neutral",
           after(PACK, _swapped_parts(3, 0, 1))),
    Mutant("packed-bias-dropped", "pack-projections: _bias", "a packed projection has no bias",
           "qwen2", "neutral", after(PACK, _packed_bias_gone)),
    Mutant("bias-dropped", "canonicalize", "a projection loses its bias",
           "qwen2", "neutral", after(CANONICALIZE, _bias_dropped)),
    Mutant("bias-doubled", "canonicalize", "a projection's bias is added twice",
           "gpt2", "neutral", after(CANONICALIZE, _bias_doubled)),
    Mutant("gelu-of-another-kind", "canonicalize", "Gelu by erf for its tanh approximation",
           "gemma2", "neutral", after(CANONICALIZE, _tanh_as_erf)),
    Mutant("gelu-by-sigmoid", "canonicalize", "x sigmoid(1.702 x) in place of Gelu",
           "gemma2", "neutral", after(CANONICALIZE, _quick_gelu)),
    Mutant("sigmoid-made-hard", "canonicalize", "HardSigmoid in place of Sigmoid",
           "llama", "neutral", after(CANONICALIZE, _linear_gate)),
    Mutant("residual-multiplier-dropped", "canonicalize", "what a block adds is not scaled",
           "granite", "neutral", after(CANONICALIZE, factor(0.7, 1.0))),
]  # fmt: skip
