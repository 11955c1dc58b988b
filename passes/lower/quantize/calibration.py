"""Rounding that looks at a host's activations: each matrix for its inputs, and the kinds of matrix
that matter most finer."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
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
from graftline.tensors import origin

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
    """Every matrix of `targets` rounded for its inputs under the sample, as the host computes them;
    what was rounded for the sample before, in another graph of the host, is not again.
    Of a matrix with several inputs the first count. `done` is called after each target."""
    readers: dict[str, list[Target]] = {}
    for target in targets:
        if _codes_key(target, bits) not in sample.kept:
            readers.setdefault(target.rows.name or "", []).append(target)
    for name, inputs in activations(model, sample.feed, list(readers)) if readers else ():
        moments: dict[int, Moments] = {}
        for target in readers[name]:
            block, key = target.block(bits), _codes_key(target, bits)
            if key not in sample.kept:
                moments[block] = moments.get(block) or Moments(inputs, block)
                packed = compensated(target.matrix.rows(), moments[block], bits, block)
                # the tensor is kept with it, so that no other comes to have its identity
                kept = tensor_of(target.matrix.stored), Rounded(packed, bits, block, GPTQ)
                sample.kept[key] = kept
                release(target.matrix)
            done()
    return {target.key: sample.kept[_codes_key(target, bits)][1] for target in targets}


def _codes_key(target: Target, bits: int) -> Hashable:
    """What tells how a matrix is rounded for a sample."""
    matrix = target.matrix
    return GPTQ, bits, target.block(bits), origin(tensor_of(matrix.stored)), matrix.turned


@dataclass(frozen=True)
class Losses:
    """By kind of matrix: how far the host's predictions move when these alone are rounded, and how
    many weights they have."""

    by_kind: Mapping[Kind, float]
    sizes: Mapping[Kind, int]

    def most(self, share: float) -> frozenset[Kind]:
        """The kinds that matter most for their size, as many as `share` of all weights holds."""
        room, chosen = share * sum(self.sizes.values()), set[Kind]()
        for kind in sorted(self.by_kind, key=lambda k: -self.by_kind[k] / self.sizes[k]):
            if self.sizes[kind] <= room:
                room -= self.sizes[kind]
                chosen.add(kind)
        return frozenset(chosen)


def losses(
    model: ir.Model, targets: Sequence[Target], made: Mapping[Key, Rounded], sample: Sample
) -> Losses:
    """Of each kind of matrix, how much its rounding as in `made` matters. All blocks are treated
    alike, so that laws of one block hold for all; what was measured before, in another graph of
    the host, counts for the blocks that this one has of it."""
    members: dict[Kind, list[Target]] = {}
    for target in targets:
        if target.kind is not None and target.key in made:
            members.setdefault(target.kind, []).append(target)
    ways = frozenset((one.method, one.bits, one.block) for one in made.values())
    known: Losses | None = sample.kept.get(ways)
    if known is None or not members.keys() <= known.by_kind.keys():
        sizes = {kind: sum(map(_size, group)) for kind, group in members.items()}
        sample.kept[ways] = known = Losses(_moved(model, members, made, sample), sizes)
    return known


def _size(target: Target) -> int:
    return tensor_of(target.matrix.stored).size


def _moved(
    model: ir.Model,
    members: Mapping[Kind, Sequence[Target]],
    made: Mapping[Key, Rounded],
    sample: Sample,
) -> dict[Kind, float]:
    """The mean divergence of predictions, by the kind of matrix that alone is rounded."""
    expected, found = _predictions(model, sample), dict[Kind, float]()
    for place, (kind, group) in enumerate(members.items(), 1):
        sample.say(f"quantize: how much matrices of kind {place} of {len(members)} matter")
        got = _predictions(_with(model, group, made), sample)
        found[kind] = float(np.mean((np.exp(expected) * (expected - got)).sum(axis=-1)))
    return found


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
