"""What weight-free parts of a graph compute, found by evaluating them.

Masks, rotary tables, position ids and shape arithmetic are written in many ways and mean few
things. They depend on sizes, positions and small constants, never on weights: so they can be
evaluated, and recognised by their values instead of by their spelling.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import (
    RuntimeContextError,
    RuntimeImplementationError,
    RuntimeTypeError,
)

from graftline.errors import CannotEvaluate, DoesNotRun
from graftline.evaluate import Array

EVALUATED_BYTES = 1 << 28
"""No initializer larger than this is ever read."""
_UNSUPPORTED = (
    NotImplementedError, RuntimeContextError, RuntimeImplementationError, RuntimeTypeError,
)  # fmt: skip
"""What onnx.reference raises for an operator, a version or a type it does not implement."""
_TYPES = ir.AttributeType
_PLAIN = (
    _TYPES.INT, _TYPES.INTS, _TYPES.FLOAT, _TYPES.FLOATS, _TYPES.STRING, _TYPES.STRINGS,
)  # fmt: skip
"""Attributes that are small, and told apart by what they print."""
DRAWS = frozenset({
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
    "Multinomial",
})  # fmt: skip
"""Operators that draw at random: the same inputs give other numbers."""
_FAILS = (ValueError, IndexError, ZeroDivisionError)
"""What numpy raises where a node's values do not match."""


def label(node: ir.Node) -> str:
    """How an error names a node."""
    return f"{node.op_type} {node.name or node.outputs[0].name}"


def label_value(value: ir.Value) -> str:
    """How an error names a value."""
    producer = value.producer()
    return label(producer) if producer is not None else f"value {value.name}"


def type_of(value: ir.Value) -> np.dtype[np.generic]:
    """The numpy type of a value's elements. Raises CannotEvaluate where no node tells it."""
    return element_type(value).numpy()


def element_type(value: ir.Value) -> ir.DataType:
    """The type of a value's elements. Raises CannotEvaluate where no node tells it."""
    if value.dtype is None and value.const_value is not None:
        return value.const_value.dtype
    if value.dtype is None:
        raise CannotEvaluate(
            f"the element type of {value.name} is not known: an operator above it is not ONNX's; "
            "write types into the file with onnxruntime.tools.symbolic_shape_infer",
            [label_value(value)],
        )  # fmt: skip
    return value.dtype


