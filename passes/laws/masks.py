"""The law `masks`: every attention sees what the graph before lets it see, and turns its heads as
there, at positions around every constant; no weight is read and no feed is needed.

After canonicalize the raw graph's own values are compared, as they were evaluated when its masks
and rotary embeddings were read. After kv-cache and tree-mask the graph before is evaluated beside
the graph after: rows at several places of a cache, and a tree.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.errors import DoesNotRun, LawBroken
from graftline.evaluate import Array
from graftline.law import Evidence
from graftline.passes.canonical.attention.attention import RAW_KEY, RawAttention
from graftline.passes.canonical.lengths import constants_above, lengths_around
from graftline.passes.canonical.mask.kinds import RawMask
from graftline.passes.canonical.rotary.rotation import RawTurn, probe
from graftline.passes.graph.meaning import label
from graftline.passes.graph.ports import cache_of, port_of
from graftline.passes.graph.seen import HIDDEN, Seen, rounding
from graftline.passes.laws.mask_values import Way, cached_mask, mask_at, mask_key
from graftline.passes.pipeline.graft import Graft

LAW = "masks"
_FIRST, _NEAR = 24, 2
_ROWS, _APART = 3, 5
"""New rows of a chain, and how far two sequences of a batch are apart."""
_SPARE = (2, 41)
"""Slots nothing was written to."""
_TURNED = 2e-5
"""A turned head may differ by so much of its largest number: sine and cosine of another library."""
_PARENTS = (-1, 0, 0, 1, 1, 2)


def masks(graft: Graft, before: ir.Model, after: ir.Model) -> Evidence:
    """Masks and rotary embeddings after are those before, told by their values."""
    if cache_of(after) is None:
        return _against_raw(graft, after)
    return _against_host(graft, before, after)


def attentions(model: ir.Model) -> list[ir.Node]:
    """The attention nodes of a canonical graph, in order."""
    return [n for n in model.graph if n.op_type == "Attention"]


# canonical against raw


def _against_raw(graft: Graft, after: ir.Model) -> Evidence:
    done, seen = Compared(), set[tuple[object, ...]]()
    for node in attentions(after):
        raw = node.meta.get(RAW_KEY)
        if not isinstance(raw, RawAttention):
            raise LawBroken(graft.name(), LAW, label(node), "the raw graph's mask was not recorded")
        done.attentions += 1
        key = (mask_key(node), id(raw.masks))
        if key not in seen:
            seen.add(key)
            _raw_masks(graft, after, node, raw.masks, done)
        for operand, turn in ((0, raw.query), (1, raw.key)):
            way = Way.of(node, operand)
            key = (way.key(), id(turn))
            if key not in seen:
                seen.add(key)
                _raw_turn(graft, after, node, way, turn, done)
    return Evidence(done.text("the raw graph's"))


def _raw_masks(
    graft: Graft, after: ir.Model, node: ir.Node, raw: tuple[RawMask, ...], done: Compared
) -> None:
    done.masks += 1
    for part in raw:
        positions = np.unique(np.concatenate([part.query, part.key]))
        with _running(graft, node):
            values = mask_at(after, node, positions)
        rows, columns = (np.searchsorted(positions, p) for p in (part.query, part.key))
        _compare(graft, node, values[:, rows][:, :, columns], part.values, part.query, part.key)
        done.whole = max(done.whole, part.length if part.whole else 0)
        done.longest = max(done.longest, part.length)


def _raw_turn(
    graft: Graft, after: ir.Model, node: ir.Node, way: Way, raw: RawTurn | None, done: Compared
) -> None:
    """Heads are turned as in the raw graph; not at all where it turns none."""
    rows = len(raw.turned) if raw is not None else way.rows
    if not rows:
        return
    x = probe(rows, way.size)
    with _running(graft, node):
        found = way.of_heads(after, x)
    _same_heads(graft, node, found, x if raw is None else raw.turned)
    done.rotary = max(done.rotary, rows)


# cached against canonical, and with a tree against without


def _against_host(graft: Graft, before: ir.Model, after: ir.Model) -> Evidence:
    done, seen = Compared(), set[tuple[object, ...]]()
    hosts, news = attentions(before), attentions(after)
    if len(hosts) != len(news):
        raise LawBroken(
            graft.name(), LAW, "attention", f"{len(news)} attentions, the host has {len(hosts)}"
        )
    for host, node in zip(hosts, news, strict=True):
        done.attentions += 1
        key = (mask_key(host), mask_key(node))
        if key not in seen:
            seen.add(key)
            done.masks += 1
            for total in _totals(host, node):
                _at_length(graft, before, after, host, node, total)
                done.longest = max(done.longest, total)
        for operand in (0, 1):
            was, now = Way.of(host, operand), Way.of(node, operand)
            key = (was.key(), now.key())
            rows = was.rows or now.rows
            if key in seen or not rows:
                continue
            seen.add(key)
            x = probe(rows, was.size)
            with _running(graft, node):
                found = now.of_heads(after, x)
            _same_heads(graft, node, found, was.of_heads(before, x))
            done.rotary = max(done.rotary, rows)
    return Evidence(done.text("the host's"))


def _totals(host: ir.Node, node: ir.Node) -> list[int]:
    """Positions in use: around every constant above either mask."""
    return [n for n in lengths_around(_constants(host, node)) if n > 1]


def _constants(host: ir.Node, node: ir.Node) -> set[int]:
    given = [n.inputs[3] if len(n.inputs) > 3 else None for n in (host, node)]
    return constants_above(v for v in given if v is not None)


def _points(total: int, constants: set[int]) -> Array:
    """Positions below `total` at which keys are looked at."""
    near = {total - c + s for c in constants for s in range(-_NEAR, _NEAR + 1)}
    near |= {c + s for c in constants for s in range(-_NEAR, _NEAR + 1)}
    near |= set(range(_FIRST)) | set(range(total - _FIRST, total))
    return np.asarray(sorted(p for p in near if 0 <= p < total), np.int64)


def _at_length(
    graft: Graft, before: ir.Model, after: ir.Model, host: ir.Node, node: ir.Node, total: int
) -> None:
    """New rows that end at `total` positions see what the host's rows there see, each slot of
    the cache by the position it holds; with a tree, along its branches."""
    parents = _PARENTS if port_of(after, "mask") is not None else ()
    depth, reach = _tree(parents) if parents else _chain(min(_ROWS, total))
    last = max(total - 1 - int(depth.max()), 0)
    pasts = np.asarray([last, max(last - _APART, 0)])
    slots = last + len(depth) + _SPARE[total % 2]
    port = np.zeros((2, len(depth), slots), np.bool_)
    for seen, past in zip(port, pasts, strict=True):
        seen[:, :past] = True
        seen[:, past : past + len(depth)] = reach
    with _running(graft, node):
        found = cached_mask(after, node, pasts[:, None] + depth, pasts, slots, port)
    for values, past, seen in zip(found, pasts, port, strict=True):
        _same_rows(graft, before, (host, node), values, int(past), depth, seen)


def _same_rows(
    graft: Graft, before: ir.Model, nodes: tuple[ir.Node, ir.Node], values: Array, past: int,
    depth: Array, port: Array,
) -> None:  # fmt: skip
    """Biases [heads, N, S] of rows behind `past` slots are the host's, where `port` lets them be.
    """
    host, node = nodes
    rows, slots = port.shape
    held = np.full(slots, -1)
    held[:past], held[past : past + rows] = np.arange(past), past + depth
    kept = np.concatenate([_points(past, _constants(host, node)), np.arange(past, slots)])
    known = np.concatenate([held[kept], past + depth])
    positions = np.unique(known[known >= 0])
    expected = mask_at(before, host, positions)
    index = np.searchsorted(positions, np.maximum(held[kept], 0))
    expected = expected[:, np.searchsorted(positions, past + depth)][:, :, index]
    expected = np.where(port[:, kept], expected, -np.inf)
    _compare(graft, node, values[:, :, kept], expected, past + depth, held[kept])


def _chain(rows: int) -> tuple[Array, Array]:
    return np.arange(rows), np.tri(rows, dtype=np.bool_)


def _tree(parents: tuple[int, ...]) -> tuple[Array, Array]:
    """Depths [N], and [N, N] true where a node is another or above it."""
    count = len(parents)
    depth, reach = np.zeros(count, np.int64), np.eye(count, dtype=np.bool_)
    for node, parent in enumerate(parents):
        if parent >= 0:
            depth[node] = depth[parent] + 1
            reach[node] |= reach[parent]
    return depth, reach


# comparing


@contextmanager
def _running(graft: Graft, node: ir.Node) -> Generator[None]:
    """A graph that does not run where the one before does breaks the law."""
    try:
        yield
    except DoesNotRun as error:
        raise LawBroken(graft.name(), LAW, label(node), str(error)) from error


def _compare(
    graft: Graft, node: ir.Node, found: Array, expected: Array, query: Array, key: Array
) -> None:
    got, want = Seen.of(found), Seen.of(expected)
    if got.equals(want):
        return
    gap = np.abs(got.bias - want.bias)
    head, row, column = (int(i) for i in np.unravel_index(int(gap.argmax()), gap.shape))
    was, now = (
        "hidden" if b <= HIDDEN else f"seen with {b:.4g}"
        for b in (_at(want, head, row, column), _at(got, head, row, column))
    )
    place = f"head {head}, query {int(query[row])}, key {int(key[column])}"
    raise LawBroken(graft.name(), LAW, label(node), f"{place}: {now}, but {was} before")


def _at(seen: Seen, head: int, row: int, column: int) -> float:
    return float(seen.bias[min(head, len(seen.bias) - 1), row, column])


def _same_heads(graft: Graft, node: ir.Node, found: Array, expected: Array) -> None:
    gap = np.abs(found - expected).max(axis=-1)
    kind = node.inputs[0].dtype if node.inputs[0] is not None else None
    step = 32 * rounding((kind or ir.DataType.FLOAT).numpy())
    limit = max(step, _TURNED) * max(1.0, float(np.abs(expected).max(initial=0.0)))
    if not (gap <= limit).all():
        first = int(np.flatnonzero(~(gap <= limit))[0])
        raise LawBroken(
            graft.name(), LAW, label(node),
            f"heads at position {first} are rotated differently from before: {gap[first]:.3g} > "
            f"{limit:.3g}",
        )  # fmt: skip


@dataclass
class Compared:
    """What was compared, for the text of the law."""

    attentions: int = 0
    masks: int = 0
    whole: int = 0
    longest: int = 0
    rotary: int = 0

    def text(self, whose: str) -> str:
        """One line."""
        whole = f" (all of it up to {self.whole})" if self.whole else ""
        turned = f", rotary over {self.rotary} positions" if self.rotary else ""
        return (
            f"{self.masks} different masks of {self.attentions} attentions equal {whose} up to "
            f"{self.longest} positions{whole}{turned}"
        )
