"""Operators that sum over an axis or have its statistics: products, norms, recurrences."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from graftline.passes.anchors.fields.span import Blocked, Span
from graftline.passes.anchors.fields.walk import State, Walk
from graftline.passes.graph.meaning import label

REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip


_NORMED = "it normalizes by statistics of the whole"
STATISTICS = {
    "InstanceNormalization": _NORMED, "LayerNormalization": _NORMED, "Softmax": "it is a softmax "
    "over the whole", "MatMul": "it sums over places (attention)", "Attention": "it is attention",
}  # fmt: skip
"""Operators that are the reason for an infinite field where their operand has merged the axis."""


def _span(walk: Walk, node: ir.Node) -> Span | Blocked:
    """Of the first operand, where it alone follows the latents."""
    state = walk.state(node.inputs[0])
    if isinstance(state, Span) and all(walk.state(v) is None for v in node.inputs[1:]):
        return state
    return Blocked(label(node), "several of its operands are made of the latents")


def multiply(walk: Walk, node: ir.Node) -> State:
    """MatMul with a weight, along an axis that is not summed over."""
    left, right = (walk.state(v) for v in node.inputs)
    span, place = (left, 0) if isinstance(left, Span) else (right, 1)
    ranks = [walk.rank(v) for v in node.inputs]
    if not isinstance(span, Span) or (left is not None and right is not None) or min(ranks) < 2:
        return Blocked(label(node), "it sums over places (attention)")
    summed = ranks[place] - (1 if place == 0 else 2)
    if span.axis == summed:
        return Blocked(label(node), "it sums over the axis")
    return span.at(span.axis + max(ranks) - ranks[place])


def gemm(walk: Walk, node: ir.Node) -> State:
    """Gemm with a weight, row by row."""
    span = _span(walk, node)
    if isinstance(span, Blocked) or span.axis or node.attributes.get_int("transA", 0):
        return Blocked(label(node), "it sums over the axis")
    return span


def per_channel(walk: Walk, node: ir.Node) -> State:
    """BatchNormalization and LRN: at each place alone."""
    span = _span(walk, node)
    if isinstance(span, Span) and span.axis == 1:
        return span.stopped(Blocked(label(node), "it mixes places as channels"))
    return span


def normalize_places(walk: Walk, node: ir.Node) -> State:
    """InstanceNormalization and GroupNormalization: statistics of all places of a row."""
    span = _span(walk, node)
    stop = Blocked(label(node), _NORMED)
    return span.stopped(stop) if isinstance(span, Span) and span.axis else span


def along(first: bool, reason: str, usual: int) -> Callable[[Walk, ir.Node], State]:
    """Operators along their attribute `axis`; `first`: and along all behind it."""

    def states(walk: Walk, node: ir.Node) -> State:
        span = _span(walk, node)
        if isinstance(span, Blocked):
            return span
        axis = node.attributes.get_int("axis", usual) % walk.rank(node.inputs[0])
        if axis == span.axis or (first and axis < span.axis):
            return span.stopped(Blocked(label(node), reason))
        return span

    return states


def reduce(walk: Walk, node: ir.Node) -> State:
    """Over other axes; over this one nothing is left that follows the latents."""
    span = _span(walk, node)
    if isinstance(span, Blocked):
        return span
    rank = walk.rank(node.inputs[0])
    axes = walk.numbers(node.inputs[1]) if len(node.inputs) > 1 else []
    over = [a % rank for a in axes] or list(range(rank))
    if span.axis in over:
        return Blocked(label(node), "it is a statistic of the whole")
    keeps = node.attributes.get_int("keepdims", 1)
    return span if keeps else span.at(span.axis - sum(a < span.axis for a in over))


def pool_all(walk: Walk, node: ir.Node) -> State:
    """Global pools."""
    return Blocked(label(node), "it is a statistic of the whole")


def recur(walk: Walk, node: ir.Node) -> list[State]:
    """LSTM, GRU and RNN: each step depends on all before it."""
    stop = Blocked(label(node), "it is recurrent")
    span = walk.state(node.inputs[0])
    time = span.stopped(stop).at(0) if isinstance(span, Span) and span.axis == 0 else stop
    return [time, *[stop] * (len(node.outputs) - 1)]


def add_up(walk: Walk, node: ir.Node) -> State:
    """CumSum."""
    span = _span(walk, node)
    if isinstance(span, Span):
        axis = walk.numbers(node.inputs[1])[0] % walk.rank(node.inputs[0])
        return (
            span.stopped(Blocked(label(node), "it adds up the whole"))
            if axis == span.axis
            else span
        )
    return span


_SOFTMAX = along(False, "it is a softmax over the whole", -1)
_NORM = along(True, _NORMED, -1)
_ARG = along(False, "it looks for a place in the whole", 0)
PRODUCTS: Mapping[str, Callable[[Walk, ir.Node], State | list[State]]] = {
    "MatMul": multiply, "Gemm": gemm, "BatchNormalization": per_channel, "LRN": per_channel,
    "InstanceNormalization": normalize_places, "GroupNormalization": normalize_places,
    "Softmax": _SOFTMAX, "LogSoftmax": _SOFTMAX, "LpNormalization": _SOFTMAX,
    "LayerNormalization": _NORM, "RMSNormalization": _NORM, "ArgMax": _ARG, "ArgMin": _ARG,
    "GlobalAveragePool": pool_all, "GlobalMaxPool": pool_all, "LSTM": recur, "GRU": recur,
    "RNN": recur, "CumSum": add_up, **dict.fromkeys(REDUCTIONS, reduce),
}  # fmt: skip
