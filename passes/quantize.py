"""quantize: every constant matrix as 4 or 8 bit integers, computed by MatMulNBits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.contrib_ops.quantized import dequantize
from graftline.errors import LawBroken, NotApplicable, nearest
from graftline.evaluate import Array
from graftline.law import Evidence
from graftline.passes.graph.emit import Emit, drop_unused
from graftline.passes.graph.weights import Matrix, constant, matrix, tensor_of
from graftline.passes.lower.quantize.block_codes import ALGORITHMS, Packed, quantize_rows
from graftline.passes.pipeline.graft import ROLE, Graft

MICROSOFT = "com.microsoft"
SOURCE = "graftline.weight"
"""On a MatMulNBits: the initializer it was made from, with "^T" when that is stored [out, in]."""
PRODUCTS = ("MatMul", "FusedMatMul", "Gemm")
Watch = Callable[[str, int, int], None]
"""watch(name of the matrix, how many are done, how many there are)"""


@dataclass(frozen=True)
class Quantize(Graft):
    """Weight-only quantization of all constant matrices, lm_head included; the embedding stays.

    `accuracy` 4 rounds activations to 8 bits per row and block, which ONNX Runtime's CPU kernels
    need to be fast (8 bit weights are about 100 times slower without it). `head_bits` 0: as `bits`.
    `embedding` reads a tied embedding from the lm_head's integers too.
    """

    bits: int = 4
    algorithm: str = "rtn"
    block: int = 32
    accuracy: int = 4
    head_bits: int = 0
    embedding: bool = False

    numeric: ClassVar[bool] = False

    def requires(self, model: ir.Model) -> None:
        for name, value in (("bits", self.bits), ("head_bits", self.head_bits or self.bits)):
            if value not in (4, 8):
                raise NotApplicable(f"quantize: {name}={value}; 4 or 8 bits have a kernel")
        if self.algorithm not in ALGORITHMS:
            known = nearest(self.algorithm, ALGORITHMS)
            raise NotApplicable(f"quantize: unknown algorithm '{self.algorithm}'{known}")
        if self.block < 16 or self.block & (self.block - 1):
            raise NotApplicable(f"quantize: block={self.block} is not a power of two from 16 on")
        if self.accuracy not in (0, 1, 4):
            raise NotApplicable(f"quantize: accuracy={self.accuracy}; 0, 1 and 4 exist")
        targets = _targets(model, self.block)
        if not targets:
            raise NotApplicable("quantize: no product has a constant matrix", _names(model.graph))
        if self.embedding and not _tied_gathers(model, targets):
            raise NotApplicable("quantize: embedding=true needs an embedding tied to the lm_head")

    def apply(self, model: ir.Model) -> None:
        self.quantize(model)

    def quantize(self, model: ir.Model, watch: Watch | None = None) -> None:
        """Rewrite in place, telling `watch` after every matrix."""
        graph, targets = model.graph, _targets(model, self.block)
        gathers = _tied_gathers(model, targets) if self.embedding else []
        model.opset_imports[MICROSOFT] = 1
        made: dict[tuple[str, bool, int], list[ir.Value]] = {}
        for done, target in enumerate(targets, 1):
            bits = self.head_bits or self.bits if target.is_head else self.bits
            key = (target.name, target.matrix.turned, bits)
            if key not in made:
                packed = quantize_rows(target.matrix.rows(), bits, self.block, self.algorithm)
                made[key] = _register(graph, f"{target.name}.q{bits}", packed, target.matrix)
                _release(target.matrix)
            self._replace(graph, target, made[key], bits)
            for gather in gathers:
                if gather.inputs[0] is target.matrix.stored and target.is_head:
                    self._gather(graph, gather, made[key], bits, target.matrix.shape[0])
            if watch is not None:
                watch(target.name, done, len(targets))
        drop_unused(model)

    def _replace(self, graph: ir.Graph, target: _Target, weight: list[ir.Value], bits: int) -> None:
        depth, count = target.matrix.shape
        sizes = {"K": depth, "N": count, "bits": bits, "block_size": self.block}
        emit = Emit(graph, self.name(), target.node)
        made = emit.node(
            "MatMulNBits",
            [target.node.inputs[0], *weight],
            [""],
            MICROSOFT,
            **sizes,
            accuracy_level=self.accuracy,
        )
        made.metadata_props[SOURCE] = target.name + ("^T" if target.matrix.turned else "")
        if ROLE in target.node.metadata_props:
            made.metadata_props[ROLE] = target.node.metadata_props[ROLE]
        _take_over(target.node, made.outputs[0])

    def _gather(
        self, graph: ir.Graph, node: ir.Node, weight: list[ir.Value], bits: int, depth: int
    ) -> None:
        emit = Emit(graph, self.name(), node)
        shape = emit.const(f"table.{depth}.{bits}", [-1, depth * bits // 8], np.int64)
        data = emit.op("Reshape", [weight[0], shape])
        made = emit.node(
            "GatherBlockQuantized",
            [data, node.inputs[1], weight[1], weight[2]],
            [""],
            MICROSOFT,
            bits=bits,
            block_size=self.block,
            gather_axis=0,
            quantize_axis=1,
        )
        if ROLE in node.metadata_props:
            made.metadata_props[ROLE] = node.metadata_props[ROLE]
        _take_over(node, made.outputs[0])


@dataclass(frozen=True)
class _Target:
    node: ir.Node
    matrix: Matrix

    @property
    def name(self) -> str:
        return self.matrix.stored.name or "weight"

    @property
    def is_head(self) -> bool:
        return self.node.metadata_props.get(ROLE) == "lm_head"


def _targets(model: ir.Model, block: int) -> list[_Target]:
    """Every product by a constant matrix. Raises NotApplicable at one that cannot be quantized."""
    found: list[_Target] = []
    top = set(model.graph)
    for node in model.graph.all_nodes():
        if node.op_type not in PRODUCTS or not any(_is_constant(v) for v in node.inputs[:2]):
            continue
        weight = _weight(node)
        if weight is None or node not in top:
            where = "" if node in top else " inside a sub-graph"
            raise NotApplicable(
                f"quantize cannot read the constant operand of {node.op_type} "
                f"'{_name(node)}'{where} (it must be the second, a 2-D "
                f"initializer, as stored or transposed)",
                [_name(node)],
            )
        if tensor_of(weight.stored).dtype != ir.DataType.FLOAT:
            kind = tensor_of(weight.stored).dtype.name
            reason = (
                f"quantize reads fp32 weights, and '{weight.stored.name}' is {kind}: export the "
                "model in fp32 for --dtype int8 or int4, or give --dtype fp32, which keeps the "
                "precision that a file has"
            )
            raise NotApplicable(reason, [_name(node)])
        if weight.shape[0] % block:
            raise NotApplicable(
                f"quantize: the {weight.shape[0]} inputs of '{weight.stored.name}' are no "
                f"multiple of block={block}; choose a smaller block",
                [_name(node)],
            )
        found.append(_Target(node, weight))
    return found


def _weight(node: ir.Node) -> Matrix | None:
    if node.op_type == "MatMul":
        return matrix(node.inputs[1]) if not _is_constant(node.inputs[0]) else None
    stored = constant(node.inputs[1])
    if node.op_type != "FusedMatMul" or stored is None or len(tensor_of(stored).shape) != 2:
        return None
    flags = {k: a.value for k, a in node.attributes.items()}
    turned = bool(flags.pop("transB", 0))
    plain = {"alpha": 1.0, "transA": 0, "transBatchA": 0, "transBatchB": 0}
    return Matrix(stored, turned) if all(plain.get(k) == v for k, v in flags.items()) else None


def _is_constant(value: ir.Value | None) -> bool:
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


def _tied_gathers(model: ir.Model, targets: list[_Target]) -> list[ir.Node]:
    """Row look-ups in the very tensor the lm_head multiplies by."""
    heads = {t.matrix.stored for t in targets if t.is_head and t.matrix.turned}
    return [n for n in model.graph if n.op_type == "Gather" and n.inputs[0] in heads and _rows(n)]


def _rows(node: ir.Node) -> bool:
    axis = node.attributes.get("axis")
    return axis is None or axis.as_int() == 0


def _register(graph: ir.Graph, name: str, packed: Packed, source: Matrix) -> list[ir.Value]:
    emit = Emit(graph, Quantize.name())
    # both layouts of one tensor may be in use, as in an untied look-up of a tied matrix
    name = name if source.turned else f"{name}.in-out"
    arrays = {"data": packed.data, "scales": packed.scales, "zeros": packed.zeros}
    return [
        emit.initializer(f"{name}.{k}", ir.tensor(a, name=f"{name}.{k}")) for k, a in arrays.items()
    ]


def _release(weight: Matrix) -> None:
    """Unmap the file of a weight that was read; where an array of it is alive, it stays mapped."""
    tensor = tensor_of(weight.stored)
    if isinstance(tensor, ir.ExternalTensor):
        with suppress(BufferError):
            tensor.release()


def _take_over(old: ir.Node, new: ir.Value) -> None:
    """`new` stands where the output of `old` stood, under its name."""
    out = old.outputs[0]
    name, new.shape, new.type = out.name, out.shape, out.type
    out.name = f"{name}.full"
    new.name = name
    out.replace_all_uses_with(new, replace_graph_outputs=True)


def _name(node: ir.Node) -> str:
    return node.name or (node.outputs[0].name or "?")


def _names(graph: ir.Graph) -> list[str]:
    return [_name(n) for n in graph if n.op_type in PRODUCTS]


def every_matrix(graft: Graft, before: ir.Model, after: ir.Model) -> Evidence:
    """No product by a constant matrix is left, and as many were quantized as there were."""
    nodes = list(after.graph.all_nodes())
    products = [n for n in nodes if n.op_type in PRODUCTS]
    left = [n for n in products if any(_is_constant(v) for v in n.inputs[:2])]
    if left:
        by = f"{len(left)} are left"
        raise LawBroken(graft.name(), "every-matrix", f"'{_name(left[0])}'", by)
    made = [n for n in nodes if n.op_type == "MatMulNBits" and SOURCE in n.metadata_props]
    were = [
        n
        for n in before.graph.all_nodes()
        if n.op_type in PRODUCTS and any(_is_constant(v) for v in n.inputs[:2])
    ]
    if len(made) != len(were):
        by = f"{len(were)} constant matrices became {len(made)}"
        raise LawBroken(graft.name(), "every-matrix", "the graph", by)
    return Evidence(f"{len(made)} matrices quantized; {len(products)} products of activations stay")


def closeness(graft: Graft, before: ir.Model, after: ir.Model) -> Evidence:
    """Each block of each matrix differs from its source by no more than rounding can cause.

    A block of b values spanning R, zero included, has norm R/sqrt(2) or more, and rounding to n
    steps moves each by R/2n or less: relative error sqrt(2b)/2n at the most.
    """
    worst, highest, where, errors = 0.0, 0.0, "", list[float]()
    for node in after.graph:
        if node.op_type != "MatMulNBits" or SOURCE not in node.metadata_props:
            continue
        label = node.metadata_props[SOURCE]
        name, turned = label.removesuffix("^T"), label.endswith("^T")
        source = Matrix(before.graph.initializers[name], turned)
        sizes = {k: node.attributes[k].as_int() for k in ("K", "bits", "block_size")}
        block, bits = sizes["block_size"], sizes["bits"]
        data, scales, zeros = (tensor_of(v).numpy() for v in node.inputs[1:4] if v is not None)
        near = dequantize(data, scales, zeros, sizes["K"], block, bits)
        error, mean = _block_errors(source.rows(), near, block)
        _release(source)
        limit = float(np.sqrt(2 * block) / (2 * ((1 << bits) - 1)))
        if not error <= limit:
            raise LawBroken(graft.name(), "closeness", f"'{name}'", f"{error:.3g} > {limit:.3g}")
        highest = max(highest, limit)
        errors.append(mean)
        if error >= worst:
            worst, where = error, name
    report = f"mean {np.mean(errors):.3g}, worst in '{where}'"
    return Evidence(f"every block of {len(errors)} matrices: {report}", worst, highest)


def _block_errors(source: Array, near: Array, block: int) -> tuple[float, float]:
    """The largest relative error of a block of `block` values along K, of two weights [N, K], and
    that of the whole. A chunk of rows at a time, so that large matrices take little memory."""
    worst, off, size = 0.0, 0.0, 0.0
    rows = max(1, _AT_ONCE // max(source.shape[1], 1))
    for start in range(0, len(source), rows):
        was = source[start : start + rows].astype(np.float32, copy=False).reshape(-1, block)
        gap = was - near[start : start + rows].reshape(-1, block)
        gaps, sizes = (np.einsum("ij,ij->i", x, x) for x in (gap, was))
        relative = np.where(gaps == 0, 0.0, gaps / np.where(sizes == 0, 1e-30, sizes))
        worst = max(worst, float(np.sqrt(relative.max())))
        off, size = off + float(gaps.sum()), size + float(sizes.sum())
    return worst, float(np.sqrt(off / max(size, 1e-30)))


_AT_ONCE = 1 << 20
"""Numbers of a matrix that are compared at once."""

Quantize.weight_free = (every_matrix, closeness)
