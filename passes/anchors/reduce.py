"""A host that any machine can evaluate: few blocks, a cut vocabulary, short windows.

The numeric laws run on it. It has the structure of the whole host: a block of each kind, every
constant within reach of a short feed; what is cut away is more of the same.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.facts import decoder_facts, write_facts
from graftline.passes.anchors.anchors import NORMS, block_of, block_outputs, with_role
from graftline.passes.grafts.masks import MASK_KEY, meaning
from graftline.passes.graph.emit import drop_unused
from graftline.passes.graph.ports import input_of
from graftline.passes.graph.weights import constant, lazy, tensor_of
from graftline.passes.pipeline.graft import BLOCK
from graftline.ports import read_ports, write_ports
from graftline.tensors import numbers

LEAST_ROWS = 24
MOST_ROWS = 96
"""Rows of a feed: enough to pass every constant of a mask, at the least and at the most."""
BEYOND = 8
"""Rows of a feed behind the largest constant of a mask."""
SHORT_WINDOW = 16
"""The window that stands for one that no feed passes. The law `masks` holds the real one to its
size."""
GROUPS = 512
"""Tokens of a cut vocabulary: two groups of the reductions over it, and what is left over."""


@dataclass(frozen=True)
class Reduced:
    """`model`: the reduced host. `blocks`: which of the host's `of` blocks it keeps. `rows`: how
    many rows of a feed pass all constants of its masks that a feed of MOST_ROWS can pass."""

    model: ir.Model
    blocks: tuple[int, ...]
    of: int
    rows: int

    @property
    def size(self) -> int:
        """Bytes of its weights."""
        return weight_bytes(self.model)

    @property
    def text(self) -> str:
        """Which blocks, for people."""
        if len(self.blocks) == self.of:
            return f"all {self.of} blocks"
        return f"blocks {'+'.join(map(str, self.blocks))} of {self.of}"


def reduce_host(model: ir.Model, kept: Sequence[int] | None = None) -> Reduced:
    """A copy of an anchored host with the blocks `kept`, or a block of each kind and two at least.

    Raises NotApplicable where the host has no anchors.
    """
    reduced = model.clone()
    count = len(block_outputs(reduced.graph))
    if not count:
        raise NotApplicable("the host has no stamped blocks to reduce; run anchors first")
    blocks = tuple(kept) if kept is not None else chosen_blocks(reduced)
    keep_blocks(reduced, blocks)
    cut_vocabulary(reduced)
    shorten_windows(reduced)
    drop_unread(reduced)
    write_facts(reduced, replace(decoder_facts(reduced), layers=len(blocks)))
    return Reduced(reduced, blocks, count, feed_rows(reduced))


def feed_rows(model: ir.Model) -> int:
    """Rows of a feed that passes every constant of the host's masks that MOST_ROWS can pass."""
    constants = [c for c in mask_constants(model.graph) if c <= MOST_ROWS - BEYOND]
    rows = max([LEAST_ROWS, *(c + BEYOND for c in constants)])
    return min(rows, decoder_facts(model).positions or rows)


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers of a graph."""
    tensors = (v.const_value for v in model.graph.initializers.values())
    return sum(t.nbytes for t in tensors if t is not None)


def hold_weights(model: ir.Model) -> None:
    """Make weights that are converted when read now, once, in place of at every evaluation."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.LazyTensor):
            tensor = value.const_value
            value.const_value = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)


def chosen_blocks(model: ir.Model, least: int = 2) -> tuple[int, ...]:
    """The first block of each kind, and `least` blocks where there are as many."""
    first: dict[Hashable, int] = {}
    kinds = block_kinds(model.graph, apart=False)
    for block, kind in kinds.items():
        first.setdefault(kind, block)
    chosen = sorted(first.values())
    return tuple(chosen) if len(chosen) >= least else tuple(range(min(least, len(kinds))))


def block_kinds(graph: ir.Graph, apart: bool = True) -> dict[int, Hashable]:
    """What each block computes, by number, whatever its weights hold: its operators, attributes,
    masks, the shapes of its weights, and what each operator reads. `apart`: the first block, which
    reads the embedding and not a block, is of a kind of its own."""
    numbers = sorted({b for b in map(block_of, graph) if b is not None})
    behind = dict(zip(numbers, [None, *numbers], strict=False))
    counts: dict[int, Counter[Hashable]] = {block: Counter() for block in numbers}
    for node in graph:
        block = block_of(node)
        if block is not None:
            counts[block][_kind(node, block, behind[block], apart)] += 1
    return {block: frozenset(counts[block].items()) for block in numbers}


