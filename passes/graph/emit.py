"""Writing nodes: every node a pass makes is stamped with the pass and lands before an anchor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graftline.passes.pipeline.graft import BLOCK, stamp
from graftline.tensors import static_shape


class Emit:
    """Inserts nodes before `at` (or at the end of the graph), stamped `by` a pass."""

    def __init__(
        self, graph: ir.Graph, by: str, at: ir.Node | None = None, block: str | None = None
    ) -> None:
        self.graph, self.by, self.at = graph, by, at
        self.block = block or (at.metadata_props.get(BLOCK) if at is not None else None)

    def op(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str = "",
        domain: str = "",
        **attributes: Any,
    ) -> ir.Value:
        """Insert one node and return its first output."""
        return self.node(op_type, inputs, [name], domain, **attributes).outputs[0]

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        outputs: Sequence[str],
        domain: str = "",
        **attributes: Any,
    ) -> ir.Node:
        """Insert one node with named outputs ("" lets the graph choose) and return it."""
        kept = {k: v for k, v in attributes.items() if v is not None}
        values = [ir.Value(name=o or None) for o in outputs]
        node = ir.node(op_type, list(inputs), kept, domain=domain, outputs=values)
        stamp(node, self.by)
        if self.block is not None:
            node.metadata_props[BLOCK] = self.block
        if self.at is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self.at, node)
        return node

    def const(self, name: str, value: npt.ArrayLike, dtype: Any = None) -> ir.Value:
        """An initializer of that value, under that name or, where a host has the name for another
        value, one like it."""
        array, own = np.asarray(value, dtype=dtype), name
        while (known := self.graph.initializers.get(own)) is not None:
            if _holds(known, array):
                return known
            own += ".own"
        return self.initializer(own, ir.tensor(array, name=own))

    def initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """Register a tensor, which may be lazy or external, as an initializer."""
        value = ir.Value(
            name=name,
            shape=static_shape(tensor),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value


def _holds(known: ir.Value, array: npt.NDArray[Any]) -> bool:
    tensor = known.const_value
    if tensor is None or static_shape(tensor) != ir.Shape(array.shape):
        return False
    held = tensor.numpy()
    return held.dtype == array.dtype and held.tobytes() == array.tobytes()


def new_input(
    graph: ir.Graph, name: str, dtype: ir.DataType, shape: Sequence[str | int]
) -> ir.Value:
    """Append a graph input."""
    value = ir.Value(name=name, shape=ir.Shape(list(shape)), type=ir.TensorType(dtype))
    graph.inputs.append(value)
    return value


def new_output(
    graph: ir.Graph, value: ir.Value, name: str, dtype: ir.DataType, shape: Sequence[str | int]
) -> None:
    """Name a value, give it a type and make it a graph output."""
    value.name = name
    value.shape, value.type = ir.Shape(list(shape)), ir.TensorType(dtype)
    graph.outputs.append(value)


def free_name(graph: ir.Graph, name: str) -> str:
    """`name`, or a name made from it that no initializer has: blocks may share their weights."""
    while name in graph.initializers:
        name += ".own"
    return name


def take_place(node: ir.Node, values: Sequence[ir.Value | None]) -> None:
    """Put newly made values in the place of a node's outputs, under their names; the node goes."""
    graph = node.graph
    assert graph is not None
    for old, new in zip(node.outputs, values, strict=True):
        assert new is not None
        new.shape, new.type = old.shape, old.type
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name, old.name = old.name, None
    graph.remove(node, safe=True)


def drop_unused(model: ir.Model) -> None:
    """Remove nodes and initializers nothing reads; inputs stay."""
    import onnx_ir.passes.common as common

    common.RemoveUnusedNodesPass()(model)
