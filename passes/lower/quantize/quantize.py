"""quantize: every constant matrix as 4 or 8 bit integers, computed by MatMulNBits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable, nearest
from graftline.passes.graph.emit import Emit, drop_unused
from graftline.passes.graph.weights import Matrix, constant, same_tensor
from graftline.passes.lower.quantize.block_codes import ALGORITHMS, Packed
from graftline.passes.lower.quantize.calibration import (
    FINE,
    GPTQ,
    SOURCE,
    Rounded,
    compensated_codes,
    losses,
    nearest_codes,
)
from graftline.passes.lower.quantize.laws import ROUNDING, closeness, every_matrix
from graftline.passes.lower.quantize.targets import Key, Target, product_names, targets_of
from graftline.passes.pipeline.graft import ROLE, Graft, Stage
from graftline.passes.pipeline.sample import SAMPLE, Sample

MICROSOFT = "com.microsoft"
Watch = Callable[[str, int, int], None]
"""watch(name of the matrix, how many are done, how many there are)"""
UNSEEN = "range"
"""How gptq rounds where there are no activations."""


@dataclass(frozen=True)
class Quantize(Graft):
    """Weight-only quantization of all constant matrices, lm_head included; the embedding stays.

    `accuracy` 4 rounds activations to 8 bits per row and block, which ONNX Runtime's CPU kernels
    need to be fast (8 bit weights are about 100 times slower without it). `head_bits`, of the
    lm_head and of draft heads in the graph; 0: as `bits`.
    `block` values share a scale; 0: the most that divide a matrix, of 32 and 16 at 4 bits and of
    64, 32 and 16 at 8. `wide`: the share of the weights of the blocks that gets 8 bits, those that
    matter most. `algorithm` gptq and `wide` look at activations of a text that the host writes;
    where it is too large to run, gptq is `range` and `wide` 0. `embedding` reads the token
    embedding from the lm_head's integers, where the two are one matrix.
    """

    stage: ClassVar[Stage] = "lower"

    bits: int = 4
    algorithm: str = "rtn"
    block: int = 32
    accuracy: int = 4
    head_bits: int = 0
    embedding: bool = False
    wide: float = 0.0

    numeric: ClassVar[bool] = False

    @property
    def calibrates(self) -> bool:
        return self.bits < FINE and (self.algorithm == GPTQ or self.wide > 0)

    def requires(self, model: ir.Model) -> None:
        for name, value in (("bits", self.bits), ("head_bits", self.head_bits or self.bits)):
            if value not in (4, 8):
                raise NotApplicable(f"quantize: {name}={value}; 4 or 8 bits have a kernel")
        known = [*ALGORITHMS, GPTQ]
        if self.algorithm not in known:
            near = nearest(self.algorithm, known)
            raise NotApplicable(f"quantize: unknown algorithm '{self.algorithm}'{near}")
        if self.algorithm == GPTQ and self.bits == FINE:
            raise NotApplicable("quantize: gptq is for bits=4; at 8 bits the nearest code is near")
        if self.block and (self.block < 16 or self.block & (self.block - 1)):
            raise NotApplicable(f"quantize: block={self.block} is not a power of two from 16 on")
        if self.accuracy not in (0, 1, 4):
            raise NotApplicable(f"quantize: accuracy={self.accuracy}; 0, 1 and 4 exist")
        if not 0 <= self.wide <= 1:
            raise NotApplicable(f"quantize: wide={self.wide} is not a share from 0 to 1")
        targets = targets_of(model, self.block)
        if not targets:
            names = product_names(model.graph)
            raise NotApplicable("quantize: no product has a constant matrix", names)

    def apply(self, model: ir.Model) -> None:
        self.quantize(model)

    def quantize(self, model: ir.Model, watch: Watch | None = None) -> None:
        """Rewrite in place, telling `watch` after every matrix."""
        graph, targets = model.graph, targets_of(model, self.block)
        gathers = _tied_gathers(model, targets) if self.embedding else []
        rounded = self._rounded(model, targets, watch)
        model.opset_imports[MICROSOFT] = 1
        made: dict[int, list[ir.Value]] = {}
        for target, one in zip(targets, rounded, strict=True):
            if id(one) not in made:
                name = f"{target.name}.q{one.bits}"
                made[id(one)] = _register(graph, name, one.packed, target.matrix)
            self._replace(graph, target, made[id(one)], one)
            for gather in gathers:
                if target.is_head and _reads(gather, target):
                    self._gather(graph, gather, made[id(one)], one, target.matrix.shape[0])
        drop_unused(model)

    def _rounded(
        self, model: ir.Model, targets: list[Target], watch: Watch | None
    ) -> list[Rounded]:
        """How each target is rounded; targets of one matrix share an object."""
        sample: Sample | None = model.meta.get(SAMPLE) if self.calibrates else None
        if sample is not None and sample.missing:
            sample.say(f"quantize: no activations are looked at: {sample.missing}")
            sample = None
        progress = _Progress(len(targets), watch, sample)
        made: dict[tuple[Key, int], Rounded] = {}
        bits = [self.head_bits or self.bits if t.is_fine else self.bits for t in targets]
        if sample is not None:
            bits = self._calibrated(model, targets, bits, sample, made, progress)
        method = UNSEEN if self.algorithm == GPTQ else self.algorithm
        for target, width in zip(targets, bits, strict=True):
            key = target.key, width
            if key not in made:
                finer = self.calibrates and width == FINE
                made[key] = nearest_codes(target, width, "rtn" if finer else method)
            progress.done(target)
        return [made[t.key, width] for t, width in zip(targets, bits, strict=True)]

    def _calibrated(
        self,
        model: ir.Model,
        targets: list[Target],
        bits: list[int],
        sample: Sample,
        made: dict[tuple[Key, int], Rounded],
        progress: _Progress,
    ) -> list[int]:
        """Put the matrices of few bits into `made`; the bits of all, with the most sensitive finer.
        """
        coarse = [t for t, width in zip(targets, bits, strict=True) if width < FINE]
        if self.algorithm == GPTQ:
            found = compensated_codes(model, coarse, self.bits, sample, progress.counted)
        else:
            found = {t.key: nearest_codes(t, self.bits, self.algorithm) for t in coarse}
        made |= {(key, self.bits): one for key, one in found.items()}
        chosen = losses(model, coarse, found, sample).most(self.wide) if self.wide else ()
        return [FINE if t.kind in chosen else width for t, width in zip(targets, bits, strict=True)]

    def _replace(
        self, graph: ir.Graph, target: Target, weight: list[ir.Value], one: Rounded
    ) -> None:
        depth, count = target.matrix.shape
        sizes = {"K": depth, "N": count, "bits": one.bits, "block_size": one.block}
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
        made.metadata_props[ROUNDING] = one.method
        if ROLE in target.node.metadata_props:
            made.metadata_props[ROLE] = target.node.metadata_props[ROLE]
        _take_over(target.node, made.outputs[0])

    def _gather(
        self, graph: ir.Graph, node: ir.Node, weight: list[ir.Value], one: Rounded, depth: int
    ) -> None:
        emit = Emit(graph, self.name(), node)
        shape = emit.const(f"table.{depth}.{one.bits}", [-1, depth * one.bits // 8], np.int64)
        data = emit.op("Reshape", [weight[0], shape])
        made = emit.node(
            "GatherBlockQuantized",
            [data, node.inputs[1], weight[1], weight[2]],
            [""],
            MICROSOFT,
            bits=one.bits,
            block_size=one.block,
            gather_axis=0,
            quantize_axis=1,
        )
        if ROLE in node.metadata_props:
            made.metadata_props[ROLE] = node.metadata_props[ROLE]
        _take_over(node, made.outputs[0])


@dataclass
class _Progress:
    """Tells how far the rounding is: a caller every matrix, the screen every quarter."""

    count: int
    watch: Watch | None
    sample: Sample | None
    seen: int = 0
    named: int = 0

    def done(self, target: Target) -> None:
        self.named += 1
        if self.watch is not None:
            self.watch(target.name, self.named, self.count)

    def counted(self) -> None:
        self.seen += 1
        if self.sample is not None and self.seen % max(self.count // 8, 8) == 1:
            self.sample.say(f"quantize: rounding matrix {self.seen} of {self.count}")


def _tied_gathers(model: ir.Model, targets: list[Target]) -> list[ir.Node]:
    """Row look-ups in the very tensor the lm_head multiplies by."""
    heads = [t for t in targets if t.is_head and t.matrix.turned]
    gathers = [n for n in model.graph if n.op_type == "Gather" and _rows(n)]
    return [n for n in gathers if any(_reads(n, head) for head in heads)]


def _reads(gather: ir.Node, target: Target) -> bool:
    """Whether a look-up reads the matrix of a product."""
    table = constant(gather.inputs[0])
    return table is not None and same_tensor(table, target.matrix.stored)


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


def _take_over(old: ir.Node, new: ir.Value) -> None:
    """`new` stands where the output of `old` stood, under its name."""
    out = old.outputs[0]
    name, new.shape, new.type = out.name, out.shape, out.type
    out.name = f"{name}.full"
    new.name = name
    out.replace_all_uses_with(new, replace_graph_outputs=True)


Quantize.weight_free = (every_matrix, closeness)