def _kind(node: ir.Node, block: int, behind: int | None, apart: bool) -> Hashable:
    attributes = frozenset(
        (name, _attribute(attribute, block, behind, apart))
        for name, attribute in node.attributes.items()
    )
    reads = tuple(_read(value, block, behind, apart) for value in node.inputs)
    mask = node.metadata_props.get(MASK_KEY, "")
    return node.domain, node.op_type, attributes, reads, mask, apart and _normed(node, block)


def _attribute(attribute: ir.Attr, block: int, behind: int | None, apart: bool) -> Hashable:
    """A number or a text as it is; a branch as the kinds of its nodes."""
    if attribute.type != ir.AttributeType.GRAPH:
        return str(attribute.value)
    kinds = Counter(_kind(node, block, behind, apart) for node in attribute.as_graph())
    return frozenset(kinds.items())


def _normed(node: ir.Node, block: int) -> bool:
    """Whether a norm of the next block or of the head reads what a node makes: lowering may fuse
    the two. Of blocks that norm what they add, that is the last alone."""
    readers = [n for v in node.outputs for n in v.consumers() if n.op_type in NORMS]
    return any(n.metadata_props.get(BLOCK) != str(block) for n in readers)


def _read(value: ir.Value | None, block: int, behind: int | None, apart: bool) -> str:
    """What a block reads there, said so that equal blocks at other places say the same. `behind`:
    the block before it."""
    if value is None:
        return ""
    maker = value.producer()
    if maker is None and constant(value) is not None:
        tensor = tensor_of(value)
        return f"{tensor.dtype} {tensor.shape}"
    if maker is None:  # a port, which may be that of the block
        return re.sub(rf"\b{block}\b", "#", value.name or "")
    place, own = maker.metadata_props.get(BLOCK, ""), f"{maker.op_type}.{value.index()}"
    if place == str(block):
        return own
    if place == str(behind) or (behind is None and place == "embedding" and not apart):
        return "stream"
    return f"{block - int(place)} blocks before: {own}" if place.isdigit() else f"{place}: {own}"


def keep_blocks(model: ir.Model, blocks: Sequence[int]) -> None:
    """Let each of `blocks` follow the one before it in the list, and the head the last."""
    stream = block_outputs(model.graph)
    after = [*blocks[1:], len(stream)]
    for block, follower in zip(blocks, after, strict=True):
        if follower != block + 1:
            for user, index in list(stream[follower - 1].uses()):
                user.replace_input_with(index, stream[block])
    drop_unused(model)
    number = {str(block): str(place) for place, block in enumerate(blocks)}
    for node in model.graph:
        name = node.metadata_props.get(BLOCK, "")
        node.metadata_props[BLOCK] = number.get(name, name)


def drop_unread(model: ir.Model) -> None:
    """Remove nodes and weights that nothing reads."""
    drop_unused(model)
    for name in [n for n, v in model.graph.initializers.items() if not v.uses()]:
        del model.graph.initializers[name]


# the vocabulary


_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Tanh", "Cast", "Where", "Clip"})


def cut_vocabulary(model: ir.Model) -> None:
    """Keep the first tokens of the vocabulary in every table and in the head, where the head is a
    constant matrix whose scores nothing mixes on their way to the logits."""
    graph, facts, ports = model.graph, decoder_facts(model), read_ports(model)
    size = facts.vocabulary
    kept = GROUPS + size % 256
    head = with_role(graph, "lm_head")
    path = _to_logits(graph, head[0]) if len(head) == 1 and size > 2 * kept else None
    if path is None:
        return
    tokens = input_of(model, "tokens")
    assert tokens is not None, "a canonical graph has tokens"
    tables = [n.inputs[0] for n in tokens.consumers() if n.op_type == "Gather"]
    weight = head[0].inputs[1]
    maker = weight.producer() if weight is not None else None
    scores = maker.inputs[0] if maker is not None and maker.op_type == "Transpose" else weight
    others = [v for node in path for v in node.inputs]
    for value in dict.fromkeys([*tables, scores, *others]):
        if constant(value) is not None:
            _cut(cast(ir.Value, value), size, kept)
    if weight is not None and maker is not None:
        weight.shape = None  # to be inferred
    for value in [v for n in [*head, *path] for v in n.outputs]:
        value.shape = ir.Shape([*list(value.shape or ())[:-1], kept])
    rows = next(p for p in ports if p.role == "logits").shape[:-1]
    cut = [replace(p, shape=(*rows, kept)) if p.role == "logits" else p for p in ports]
    write_ports(model, cut)
    write_facts(model, replace(facts, vocabulary=kept))


