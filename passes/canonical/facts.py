"""The facts of a host that its exported graph did not say: read off the canonical graph."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from graftline.facts import FACTS_KEY, decoder_facts, write_facts
from graftline.passes.canonical.entry.logits import table_shape
from graftline.passes.graph.meaning import scalar
from graftline.passes.graph.ports import input_of
from graftline.ports import by_role, read_ports

_SIZES = ("vocabulary", "hidden", "layers", "heads", "kv_heads", "head_size")


def settle_facts(model: ir.Model) -> None:
    """Fill in the sizes that are 0; one on which blocks or token tables differ stays 0."""
    if FACTS_KEY not in model.metadata_props:
        return
    facts, seen = decoder_facts(model), _sizes(model)
    known = {name: getattr(facts, name) or seen[name] for name in _SIZES}
    positions = input_of(model, "positions")
    assert positions is not None, "a canonical graph has positions"
    held = addressable(positions, facts.positions)
    write_facts(model, replace(facts, **known, positions=held))


def addressable(positions: ir.Value, stated: int) -> int:
    """How many positions all tables hold that are read at `positions`, or some rows behind; no more
    than `stated`. 0 where neither the tables nor the facts set a bound."""
    bounds = [stated] if stated else []
    front = [(positions, 0)]
    while front:
        value, offset = front.pop()
        for node in value.consumers():
            shift = scalar(node.inputs[1]) if node.op_type == "Add" else None
            if shift is not None and node.inputs[0] is value:
                front.append((node.outputs[0], offset + int(shift)))
            elif node.op_type in ("RotaryEmbedding", "Gather"):
                shape = table_shape(node.inputs[1 if node.op_type == "RotaryEmbedding" else 0])
                bounds += [] if shape is None else [shape[0] - offset]
    return min(bounds, default=0)


def _sizes(model: ir.Model) -> dict[str, int]:
    nodes = [n for n in model.graph if n.op_type == "Attention"]
    (logits,) = by_role(read_ports(model), "logits")
    width, tokens = logits.shape[-1], input_of(model, "tokens")
    assert tokens is not None, "a canonical graph has tokens"
    tables = [table_shape(n.inputs[0]) for n in tokens.consumers() if n.op_type == "Gather"]
    return {
        "vocabulary": width if isinstance(width, int) else 0,
        "hidden": _same([t[1] for t in tables if t is not None and len(t) == 2]),
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
