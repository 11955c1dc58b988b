"""The laws of classes: the class of a place is the first of those with the largest score."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graftline.errors import LawBroken
from graftline.evaluate import Array, Feed
from graftline.facts import QueryDecoderFacts, read_facts
from graftline.law import Evidence
from graftline.passes.graph.meaning import World
from graftline.passes.graph.ports import output_of
from graftline.passes.laws.compare import FLOOR, Comparison, magnitudes
from graftline.passes.pipeline.graft import Evaluate, Graft
from graftline.roles import CLASSES

PLACES = (7, 6, 5)
"""Along the axes of the table that is tried."""
LEVELS = 3
"""Different scores in it, so that most places have several largest."""
SCORED = "classes.scores"
"""The name of the scores in a graph that gives classes in their place."""


def first_largest(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """The class of each place of a table full of ties is the first of its largest scores."""
    facts, made = read_facts(after), output_of(after, CLASSES)
    assert isinstance(facts, QueryDecoderFacts)
    scores = next(v for n in after.graph for v in n.outputs if v.name == SCORED)
    assert made is not None
    assert scores.dtype is not None
    random, shape = np.random.default_rng(0), (2, facts.classes, *PLACES[: facts.axes])
    table = random.integers(0, LEVELS, shape).astype(scores.dtype.numpy())
    table[0] -= LEVELS  # where all are below zero
    got, expected = World({scores: table}).value(made), best_classes(table)
    if got.shape != expected.shape:
        raise LawBroken(graft.name(), "first-largest", f"'{CLASSES}'",
                        f"{got.shape} != {expected.shape}")  # fmt: skip
    if odd := int(np.sum(got != expected)):
        by = f"{odd} of {got.size} places are not of the first of their largest scores"
        raise LawBroken(graft.name(), "first-largest", f"'{CLASSES}'", by)
    tied = int(np.sum(np.sum(table == table.max(1, keepdims=True), 1) > 1))
    return Evidence(f"{got.size} places of a table, {tied} of them with ties")


def best_classes(scores: Array) -> Array:
    """The classes [B, places] of scores [B, K, places]: the first of the largest."""
    return np.argmax(scores, 1)


def nearest_to_best(comparison: Comparison, name: str, got: Array, scores: Array) -> float:
    """How far the scores [B, K, places] of the classes `got` [B, places] are below the largest of
    their place at most, relative to the magnitude of that place's. Raises LawBroken above the
    limit: a class that is not the best must be as near to it as rounding."""
    best = best_classes(scores)
    if got.shape != best.shape:
        raise comparison.broken(name, f"{got.shape} in place of {best.shape}")
    held, ids = scores.astype(np.float64), got.astype(np.int64)
    if not np.isfinite(held).all():
        raise comparison.broken(name, "scores that are not finite")
    if ids.min() < 0 or ids.max() >= scores.shape[1]:
        raise comparison.broken(name, f"classes {ids.min()} to {ids.max()} of {scores.shape[1]}")
    below = held.max(1) - np.take_along_axis(held, ids[:, None], 1)[:, 0]
    gaps = below / magnitudes(np.abs(held).max(1), FLOOR[comparison.dtype])
    worst = float(gaps.max())
    if not worst <= comparison.limit:
        odd = int(np.sum(gaps > comparison.limit))
        by = f"{odd} of {got.size} places have another class, up to {worst:.3g} below the best"
        raise comparison.broken(name, by)
    return worst
