"""The facts of a host that its exported graph did not say: read off the canonical graph."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from graftline.passes.canonical_logits import table_shape
from graftline.passes.meaning import scalar
from graftline.ports import FACTS_KEY, by_role, read_facts, read_ports, write_facts

_SIZES = ("vocabulary", "hidden", "layers", "heads", "kv_heads", "head_size")


def settle_facts(model: ir.Model) -> None:
    """Fill in the sizes that are 0; a size on which blocks differ stays 0."""
    if FACTS_KEY not in model.metadata_props:
        return
    facts, seen = read_facts(model), _sizes(model)
    known = {name: getattr(facts, name) or seen[name] for name in _SIZES}
    write_facts(model, replace(facts, **known, positions=_positions(model, facts.positions)))


def _positions(model: ir.Model, known: int) -> int:
    """How many positions the tables that are read at positions, or some rows behind, have left."""
    (positions,) = [v for v in model.graph.inputs if v.name == "positions"]
    starts = [(positions, 0)]
    for node in positions.consumers():
        offset = scalar(node.inputs[1]) if node.op_type == "Add" else None
        if offset is not None and node.inputs[0] is positions:
            starts.append((node.outputs[0], int(offset)))
    for value, offset in starts:
        for node in value.consumers():
            shape = table_shape(node.inputs[0]) if node.op_type == "Gather" else None
            if shape is not None and node.inputs[1] is value:
                known = min(known or shape[0], shape[0] - offset)
    return known


def _sizes(model: ir.Model) -> dict[str, int]:
    nodes = [n for n in model.graph if n.op_type == "Attention"]
    (logits,) = by_role(read_ports(model), "logits")
    width = logits.shape[-1]
    (tokens,) = [v for v in model.graph.inputs if v.name == "tokens"]
    tables = [table_shape(n.inputs[0]) for n in tokens.consumers() if n.op_type == "Gather"]
    return {
        "vocabulary": width if isinstance(width, int) else 0,
        "hidden": next((t[1] for t in tables if t is not None and len(t) == 2), 0),
        "layers": len(nodes),
        "heads": _same([_size(n.inputs[0], 1) for n in nodes]),
        "kv_heads": _same([_size(n.inputs[1], 1) for n in nodes]),
        "head_size": _same([_size(n.inputs[0], 3) for n in nodes]),
    }


def _size(value: ir.Value | None, axis: int) -> int:
    size = value.shape[axis] if value is not None and value.shape is not None else 0
    return size if isinstance(size, int) else 0


def _same(sizes: list[int]) -> int:
    return sizes[0] if len(set(sizes)) == 1 else 0
