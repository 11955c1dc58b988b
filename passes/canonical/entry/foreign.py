"""Inputs that no decoder of text alone has: what they belong to, in words."""

from __future__ import annotations

import onnx_ir as ir

from graftline.passes.canonical.entry.logits import index_readers, table_shape

_PROJECTS = frozenset({"MatMul", "Gemm", "MatMulNBits", "FusedMatMul", "MatMulInteger"})
_JOINS = frozenset({
    "Concat", "Where", "ScatterND", "ScatterElements", "Add", "Scatter", "TensorScatter",
})  # fmt: skip
_FEWEST_POSITIONS = 16
"""A table with fewer rows addresses no positions of a text: it holds token types."""


def chooses_types(value: ir.Value) -> bool:
    """Whether an input indexes tables too small for positions: it chooses among token types."""
    rows = _rows(value)
    return bool(rows) and max(rows) < _FEWEST_POSITIONS


def _rows(value: ir.Value) -> list[int]:
    """Rows of the tables that an input indexes."""
    return [s[0] for n in index_readers(value) if (s := table_shape(n.inputs[0]))]


def foreign(value: ir.Value) -> str:
    """What an input is that no decoder of text alone has."""
    told = f"{value.name} [{', '.join(str(d) for d in value.shape or ())}]"
    kind = value.dtype or ir.DataType.FLOAT
    if not kind.is_floating_point():
        if chooses_types(value):
            return (
                f"input {told} chooses among {max(_rows(value))} token types, as encoders "
                "have: not a decoder of plain text; export it without that input"
            )
        return (
            f"input {told} is neither tokens, positions, mask nor cache; export the decoder "
            "without it"
        )
    use = _first_use(value)
    if use is not None and use.op_type in _PROJECTS:
        return (
            f"input {told} holds states of another network that keys and values are made of: the "
            "decoder of an encoder-decoder, which graftline does not host"
        )
    if use is not None and (use.op_type in _JOINS or use.op_type == "Conv"):
        return (
            f"input {told} enters among the token embeddings: a multimodal decoder, which "
            "graftline does not host; export its text model alone"
        )
    if len(value.shape or ()) == 4:
        return (
            f"input {told} is read as keys or values that nothing is appended to: "
            "cross-attention of an encoder-decoder, which graftline does not host"
        )
    return (
        f"input {told} is neither tokens, positions, mask nor cache; export the decoder without it"
    )


def _first_use(value: ir.Value) -> ir.Node | None:
    """The first node that does more with an input than move it."""
    todo, seen = [value], {value}
    while todo:
        for node, _ in todo.pop(0).uses():
            if node.op_type in _PROJECTS | _JOINS | {"Conv"}:
                weights = [v for v in node.inputs if v is not None and v.const_value is not None]
                return node if node.op_type not in _PROJECTS or weights else None
            fresh = [v for v in node.outputs if v not in seen]
            seen.update(fresh)
            todo.extend(fresh)
    return None
