"""Rounding that looks at a host's activations: each matrix for its inputs, and the kinds of matrix
that matter most finer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graftline.contrib_ops.quantized import dequantize
from graftline.passes.graph.activations import activations
from graftline.passes.graph.weights import lazy, tensor_of
from graftline.passes.lower.quantize.block_codes import Packed, quantize_rows
from graftline.passes.lower.quantize.rounding import Moments, compensated
from graftline.passes.lower.quantize.targets import Key, Kind, Target, release
from graftline.passes.pipeline.sample import Sample
from graftline.ports import by_role, read_ports

Array = npt.NDArray[Any]
SOURCE = "graftline.weight"
"""On a MatMulNBits: the initializer it was made from, with "^T" when that is stored [out, in]."""
GPTQ, NEAREST = "gptq", "rtn"
FINE = 8
"""Bits of what is kept finer; at 8 bits the nearest code is near enough."""


@dataclass(frozen=True)
class Rounded:
    """The integers of a matrix, and how they were chosen."""

    packed: Packed
    bits: int
    block: int
    method: str

    def rows(self) -> Array:
        """The weight [N, K] that they stand for."""
        data, scales = self.packed.data, self.packed.scales
        depth = scales.shape[1] * self.block
        flat = data.reshape(len(data), -1)
        return dequantize(flat, scales, self.packed.zeros, depth, self.block, self.bits)


def nearest_codes(target: Target, bits: int, method: str = NEAREST) -> Rounded:
    """Rounding that looks at the weights alone."""
    block = target.block(bits)
    packed = quantize_rows(target.matrix.rows(), bits, block, method)
    release(target.matrix)
    return Rounded(packed, bits, block, method)


def compensated_codes(
    model: ir.Model, targets: Sequence[Target], bits: int, sample: Sample, done: Callable[[], None]
) -> dict[Key, Rounded]:
    """Every matrix of `targets` rounded for its inputs under the sample, as the host computes them.
    Of a matrix with several inputs the first count. `done` is called after each target."""
    readers: dict[str, list[Target]] = {}
    for target in targets:
        readers.setdefault(target.rows.name or "", []).append(target)
    made: dict[Key, Rounded] = {}
    for name, inputs in activations(model, sample.feed, list(readers)):
        moments = Moments(inputs)
        for target in readers[name]:
            if target.key not in made:
                block = target.block(bits)
                packed = compensated(target.matrix.rows(), moments, bits, block)
                made[target.key] = Rounded(packed, bits, block, GPTQ)
                release(target.matrix)
            done()
    return made


def most_sensitive(
    model: ir.Model, targets: Sequence[Target], made: Mapping[Key, Rounded], share: float,
    sample: Sample,
) -> frozenset[Kind]:  # fmt: skip
    """The kinds of matrix that change the host's predictions most for their size when they alone
    are rounded as in `made`, as many as `share` of all weights of the blocks holds. All blocks are
    treated alike, so that laws of one block hold for all."""
    members: dict[Kind, list[Target]] = {}
    for target in targets:
        if target.kind is not None and target.key in made:
            members.setdefault(target.kind, []).append(target)
    sizes = {kind: sum(tensor_of(t.matrix.stored).size for t in members[kind]) for kind in members}
    room = share * sum(sizes.values())
    if not any(size <= room for size in sizes.values()):
        return frozenset()
    expected, losses = _predictions(model, sample), dict[Kind, float]()
    for place, (kind, group) in enumerate(members.items(), 1):
        sample.say(f"quantize: how much matrices of kind {place} of {len(members)} matter")
        got = _predictions(_with(model, group, made), sample)
        losses[kind] = float(np.mean((np.exp(expected) * (expected - got)).sum(axis=-1)))
    chosen: set[Kind] = set()
    for kind in sorted(losses, key=lambda k: -losses[k] / sizes[k]):
        if sizes[kind] <= room:
            room -= sizes[kind]
            chosen.add(kind)
    return frozenset(chosen)


def _with(model: ir.Model, group: Sequence[Target], made: Mapping[Key, Rounded]) -> ir.Model:
    """The graph with matrices as they are rounded."""
    other = model.clone()
    for target in group:
        value, tensor = other.graph.initializers[target.name], tensor_of(target.matrix.stored)
        shape = [int(d) for d in tensor.shape]  # type: ignore[arg-type]
        near = partial(_stored, made[target.key], target.matrix.turned)
        value.const_value = lazy(near, tensor.dtype, shape, target.name)
    return other


def _stored(rounded: Rounded, turned: bool) -> Array:
    return rounded.rows() if turned else rounded.rows().T


def _predictions(model: ir.Model, sample: Sample) -> Array:
    """Log probabilities [rows, V] of the next token, under the sample's probe."""
    name = by_role(read_ports(model), "logits", "out")[0].name
    (_, logits), *_ = activations(model, sample.probe, [name])
    wide = logits.reshape(-1, logits.shape[-1]).astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
