"""A host that runs once and keeps nothing, told by the types and shapes of its inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from graftline.facts import Facts
from graftline.owners import TARGET
from graftline.passes.graph.mismatch import Mismatch

ROLE, OWNER = "graftline.role", "graftline.owner"
"""On an input or output of an export: what a spec has declared it to be, and which of the graphs
in one file it is of."""
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
INDICES = (ir.DataType.INT64, ir.DataType.INT32)


@dataclass(frozen=True)
class Role:
    """What an input or output of the graph means, and its canonical name."""

    value: ir.Value
    role: str
    name: str
    owner: str = TARGET


@dataclass(frozen=True)
class OnePass:
    """What is known of a host that runs once: facts of its kind, its inputs, the output that it is
    for, and the others."""

    facts: Facts
    inputs: tuple[Role, ...]
    output: Role
    others: tuple[Role, ...] = ()


def declare(value: ir.Value, role: str = "", owner: str = TARGET) -> None:
    """Stamp what an input or output is; the stamp survives save and load."""
    stamps = {ROLE: role, OWNER: owner if owner != TARGET else ""}
    value.metadata_props.update({key: said for key, said in stamps.items() if said})


def declared_role(value: ir.Value) -> str:
    """The role that was declared, "" where none was."""
    return value.metadata_props.get(ROLE, "")


def owner_of(value: ir.Value) -> str:
    """The graph that an input or output is of: the target's, unless another was declared."""
    return value.metadata_props.get(OWNER, TARGET)


def inputs_of(graph: ir.Graph) -> list[ir.Value]:
    """The inputs that are fed."""
    return [v for v in graph.inputs if v.name not in graph.initializers]


def dims_of(value: ir.Value) -> tuple[int | str | None, ...]:
    """Numbers, symbols, and None where nothing is known; () without a shape."""
    shape = value.shape
    return () if shape is None else tuple(d if isinstance(d, int) else d.value for d in shape)


def rank_of(value: ir.Value) -> int | None:
    """The number of dimensions, if it is known."""
    return None if value.shape is None else len(value.shape)


def mismatch(reason: str, values: Iterable[ir.Value] = ()) -> Mismatch:
    """Why a graph is not what was looked for, with the inputs or outputs that say so, by name and
    shape."""
    first, *others = [f"{v.name} {list(dims_of(v))}" for v in values] or ["the graph"]
    return Mismatch(first, reason, tuple(others))
