"""Rotary embeddings in any spelling, as RotaryEmbedding with tables.

Between a projected head and attention, what depends on positions is linear in the head: a matrix
A(p) per position. It is read off by feeding unit vectors, recognised as a rotation of pairs
(i, i + R/2) or (2i, 2i + 1), and its cosines and sines become tables of P rows, scales included.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from graftline.errors import DoesNotRun
from graftline.evaluate import Array
from graftline.passes.canonical.rotary.angles import Angles
from graftline.passes.canonical.rotary.regions import Region, Regions
from graftline.passes.canonical.rotary.rotation import (
    RawTurn,
    Rotation,
    commutes,
    pairing,
    probe,
    turn,
)
from graftline.passes.canonical.shapes import SIZES, Measures
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.meaning import type_of
from graftline.passes.graph.mismatch import Mismatch
from graftline.passes.graph.seen import rounding

_PROBED = 5
_CHUNK = 1024
_TOLERANCE = 1e-5
_ANGLES_DIFFER = "heads are rotated by different angles"
Layout = Literal["heads_first", "rows_first"]


@dataclass
class RotaryReader:
    """Recognises rotary regions of one graph; equal ones share one look and one pair of tables."""

    graph: ir.Graph
    measures: Measures
    hidden: set[ir.Value]
    positions: ir.Value
    own_positions: bool
    rows: int
    """P: how many positions the tables hold."""
    regions: Regions = field(init=False)
    seen: dict[str, Rotation | Mismatch] = field(default_factory=dict)
    tables: dict[bytes, tuple[ir.Value, ir.Value]] = field(default_factory=dict)
    scales: dict[bytes, ir.Value] = field(default_factory=dict)
    turns: dict[bytes, RawTurn] = field(default_factory=dict)
    angles: Angles = field(init=False)

    def __post_init__(self) -> None:
        self.regions = Regions(self.graph, self.measures, self.hidden)
        self.angles = Angles(self.measures, self.own_positions, self.rows)

    def settle(
        self, head: ir.Value, at: ir.Node
    ) -> tuple[ir.Value, RawTurn | None] | Mismatch:
        """`head` [B, heads, N, D] with its rotary embedding, if any, as one node before `at`, and
        what the raw graph makes of heads."""
        maker = head.producer()
        norm = maker if maker is not None and maker.op_type == "RMSNormalization" else None
        below = head if norm is None else norm.inputs[0]
        assert below is not None
        region = self.regions.region(below)
        if isinstance(region, Mismatch):
            return region
        if not region.angles:
            return head, None
        layout, found = self._layout(region.x, head), self._known(region)
        for part in (layout, found):
            if isinstance(part, Mismatch):
                return part
        assert isinstance(layout, str)
        assert isinstance(found, Rotation)
        if norm is not None and not commutes(norm, found):
            return head, None
        return self._written(head, region, found, layout, norm, at), found.raw

    def _known(self, region: Region) -> Rotation | Mismatch:
        """The rotation of a region, looked at once for all that compute the same."""
        key = self._key(region)
        if key not in self.seen:
            self.seen[key] = self._recognise(region)
        return self.seen[key]

    def _written(
        self, head: ir.Value, region: Region, found: Rotation, layout: Layout,
        norm: ir.Node | None, at: ir.Node,
    ) -> ir.Value:  # fmt: skip
        """The rotation as one node before `at`."""
        emit = Emit(self.graph, "canonicalize", at=at)
        x = region.x
        if layout == "rows_first":
            x = emit.op("Transpose", [x], perm=[0, 2, 1, 3])
            x.type = head.type
        if found.scale is not None:
            x = self._scaled(emit, x, found.scale)
        if norm is not None:  # it leaves the length of heads, and rotations leave what it makes
            attributes = {k: a.value for k, a in norm.attributes.items()}
            x = emit.op(norm.op_type, [x, *norm.inputs[1:]], **attributes)
            x.type = head.type
        if found.tables is None:
            return x
        size = self.measures.shape(head)[-1]
        new = emit.op(
            "RotaryEmbedding", [x, *found.tables, self.positions],
            interleaved=int(found.interleaved),
            rotary_embedding_dim=found.dim if found.dim != size else 0,
        )  # fmt: skip
        new.type = head.type
        return new

    def _scaled(self, emit: Emit, x: ir.Value, scale: ir.Value) -> ir.Value:
        """Heads times a number per position, read from a table [P]."""
        factor = emit.op("Gather", [scale, self.positions], axis=0)
        axes = emit.const("axes.1_3", [1, 3], np.int64)
        made = emit.op("Mul", [x, emit.op("Unsqueeze", [factor, axes])])
        factor.type = made.type = x.type
        return made

    def _layout(self, x: ir.Value, head: ir.Value) -> Layout | Mismatch:
        (_, a, b, d), out = self.measures.shape(x), self.measures.shape(head)
        length = SIZES[0][1]
        dims = self.measures.dims(x) or []
        rows_first = dims[1] == "N"
        if (out[0], a if not rows_first else b, length, d) != tuple(out):
            return Mismatch.at(head, "a rotary embedding changes the shape of its heads")
        return "rows_first" if rows_first else "heads_first"

    def _key(self, region: Region) -> str:
        """Text that is equal for regions that compute the same."""
        names: dict[ir.Value, str] = {region.x: "x"}
        lines = [str(self.measures.shape(region.x)[1:])]
        for i, node in enumerate(region.nodes):
            read = [names.get(v, f"@{id(v)}") if v is not None else "" for v in node.inputs]
            attributes = sorted((k, str(a.value)) for k, a in node.attributes.items())
            lines.append(f"{node.op_type}{attributes}({','.join(read)})")
            names.update({v: f"{i}.{j}" for j, v in enumerate(node.outputs)})
        return "\n".join(lines)

    # recognising the rotation

    def _recognise(self, region: Region) -> Rotation | Mismatch:
        dependent = self.angles.read(region.angles)
        matrices = dependent or self._matrices(region)
        paired = matrices if isinstance(matrices, Mismatch) else pairing(matrices, region)
        if isinstance(paired, Mismatch):
            return paired
        interleaved, dim = paired
        read = self._tables(region, interleaved, dim)
        if isinstance(read, Mismatch):
            return read
        cos, sin, rest = read
        if (rest == 0).any():
            return self._is_none(region, float("inf"))
        scale = rest if (rest != 1).any() else None
        if scale is not None:
            cos, sin = cos / rest[:, None], sin / rest[:, None]
        raw = self._proved(region, (cos, sin, rest), interleaved, dim)
        if isinstance(raw, Mismatch):
            return raw
        tables = self._hold(cos, sin, region) if dim else None
        factor = None if scale is None else self._hold_scale(scale, region)
        keeps = bool(np.allclose(cos**2 + sin**2, 1, rtol=0, atol=_TOLERANCE))
        return Rotation(tables, interleaved, dim, factor, raw, keeps)

    def _proved(
        self, region: Region, tables: tuple[Array, Array, Array], interleaved: bool, dim: int
    ) -> RawTurn | Mismatch:
        """What the region makes of random heads at every position, which is what the tables do."""
        x = probe(self.rows, self._sizes(region)[1]).astype(type_of(region.x))
        out = self._along(region, x)
        if isinstance(out, Mismatch):
            return out
        for start in range(0, self.rows, _CHUNK):
            part = slice(start, start + _CHUNK)
            cos, sin, rest = (t[part] for t in tables)
            want = turn(x[part].astype(np.float64) * rest[:, None], cos, sin, interleaved, dim)
            gap = float(np.abs(want - out[part]).max())
            limit = max(16 * rounding(x.dtype), _TOLERANCE) * max(1.0, float(np.abs(want).max()))
            if not gap <= limit:
                return self._is_none(region, gap)
        held = out.astype(np.float32)
        key = hashlib.sha256(held.tobytes()).digest()
        return self.turns.setdefault(key, RawTurn(held))

    def _is_none(self, region: Region, gap: float) -> Mismatch:
        why = "position-dependent values are not a rotary embedding"
        told = f"{why} (off by {gap:.1e} at one of {self.rows} positions)"
        return Mismatch.over(region.nodes, told)

    def _along(self, region: Region, x: Array) -> Array | Mismatch:
        """The region on one head per position [P, D]."""
        heads, size = self._sizes(region)
        heads = 1 if self._takes_one_head(region, size) else heads
        parts: list[Array] = []
        for start in range(0, self.rows, _CHUNK):
            part = x[start : start + _CHUNK]
            fed = np.broadcast_to(part, (1, heads, *part.shape)).copy()
            out = self._evaluate(region, fed, start)[0]
            if not (out == out[:1]).all():
                return Mismatch.at(region.out, _ANGLES_DIFFER)
            parts.append(out[0])
        return np.concatenate(parts)

    def _evaluate(self, region: Region, x: Array, start: int) -> Array:
        """The region on heads x [batch, heads, n, D], at positions start .. start + n - 1."""
        batch, _, length, _ = x.shape
        dims = self.measures.dims(region.x) or []
        if dims[1] == "N":
            x = x.swapaxes(1, 2)
        world = self.measures.world(batch, length)
        world.shapes = {}
        world.known[self.positions] = world.known[self.positions] + start
        world.known[region.x] = x
        for angle in region.angles:
            rows = self.angles.rows_of[angle]
            axis = (self.measures.dims(angle) or []).index("N")
            taken = np.take(rows, range(start, start + length), axis=axis)
            world.known[angle] = taken
        return world.value(region.out)

    def _sizes(self, region: Region) -> tuple[int, int]:
        shape, dims = self.measures.shape(region.x), self.measures.dims(region.x) or []
        return (shape[2] if dims[1] == "N" else shape[1]), shape[3]

    def _matrices(self, region: Region) -> Array | Mismatch:
        """A(p) for the first positions: [p, D, D], the same for all heads."""
        heads, size = self._sizes(region)
        x = np.zeros((size, heads, _PROBED, size), type_of(region.x))
        x[np.arange(size), :, :, np.arange(size)] = 1
        out = self._evaluate(region, x, 0)
        if not (out == out[:, :1]).all():
            return Mismatch.at(region.out, _ANGLES_DIFFER)
        return out[:, 0].transpose(1, 2, 0).astype(np.float64)

    def _tables(
        self, region: Region, interleaved: bool, dim: int
    ) -> tuple[Array, Array, Array] | Mismatch:
        """Cosines and sines [P, R/2], and what multiplies the dimensions that are not turned [P]:
        1 where all are turned."""
        size = self._sizes(region)[1]
        first = np.arange(0, dim, 2) if interleaved else np.arange(dim // 2)
        second = first + (1 if interleaved else dim // 2)
        x = np.zeros((self.rows, size), type_of(region.x))
        x[:, first] = 1
        x[:, dim:] = 1
        read = self._along(region, x)
        if isinstance(read, Mismatch):
            return read
        out = read.astype(np.float64)
        rest = out[:, dim] if dim < size else np.ones(self.rows)
        return out[:, first], out[:, second], rest

    def _takes_one_head(self, region: Region, size: int) -> bool:
        """Whether the nodes can be run on one head alone, which is that much cheaper."""
        one = np.ones((1, 1, _PROBED, size), type_of(region.x))
        try:
            return self._evaluate(region, one, 0).shape[-3:] == (1, _PROBED, size)
        except DoesNotRun:
            return False  # its reshapes name the number of heads

    def _hold(self, cos: Array, sin: Array, region: Region) -> tuple[ir.Value, ir.Value]:
        dtype = type_of(region.x)
        cos, sin = cos.astype(dtype), sin.astype(dtype)
        key = cos.tobytes() + sin.tobytes()
        if key not in self.tables:
            emit, n = Emit(self.graph, "canonicalize"), len(self.tables)
            while f"rotary.{n}.cos" in self.graph.initializers:
                n += 1
            names = [f"rotary.{n}.cos", f"rotary.{n}.sin"]
            self.tables[key] = (
                emit.initializer(names[0], ir.tensor(cos, name=names[0])),
                emit.initializer(names[1], ir.tensor(sin, name=names[1])),
            )
        return self.tables[key]

    def _hold_scale(self, scale: Array, region: Region) -> ir.Value:
        """A table [P] of factors, made once."""
        held = scale.astype(type_of(region.x))
        key = held.tobytes()
        if key not in self.scales:
            emit, name = Emit(self.graph, "canonicalize"), f"head_scale.{len(self.scales)}"
            self.scales[key] = emit.initializer(name, ir.tensor(held, name=name))
        return self.scales[key]