def sizes_of(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    """The shape of a tensor as plain numbers."""
    return tuple(d for d in tensor.shape if isinstance(d, int))


def constant(value: ir.Value | None, limit: int = 4096) -> Array | None:
    """The value of a constant of at most `limit` elements, else None; larger ones are not read."""
    if value is None:
        return None
    tensor = value.const_value
    producer = value.producer()
    if tensor is None and producer is not None and producer.op_type == "Constant":
        attribute = producer.attributes.get("value")
        tensor = attribute.as_tensor() if attribute is not None else None
    if tensor is None or tensor.size > limit:
        return None
    return tensor.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The number in a constant of one element, else None."""
    array = constant(value, 1)
    return None if array is None or array.size != 1 else float(array.reshape(()))


def hidden_values(graph: ir.Graph, tokens: ir.Value) -> set[ir.Value]:
    """All values that depend on activations: everything below a table read by token ids.

    What only asks for the shape of an activation does not depend on it.
    """
    ids, hidden = {tokens}, set[ir.Value]()
    for node in graph:
        if node.op_type in ("Shape", "Size"):
            continue
        if any(v in hidden for v in node.inputs if v is not None):
            hidden.update(node.outputs)
        elif any(v in ids for v in node.inputs if v is not None):
            looked_up = node.op_type.startswith("Gather") and node.inputs[1] in ids
            (hidden if looked_up and _is_weight(node.inputs[0]) else ids).update(node.outputs)
    return hidden


def _is_weight(value: ir.Value | None) -> bool:
    while value is not None and value.producer() is not None:
        node = value.producer()
        if node is None or node.op_type not in (
            "Transpose",
            "Cast",
            "DequantizeLinear",
            "Identity",
        ):
            return False
        value = node.inputs[0]
    return value is not None and value.const_value is not None and len(value.const_value.shape) > 1


@dataclass
class World:
    """Values of weight-free parts of a graph at one choice of inputs.

    `known` gives the graph's inputs, and may give any other value instead of computing it.
    `shapes` gives shapes of activations, for nodes that ask only for a shape.
    """

    known: dict[ir.Value, Array]
    shapes: Mapping[ir.Value, tuple[int, ...] | None] = field(default_factory=dict)
    opset: int = 24

    def fork(self, known: Mapping[ir.Value, Array]) -> World:
        """The same world without what was computed, and with other values given."""
        return World(dict(known), self.shapes, self.opset)

    def value(self, wanted: ir.Value) -> Array:
        """The value of `wanted`. Raises CannotEvaluate when it depends on activations or large
        weights, and DoesNotRun where the graph fails at these sizes."""
        stack = [wanted]
        while stack:
            value = stack[-1]
            if value in self.known:
                stack.pop()
                continue
            node = value.producer()
            if node is None:
                self.known[value] = self._initializer(value)
                continue
            if node.op_type == "Shape" and self._shape_of(node, value):
                continue
            missing = [v for v in node.inputs if v is not None and v not in self.known]
            if missing:
                stack.extend(missing)
                continue
            self._run(node)
        return self.known[wanted]

    def _initializer(self, value: ir.Value) -> Array:
        tensor = value.const_value
        if tensor is None:
            raise CannotEvaluate(f"needs the value of {value.name}, which is not known")
        if tensor.nbytes > EVALUATED_BYTES:
            raise CannotEvaluate(f"needs the weight {value.name}, which is too large to look at")
        return tensor.numpy()

    def _shape_of(self, node: ir.Node, value: ir.Value) -> bool:
        source = node.inputs[0]
        shape = self.shapes.get(source) if source is not None else None
        if shape is None:
            return False
        start = node.attributes.get_int("start", 0)
        end = node.attributes.get_int("end", len(shape))
        self.known[value] = np.asarray(shape[start:end], np.int64)
        return True

    def _run(self, node: ir.Node) -> None:
        if any(
            a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for a in node.attributes.values()
        ):
            raise CannotEvaluate("control flow cannot be evaluated", [label(node)])
        inputs = [None if v is None else self.known[v] for v in node.inputs]
        with np.errstate(all="ignore"):
            outputs = evaluate_node(node, inputs, self.opset)
        for value, array in zip(node.outputs, outputs, strict=False):
            self.known[value] = np.asarray(array)


def evaluate_node(node: ir.Node, inputs: Iterable[Array | None], opset: int) -> list[Array]:
    """Run one node by onnx's reference implementation. Raises CannotEvaluate when it has none, and
    DoesNotRun when the node's values do not match."""
    inputs = list(inputs)
    data, at = [*inputs, None, None][:2]
    if node.op_type == "GatherElements" and data is not None and at is not None:
        # the reference implementation takes at most 64 rows
        axis = node.attributes.get_int("axis", 0) or 0
        return [np.take_along_axis(data, np.where(at < 0, at + data.shape[axis], at), axis)]
    names = tuple(f"i{n}" if v is not None else "" for n, v in enumerate(node.inputs))
    feed = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
    try:
        return [np.asarray(out) for out in _runner(node, names, opset).run(None, feed)]
    except _UNSUPPORTED as error:
        raise CannotEvaluate(f"cannot be evaluated: {_line(error)}", [label(node)]) from error
    except _FAILS as error:
        raise DoesNotRun(f"does not run at these sizes: {_line(error)}", [label(node)]) from error
    except TypeError as error:
        # onnx wraps what numpy raised
        if not isinstance(error.__cause__, _FAILS):
            raise
        reason = _line(error.__cause__)
        raise DoesNotRun(f"does not run at these sizes: {reason}", [label(node)]) from error


@dataclass(frozen=True)
class _Operator:
    """What a node computes of inputs of these names: equal ones share a runner, which takes longer
    to make than to run."""

    domain: str
    name: str
    attributes: frozenset[tuple[str, str, str]]
    inputs: tuple[str, ...]
    outputs: int
    opset: int


_RUNNERS: dict[_Operator, ReferenceEvaluator] = {}
_MOST_RUNNERS = 2048


def _runner(node: ir.Node, names: tuple[str, ...], opset: int) -> ReferenceEvaluator:
    """Onnx's reference implementation of a node with inputs i0, i1, ..., those that it has."""
    if any(a.type not in _PLAIN or a.is_ref() for a in node.attributes.values()):
        return _made(node, names, opset)
    attributes = frozenset((k, a.type.name, repr(a.value)) for k, a in node.attributes.items())
    key = _Operator(node.domain, node.op_type, attributes, names, len(node.outputs), opset)
    runner = _RUNNERS.get(key)
    if runner is None:
        if len(_RUNNERS) >= _MOST_RUNNERS:
            _RUNNERS.clear()
        runner = _RUNNERS[key] = _made(node, names, opset)
    return runner


def _made(node: ir.Node, names: tuple[str, ...], opset: int) -> ReferenceEvaluator:
    proto = ir.to_proto(node)
    del proto.input[:], proto.output[:]
    proto.input.extend(names)
    proto.output.extend(f"o{n}" for n in range(len(node.outputs)))
    return ReferenceEvaluator(proto, opsets={node.domain: opset if node.domain == "" else 1})


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
