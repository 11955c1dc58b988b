"""What a step reads: the numbers in the matrices of blocks, of their parts, and of the rest."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from graftline.passes.anchors.anchors import block_of, block_outputs
from graftline.passes.anchors.residual import Span, Terms
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
    """Numbers in the matrices that products among the nodes multiply by, turned or not."""
    read = {v for n in nodes if n.op_type in ("MatMul", "Gemm") for v in n.inputs if v is not None}
    makers = {n for v in read if (n := v.producer()) is not None and n.op_type == "Transpose"}
    read |= {v for n in makers for v in n.inputs if v is not None}
    return sum(int(v.const_value.size) for v in read if v.const_value is not None)
