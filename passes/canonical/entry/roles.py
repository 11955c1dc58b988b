"""What every input of an exported decoder is, told by what the graph does with it.

Evidence alone decides: the nodes that read an input, its element type, and which of its sizes are
those of the token ids. What fits no role, or two, is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.passes.canonical.entry.foreign import chooses_types, foreign
from graftline.passes.canonical.entry.logits import KEEPS_IDS
from graftline.passes.graph.meaning import label

_COMPARES = frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual"})
_SUMS = frozenset({"CumSum", "ReduceSum"})
_CACHE_AT = {"Attention": (4, 5), "GroupQueryAttention": (3, 4), "MultiHeadAttention": (6, 7)}
_CACHE_MOVES = frozenset({
    "Transpose", "Cast", "Reshape", "Identity", "Split", "Gather", "Squeeze", "Unsqueeze", "Slice",
})  # fmt: skip
_LENGTH_AT = {5: "last", 6: "length"}

Dims = tuple[str | int, ...]


@dataclass(frozen=True)
class Role:
    """A role of `graftline.raw_ports`, and the input's shape in B, N and sizes."""

    name: str
    shape: Dims


def role_of(value: ir.Value, tokens: ir.Value) -> Role:
    """The role of an input that is not the token ids. Raises NotApplicable where none fits."""
    if value.shape is None:
        raise NotApplicable(f"input {value.name} has no shape; export it with one")
    shape, kind = list(value.shape), value.dtype or ir.DataType.FLOAT
    rank, free = len(shape), [d for d in shape if not isinstance(d, int)]
    if not value.uses():
        return Role("unused", _dims(value, tokens))
    if rank <= 1 and not free:
        return Role(_scalar(value), tuple(int(d) for d in shape if isinstance(d, int)))
    if kind.is_floating_point() and rank >= 3 and _is_cache(value):
        return Role("cache", _cache(value, tokens))
    if rank in (3, 4) and not any(isinstance(d, int) for d in shape[-2:]):
        return Role("causal", _square(value, tokens))
    if not kind.is_floating_point() and rank == 1:
        return Role(_vector(value, tokens), _dims(value, tokens))
    if not kind.is_floating_point() and rank >= 2 and _is_positions(value):
        return Role("positions", _positions(value))
    if rank == 2 and _hides(value):
        return Role("padding", ("B", "N"))
    raise NotApplicable(foreign(value), [label(n) for n in value.consumers()])


def _dims(value: ir.Value, tokens: ir.Value) -> Dims:
    """A shape in B and N: a free size is N where the token ids have it as their length, or where
    it is the last of two."""
    known = _symbols(tokens)
    shape = list(value.shape or ())
    return tuple(
        d if isinstance(d, int) else known.get(str(d), "B" if i == 0 and len(shape) > 1 else "N")
        for i, d in enumerate(shape)
    )


def _symbols(tokens: ir.Value) -> dict[str, str]:
    shape = list(tokens.shape or ())
    if len(shape) != 2 or str(shape[0]) == str(shape[1]):
        return {}
    pairs = zip(shape, ("B", "N"), strict=True)
    return {str(d): name for d, name in pairs if not isinstance(d, int) and d.value is not None}


def _square(value: ir.Value, tokens: ir.Value) -> Dims:
    """[B, 1, N, N] of a mask over pairs; without a head axis where it has three dimensions."""
    front: list[str | int] = [d if isinstance(d, int) else 1 for d in list(value.shape or ())[:-2]]
    if not isinstance((value.shape or [0])[0], int):
        front[0] = "B"
    return (*front, "N", "N")


def _is_positions(value: ir.Value) -> bool:
    if chooses_types(value):
        return False
    return not _is_summed(value) and _reaches_position_sink(value)


def _is_summed(value: ir.Value) -> bool:
    """Whether an input is summed or taken as true and false, as no position is."""
    todo = [value]
    while todo:
        for node, index in todo.pop().uses():
            to = node.attributes.get_int("to", 0) if node.op_type == "Cast" else 0
            if to == ir.DataType.BOOL.value or (node.op_type in _SUMS and index == 0):
                return True
            if index == 0 and node.op_type in KEEPS_IDS:
                todo.extend(node.outputs)
    return False


def _positions(value: ir.Value) -> Dims:
    shape = list(value.shape or ())
    if len(shape) == 2:
        return ("B", "N")
    raise NotApplicable(
        f"input {value.name} holds positions in {len(shape)} dimensions (of images or video "
        "beside the text): a multimodal decoder, which graftline does not host; export its text "
        "model with position ids [batch, length]"
    )


def _scalar(value: ir.Value) -> str:
    """The role of a number: told by the one place it reaches."""
    found: set[str] = set()
    for node, index in _arithmetic(value):
        if node.op_type == "GroupQueryAttention" and index in _LENGTH_AT:
            found.add(_LENGTH_AT[index])
        elif node.op_type in ("Slice", "Gather") and index >= 1:
            found.add("all_rows")
        elif node.op_type == "Range" or (node.op_type == "Add" and _reaches_position_sink(value)):
            found.add("past_length")
    if len(found) != 1:
        told = "in several ways" if found else "in no known way"
        raise NotApplicable(
            f"input {value.name} is a number that is used {told}; export the decoder without it",
            [label(n) for n in value.consumers()],
        )
    return found.pop()


