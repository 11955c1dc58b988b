"""What a step reads: the numbers in the matrices of blocks, of their parts, and of the rest."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.passes.anchors.anchors import block_of, block_outputs
from graftline.passes.anchors.residual import Span, Terms
from graftline.passes.graph.weights import constant
from graftline.passes.pipeline.graft import BLOCK


def block_work(graph: ir.Graph) -> tuple[list[int], int]:
    """Of each block of a stamped graph the numbers in its matrices, and those of the rest."""
    own: dict[int, list[ir.Node]] = {b: [] for b in range(len(block_outputs(graph)))}
    for node in graph:
        if (block := block_of(node)) is not None:
            own[block].append(node)
    rest = [n for n in graph if n.metadata_props.get(BLOCK) and block_of(n) is None]
    return [numbers(nodes) for nodes in own.values()], numbers(rest)


def part_work(span: Span, terms: Terms, part: tuple[ir.Value, ...]) -> int:
    """Numbers in the matrices that the terms of a part are computed with, within their block."""
    stops = {span.start, *(n.outputs[0] for n in terms.sums)}
    nodes, todo = set[ir.Node](), list(part)
    while todo:
        one = todo.pop()
        node = one.producer()
        if one in stops or node is None or node in nodes or block_of(node) != span.block:
            continue
        nodes.add(node)
        todo.extend(v for v in node.inputs if v is not None)
    return numbers(nodes)


def numbers(nodes: Iterable[ir.Node]) -> int:
    """Numbers in the matrices that products among the nodes multiply by, turned or not; of a
    mixture of experts those of as many experts as a row chooses. Raises NotApplicable where it
    cannot be told how many these are."""
    read = {v for n in nodes if n.op_type in ("MatMul", "Gemm") for v in n.inputs if v is not None}
    turned = (v.producer() for v in read)
    read |= {v for n in turned if n and n.op_type == "Transpose" for v in n.inputs if v is not None}
    tables = {v for v in read if v.const_value is not None}
    whole = sum(int(v.const_value.size) for v in tables if v.const_value is not None)
    makers = {n for v in read if (n := v.producer()) is not None and n.op_type in _PICKS}
    return whole + sum(map(_chosen, makers))


_PICKS = ("Gather", "GatherND")


def _chosen(node: ir.Node) -> int:
    """Numbers that a node picks for a row of a table [experts, ...]; 0 of anything else."""
    table, index = node.inputs
    if table is None or table.const_value is None or len(table.const_value.shape) < 3:
        return 0
    experts = int(table.const_value.shape.numpy()[0])
    todo, seen = [index], set[ir.Value]()
    while todo:
        value = todo.pop()
        maker = None if value is None else value.producer()
        if value is None or maker is None or value in seen:
            continue
        seen.add(value)
        if maker.op_type == "TopK" and (count := constant(maker.inputs[1])) is not None:
            assert count.const_value is not None
            return int(table.const_value.size) // experts * int(count.const_value.numpy()[0])
        todo.extend(maker.inputs)
    raise NotApplicable(
        f"block {block_of(node)} multiplies by matrices that it picks of {experts}, and it cannot "
        "be told how many of them a row takes: what a step reads is not known",
        [node.name or node.op_type],
    )
