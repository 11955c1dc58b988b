"""Writes the nodes, weights and inputs of one generated decoder. Knows nothing of graftline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
Feed = Callable[[Array], Array]
"""What a run of the original file feeds an input, by the token ids [B, N]."""

INT64, INT32, FLOAT, HALF, BOOL = (
    TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BOOL,
)  # fmt: skip
MS = "com.microsoft"
USUAL_NAMES = [
    "rows", "tokens", "positions", "mask", "key", "value", "hidden", "write_index", "topk", "cos",
    "sin", "attention", "x", "length", "batch", "scale", "zero", "one", "index.1", "rotary.0.cos",
]  # fmt: skip
"""Value names that any tool might take for its own."""


@dataclass
class Builder:
    """Nodes in order, weights by name, inputs with what they are fed, and outputs.

    `half` computes in fp16; `stored_half` keeps matrices in fp16 behind a Cast; `constants` are
    written as initializers or as Constant nodes; `names` is plain, torchscript or usual.
    """

    opset: int
    rng: np.random.Generator
    half: bool = False
    stored_half: bool = False
    constants: str = "initializers"
    names: str = "plain"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    feeds: dict[str, Feed] = field(default_factory=dict)
    taken: int = 0
    known: dict[tuple[str, str, bytes], str] = field(default_factory=dict)

    @property
    def float_type(self) -> int:
        """The ONNX element type of activations."""
        return HALF if self.half else FLOAT

    @property
    def number_type(self) -> type[np.floating[Any]]:
        """The numpy type of activations."""
        return np.float16 if self.half else np.float32

    def fresh(self, kind: str = "t") -> str:
        """A name that no value has yet."""
        self.taken += 1
        given = {v.name for v in self.inputs} | {v.name for v in self.outputs}
        if self.names == "usual" and self.taken <= len(USUAL_NAMES):
            name = USUAL_NAMES[self.taken - 1]
            return name if name not in given else f"{name}.{self.taken}"
        return f"onnx::{kind}_{self.taken}" if self.names == "torchscript" else f"v{self.taken}"

    def many(self, kind: str, inputs: Sequence[str], count: int, domain: str = "", **attributes: Any) -> list[str]:  # noqa: E501
        """One node with `count` outputs."""
        outputs = [self.fresh(kind) for _ in range(count)]
        node = helper.make_node(kind, list(inputs), outputs, domain=domain, **attributes)
        node.name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(node)
        return outputs

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """One node with one output."""
        return self.many(kind, inputs, 1, domain, **attributes)[0]

    def constant(self, array: Array) -> str:
        """A fixed tensor; equal ones are one value."""
        array = np.asarray(array)
        key = (str(array.dtype), str(array.shape), array.tobytes())
        if key not in self.known:
            name = self.fresh("Constant")
            if self.constants == "nodes":
                value = numpy_helper.from_array(array, name)
                self.nodes.append(helper.make_node("Constant", [], [name], value=value))
            else:
                self.weights[name] = array
            self.known[key] = name
        return self.known[key]

    def number(self, value: float) -> str:
        """A scalar of the activations' type."""
        return self.constant(np.asarray(value, self.number_type))

    def whole(self, value: int) -> str:
        """An int64 scalar."""
        return self.constant(np.asarray(value, np.int64))

    def ints(self, *values: int) -> str:
        """A vector of int64."""
        return self.constant(np.asarray(values, np.int64))

    def weight(self, *shape: int, scale: float | None = None, mean: float = 0.0) -> str:
        """Random numbers; a matrix is scaled by its rows."""
        spread = scale if scale is not None else shape[0] ** -0.5
        array = mean + spread * self.rng.standard_normal(shape)
        return self.given(array)

    def given(self, array: Array) -> str:
        """A weight of these values, in the precision that weights are stored in."""
        name = f"weight.{len(self.weights)}"
        stored = np.float16 if self.stored_half or self.half else np.float32
        self.weights[name] = np.asarray(array).astype(stored)
        if self.stored_half and not self.half:
            return self.op("Cast", name, to=FLOAT)
        return name

    def input(self, name: str, dtype: int, shape: Sequence[int | str], feed: Feed) -> str:
        """A graph input and what a run of the whole sequence feeds it."""
        self.inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        self.feeds[name] = feed
        return name

    def output(self, value: str, name: str, dtype: int, shape: Sequence[int | str]) -> None:
        """Make a value a graph output of that name."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=f"to_{name}"))
        self.outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    # what many parts need

    def cast(self, value: str, to: int | None = None) -> str:
        """`value` as the activations' type, or as `to`."""
        return self.op("Cast", value, to=self.float_type if to is None else to)

    def slice(self, value: str, start: int, end: int, axis: int, step: int = 1) -> str:
        """Part of an axis."""
        extra = (self.ints(step),) if step != 1 else ()
        return self.op("Slice", value, self.ints(start), self.ints(end), self.ints(axis), *extra)

    def reshape(self, value: str, *shape: int) -> str:
        """0 keeps a dimension, -1 is what is left."""
        return self.op("Reshape", value, self.ints(*shape))

    def swap(self, value: str, *perm: int) -> str:
        """Transpose."""
        return self.op("Transpose", value, perm=list(perm))

    def size(self, value: str, axis: int) -> str:
        """An extent as a vector of one int64."""
        return self.op("Shape", value, start=axis, end=axis + 1)

    def scalar(self, vector: str) -> str:
        """A vector of one as a scalar."""
        return self.op("Squeeze", vector, self.ints(0))

    def unsqueeze(self, value: str, *axes: int) -> str:
        """New axes of one."""
        return self.op("Unsqueeze", value, self.ints(*axes))

    def model(self) -> onnx.ModelProto:
        """The whole file, checked by ONNX where its operators are all standard."""
        holds = [numpy_helper.from_array(a, n) for n, a in self.weights.items()]
        graph = helper.make_graph(self.nodes, "generated", self.inputs, self.outputs, holds)
        domains = sorted({n.domain for n in self.nodes} - {""})
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(domain, 1) for domain in domains]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)
