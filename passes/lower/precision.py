"""One precision through a graph: Casts where fp32 meets fp16 or bf16, weights rounded lazily."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Feed
from graftline.facts import read_facts, write_facts
from graftline.passes.grafts.head_parts import is_scoring
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.weights import constant, lazy, tensor_of
from graftline.passes.pipeline.graft import ROLE
from graftline.ports import read_ports, slot_ports, write_ports
from graftline.tensors import Widened

PRECISIONS = {
    "fp32": ir.DataType.FLOAT,
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}
NARROW = frozenset({
    "MatMul", "Gemm", "Conv", "ConvTranspose", "Attention", "TreeAttention", "TensorScatter",
    "RotaryEmbedding",
})  # fmt: skip
"""Always in the low precision: they move the bytes, and accumulate in fp32 by themselves."""
WIDE = frozenset(
    {"LayerNormalization", "Softmax", "LogSoftmax", "Exp", "Log", "Pow", "Sqrt", "Softplus",
     "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "CumSum", "ReduceL1",
     "ReduceLogSum", "ReduceLogSumExp", "InstanceNormalization", "GroupNormalization",
     "MeanVarianceNormalization", "LpNormalization", "GlobalAveragePool"}
)  # fmt: skip
"""Always in fp32: sums and powers that leave fp16's range or lose bf16's digits.
RMSNormalization is not among them: it squares and sums in fp32 by itself (stash_type)."""
FP32: Mapping[str, tuple[int, ...]] = {"Resize": (1, 2)}
"""Operands, by place, that an operator takes in fp32 alone: regions and scales."""
SMALL = 1 << 16
"""Bytes of a weight below which it is rounded at once."""
LAYOUT = frozenset({"Transpose", "Reshape", "Unsqueeze", "Squeeze", "Slice", "Identity", "Concat"})


@dataclass
class Precision:
    """Rewrites the float values of a graph to `low`; the graph's inputs and outputs stay fp32, but
    those of `caches`.

    Every other operator follows its operands: low where one activation is low, fp32 where all are
    fp32 (masks made from positions; everything after logits, which leave their product as fp32).
    """

    graph: ir.Graph
    low: ir.DataType
    caches: frozenset[str]
    by: str
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = field(
        default_factory=dict[tuple[ir.Value, ir.DataType], ir.Value]
    )
    wanted: dict[ir.Value, dict[ir.DataType, list[tuple[ir.Node, int]]]] = field(
        default_factory=dict[ir.Value, dict[ir.DataType, list[tuple[ir.Node, int]]]]
    )
    """initializer -> precision -> where it is read so."""

    def apply(self) -> None:
        """Rewrite the graph in place."""
        for value in self.graph.inputs:
            if (value.name or "") in self.caches:
                value.type = ir.TensorType(self.low)
        nodes = list(self.graph)
        for node, after in zip(nodes, [*nodes[1:], None], strict=True):
            self._node(node)
            if is_scoring(node.metadata_props.get(ROLE, "")):
                self._widen(node.outputs[0], after)
        for value in list(self.graph.outputs):
            if (value.name or "") not in self.caches and value.dtype == self.low:
                self._widen(value, None)
        for value, readers in self.wanted.items():
            self._round(value, readers)

    def _node(self, node: ir.Node) -> None:
        if node.op_type == "Cast":
            return
        dtype = self._dtype(node)
        for place, value in enumerate(node.inputs):
            if value is None or value.dtype not in (ir.DataType.FLOAT, self.low):
                continue
            taken = ir.DataType.FLOAT if place in FP32.get(node.op_type, ()) else dtype
            if constant(value) is not None:
                self.wanted.setdefault(value, {}).setdefault(taken, []).append((node, place))
            elif value.dtype != taken:
                node.replace_input_with(place, self._cast(value, taken, node))
        for value in node.outputs:
            if value.dtype in (ir.DataType.FLOAT, self.low):
                value.type = ir.TensorType(dtype)

    def _dtype(self, node: ir.Node) -> ir.DataType:
        """The precision a node computes in."""
        if node.op_type in NARROW:
            return self.low
        if node.op_type in WIDE:
            return ir.DataType.FLOAT
        inputs = [v for v in node.inputs if v is not None]
        floats = [v for v in inputs if v.dtype in (ir.DataType.FLOAT, self.low)]
        active = [v for v in floats if constant(v) is None]
        if active:
            return self.low if any(v.dtype == self.low for v in active) else ir.DataType.FLOAT
        # only weights: a table that is looked up, or a weight on its way to a MatMul
        weights = bool(floats) and (len(floats) < len(inputs) or node.op_type in LAYOUT)
        return self.low if weights else ir.DataType.FLOAT

    def _cast(self, value: ir.Value, dtype: ir.DataType, at: ir.Node) -> ir.Value:
        """`value` in another precision, made once."""
        if (value, dtype) not in self.casts:
            made = Emit(self.graph, self.by, at).op("Cast", [value], to=dtype)
            made.shape, made.type = value.shape, ir.TensorType(dtype)
            self.casts[value, dtype] = made
        return self.casts[value, dtype]

    def _widen(self, value: ir.Value, before: ir.Node | None) -> None:
        """fp32 in place of a low value, under its name, for everybody who reads it."""
        users = list(value.uses())
        made = Emit(self.graph, self.by, before).op("Cast", [value], to=ir.DataType.FLOAT)
        made.shape, made.type = value.shape, ir.TensorType(ir.DataType.FLOAT)
        name, value.name = value.name, f"{value.name}.low"
        made.name = name
        for user, place in users:
            if before is not None:
                user.replace_input_with(place, made)
        for place, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[place] = made

    def _round(
        self, value: ir.Value, readers: dict[ir.DataType, list[tuple[ir.Node, int]]]
    ) -> None:
        """Round a weight in place; where fp32 is read as well, beside it."""
        if self.low not in readers:
            return
        tensor, name = tensor_of(value), value.name or ""
        shape = [int(d) for d in tensor.shape]  # type: ignore[arg-type]
        rounded: ir.TensorProtocol = lazy(
            lambda: _rounded(tensor, self.low, name), self.low, shape, name
        )
        if isinstance(tensor, Widened) and tensor.narrow.dtype == self.low:
            rounded = tensor.narrow  # the checkpoint's own numbers
        elif tensor.nbytes < SMALL:  # others look into these; what is wrong with one is told here
            rounded = ir.tensor(_rounded(tensor, self.low, name), name=name)
        if len(readers) == 1:
            value.const_value, value.type = rounded, ir.TensorType(self.low)
            return
        beside = Emit(self.graph, self.by).initializer(f"{name}.low", rounded)
        for node, place in readers[self.low]:
            node.replace_input_with(place, beside)


def narrow(model: ir.Model, low: ir.DataType, by: str) -> None:
    """Bring a host to the precision `low`: its graph, the ports of its caches, its facts."""
    ports, dtype = read_ports(model), low.numpy().name
    caches = frozenset(p.name for p in slot_ports(ports))
    Precision(model.graph, low, caches, by).apply()
    write_ports(model, [replace(p, dtype=dtype) if p.name in caches else p for p in ports])
    write_facts(model, replace(read_facts(model), dtype=dtype))


def cast_caches(feed: Feed, after: ir.Model) -> Feed:
    """`feed` with the caches in the types that the ports of `after` say."""
    types = {p.name: np.dtype(p.dtype) for p in slot_ports(read_ports(after))}
    return {k: v.astype(types[k]) if k in types else v for k, v in feed.items()}


def _rounded(tensor: ir.TensorProtocol, low: ir.DataType, name: str) -> npt.NDArray[Any]:
    """The numbers of a weight in `low`. Raises NotApplicable where one leaves its range."""
    array = tensor.numpy()
    with np.errstate(over="ignore"):
        rounded = array.astype(low.numpy())
    if np.any(np.isinf(rounded) & np.isfinite(array)):
        largest = float(np.max(np.abs(array)))
        raise NotApplicable(
            f"the weight '{name}' holds {largest:.3g}, beyond the range of {low.name.lower()}; "
            "use --dtype bf16 or fp32"
        )
    return rounded
