"""What a plugin is: one operator with three meanings that a test holds equal.

An ONNX function of standard operators (any backend runs it inlined), a Triton kernel, and a plugin
for TensorRT that embeds that kernel's PTX. A numpy reference, written on its own, judges them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser

from graftline.errors import GraftlineError
from graftline.plugins.onnx_text import written_out

DOMAIN = "graftline"
OPSET = 24
TREE_LIMIT = 256
"""Most nodes of a tree: the functions follow parent pointers by eight doublings. A compiler that
fuses them into one kernel makes code and reads that double with each."""

Array = npt.NDArray[Any]
Value = int | float
Values = Mapping[str, Value]
Dims = Mapping[str, Any]
"""Extents by symbol: integers, or the symbolic expressions of a TensorRT shape."""


@dataclass(frozen=True)
class Tensor:
    """An input or output. `type` is a numpy type, or "T": the plugin's float type.

    `dims` are symbols, resolved from the inputs, or else from the attribute of that name, or
    written-out numbers.
    """

    name: str
    type: str
    dims: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """How a kernel is launched: its compile-time constants and its grid of programs."""

    constants: Mapping[str, Value]
    grid: tuple[Any, Any]
    warps: int = 4


@dataclass(frozen=True)
class Plugin:
    """One operator of the domain "graftline".

    The kernel `kernels/{module}.py:{module}` takes pointers to the inputs, the extents named by
    `scalars` as int32, then pointers to the outputs: the order TensorRT passes them in. `static`
    extents are known when it is compiled. An output in `aliases` is its input, changed in place.
    `plan(dims, attributes, cdiv)` may only multiply and `cdiv` extents that are not static.
    """

    name: str
    module: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    body: str
    reference: Callable[..., tuple[Array, ...]]
    plan: Callable[[Dims, Values, Callable[[Any, int], Any]], Plan]
    attributes: Values = field(default_factory=dict[str, Value])
    static: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])

    def function(self) -> onnx.FunctionProto:
        """The meaning in ONNX's standard operators."""
        kinds = {int: "int", float: "float"}
        given = ", ".join(f"{n}: {kinds[type(v)]} = {v}" for n, v in self.attributes.items())
        inputs, outputs = (", ".join(t.name for t in ts) for ts in (self.inputs, self.outputs))
        header = f'<opset_import: ["" : {OPSET}], domain: "{DOMAIN}"> {self.name}'
        header += f" {f'<{given}>' if given else ''} ({inputs}) => ({outputs})"
        text = f"{header} {{{written_out(self.body)}}}"
        return onnx.parser.parse_function(text)

    def values(self, given: Values | None = None) -> dict[str, Value]:
        """Every attribute's value. Raises GraftlineError for one that does not exist."""
        unknown = sorted(set(given or {}) - set(self.attributes))
        if unknown:
            known = ", ".join(self.attributes) or "none"
            raise GraftlineError(f"{self.name} has no attribute {unknown[0]}; known: {known}")
        return {**self.attributes, **(given or {})}

    def dims(self, shapes: Sequence[Sequence[Any]], values: Values) -> dict[str, Any]:
        """Every symbol's extent. Raises GraftlineError when known extents of one disagree, or when
        a tree has more nodes than the functions can follow."""
        found: dict[str, Any] = {k: v for k, v in values.items() if isinstance(v, int)}
        found |= {d: int(d) for t in (*self.inputs, *self.outputs) for d in t.dims if d.isdigit()}
        for tensor, shape in zip(self.inputs, shapes, strict=True):
            if len(shape) != len(tensor.dims):
                raise GraftlineError(
                    f"{self.name}: {tensor.name} has {len(shape)} dimensions, not "
                    f"{len(tensor.dims)} ({', '.join(tensor.dims)})"
                )
            for symbol, extent in zip(tensor.dims, shape, strict=True):
                known = found.setdefault(symbol, extent)
                if isinstance(known, int) and isinstance(extent, int) and known != extent:
                    raise GraftlineError(
                        f"{self.name}: {symbol} is {known}, and {extent} in {tensor.name}"
                    )
        nodes = found.get("N")
        if isinstance(nodes, int) and nodes > TREE_LIMIT:
            raise GraftlineError(f"{self.name}: {nodes} nodes; a tree has at most {TREE_LIMIT}")
        return found

    def empty(self, inputs: Sequence[Array], values: Values) -> list[Array]:
        """Outputs to write to, of the right shapes and types; aliased ones are copies."""
        dims = self.dims([x.shape for x in inputs], values)
        floats = {x.dtype for t, x in zip(self.inputs, inputs, strict=True) if t.type == "T"}
        if len(floats) > 1:
            types = sorted(map(str, floats))
            raise GraftlineError(f"{self.name}: its float inputs must have one type, not {types}")
        made: list[Array] = []
        for tensor in self.outputs:
            alias = self.aliases.get(tensor.name)
            if alias is not None:
                index = [t.name for t in self.inputs].index(alias)
                made.append(inputs[index].copy())
                continue
            dtype = next(iter(floats)) if tensor.type == "T" else np.dtype(tensor.type)
            made.append(np.zeros([dims[d] for d in tensor.dims], dtype))
        return made


def power_of_two(extent: int, least: int = 1) -> int:
    """The smallest power of two that is at least `extent` and `least`."""
    return max(least, 1 << (extent - 1).bit_length())


def doublings(extent: int) -> int:
    """How often parent pointers are doubled until every node of `extent` reaches the root."""
    return max(1, (extent - 1).bit_length())


def over_ancestors(value: str, operator: str) -> tuple[str, str]:
    """ONNX text that combines a value of every node with those of all its ancestors; and the name
    of the result.

    It reads {value}0 [B, N, ...] and up0 [B, N, 1], the nodes' parents; a node without one points
    at a node that adds nothing. By doubling: {value}{r} covers the 2^r nearest ancestors, and up{r}
    points at the next.
    """
    rounds = doublings(TREE_LIMIT)
    text = "".join(
        f"""
    {value}{r + 1} = {operator} ({value}{r}, GatherND <batch_dims = 1> ({value}{r}, up{r}))
    up{r + 1} = GatherND <batch_dims = 1> (up{r}, up{r})"""
        for r in range(rounds)
    )
    return text, f"{value}{rounds}"
