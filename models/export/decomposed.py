"""Decomposition of programs of torch.export without tracing them a second time.

torch's exporter decomposes the operators that it has no translation of by tracing the program anew,
which takes longer than everything else it does. Most models hold few such operators, each of which
is one operator that it does translate, or nothing at all.
"""

# pyright: reportPrivateUsage=false
# what torch says of its operators, it says under private names
from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch.export import ExportedProgram, default_decompositions
from torch.fx import Graph, Node

aten = torch.ops.aten
CASTS = frozenset({aten.to.device, aten.to.dtype, aten.to.dtype_layout})
"""A tensor of another type, or the same one. Every tensor is on one device here."""
SAME = frozenset({aten.detach_.default, aten.dropout.default})
"""Nothing but the input, where nothing is trained."""
CHECKS = frozenset({aten._assert_tensor_metadata.default})
"""What torch has checked while it traced."""
CONTIGUOUS: dict[str, Any] = {"memory_format": torch.contiguous_format}
RENAMED: Mapping[Any, tuple[Any, tuple[Any, ...]]] = {
    aten.__and__.Tensor: (aten.bitwise_and.Tensor, ()),
    aten.__or__.Tensor: (aten.bitwise_or.Tensor, ()),
    aten.max.other: (aten.maximum.default, ()),
    aten.min.other: (aten.minimum.default, ()),
    aten.square.default: (aten.pow.Tensor_Scalar, (2,)),
}
"""Another operator on the same arguments and these."""


@contextmanager
def decomposed_in_place() -> Generator[None]:
    """While it lasts, `run_decompositions` edits the program itself where every operator is known
    here or has a translation, and traces it anew where one is not. As all of torch.export it is for
    one thread at a time."""
    programs: Any = ExportedProgram
    real = programs.run_decompositions

    def run(program: ExportedProgram, decomp_table: Any = None, **options: Any) -> ExportedProgram:
        if decomp_table is None or options or not _all_known(program.graph, decomp_table):
            return real(program, decomp_table, **options)
        _replace(program.graph)
        program.graph_module.recompile()
        return program

    programs.run_decompositions = run
    try:
        yield
    finally:
        programs.run_decompositions = real


def _all_known(graph: Graph, table: Collection[Any]) -> bool:
    """Whether every operator of a graph is translated or replaced here; one with sub-graphs is not.
    `table` holds the operators that torch would decompose."""
    optional = _optional()
    named = set(graph.output_node().all_input_nodes)
    """What the program's signature knows by name."""
    sizes: dict[str, Node] = {}
    for node in graph.nodes:
        target = node.target
        _note(node, sizes)
        if node.op in ("placeholder", "output") or target in CHECKS:
            continue
        if node.op != "call_function":
            return False
        if target in SAME or target in CASTS:
            known = node not in named and not (target is aten.dropout.default and node.args[2])
        elif target is aten.chunk.default:
            known = isinstance(_cut(node), int)
        elif target is aten.flatten.using_ints or target is aten.reshape.default:
            known = node not in named and None not in _shape(node, sizes)
        else:
            known = target is aten.contiguous.default or target in RENAMED
            known = known or _stays(target, table, optional)
        if not known:
            return False
    return True


@cache
def _optional() -> frozenset[Any]:
    """All operators that a table of decompositions may leave out."""
    return frozenset(default_decompositions())


def _stays(target: Any, table: Collection[Any], optional: Collection[Any]) -> bool:
    """Whether an operator is none that decomposition replaces: `table` holds those that it does,
    `optional` all that a table may leave out."""
    if not isinstance(target, torch._ops.OpOverload):
        return not isinstance(target, torch._ops.HigherOrderOperator)
    if target in table or target._schema.is_mutable:
        return False
    made_of_others = torch._C.DispatchKey.CompositeImplicitAutograd
    return target in optional or not target.has_kernel_for_dispatch_key(made_of_others)


def _replace(graph: Graph) -> None:
    sizes: dict[str, Node] = {}
    for node in list(graph.nodes):
        _note(node, sizes)
        target, first = node.target, node.args[0] if node.args else None
        if target in CHECKS:
            graph.erase_node(node)
        elif target in SAME or (target in CASTS and _type(node) == _type(first)):
            node.replace_all_uses_with(first)
            graph.erase_node(node)
        elif target in CASTS:
            node.target, node.args = aten._to_copy.default, (first,)
            node.kwargs = {"dtype": _type(node)}
        elif target is aten.chunk.default:
            node.target, node.args = aten.split.Tensor, (first, _cut(node), *node.args[2:])
        elif target is aten.contiguous.default:
            node.target, node.args, node.kwargs = aten.clone.default, (first,), CONTIGUOUS
        elif target is aten.flatten.using_ints or target is aten.reshape.default:
            _reshape(node, _shape(node, sizes))
        elif target in RENAMED:
            node.target, more = RENAMED[target]
            node.args = (*node.args, *more)


def _shape(node: Any, sizes: Mapping[str, Node]) -> list[Any]:
    """The shape that a tensor is viewed as, sizes by the nodes that read them (None: no node does).
    One size may be left open where the tensor can be viewed so as it lies in memory."""
    found, before = node.meta["val"], node.args[0].meta["val"]
    if node.target is aten.reshape.default and _can_be_viewed(before, found.shape):
        return list(node.args[1])
    return [d if isinstance(d, int) else sizes.get(str(d)) for d in found.shape]


def _can_be_viewed(tensor: torch.Tensor, shape: torch.Size) -> bool:
    try:
        tensor.view(shape)
    except (RuntimeError, ValueError):
        return False
    return True


def _reshape(node: Node, shape: list[Any]) -> None:
    """As a view of a copy, which may be any; a graph knows no difference."""
    first = node.args[0]
    assert isinstance(first, Node)
    if list(map(str, first.meta["val"].shape)) == list(map(str, node.meta["val"].shape)):
        node.replace_all_uses_with(first)
        node.graph.erase_node(node)
        return
    with node.graph.inserting_before(node):
        copy = node.graph.call_function(aten.clone.default, (first,), CONTIGUOUS)
    copy.meta = dict(first.meta)
    node.target, node.args = aten.view.default, (copy, shape)


def _note(node: Node, sizes: dict[str, Node]) -> None:
    """Add the node to those that read a size, by that size."""
    if node.target is aten.sym_size.int:
        sizes.setdefault(str(node.meta["val"]), node)


def _cut(node: Any) -> Any:
    """How long the pieces of a chunk are."""
    tensor, pieces, *rest = node.args
    size = tensor.meta["val"].shape[rest[0] if rest else 0]
    return -(-size // pieces) if isinstance(size, int) else None


def _type(node: Any) -> torch.dtype:
    return node.meta["val"].dtype