def _arithmetic(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Where a number is read, seen through casts, reshapes and its negation."""
    todo = [value]
    while todo:
        for node, index in todo.pop().uses():
            if node.op_type in (*KEEPS_IDS, "Neg", "Concat"):
                todo.extend(node.outputs)
            else:
                yield node, index


def _vector(value: ir.Value, tokens: ir.Value) -> str:
    """The role of whole numbers in one dimension: positions without a batch, or lengths."""
    at = [i for n, i in _arithmetic(value) if n.op_type == "GroupQueryAttention"]
    if at == [5] * len(at) and at:
        return "last"
    if _dims(value, tokens) == ("B",) or not _ordered(value):
        raise NotApplicable(foreign(value), [label(n) for n in value.consumers()])
    return "order"


def _ordered(value: ir.Value) -> bool:
    """Whether values count positions: they are angles, indices, or compared with others."""
    return _reaches_position_sink(value) or any(
        n.op_type in _COMPARES for v in _below(value) for n, _ in v.uses()
    )


def _below(value: ir.Value) -> set[ir.Value]:
    """Every value computed from one, sums and shapes left out."""
    seen, todo = {value}, [value]
    while todo:
        for node, _ in todo.pop().uses():
            if node.op_type in _SUMS or node.op_type == "Shape":
                continue
            fresh = [v for v in node.outputs if v not in seen]
            seen.update(fresh)
            todo.extend(fresh)
    return seen


def _reaches_position_sink(value: ir.Value) -> bool:
    """Whether values of an input reach an angle or a table index other than through a sum, or are
    compared with each other."""
    below = _below(value)
    for current in below:
        for node, index in current.uses():
            if node.op_type in ("Cos", "Sin") or (node.op_type.startswith("Gather") and index == 1):
                return True
            if node.op_type == "RotaryEmbedding" and index in (1, 3):
                return True
            if node.op_type == "GroupQueryAttention" and index == 9:
                return True
    compared = (n for v in below for n, _ in v.uses() if n.op_type in _COMPARES)
    return any(all(v in below for v in node.inputs) for node in compared)


def _hides(value: ir.Value) -> bool:
    """Whether an input acts as a padding mask: summed, compared with a constant, subtracted from
    one, taken as true and false, or given to an attention as its padding."""
    todo, seen = [value], {value}
    while todo:
        for node, index in todo.pop().uses():
            to = node.attributes.get_int("to", 0) if node.op_type == "Cast" else 0
            others = [v for i, v in enumerate(node.inputs) if i != index and v is not None]
            fixed = bool(others) and all(v.const_value is not None for v in others)
            if to == ir.DataType.BOOL.value or node.op_type in (*_SUMS, "Not", "And"):
                return True
            if node.op_type == "Where" and index == 0:
                return True
            if (node.op_type, index) in (("MultiHeadAttention", 4), ("Attention", 3)):
                return True
            if fixed and (node.op_type in ("Equal", *_COMPARES) or node.op_type == "Sub"):
                return node.op_type != "Sub" or index == 1
            if index == 0 and node.op_type in (*KEEPS_IDS, "Slice"):
                fresh = [v for v in node.outputs if v not in seen]
                seen.update(fresh)
                todo.extend(fresh)
    return False


def _is_cache(value: ir.Value) -> bool:
    """Whether an input is concatenated with something, or is the past of an attention."""
    todo, seen = [value], {value}
    while todo:
        for node, index in todo.pop().uses():
            at = _CACHE_AT.get(node.op_type, ())
            if node.op_type == "Attention" and node.domain:
                at = (4,)
            if node.op_type == "Concat" or index in at:
                return True
            if index == 0 and node.op_type in _CACHE_MOVES:
                fresh = [v for v in node.outputs if v not in seen]
                seen.update(fresh)
                todo.extend(fresh)
    return False


def _cache(value: ir.Value, tokens: ir.Value) -> Dims:
    """The shape of an empty cache: the batch, 0 for the one other free size, and fixed sizes."""
    dims = list(value.shape or ())
    known = _symbols(tokens)
    free = [i for i, d in enumerate(dims) if not isinstance(d, int)]
    named = [i for i in free if known.get(str(dims[i])) == "B"]
    batch = (named or [i for i in free if i == 0])[:1]
    length = [i for i in free if i not in batch]
    if len(length) != 1:
        raise NotApplicable(
            f"cache input {value.name} {value.shape} must have one free dimension besides the "
            "batch; export with the past length alone dynamic"
        )
    sizes = {**dict.fromkeys(batch, "B"), **dict.fromkeys(length, 0)}
    return tuple(sizes[i] if i in sizes else int(str(d)) for i, d in enumerate(dims))
