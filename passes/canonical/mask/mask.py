"""What an attention bias means, told by its values: causal, a window, linear biases, or a formula.

The graph's own formula is lifted onto query and key positions and proved against the raw values at
every length around its constants. What depends on token values, on the batch, on data, or sees
later positions is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from graftline.errors import DoesNotRun
from graftline.evaluate import Array
from graftline.passes.canonical.lengths import (
    LONGEST,
    SQUARE,
    Lengths,
    above,
    constants_above,
    ids_held,
    lengths_around,
    marked_ids,
    token_ids,
)
from graftline.passes.canonical.mask.kinds import Mask, RawMask, classify
from graftline.passes.canonical.mask.lift import Lift, Lifted
from graftline.passes.canonical.shapes import Measures
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.formula import Formula, copy_formula, number
from graftline.passes.graph.meaning import World, label
from graftline.passes.graph.mismatch import Mismatch
from graftline.passes.graph.seen import Seen

_WHOLE = 1 << 22
"""Elements of the largest bias that is evaluated as a whole, once."""
_SAMPLED, _KEPT = 48, 8
_NEAR = 2


@dataclass(frozen=True)
class Bias:
    """The additive bias [B, heads, N, N] of some scores, as the graph spells it."""

    at: Callable[[World, int, int], Array | Mismatch]
    """Its values in a world of (batch, length), or why the scores are no biased ones."""
    lift: Callable[[Lift], Lifted]
    """Its formula: bool for what is seen, or numbers that are added."""
    sources: list[ir.Value]
    """The weight-free values it is made of."""
    width: int = 1
    """Heads of the values that `at` gives."""
    zero: ir.Value | None = None
    """The scores, which the formula takes as 0."""


def read_mask(
    bias: Bias, measures: Measures, hidden: set[ir.Value], rows: int, where: str
) -> Mask | Mismatch:
    """Read a bias; tables by position hold `rows`. What is no function of positions or sees later
    ones is no mask. Raises CannotEvaluate for what cannot be looked at."""
    constants = constants_above(bias.sources)
    lengths = Lengths(measures, lengths_around(constants, measures.most))
    by_tokens = _of_tokens(bias, lengths, constants, where)
    if by_tokens is not None:
        return by_tokens
    lift = Lift(lengths, rows, hidden, bias.zero)
    root = bias.lift(lift)
    if isinstance(root, Mismatch):
        return root
    points = _points(constants)
    most = measures.most or LONGEST * 4
    points = points[points < (min(most, lift.rows) if lift.tables else most)]
    formula = _settle_length(lift, root, points, where)
    if isinstance(formula, Mismatch):
        return formula
    raw = _proved(bias, formula, lengths, points, where)
    if isinstance(raw, Mismatch):
        return raw
    far = _keys_of(points, constants)
    beyond = RawMask(points, far, formula.at(points, far), int(points[-1]) + 1, False)
    found = classify(formula, points, far, where)
    if isinstance(found, Mismatch):
        return found
    bound = lift.rows if lift.tables and found.kind == "formula" else 0
    return replace(found, raw=(*raw, beyond), positions=bound)


def _of_tokens(
    bias: Bias, lengths: Lengths, constants: set[int], where: str
) -> Mismatch | None:
    """Whether a mask changes with the ids; they are drawn from what ids are compared with."""
    measures = lengths.measures
    makers = (v.producer() for v in above(bias.sources))
    readers = [n for n in makers if n is not None and _reads_ids(n, measures.tokens)]
    if not readers:
        return None
    batch = 2
    length = max(n for n in lengths.each if bias.width * n * n <= SQUARE)
    plain = measures.world(batch, length)
    given = {v: plain.known[v] for v in (measures.tokens, measures.positions)}
    expected = bias.at(plain, batch, length)
    ids = constants | marked_ids(bias.sources)
    held = ids_held(measures)
    for seed in range(8):
        if isinstance(expected, Mismatch):
            return expected
        drawn = token_ids(ids, held, batch, length, seed)
        found = bias.at(plain.fork({**given, measures.tokens: drawn}), batch, length)
        if isinstance(found, Mismatch):
            return found
        if not np.array_equal(found, expected):
            why = (
                "the mask depends on token values (as one that hides the keys of padding tokens "
                "does): export the model without it, prompts are never padded here"
            )
            return Mismatch(where, why, tuple(label(n) for n in readers))
    return None


def _reads_ids(node: ir.Node, tokens: ir.Value) -> bool:
    return tokens in node.inputs and node.op_type not in ("Shape", "Size")


def _points(constants: set[int]) -> Array:
    """Positions at which formulas are compared: the first ones, and around every constant."""
    around = {
        max(c * times + shift, 0)
        for c in constants for times in (1, 2) for shift in range(-_NEAR, _NEAR + 1)
    }  # fmt: skip
    return np.asarray(sorted(around.union(range(_SAMPLED))), np.int64)


def _keys_of(points: Array, constants: set[int]) -> Array:
    """The points, and what lies a constant before them."""
    shifts = [c + s for c in constants for s in (-1, 0, 1)]
    before = (points[:, None] - np.asarray([0, *shifts], np.int64)).reshape(-1)
    return np.unique(before[before >= 0])


def _settle_length(
    lift: Lift, root: ir.Value, points: Array, where: str
) -> Formula | Mismatch:
    """The formula without the length: softmax ignores what all keys of a row have in common."""

    def at(length: int) -> Formula:
        held = Emit(ir.Graph([], [], nodes=[], name="formula"), "canonicalize")
        query, key = ir.Value(name="query"), ir.Value(name="key")
        whole = Formula(root, lift.query, lift.key)
        fixed = number(held, np.asarray(length, np.int64))
        new = copy_formula(whole, held, query, key, {lift.length: fixed})
        return Formula(new, query, key)

    first = at(1)
    if np.isnan(Seen.of(first.at(points, points)).bias).any():
        return Mismatch(where, "the mask holds NaN")
    for length in (2, 24, int(points[-1]) + 1):
        one, other = (Seen.of(f.at(points, points)) for f in (first, at(length)))
        if not one.equals(other):
            why = "the mask depends on how many tokens are fed, not only on positions"
            return Mismatch(where, why)
    return first


def _proved(
    bias: Bias, formula: Formula, lengths: Lengths, points: Array, where: str
) -> tuple[RawMask, ...] | Mismatch:
    """Raw values at every length that can be evaluated whole; the formula equals them, at positions
    in order and out of it, or the length where it does not."""
    sizes = [n for n in lengths.each if bias.width * n * n <= SQUARE]
    larger = [n for n in lengths.each if SQUARE < bias.width * n * n <= _WHOLE]
    out: list[RawMask] = []
    for n in [*sizes, *larger[-1:]]:
        if lengths.stops is not None and n >= lengths.stops:
            break
        try:
            values = bias.at(lengths.measures.world(lengths.batch(n), n), lengths.batch(n), n)
        except DoesNotRun:
            if not out:
                raise
            break
        if isinstance(values, Mismatch):
            return values
        if not (values == values[:1]).all():
            return Mismatch(where, "the mask differs between rows of the batch")
        at = np.arange(n)
        mixed = np.random.default_rng(n).permutation(n)
        kept = np.union1d(points[points < n], at[-_KEPT:])
        block = values[0][:, kept][:, :, kept]
        raw = RawMask(kept, kept, block, n, True)
        for order in (at, mixed):
            found = Seen.of(formula.at(order, mixed))
            expected = Seen.of(values[0][:, order][:, :, mixed])
            if not expected.equals(found):
                why = f"the mask is not a function of query and key positions: at {n} positions it "
                return Mismatch(where, f"{why}differs from the formula that it follows at fewer")
        out.append(raw)
    return tuple(out)
