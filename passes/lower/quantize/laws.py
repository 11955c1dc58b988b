"""Laws of quantize: every matrix became integers, and these are as near as rounding allows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.contrib_ops.quantized import dequantize
from graftline.errors import LawBroken
from graftline.evaluate import Array
from graftline.law import Evidence
from graftline.passes.graph.activations import activations
from graftline.passes.graph.weights import Matrix, tensor_of
from graftline.passes.lower.quantize.calibration import GPTQ, SOURCE
from graftline.passes.lower.quantize.targets import (
    PRODUCTS,
    is_constant,
    name_of,
    release,
    stays,
    targets_of,
)
from graftline.passes.pipeline.graft import Graft
from graftline.passes.pipeline.sample import SAMPLE, Sample

ROUNDING = "graftline.rounding"
"""On a MatMulNBits: how its integers were chosen."""
AT_ONCE = 1 << 20
"""Numbers of a matrix that are compared at once."""
PROBED = 4.0
"""How much larger the squared error of a product may be than rounding's bound: twice, because the
moments of different inputs are drawn halfway to zero, and twice, because a part of the text is
compared."""

COMPARED = "compared"
"""A key of what a text has taught: matrices whose products were compared, and how far off they
were."""
ON_AVERAGE = 0.4
"""How much the squared error of all products of a matrix may be of rounding's bound: rounding to
the nearest has a third of it (errors are even between the ends of a step), and a fifth more for
what a text of some hundred tokens says. Tiny random hosts have 0.13 to 0.28."""


def every_matrix(graft: Graft, before: ir.Model, after: ir.Model) -> Evidence:
    """No product by a constant matrix is left, and as many were quantized as there were."""
    nodes = [n for n in after.graph.all_nodes() if not stays(n)]
    products = [n for n in nodes if n.op_type in PRODUCTS]
    left = [n for n in products if any(is_constant(v) for v in n.inputs[:2])]
    if left:
        by = f"{len(left)} are left"
        raise LawBroken(graft.name(), "every-matrix", f"'{name_of(left[0])}'", by)
    made = [n for n in nodes if n.op_type == "MatMulNBits" and SOURCE in n.metadata_props]
    were = [
        n
        for n in before.graph.all_nodes()
        if n.op_type in PRODUCTS and any(is_constant(v) for v in n.inputs[:2]) and not stays(n)
    ]
    if len(made) != len(were):
        by = f"{len(were)} constant matrices became {len(made)}"
        raise LawBroken(graft.name(), "every-matrix", "the graph", by)
    return Evidence(f"{len(made)} matrices quantized; {len(products)} products of activations stay")


@dataclass(frozen=True)
class Made:
    """A quantized matrix: the label of its source, how it was rounded, and what its node reads from
    its operands by its own attributes."""

    label: str
    method: str
    depth: int
    block: int
    bits: int
    arrays: list[Array]

    @classmethod
    def of(cls, node: ir.Node) -> Made:
        depth, bits, block = (node.attributes[k].as_int() for k in ("K", "bits", "block_size"))
        label, method = node.metadata_props[SOURCE], node.metadata_props.get(ROUNDING, "")
        arrays = [tensor_of(v).numpy() for v in node.inputs[1:4] if v is not None]
        if sizes := _misfit(arrays, depth, block, bits):
            raise LawBroken("quantize", "closeness", f"'{label.removesuffix('^T')}'", sizes)
        return cls(label, method, depth, block, bits, arrays)

    def rows(self) -> Array:
        """The weight [N, K]."""
        data, scales, zeros = self.arrays
        return dequantize(data, scales, zeros, self.depth, self.block, self.bits)

    def source(self, before: ir.Model) -> Matrix:
        """What it was made from, in the graph before."""
        name, turned = self.label.removesuffix("^T"), self.label.endswith("^T")
        return Matrix(before.graph.initializers[name], turned)

    @property
    def nearest(self) -> float:
        """Largest relative error of a block that is rounded to the nearest codes."""
        return float(np.sqrt(2 * self.block) / (2 * ((1 << self.bits) - 1)))

    def differs(self, other: Made) -> float:
        """Norm of the difference, relative to the other's."""
        rows = other.rows()
        size = float(np.linalg.norm(rows))
        return float(np.linalg.norm(self.rows() - rows)) / (size or 1.0)


