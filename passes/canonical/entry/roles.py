"""What every input of an exported decoder is, told by what the graph does with it.

Evidence alone decides: the nodes that read an input, its element type, and which of its sizes are
those of the token ids. What fits no role, or two, is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from graftline.passes.canonical.entry.foreign import chooses_types, foreign
from graftline.passes.canonical.entry.logits import KEEPS_IDS
from graftline.passes.graph.meaning import label
from graftline.passes.graph.mismatch import Mismatch

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


def role_of(value: ir.Value, tokens: ir.Value) -> Role | Mismatch:
    """The role of an input that is not the token ids; or what it is instead, and why it is none of
    those that it could be by its type and shape."""
    if value.shape is None:
        return Mismatch(f"input {value.name}", "it has no shape; export it with one")
    shape, kind = list(value.shape), value.dtype or ir.DataType.FLOAT
    rank, free = len(shape), [d for d in shape if not isinstance(d, int)]
    whole = not kind.is_floating_point()
    if not value.uses():
        return Role("unused", _dims(value, tokens))
    if rank <= 1 and not free:
        return _scalar(value, tuple(int(d) for d in shape if isinstance(d, int)))
    found: list[Mismatch] = []
    if not whole and rank >= 3:
        if _is_cache(value):
            return _cache(value, tokens)
        found.append(Mismatch("as a cache", "nothing is appended to it"))
    if rank in (3, 4) and not any(isinstance(d, int) for d in shape[-2:]):
        return Role("causal", _square(value, tokens))
    if whole and rank == 1:
        return _vector(value, tokens)
    if whole and rank >= 2:
        found += (why := _no_positions(value))
        if not why:
            return _positions(value)
    if rank == 2:
        if _hides(value):
            return Role("padding", ("B", "N"))
        found.append(Mismatch("as a mask", "it is not summed, compared or taken as true and false"))
    told = "; ".join(m.text for m in found)
    return Mismatch.over(value.consumers(), foreign(value) + (f" ({told})" if told else ""))


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


def _no_positions(value: ir.Value) -> list[Mismatch]:
    """Why an input of whole numbers holds no positions."""
    if chooses_types(value):
        return [Mismatch("as positions", "its tables are too small")]
    if (node := _sum_of(value)) is not None:
        return [Mismatch("as positions", f"{label(node)} sums it or takes it as true and false")]
    if not _reaches_position_sink(value):
        return [Mismatch("as positions", "it reaches no angle and no table")]
    return []


def _sum_of(value: ir.Value) -> ir.Node | None:
    """What sums an input or takes it as true and false, as is done with no position."""
    todo = [value]
    while todo:
        for node, index in todo.pop().uses():
            to = node.attributes.get_int("to", 0) if node.op_type == "Cast" else 0
            if to == ir.DataType.BOOL.value or (node.op_type in _SUMS and index == 0):
                return node
            if index == 0 and node.op_type in KEEPS_IDS:
                todo.extend(node.outputs)
    return None


def _positions(value: ir.Value) -> Role | Mismatch:
    shape = list(value.shape or ())
    if len(shape) == 2:
        return Role("positions", ("B", "N"))
    return Mismatch.over(
        value.consumers(),
        f"input {value.name} holds positions in {len(shape)} dimensions (of images or video "
        "beside the text): a multimodal decoder, which graftline does not host; export its text "
        "model with position ids [batch, length]",
    )


def _scalar(value: ir.Value, shape: tuple[int, ...]) -> Role | Mismatch:
    """The role of a number: told by the one place it reaches."""
    found: set[str] = set()
    for node, index in _arithmetic(value):
        if node.op_type == "GroupQueryAttention" and index in _LENGTH_AT:
            found.add(_LENGTH_AT[index])
        elif node.op_type in ("Slice", "Gather") and index >= 1:
            found.add("all_rows")
        elif node.op_type == "Range" or (node.op_type == "Add" and _reaches_position_sink(value)):
            found.add("past_length")
    if len(found) == 1:
        return Role(found.pop(), shape)
    told = "in several ways" if found else "in no known way"
    why = f"input {value.name} is a number that is used {told}; export the decoder without it"
    return Mismatch.over(value.consumers(), why)


def _arithmetic(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Where a number is read, seen through casts, reshapes and its negation."""
    todo = [value]
    while todo:
        for node, index in todo.pop().uses():
            if node.op_type in (*KEEPS_IDS, "Neg", "Concat"):
                todo.extend(node.outputs)
            else:
                yield node, index


def _vector(value: ir.Value, tokens: ir.Value) -> Role | Mismatch:
    """The role of whole numbers in one dimension: positions without a batch, or lengths."""
    dims, at = _dims(value, tokens), _arithmetic(value)
    places = [i for n, i in at if n.op_type == "GroupQueryAttention"]
    if places and set(places) == {5}:
        return Role("last", dims)
    if dims == ("B",) or not _ordered(value):
        return Mismatch.over(value.consumers(), foreign(value))
    return Role("order", dims)


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


def _cache(value: ir.Value, tokens: ir.Value) -> Role | Mismatch:
    """The shape of an empty cache: the batch, 0 for the one other free size, and fixed sizes."""
    dims = list(value.shape or ())
    known = _symbols(tokens)
    free = [i for i, d in enumerate(dims) if not isinstance(d, int)]
    named = [i for i in free if known.get(str(dims[i])) == "B"]
    batch = (named or [i for i in free if i == 0])[:1]
    length = [i for i in free if i not in batch]
    if len(length) != 1:
        return Mismatch.over(
            value.consumers(),
            f"cache input {value.name} {value.shape} must have one free dimension besides the "
            "batch; export with the past length alone dynamic",
        )
    sizes = {**dict.fromkeys(batch, "B"), **dict.fromkeys(length, 0)}
    return Role("cache", tuple(sizes[i] if i in sizes else int(str(d)) for i, d in enumerate(dims)))
