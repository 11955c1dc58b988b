"""The law of paths: those that a graph finds are those that the plain form finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graftline.best_path import best_paths, unlike_chances
from graftline.errors import LawBroken
from graftline.evaluate import Array, Feed
from graftline.facts import DagRecogniserFacts, read_facts
from graftline.law import Evidence
from graftline.passes.anchors.denoiser import DECODER
from graftline.passes.anchors.roles import dims_of
from graftline.passes.graph.meaning import World
from graftline.passes.graph.ports import output_of
from graftline.passes.pipeline.graft import Evaluate, Graft
from graftline.path_search import PathSearch
from graftline.roles import (
    COUNTS,
    DECODED,
    FRAMES,
    LATENTS,
    LENGTHS,
    SCORES,
    STATES,
    TRANSITIONS,
    VERTICES,
)

OF_VERTICES = (SCORES, TRANSITIONS, STATES, VERTICES)
"""Roles of what is known of all vertices."""
VERTEX = "vertex"
"""Begins the names of these values where a path is found."""
MADE: Mapping[str, str] = {f"{DECODER}.{DECODED}": DECODED, f"{DECODER}.{FRAMES}": FRAMES}
"""Outputs of a decoder by name, and what they are called once it is joined."""
Call = Callable[[Feed], Feed]
TABLES, ROWS, LONG, TOKENS, WIDTH = 4, 9, 19, 5, 3
"""Tables that are tried, rows of each, vertices of the longest, tokens, and numbers in a state."""
SURE = 40.0
"""A logit beside which zeros round to no chance at all in fp32: chances of tokens are exact."""


def paths(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """The nodes that find the path find that of the plain form, among equal chances and tokens that
    come again, of rows of two vertices up to all."""
    facts, given = read_facts(after), _vertex_values(after)
    assert isinstance(facts, DagRecogniserFacts)
    assert facts.search is not None
    positions = 0
    for seed in range(TABLES):
        tables = _tables(seed, facts.search, given)
        world = World({value: tables[role] for role, value in given.items()})
        for role, expected in _on_paths(tables, facts.search).items():
            value = output_of(after, role)
            assert value is not None
            if not np.array_equal(world.value(value), expected):
                by = f"is not what lies on the best path, in table {seed}"
                raise LawBroken(graft.name(), "paths", f"'{role}'", by)
            positions += int(expected.sum()) if role == COUNTS else 0
    return Evidence(f"{positions} positions on the paths of {TABLES * ROWS} rows, ties included")


def found_on(who: str, made: Feed, how: PathSearch) -> Feed:
    """What lies on the paths of a host's outputs, by role. Raises LawBroken, in the name of `who`,
    where its transitions are not chances of going on."""
    if odd := unlike_chances(made[TRANSITIONS], _vertices(made)):
        raise LawBroken(who, "transitions", f"'{TRANSITIONS}'", odd)
    return _on_paths(made, how)


def owed(call: Call, feed: Feed, names: Sequence[str], how: PathSearch, who: str) -> Feed:
    """What a graph with outputs of these names owes for a feed of the unmodified export, which
    `call` runs: the path's, and, where its decoder is joined, what that makes of the path."""
    made = call(feed)
    found = made | found_on(who, made, how)
    if DECODED in names:
        spoken = call(feed | decoder_feed(found))
        found |= {role: spoken[name] for name, role in MADE.items() if name in spoken}
    return found


def decoder_feed(made: Feed) -> Feed:
    """What a decoder is given of a path."""
    return {f"{DECODER}.{LATENTS}": made[STATES], f"{DECODER}.{LENGTHS}": made[COUNTS]}


def _on_paths(made: Feed, how: PathSearch) -> Feed:
    found = best_paths(made[SCORES], made[TRANSITIONS], made[STATES], _vertices(made), how)
    return {SCORES: found.scores, STATES: found.states, COUNTS: found.counts}


def _vertices(made: Feed) -> Array:
    """How many each row has: all, where nothing says it."""
    rows, count = made[SCORES].shape[:2]
    return made.get(VERTICES, np.full(rows, count))


def _vertex_values(model: ir.Model) -> dict[str, ir.Value]:
    """What is known of all vertices, by role, where the path is found."""
    names = {f"{VERTEX}.{role}": role for role in OF_VERTICES}
    made = (value for node in model.graph for value in node.outputs)
    return {names[v.name]: v for v in made if v.name in names}


def _tables(seed: int, how: PathSearch, given: dict[str, ir.Value]) -> Feed:
    """Few different chances, and few tokens, of which `pad` is one: ties, and tokens that come
    again. The first row has two vertices, the second all, with one token alone. The nodes that find
    a path do not depend on how many tokens there are, and how wide states are."""
    random = np.random.default_rng(seed)
    types = {role: v.dtype.numpy() for role, v in given.items() if v.dtype is not None}
    long = dims_of(given[SCORES])[1]
    count = long if isinstance(long, int) else LONG
    tokens = max(TOKENS, how.pad + 1)
    sure = random.choice([0, 1, 2, max(how.pad, 0)], (ROWS, count))
    sure[1] = 0
    scores = np.where(np.arange(tokens) == sure[..., None], SURE, 0)
    if how.by == "lookahead":  # where none is likelier; sums of several such would round
        scores *= random.integers(0, 2, (ROWS, count, 1))
    far = np.abs(np.arange(count) - np.arange(count)[:, None]) // 2  # most ways are short
    ways = -(random.integers(0, 3, (ROWS, count, count)) + far).astype(np.float64)
    sizes = np.concatenate([[2, count], random.integers(2, count + 1, ROWS - 2)])
    if VERTICES not in given:
        sizes[:] = count
    later = np.triu(np.ones((count, count), bool), 1) & (np.arange(count) < sizes[:, None, None])
    states = random.standard_normal((ROWS, count, WIDTH))
    found = {SCORES: scores, TRANSITIONS: np.where(later, ways, -np.inf), STATES: states}
    return {r: a.astype(types[r]) for r, a in (found | {VERTICES: sizes}).items() if r in types}