def _misfit(arrays: list[Array], depth: int, block: int, bits: int) -> str:
    """Why operands do not have the sizes that their node reads, "" when they have."""
    data, scales, zeros = arrays
    blocks = depth // block
    if data.size != len(data) * depth * bits // 8 or scales.size != len(data) * blocks:
        return f"{data[0].size} bytes a row are not {depth} codes of {bits} bits"
    if zeros.size != len(data) * -(-blocks * bits // 8):
        return f"{zeros.size} bytes of zero points are not of {bits} bits"
    return ""


def closeness(graft: Graft, before: ir.Model, after: ir.Model) -> Evidence:
    """Each block of each matrix differs from its source by no more than rounding can cause; of a
    matrix that was rounded for activations each product does.

    A block of b values spanning R, zero included, has norm R/sqrt(2) or more, and rounding to n
    steps moves each by R/2n or less: relative error sqrt(2b)/2n at the most. Error compensation
    moves weights further, on purpose, and small ones by more than their size. What it owes
    is the product: the squared error of an output is the sum of its columns' squared roundings,
    each at most (R/2n)^2 times the mean square of what the input adds to those behind it, so of the
    input at most. That is so in the graph whose activations the integers were chosen for: others of
    the host, a route that skips blocks, have the same integers, and inputs that nobody asked about.
    """
    worst, highest, where, errors = 0.0, 0.0, "", list[float]()
    kept = Counter[str]()
    sample: Sample | None = after.meta.get(SAMPLE)
    looked = _Products(graft, before, sample)
    for node in after.graph:
        if node.op_type != "MatMulNBits" or SOURCE not in node.metadata_props:
            continue
        made = Made.of(node)
        source, name = made.source(before), made.label.removesuffix("^T")
        error, mean = _block_errors(source.rows(), made.rows(), made.block)
        release(source)
        kept[f"{made.bits} bits {made.method}".strip()] += 1
        errors.append(mean)
        if made.method == GPTQ:
            looked.add(made)
            continue
        if not error <= made.nearest:
            by = f"{error:.3g} > {made.nearest:.3g}"
            raise LawBroken(graft.name(), "closeness", f"'{name}'", by)
        highest = max(highest, made.nearest)
        if error >= worst:
            worst, where = error, name
    looked.compare()
    widths = ", ".join(f"{count} of {what}" for what, count in sorted(kept.items()))
    report = f"{widths}: mean {np.mean(errors):.3g}"
    report += f", worst in '{where}'" if where else ""
    report += looked.text
    if sample is not None and sample.missing:
        report += f"; no activations were looked at: {sample.missing}"
    if not where:
        worst, highest = looked.worst, PROBED
    return Evidence(f"every block of {len(errors)} matrices, {report}", worst, highest)


class _Products:
    """Products of compensated matrices with the inputs that they were compensated for."""

    def __init__(self, graft: Graft, before: ir.Model, sample: Sample | None) -> None:
        self.graft, self.before, self.sample = graft, before, sample
        self.made: dict[str, Made] = {}
        self.worst, self.earlier = 0.0, 0

    def add(self, made: Made) -> None:
        """Keep a matrix to be compared, if its rounding looked at activations."""
        if made.method == GPTQ:
            self.made[made.label] = made

    def compare(self) -> None:
        """Raise LawBroken where a product is off by more than rounding could cause."""
        if not self.made:
            return
        if self.sample is None or self.sample.missing:
            raise LawBroken(self.graft.name(), "closeness", "activations", "there are none")
        self._leave_compared(self.sample)
        inputs: dict[str, list[Made]] = {}
        for target in targets_of(self.before, 0):
            label = target.name + ("^T" if target.matrix.turned else "")
            if (made := self.made.pop(label, None)) is not None:
                inputs.setdefault(target.rows.name or "", []).append(made)
        for name, rows in activations(self.before, self.sample.probe, list(inputs)):
            for made in inputs[name]:
                self._product(rows.reshape(-1, rows.shape[-1]), made)

    def _leave_compared(self, sample: Sample) -> None:
        """Take out what has the very integers that were compared in an earlier graph."""
        for label, made in list(self.made.items()):
            known = sample.kept.get((COMPARED, label, made.bits, made.block))
            if known is not None and all(map(np.array_equal, known[0], made.arrays)):
                self.worst = max(self.worst, known[1])
                self.earlier += 1
                del self.made[label]

    def _product(self, inputs: Array, made: Made) -> None:
        source = made.source(self.before)
        was = source.rows().astype(np.float32, copy=False)
        off = np.square(inputs @ (made.rows() - was).T).mean(axis=0)
        parts = was.reshape(len(was), -1, made.block)
        spans = np.maximum(parts.max(axis=2), 0) - np.minimum(parts.min(axis=2), 0)
        power = np.square(inputs).mean(axis=0).reshape(-1, made.block).sum(axis=1)
        bound = np.square(spans / (2 * ((1 << made.bits) - 1))) @ power
        share = float(np.max(np.where(off == 0, 0, off / np.where(bound == 0, 1e-30, bound))))
        mean = float(off.sum()) / max(float(bound.sum()), 1e-30)
        release(source)
        bounds = ("a product is", share, PROBED), ("products are", mean, ON_AVERAGE)
        for what, seen, most in bounds:
            if not seen <= most:
                by = f"{what} off by {seen:.3g} of rounding's bound, above {most:g}"
                name = made.label.removesuffix("^T")
                raise LawBroken(self.graft.name(), "closeness", f"'{name}'", by)
        self.worst = max(self.worst, share)
        assert self.sample is not None, "there are inputs"
        self.sample.kept[COMPARED, made.label, made.bits, made.block] = made.arrays, share

    @property
    def text(self) -> str:
        if not self.worst:
            return ""
        earlier = f" ({self.earlier} of them in an earlier graph)" if self.earlier else ""
        return f"; products off by {self.worst:.2g} of rounding's bound{earlier}"


def _block_errors(source: Array, near: Array, block: int) -> tuple[float, float]:
    """The largest relative error of a block of `block` values along K, of two weights [N, K], and
    that of the whole. A chunk of rows at a time, so that large matrices take little memory."""
    worst, off, size = 0.0, 0.0, 0.0
    rows = max(1, AT_ONCE // max(source.shape[1], 1))
    for start in range(0, len(source), rows):
        was = source[start : start + rows].astype(np.float32, copy=False).reshape(-1, block)
        gap = was - near[start : start + rows].reshape(-1, block)
        gaps, sizes = (np.einsum("ij,ij->i", x, x) for x in (gap, was))
        relative = np.where(gaps == 0, 0.0, gaps / np.where(sizes == 0, 1e-30, sizes))
        worst = max(worst, float(np.sqrt(relative.max())))
        off, size = off + float(gaps.sum()), size + float(sizes.sum())
    return worst, float(np.sqrt(off / max(size, 1e-30)))
