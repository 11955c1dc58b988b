"""The products that quantize rewrites: every one by a constant matrix."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.passes.anchors.anchors import block_of
from graftline.passes.grafts.head_parts import DRAFT_LAYER, DRAFT_SCORES
from graftline.passes.graph.weights import Matrix, constant, matrix, tensor_of
from graftline.passes.pipeline.graft import MADE_BY, ROLE

PRODUCTS = ("MatMul", "FusedMatMul", "Gemm")
WHOLE = ("markov", "skip-substitute", "accelerated-exit")
"""Passes whose products stay as they are: a loop reads them, a row at a time, or they are by pairs
of thin matrices, which are little to read and too narrow for blocks of one scale."""
Kind = tuple[int, int, int]
Key = tuple[str, bool]
BLOCKS = {4: (32, 16), 8: (64, 32, 16)}
"""By bits, how many values share a scale, the most first: at 64 a matrix takes less and ONNX
Runtime's kernel is faster; but that of 4 bits then rounds a row by how many go with it (0.04 of the
largest logit), and nothing makes it exact."""


@dataclass(frozen=True)
class Target:
    """A product by a constant matrix. `asked`: how many values share a scale, 0 where that follows
    from the bits. `kind`: its place among the products of its block, and its shape; None outside
    the blocks."""

    node: ir.Node
    matrix: Matrix
    asked: int
    kind: Kind | None

    def block(self, bits: int) -> int:
        """How many values share a scale at so many bits."""
        depth = self.matrix.shape[0]
        return self.asked or next(size for size in BLOCKS[bits] if depth % size == 0)

    @property
    def name(self) -> str:
        return self.matrix.stored.name or "weight"

    @property
    def key(self) -> Key:
        """The matrix, in the layout that it is read in."""
        return self.name, self.matrix.turned

    @property
    def rows(self) -> ir.Value:
        """What the matrix is multiplied with."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def is_fine(self) -> bool:
        """Of the lm_head, or of draft heads: what few bits save there, worse drafts lose."""
        role = self.node.metadata_props.get(ROLE)
        return self.is_head or role in (DRAFT_LAYER, DRAFT_SCORES)

    @property
    def is_head(self) -> bool:
        return self.node.metadata_props.get(ROLE) == "lm_head"


def stays(node: ir.Node) -> bool:
    """Whether a product is not quantized, of all that are by a constant matrix."""
    return node.metadata_props.get(MADE_BY) in WHOLE


def targets_of(model: ir.Model, block: int) -> list[Target]:
    """Every product by a constant matrix, in blocks of `block` values, or for 0 of the most that
    its bits allow and that divide it. Raises NotApplicable at one that cannot be quantized."""
    found: list[Target] = []
    places = Counter[int]()
    top = set(model.graph)
    for node in model.graph.all_nodes():
        if stays(node):
            continue
        if node.op_type not in PRODUCTS or not any(is_constant(v) for v in node.inputs[:2]):
            continue
        weight = _weight(node)
        if weight is None or node not in top:
            where = "" if node in top else " inside a sub-graph"
            raise NotApplicable(
                f"quantize cannot read the constant operand of {node.op_type} "
                f"'{name_of(node)}'{where} (it must be the second, a 2-D "
                f"initializer, as stored or transposed)",
                [name_of(node)],
            )
        if tensor_of(weight.stored).dtype != ir.DataType.FLOAT:
            kind = tensor_of(weight.stored).dtype.name
            reason = (
                f"quantize reads fp32 weights, and '{weight.stored.name}' is {kind}: export the "
                "model in fp32 for --dtype int8 or int4, or give --dtype fp32, which keeps the "
                "precision that a file has"
            )
            raise NotApplicable(reason, [name_of(node)])
        _check_block(node, weight, block)
        own = block_of(node)
        kind = None if own is None else (places[own], *weight.shape)
        if own is not None:
            places[own] += 1
        found.append(Target(node, weight, block, kind))
    return found


def _check_block(node: ir.Node, weight: Matrix, block: int) -> None:
    depth, least = weight.shape[0], block or min(BLOCKS[4])
    if depth % least == 0:
        return
    what = f"block={block}; choose a smaller block" if block else f"{least}"
    reason = f"quantize: the {depth} inputs of '{weight.stored.name}' are no multiple of {what}"
    raise NotApplicable(reason, [name_of(node)])


def _weight(node: ir.Node) -> Matrix | None:
    if node.op_type == "MatMul":
        return matrix(node.inputs[1]) if not is_constant(node.inputs[0]) else None
    stored = constant(node.inputs[1])
    if node.op_type != "FusedMatMul" or stored is None or len(tensor_of(stored).shape) != 2:
        return None
    flags = {k: a.value for k, a in node.attributes.items()}
    turned = bool(flags.pop("transB", 0))
    plain = {"alpha": 1.0, "transA": 0, "transBatchA": 0, "transBatchB": 0}
    return Matrix(stored, turned) if all(plain.get(k) == v for k, v in flags.items()) else None


def is_constant(value: ir.Value | None) -> bool:
    """True when no graph input reaches the value, whatever ops lie between."""
    seen: set[ir.Value] = set()
    front = [value]
    while front:
        one = front.pop()
        if one is None or one in seen:
            continue
        seen.add(one)
        maker = one.producer()
        if maker is None and one.const_value is None:
            return False
        front += maker.inputs if maker is not None else []
    return value is not None


def name_of(node: ir.Node) -> str:
    return node.name or (node.outputs[0].name or "?")


def product_names(graph: ir.Graph) -> list[str]:
    return [name_of(n) for n in graph if n.op_type in PRODUCTS]


def release(weight: Matrix) -> None:
    """Unmap the file of a weight that was read; where an array of it is alive, it stays mapped."""
    tensor = tensor_of(weight.stored)
    if isinstance(tensor, ir.ExternalTensor):
        with suppress(BufferError):
            tensor.release()
