"""Rotations of pairs of a head's numbers: what one is, told by its matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Array
from graftline.passes.canonical.rotary.regions import Region
from graftline.passes.graph.meaning import constant
from graftline.passes.graph.mismatch import Mismatch


@dataclass(frozen=True)
class Rotation:
    """A recognised rotary embedding: its tables [P, R/2] and how it pairs dimensions.

    `dim` is R: 0 where nothing is turned. `scale` [P] multiplies the whole head, the part that is
    not turned included; None where it is 1.
    """

    tables: tuple[ir.Value, ir.Value] | None
    interleaved: bool
    dim: int
    scale: ir.Value | None
    raw: RawTurn
    keeps_length: bool
    """Whether a head is as long after it as before."""


@dataclass(frozen=True)
class RawTurn:
    """What the raw graph makes of the heads `probe(P, D)`, [P, D], at positions 0 .. P-1."""

    turned: Array


def probe(rows: int, size: int) -> Array:
    """Random heads [P, D], one per position."""
    return np.random.default_rng(0).standard_normal((rows, size), np.float32)


def commutes(norm: ir.Node, found: Rotation) -> bool:
    """Whether a norm of rotated heads is the same before they are rotated: it scales all of a
    head's numbers alike, and the rotation keeps the head's length."""
    scale = constant(norm.inputs[1])
    alike = scale is not None and bool((scale == scale.reshape(-1)[:1]).all())
    return alike and found.scale is None and found.keeps_length


def pairing(matrices: Array, region: Region) -> tuple[bool, int] | Mismatch:
    """Which dimensions are turned together, and how many are: (interleaved, R); R is 0 where each
    is only scaled."""
    used = np.abs(matrices).max(axis=0) > 0
    np.fill_diagonal(used, False)
    if not used.any():
        return False, 0
    partners = np.flatnonzero(used[0])
    turned = np.flatnonzero(used.any(axis=1))
    if len(partners) != 1:
        return Mismatch.over(
            region.nodes,
            "position-dependent values are not a rotary embedding: the first dimension is not "
            f"rotated with exactly one other but with {len(partners)}",
        )
    partner = int(partners[0])
    if partner == 1 and not used[0, 1:].sum() > 1 and len(turned) != 2:
        return True, int(turned.max()) // 2 * 2 + 2
    return False, 2 * partner


def turn(x: Array, cos: Array, sin: Array, interleaved: bool, dim: int) -> Array:
    """Heads [P, D] turned by an ideal rotary embedding with these tables."""
    first = np.arange(0, dim, 2) if interleaved else np.arange(dim // 2)
    second = first + (1 if interleaved else dim // 2)
    out = x.copy()
    out[:, first] = x[:, first] * cos - x[:, second] * sin
    out[:, second] = x[:, first] * sin + x[:, second] * cos
    return out