def _to_logits(graph: ir.Graph, head: ir.Node) -> list[ir.Node] | None:
    """The elementwise nodes between the head's product and the logits; None where others are."""
    if head.op_type not in ("MatMul", "Gemm"):
        return None
    path, value = list[ir.Node](), head.outputs[0]
    while not value.is_graph_output():
        readers = value.consumers()
        if len(readers) != 1 or readers[0].op_type not in _ELEMENTWISE:
            return None
        path.append(readers[0])
        value = readers[0].outputs[0]
    return path


def _cut(value: ir.Value, size: int, kept: int) -> None:
    """Keep a copy, which holds no more, of the first `kept` of `size` entries along an axis."""
    tensor = tensor_of(value)
    shape = [int(d) for d in tensor.shape]  # type: ignore[arg-type]
    if size not in shape:
        return
    axis = shape.index(size)
    shape[axis] = kept
    value.const_value = lazy(
        lambda: numbers(tensor).take(range(kept), axis), tensor.dtype, shape, value.name or ""
    )
    value.shape = ir.Shape(shape)


# masks


def shorten_windows(model: ir.Model) -> None:
    """Give windows that no feed of MOST_ROWS passes a short size, each its own."""
    nodes = with_role(model.graph, "attention")
    sizes = {int(meaning(n)["size"]) for n in nodes if meaning(n)["kind"] == "window"}
    long = sorted(s for s in sizes if s > MOST_ROWS - BEYOND)
    short = dict(zip(long, _unused(sizes, len(long)), strict=True))
    for node in nodes:
        says = dict(meaning(node))
        if says["kind"] != "window" or says["size"] not in short:
            continue
        size, other = says["size"], short[says["size"]]
        for held in constants_above(node.inputs[3]):
            if _whole_number(held) == size:
                dtype = tensor_of(held).dtype
                array = np.asarray(other, dtype.numpy()).reshape(tensor_of(held).shape.numpy())
                held.const_value = ir.tensor(array, dtype=dtype, name=held.name)
        node.metadata_props[MASK_KEY] = json.dumps({**says, "size": other})


def _unused(taken: set[int], count: int) -> list[int]:
    free = (s for s in range(SHORT_WINDOW, MOST_ROWS) if s not in taken)
    return [next(free) for _ in range(count)]


def mask_constants(graph: ir.Graph) -> set[int]:
    """Whole numbers that the masks of a canonical host are computed with."""
    masks = dict.fromkeys(n.inputs[3] for n in with_role(graph, "attention") if len(n.inputs) > 3)
    held = {value for mask in masks for value in constants_above(mask)}
    numbers = {n for n in map(_whole_number, held) if n is not None}
    longer = [tensor_of(value).shape for value in held if tensor_of(value).size != 1]
    return numbers | {int(d) for shape in longer for d in shape if isinstance(d, int)}


def constants_above(value: ir.Value | None) -> list[ir.Value]:
    """The initializers that a value is computed from."""
    found, seen, todo = list[ir.Value](), set[ir.Value](), [value]
    while todo:
        one = todo.pop()
        if one is None or one in seen:
            continue
        seen.add(one)
        node = one.producer()
        if node is not None:
            todo.extend(node.inputs)
        elif constant(one) is not None:
            found.append(one)
    return found


def _whole_number(value: ir.Value) -> int | None:
    """The magnitude of a constant of one element that is a whole number."""
    tensor = tensor_of(value)
    number = float(np.asarray(tensor.numpy(), np.float64).reshape(())) if tensor.size == 1 else 0.5
    return abs(int(number)) if np.isfinite(number) and number.is_integer() else None
