"""Refuses an assumption about a replaced input that the graph contradicts.

A padding mask may hide keys and count positions; anywhere else all ones must change nothing. A mask
over pairs may be taken as causal where the graph is causal by itself, or where it has a cache,
which nothing but a causal model can fill; else only the user knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Array
from graftline.passes.canonical.entry.entry import Entry
from graftline.passes.canonical.lengths import HIDES
from graftline.passes.canonical.shapes import SIZES, Measures
from graftline.passes.graph.meaning import label, type_of
from graftline.ports import Port

_CHOOSES = {"Where": (0,), "Gather": (1,), "GatherElements": (1,), "GatherND": (1,),
            "ScatterElements": (1,), "ScatterND": (1,), "Compress": (1,)}  # fmt: skip
"""Operators that choose among activations, and the inputs they choose by."""


@dataclass(frozen=True)
class Meeting:
    """A node where a value that no activation made enters an activation."""

    node: ir.Node
    index: int
    value: ir.Value


def check_assumptions(
    entry: Entry, measures: Measures, hidden: set[ir.Value], causal: bool
) -> None:
    """Hold every replaced input to what it was taken for; `causal`: the user says that a mask over
    pairs is. Raises NotApplicable naming the input and the nodes that say otherwise."""
    cached = any(port.role == "cache" for port in entry.raw)
    for value, port in entry.replaced:
        met = list(_meetings(value, hidden))
        if port.role == "causal":
            _check_causal(value, port, met, measures, cached or causal)
        elif port.role not in ("cache", "all_rows"):
            for meeting in met:
                _check_neutral(port, meeting, measures, hidden)


def _meetings(value: ir.Value, hidden: set[ir.Value]) -> Iterator[Meeting]:
    seen, todo = {value}, [value]
    while todo:
        current = todo.pop()
        for node, index in list(current.uses()):
            if node.op_type in ("Shape", "Size"):
                continue
            if node.outputs[0] in hidden:
                yield Meeting(node, index, current)
                continue
            fresh = [v for v in node.outputs if v not in seen]
            seen.update(fresh)
            todo.extend(fresh)


def _is_scores(meeting: Meeting, measures: Measures) -> bool:
    """Whether a value enters attention scores [.., N, N], or an attention as its mask."""
    if meeting.node.op_type == "Attention":
        return meeting.index == 3
    shape = measures.each[0].of(meeting.node.outputs[0])
    length = SIZES[0][1]
    return shape is not None and len(shape) >= 3 and shape[-2:] == (length, length)


def _check_neutral(
    port: Port, meeting: Meeting, measures: Measures, hidden: set[ir.Value]
) -> None:
    """What a mask of ones does besides hiding keys must be nothing, at every length alike."""
    if _is_scores(meeting, measures):
        return
    node = meeting.node
    if meeting.index in _CHOOSES.get(node.op_type, ()):
        kept = _kept(meeting, measures, hidden)
        if kept is None:
            raise NotApplicable(
                f"input {port.name} chooses between activations, which no padding mask does: it is "
                "not known which choice a plain text takes; export the decoder without it",
                [label(node)],
            )
        ir.convenience.replace_all_uses_with(node.outputs[0], kept, replace_graph_outputs=True)
        return
    if node.op_type in ("Reshape", "Expand", "Slice", "Range", "Tile"):
        return
    values = [measures.world(b, n).value(meeting.value) for b, n in SIZES]
    alone = all(value.size == 1 for value in values)
    if alone and any((value != values[0]).any() for value in values):
        raise NotApplicable(
            f"activations are scaled by a number that follows the length of the text, counted from "
            f"input {port.name}",
            [label(node)],
        )


def _kept(meeting: Meeting, measures: Measures, hidden: set[ir.Value]) -> ir.Value | None:
    """The activation that a choice by all ones passes on unchanged, None where it is another."""
    node = meeting.node
    given = [v for v in node.inputs if v is not None and v in hidden]
    if node.op_type != "Where" or len(given) != 1:
        return None
    taken = node.inputs[1] is given[0]
    conditions = [measures.world(b, n).value(meeting.value) for b, n in SIZES]
    same = measures.dims(given[0]) == measures.dims(node.outputs[0])
    return given[0] if same and all((c == taken).all() for c in conditions) else None


def _check_causal(
    value: ir.Value, port: Port, met: list[Meeting], measures: Measures, known: bool
) -> None:
    strange = [label(m.node) for m in met if not _is_scores(m, measures)]
    if strange:
        raise NotApplicable(
            f"input {port.name} has one number for every pair of tokens, but is used outside "
            "attention scores",
            strange,
        )
    if known or all(_hides_future(m, value, measures) for m in met):
        return
    raise NotApplicable(
        f"nothing in this graph hides the future: it leaves that to its input {port.name}, and has "
        "no cache to show that it is causal. If it generates from left to right, say so with "
        '--passes "canonicalize{causal_mask=true}"; an encoder or a masked language model cannot '
        "be hosted",
        [label(m.node) for m in met],
    )


def _hides_future(meeting: Meeting, value: ir.Value, measures: Measures) -> bool:
    """Whether scores hide the same where the input shows everything."""
    if meeting.node.attributes.get_int("is_causal", 0):
        return True
    wanted, products = meeting.value, list[ir.Value]()
    if meeting.node.op_type != "Attention":
        wanted, products = _scores_around(meeting.node)
    hides: list[Array] = []
    for shows in (False, True):
        world = measures.world(*SIZES[0])
        if shows:
            mask = measures.world(*SIZES[0]).value(value)
            seen = np.zeros_like if mask.dtype.kind == "f" else np.ones_like
            world.known[value] = seen(mask)
        world.shapes = measures.each[0].shapes
        for product in products:
            world.known[product] = np.zeros(measures.shape(product), type_of(product))
        found = world.value(wanted)
        hides.append(~found if found.dtype == np.bool_ else found <= HIDES)
    return bool(np.array_equal(hides[0], hides[1]))


def _scores_around(node: ir.Node) -> tuple[ir.Value, list[ir.Value]]:
    """What enters the softmax below a node of the scores, and the products it is made of."""
    below = node
    while below.op_type != "Softmax":
        readers = [n for n, _ in below.outputs[0].uses() if n.op_type not in ("Shape", "IsNaN")]
        if not readers:
            raise NotApplicable("scores reach no softmax", [label(node)])
        below = readers[0]
    scores = below.inputs[0]
    assert scores is not None
    products, seen, todo = list[ir.Value](), {scores}, [scores]
    while todo:
        value = todo.pop()
        maker = value.producer()
        if maker is None:
            continue
        if maker.op_type == "MatMul":
            products.append(value)
            continue
        fresh = [v for v in maker.inputs if v is not None and v not in seen]
        seen.update(fresh)
        todo.extend(fresh)
    return scores, products
