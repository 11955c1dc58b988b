"""Refuses nodes that mix rows: only attention may carry something from one token to another.

A cache of keys and values continues an attention and nothing else. What else reads a row from other
rows (a mean over the text, each token with the one before it) would find other rows when the same
text comes in several calls or as a tree.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graftline.errors import CannotEvaluate, NotApplicable
from graftline.evaluate import Array
from graftline.passes.canonical.attention.moves import single_source
from graftline.passes.canonical.shapes import SIZES, Measures
from graftline.passes.graph.meaning import constant, label
from graftline.passes.graph.mismatch import Mismatch

_SCANS = frozenset({"Conv", "ConvTranspose", "Scan", "Loop", "If", "LSTM", "GRU", "RNN"})
"""Operators that are refused whatever they do: what they do to rows is not looked at."""
_TAKES = frozenset({"Slice", "Split", "Gather"})
_MOVES = {"Concat": "joins parts of", "Pad": "moves", "ReverseSequence": "reverses"}
_ONE_AXIS = frozenset(
    {"ArgMax", "ArgMin", "Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "TopK"}
)
_VERBS = {
    "ReduceMean": "averages", "ReduceSum": "adds up", "ReduceMax": "takes the largest of",
    "ReduceMin": "takes the smallest of", "CumSum": "adds up one after another",
    "MatMul": "adds up", "Gemm": "adds up", "Einsum": "adds up",
}  # fmt: skip


def refuse_mixing(graph: ir.Graph, measures: Measures, hidden: set[ir.Value]) -> None:
    """Raises NotApplicable naming a node besides attention that mixes rows or sequences."""
    nodes = [n for n in graph if n.op_type != "Attention" and n.outputs[0] in hidden]
    # what joins says more than what takes its parts, which stands in front of it
    for node in sorted(nodes, key=lambda n: n.op_type in _TAKES):
        for does in _mixings(node, measures, hidden):
            raise NotApplicable(
                f"{label(node)} {does}: tokens are mixed with each other by something that is not "
                "an attention, and no cache of keys and values continues that; such a model cannot "
                "be served"
            )


def _mixings(node: ir.Node, measures: Measures, hidden: set[ir.Value]) -> Iterator[str]:
    """What a node does to rows or sequences besides keeping each for itself, in words."""
    if (measures.dims(node.outputs[0]) or []).count("N") > 1:
        yield "makes a number for every pair of tokens"
    elif node.op_type in _SCANS:
        yield "runs over the tokens"
    elif node.op_type in _TAKES or node.op_type in _MOVES:
        yield from _moved(node, measures, hidden)
    else:
        for symbol in _run_over(node, measures, hidden):
            yield f"{_VERBS.get(node.op_type, 'runs over')} {_words(symbol)}"


def _moved(node: ir.Node, measures: Measures, hidden: set[ir.Value]) -> Iterator[str]:
    """How a node leaves out rows, joins them or puts them elsewhere."""
    joins = node.op_type == "Concat"
    parts = (*node.inputs, node.outputs[0]) if joins else node.inputs[:1]
    for value in (v for v in parts if v is not None and v in hidden):
        axes = _moved_axes(node, len(measures.dims(value) or ()))
        for symbol in _symbols(value, axes, measures):
            places = _places(node, measures, hidden) if symbol == "N" else None
            if places is not None:
                yield from _shift(places)
            else:
                yield f"{_MOVES.get(node.op_type, 'takes a part of')} {_words(symbol)}"
            return


def _shift(places: Array) -> Iterator[str]:
    """What is done to tokens 1, 2, ... of which these are left (0: nothing); none when nothing."""
    moved = {int(p) for p in (np.arange(1, len(places) + 1) - places)[places != 0]}
    if moved == {0} and places.all():
        return
    if len(moved) == 1 and (by := moved.pop()):
        yield f"puts each token in the place {abs(by)} {'after' if by > 0 else 'before'} its own"
    else:
        yield "puts the tokens of a sequence in another order"


def _places(node: ir.Node, measures: Measures, hidden: set[ir.Value]) -> Array | None:
    """Which token 1, 2, ... of a sequence stands at each place of the output (0: none); None when
    it is not one of them, or cannot be told."""
    origins = {_origin(v, measures, hidden) for v in node.inputs if v in hidden}
    origin, out = origins.pop(), measures.dims(node.outputs[0])
    dims = measures.dims(origin)
    if origins or dims is None or out is None or dims.count("N") * out.count("N") != 1:
        return None
    (batch, length), measure = SIZES[0], measures.each[0]
    at = np.arange(1, length + 1).reshape([-1 if d == "N" else 1 for d in dims])
    world = measures.world(batch, length)
    world.shapes = measure.shapes
    world.known[origin] = np.broadcast_to(at, measures.shape(origin)).astype(np.float32)
    try:
        made = np.moveaxis(world.value(node.outputs[0]), out.index("N"), 0).reshape(length, -1)
    except CannotEvaluate:
        return None
    return made[:, 0] if (made == made[:, :1]).all() else None


def _origin(value: ir.Value | None, measures: Measures, hidden: set[ir.Value]) -> ir.Value:
    """What a value is a part, or a multiple, of."""
    assert value is not None
    while (node := value.producer()) is not None:
        source = single_source(node, hidden, measures)
        if isinstance(source, Mismatch):
            if source.final:
                raise source.error()
            break
        value = source
    return value


def _moved_axes(node: ir.Node, rank: int) -> list[int]:
    """The axes along which a node takes or joins."""
    if node.op_type == "Slice":
        axes, start, end = _given_axes(node, 3, rank), *map(constant, node.inputs[1:3])
        if start is None or end is None or not len(start) == len(end) == len(axes):
            return axes
        cut = (start != 0) | (end < np.iinfo(np.int32).max)
        return [axes[i] for i in np.flatnonzero(cut)]
    if node.op_type == "Pad":
        axes, pads = _given_axes(node, 3, rank), constant(node.inputs[1])
        if pads is None or len(pads) != 2 * len(axes):
            return axes
        before, after = pads.reshape(2, -1)
        return [axes[i] for i in np.flatnonzero((before != 0) | (after != 0))]
    if node.op_type == "ReverseSequence":
        return [int(node.attributes.get_int("time_axis", 0) or 0)]
    return [int(node.attributes.get_int("axis", 0) or 0)]


def _symbols(value: ir.Value, axes: list[int], measures: Measures) -> Iterator[str]:
    """The symbols of those of the axes that have one."""
    dims = measures.dims(value) or []
    for axis in axes:
        symbol = dims[axis] if -len(dims) <= axis < len(dims) else 1
        if isinstance(symbol, str):
            yield symbol


def _words(symbol: str) -> str:
    if "N" not in symbol:
        return "the sequences of a batch"
    return "the tokens of a sequence" if "B" not in symbol else "the tokens of all sequences"


def _run_over(node: ir.Node, measures: Measures, hidden: set[ir.Value]) -> Iterator[str]:
    """Symbols of the axes of activations that a node runs over."""
    for index, value in enumerate(node.inputs):
        if value is not None and value in hidden:
            rank = len(measures.dims(value) or ())
            yield from _symbols(value, _axes(node, index, rank), measures)


def _axes(node: ir.Node, index: int, rank: int) -> list[int]:
    """The axes of input `index` that a node runs over."""
    kind, axis = node.op_type, int(node.attributes.get_int("axis", -1) or 0)
    if kind == "MatMul":
        return [-1 if index == 0 or rank == 1 else -2]
    if kind == "Gemm":
        across = bool(node.attributes.get_int("transA" if index == 0 else "transB", 0))
        return [[1 - across, int(across)][index]] if index < 2 else []
    if kind == "Einsum":
        left, _, right = node.attributes["equation"].as_string().replace(" ", "").partition("->")
        return [i for i, letter in enumerate(left.split(",")[index]) if letter not in right]
    if index > 0:
        return []
    if kind.startswith("Reduce"):
        return _reduced(node, rank)
    if kind == "CumSum":
        return _given_axes(node, 1, rank)
    if kind == "MeanVarianceNormalization":
        return [int(a) for a in node.attributes.get_ints("axes", (0, 2, 3)) or ()]
    if kind.endswith("Pool") or kind in ("InstanceNormalization", "GroupNormalization"):
        return list(range(2, rank))
    return [axis] if kind in _ONE_AXIS else []


def _reduced(node: ir.Node, rank: int) -> list[int]:
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else ()
    if axes is not None and not len(axes) and node.attributes.get_int("noop_with_empty_axes", 0):
        return []
    return _given_axes(node, 1, rank)


def _given_axes(node: ir.Node, index: int, rank: int) -> list[int]:
    """The axes that input `index` names: all where it is left out, empty or cannot be told."""
    value = node.inputs[index] if len(node.inputs) > index else None
    array = constant(value)
    if array is None or not array.size:
        return list(range(rank))
    return [int(a) for a in array.reshape(-1)]
