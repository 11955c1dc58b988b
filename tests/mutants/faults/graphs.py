"""What edits of graphs are made of: attentions by layer, constants above a value, new nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.mutant import Edit

ATTENTION = ("Attention", "GroupQueryAttention")
NORM_TYPES = (
    "RMSNormalization", "LayerNormalization", "SkipSimplifiedLayerNormalization",
    "SkipLayerNormalization", "SimplifiedLayerNormalization",
)  # fmt: skip


def attentions(model: ir.Model) -> list[ir.Node]:
    """All attentions, by layer."""
    return [n for n in model.graph if n.op_type in ATTENTION]


def of_layers(nodes: Sequence[ir.Node], layers: Iterable[int] | None) -> list[ir.Node]:
    """Those of the layers that are there; None: of all."""
    return list(nodes) if layers is None else [nodes[i] for i in layers if i < len(nodes)]


def nodes(model: ir.Model, *op_types: str) -> list[ir.Node]:
    """All nodes of these types."""
    return [n for n in model.graph if n.op_type in op_types]


def above(value: ir.Value | None) -> list[ir.Node]:
    """All nodes that `value` is computed by, nearest first."""
    found: list[ir.Node] = []
    todo = [value]
    while todo:
        one = todo.pop(0)
        node = one.producer() if one is not None else None
        if node is not None and node not in found:
            found.append(node)
            todo.extend(node.inputs)
    return found


def op(
    model: ir.Model, before: ir.Node, op_type: str, inputs: Sequence[ir.Value | None],
    **attributes: Any,
) -> ir.Value:  # fmt: skip
    """One node more, in front of `before`."""
    domain = attributes.pop("domain", "")
    node = ir.node(op_type, list(inputs), attributes, domain=domain)
    node.metadata_props.update(before.metadata_props)
    node.metadata_props.pop("graftline.role", None)
    model.graph.insert_before(before, node)
    return node.outputs[0]


def constant(model: ir.Model, array: Any, dtype: Any) -> ir.Value:
    """One initializer more."""
    tensor = ir.tensor(np.asarray(array, dtype))
    name = f"wrong.{len(model.graph.initializers)}"
    tensor.name = name
    value = ir.Value(
        name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value


def rewired(node: ir.Node, place: int, new: ir.Value) -> int:
    """One input of a node becomes `new`, typed as the old one was."""
    old = node.inputs[place]
    if old is not None and new.type is None:
        new.type, new.shape = old.type, old.shape
    node.replace_input_with(place, new)
    return 1


def weight(
    model: ir.Model, node: ir.Node, place: int, change: Callable[[Any], Any]
) -> int:
    """The constant that a node reads (or a Transpose of it) becomes change(its numbers), for that
    node alone."""
    value = node.inputs[place]
    if value is not None and value.producer() is not None:
        turn = value.producer()
        if turn is None or turn.op_type != "Transpose":
            return 0
        copy = op(model, node, "Transpose", turn.inputs, perm=[1, 0])
        rewired(node, place, copy)
        maker = copy.producer()
        return weight(model, maker, 0, change) if maker is not None else 0
    if value is None or value.const_value is None:
        return 0
    array = value.const_value.numpy()
    return rewired(node, place, constant(model, change(array), array.dtype))


def numbers(model: ir.Model, roots: Iterable[ir.Value | None], old: float, new: float) -> int:
    """Every constant `old` of one element that `roots` are computed from becomes `new`."""
    done = 0
    for root in roots:
        for node in above(root):
            for place, value in enumerate(node.inputs):
                if value is None or value.const_value is None or value.const_value.size != 1:
                    continue
                array = value.const_value.numpy()
                if abs(float(array.reshape(()))) == old:
                    sign = np.sign(array.astype(np.float64))
                    rewired(node, place, constant(model, sign * new, array.dtype))
                    done += 1
    return done


def attribute(node: ir.Node, name: str, value: Any) -> int:
    """An attribute that a node has becomes another."""
    if name not in node.attributes:
        return 0
    node.attributes[name] = ir.convenience.convert_attribute(name, value)
    return 1


def bypass(node: ir.Node, place: int = 0) -> int:
    """Whoever reads a node reads one of its inputs instead."""
    source = node.inputs[place]
    assert source is not None
    node.outputs[0].replace_all_uses_with(source)
    return 1


def rotaries(model: ir.Model, layers: Iterable[int] | None, which: Iterable[int]) -> list[ir.Node]:
    """RotaryEmbedding nodes of queries (0) and keys (1)."""
    found: list[ir.Node] = []
    for node in of_layers(attentions(model), layers):
        for operand in which:
            value = node.inputs[operand]
            maker = value.producer() if value is not None else None
            if maker is not None and maker.op_type == "TensorScatter":
                value = maker.inputs[1]
                maker = value.producer() if value is not None else None
            if maker is not None and maker.op_type == "RotaryEmbedding":
                found.append(maker)
            elif node.op_type == "GroupQueryAttention" and operand == 0:
                found.append(node)
    return found


def factor(old: float, new: float) -> Edit:
    """One constant of the stream (a residual or embedding multiplier) is another."""

    def edit(model: ir.Model) -> int:
        done = 0
        for node in nodes(model, "Mul", "Div"):
            for place, value in enumerate(node.inputs):
                tensor = value.const_value if value is not None else None
                if tensor is not None and tensor.size == 1:
                    array = tensor.numpy()
                    if np.isclose(float(array.reshape(())), old, rtol=1e-3):
                        full = np.full(array.shape, new)
                        done += rewired(node, place, constant(model, full, array.dtype))
        return done

    return edit
