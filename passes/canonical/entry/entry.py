"""The ports of any exported decoder, brought to `tokens`, `positions` -> `logits`.

Every other input is replaced by what a prefill without padding feeds it: caches are empty, masks
all-visible or causal, numbers what follows from B and N. Each replacement is an assumption that is
written down; `canonical_assumptions` refuses those that the graph contradicts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from graftline.errors import NotApplicable
from graftline.facts import FACTS_KEY, decoder_facts
from graftline.passes.canonical.entry.branch import take_branches
from graftline.passes.canonical.entry.logits import Ends, find_ends
from graftline.passes.canonical.entry.roles import Role, role_of
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.meaning import label
from graftline.passes.graph.mismatch import Mismatch, refusal
from graftline.passes.graph.names import separate_names
from graftline.ports import Assumption, Port

_TOLD: Mapping[str, tuple[str, str, str]] = {
    "padding": (
        "padding mask", "all ones: no token is padding",
        "sequences of a batch are kept apart by their own lengths"),
    "causal": (
        "attention mask", "causal: a token sees itself and what precedes it",
        "the graph leaves hiding the future to its caller"),
    "cache": (
        "cache", "empty", "graftline gives the attention a cache of its own"),
    "order": (
        "positions of the new tokens", "those of `positions`", "nothing precedes an empty cache"),
    "past_length": ("length of the past", "0", "nothing precedes an empty cache"),
    "length": ("length", "the number of tokens", "nothing precedes an empty cache"),
    "last": ("last position", "the number of tokens less one", "nothing precedes an empty cache"),
    "all_rows": (
        "number of logits to keep", "0: logits at every position",
        "a draft is verified at every position"),
    "off": (
        "flag", "false: the branch without a cache",
        "graftline gives the attention a cache of its own"),
    "on": (
        "flag", "true: the branch without a cache",
        "graftline gives the attention a cache of its own"),
}  # fmt: skip
"""Per role: what it is called, what stands in its place, and why that is sound."""
_REDUCES = frozenset({
    "CumSum", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceMean", "ReduceProd", "ArgMax", "ArgMin",
    "NonZero", "TopK",
})  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """The canonical inputs, whether positions were an input before, the ports that the export had,
    what was assumed of them, and the values that now stand for replaced inputs."""

    tokens: ir.Value
    positions: ir.Value
    own_positions: bool
    raw: tuple[Port, ...]
    assumptions: tuple[Assumption, ...]
    replaced: tuple[tuple[ir.Value, Port], ...]


def enter(model: ir.Model) -> Entry:
    """Give the graph its canonical inputs and its one output.

    Raises NotApplicable naming the input or output that is not understood.
    """
    graph = model.graph
    flags = take_branches(graph)
    given = list(graph.inputs)
    stated = FACTS_KEY in model.metadata_props
    ends = find_ends(graph, decoder_facts(model).vocabulary if stated else 0)
    if isinstance(ends, Mismatch):
        raise refusal("not a decoder of text", [ends])
    roles = _roles(graph, ends, flags)
    raw = [_port(v, roles[v]) for v in given]
    raw.append(_logits_port(ends))
    _keep_logits(model, ends.logits)
    _check_ids(ends.tokens)
    replaced = [
        (_replace_input(graph, value, role, ends.tokens), port)
        for value, port in zip(given, raw, strict=False)
        if (role := roles[value]).name not in ("tokens", "positions")
    ]
    positions = next((v for v in given if roles[v].name == "positions"), None)
    own = positions is not None
    graph.inputs.clear()
    positions = positions if positions is not None else ir.Value(name="positions")
    for value, name in ((ends.tokens, "tokens"), (positions, "positions")):
        _widen(graph, value)
        value.name = name
        value.shape = ir.Shape(["B", "N"])
        value.type = ir.TensorType(ir.DataType.INT64)
        graph.inputs.append(value)
    separate_names(graph)
    common.RemoveUnusedNodesPass()(model)
    stated = tuple(Assumption(p.name, *_TOLD[p.role]) for p in raw if p.role in _TOLD)
    kept = tuple((new, port) for new, port in replaced if new is not None)
    return Entry(ends.tokens, positions, own, tuple(raw), stated, kept)


def _roles(graph: ir.Graph, ends: Ends, flags: Mapping[ir.Value, bool]) -> dict[ir.Value, Role]:
    tokens = ends.tokens
    _check_free(tokens)
    roles: dict[ir.Value, Role] = {tokens: Role("tokens", ("B", "N"))}
    odd: list[Mismatch] = []
    for value in graph.inputs:
        if value in flags:
            shape = tuple(int(d) for d in value.shape or () if isinstance(d, int))
            roles[value] = Role("on" if flags[value] else "off", shape)
        elif value is not tokens:
            found = role_of(value, tokens)
            if isinstance(found, Mismatch):
                odd.append(found)
            else:
                roles[value] = found
    if odd:
        raise refusal("an input is not understood", odd)
    several = [v for v in graph.inputs if roles[v].name == "positions"]
    if len(several) > 1:
        raise NotApplicable("several inputs act as positions", [f"input {v.name}" for v in several])
    return roles


def _check_free(tokens: ir.Value) -> None:
    shape = list(tokens.shape) if tokens.shape is not None else ["batch", "length"]
    if len(shape) != 2 or isinstance(shape[1], int):
        raise NotApplicable(
            f"input {tokens.name} has the shape [{', '.join(map(str, shape))}]; export token ids "
            "as [batch, length] with a dynamic length"
        )


def _port(value: ir.Value, role: Role) -> Port:
    kind = (value.dtype or ir.DataType.INT64).numpy().name
    return Port(value.name or "", role.name, "in", kind, role.shape)


def _logits_port(ends: Ends) -> Port:
    kind = (ends.logits.dtype or ir.DataType.FLOAT).numpy().name
    flat = ends.logits.shape is not None and len(ends.logits.shape) == 2
    shape = ("B", ends.vocabulary) if flat else ("B", "N", ends.vocabulary)
    return Port(ends.logits.name or "", "logits", "out", kind, shape)


def _keep_logits(model: ir.Model, logits: ir.Value) -> None:
    graph = model.graph
    if logits.producer() is None:
        raise NotApplicable("the logits are an input", [logits.name or ""])
    graph.outputs.clear()
    graph.outputs.append(logits)
    logits.name = "logits"
    common.RemoveUnusedNodesPass()(model)


def _check_ids(tokens: ir.Value) -> None:
    """Refuse what is counted over the ids of a text, as positions that skip a padding id are."""
    compared, seen, todo = list[str](), {tokens}, [tokens]
    while todo:
        for node, index in todo.pop().uses():
            if node.op_type in ("Shape", "Size") or (node.op_type.startswith("Gather") and index):
                continue
            if node.op_type in _REDUCES:
                told = f" (they are compared at {', '.join(compared)})" if compared else ""
                raise NotApplicable(
                    f"the values of token ids are counted over the text{told}: positions or a mask "
                    "depend on which tokens are padding; export with position ids and attention "
                    "mask as inputs",
                    [label(node)],
                )
            compared += [label(node)] if node.op_type in ("Equal", "Greater", "Less") else []
            fresh = [v for v in node.outputs if v not in seen]
            seen.update(fresh)
            todo.extend(fresh)


def _replace_input(
    graph: ir.Graph, value: ir.Value, role: Role, tokens: ir.Value
) -> ir.Value | None:
    """Put in place of an input what a prefill without padding would feed; None where no node reads
    it."""
    first = next(iter(graph), None)
    if first is None:
        raise NotApplicable("the graph is empty")
    if not value.uses():
        return None
    emit = Emit(graph, "canonicalize", at=first)
    new = _WRITERS[role.name](_Filling(emit, tokens, role.shape), value.dtype or ir.DataType.FLOAT)
    new.type = ir.TensorType(value.dtype or ir.DataType.FLOAT)
    ir.convenience.replace_all_uses_with(value, new)
    return new


@dataclass(frozen=True)
class _Filling:
    """What a value in place of an input is made of."""

    emit: Emit
    tokens: ir.Value
    shape: tuple[str | int, ...]

    def size(self, dim: str | int) -> ir.Value:
        """One dimension, as a vector of one number."""
        if isinstance(dim, int):
            return self.emit.const(f"row.{dim}", [dim], np.int64)
        at = 0 if dim == "B" else 1
        return self.emit.op("Shape", [self.tokens], start=at, end=at + 1)

    def whole(self) -> ir.Value:
        """The shape as a vector."""
        if not self.shape:
            return self.emit.const("shape.scalar", np.zeros(0), np.int64)
        sizes = [self.size(dim) for dim in self.shape]
        return sizes[0] if len(sizes) == 1 else self.emit.op("Concat", sizes, axis=0)


_Writer = Callable[[_Filling, ir.DataType], ir.Value]


def _filled(number: int) -> _Writer:
    def write(filling: _Filling, dtype: ir.DataType) -> ir.Value:
        fill = ir.tensor(np.asarray([number], np.int64))
        held = filling.emit.op("ConstantOfShape", [filling.whole()], value=fill)
        return filling.emit.op("Cast", [held], to=dtype)

    return write


def _counted(less: int) -> _Writer:
    """N, or less, everywhere."""

    def write(filling: _Filling, dtype: ir.DataType) -> ir.Value:
        emit = filling.emit
        rows: ir.Value = filling.size("N")
        if less:
            rows = emit.op("Sub", [rows, emit.const(f"row.{less}", [less], np.int64)])
        shape = filling.whole()
        if not filling.shape:
            return emit.op("Cast", [emit.op("Reshape", [rows, shape])], to=dtype)
        return emit.op("Cast", [emit.op("Expand", [rows, shape])], to=dtype)

    return write


def _order(filling: _Filling, dtype: ir.DataType) -> ir.Value:
    emit = filling.emit
    size = emit.op("Squeeze", [filling.size("N")])
    zero, one = _number(emit, 0), _number(emit, 1)
    return emit.op("Cast", [emit.op("Range", [zero, size, one])], to=dtype)


def _number(emit: Emit, number: int) -> ir.Value:
    return emit.const(f"number.{number}", number, np.int64)


def _causal(filling: _Filling, dtype: ir.DataType) -> ir.Value:
    emit = filling.emit
    ones = _filled(1)(filling, ir.DataType.FLOAT)
    lower = emit.op("Cast", [emit.op("Trilu", [ones], upper=0)], to=ir.DataType.BOOL)
    if not dtype.is_floating_point():
        return lower if dtype == ir.DataType.BOOL else emit.op("Cast", [lower], to=dtype)
    none, lowest = np.float32(0), np.float32(-3e38 if dtype != ir.DataType.FLOAT16 else -65504)
    name = f"mask.lowest.{dtype.name.lower()}"
    bias = emit.op("Where", [lower, emit.const("mask.none", none), emit.const(name, lowest)])
    return bias if dtype == ir.DataType.FLOAT else emit.op("Cast", [bias], to=dtype)


_WRITERS: dict[str, _Writer] = {
    "padding": _filled(1), "cache": _filled(0), "past_length": _filled(0), "all_rows": _filled(0),
    "off": _filled(0), "on": _filled(1), "length": _counted(0), "last": _counted(1),
    "order": _order, "causal": _causal,
}  # fmt: skip


def _widen(graph: ir.Graph, value: ir.Value) -> None:
    """Let readers of a 32-bit input go on reading 32 bits from a 64-bit one."""
    if value.dtype in (None, ir.DataType.INT64) or not value.uses():
        return
    first = next(iter(graph))
    readers = list(value.uses())
    cast = Emit(graph, "canonicalize", at=first).op("Cast", [value], to=value.dtype)
    cast.type = ir.TensorType(value.dtype)
    for node, index in readers:
        if node.op_type not in ("Shape", "Gather"):
            node.replace_input_with(index, cast)
