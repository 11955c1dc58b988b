"""The best path through a directed acyclic graph of vertices, in plain loops: what grafts are held
to that find it within a graph.

A DA-Transformer (Huang et al., arXiv 2205.07459) scores the tokens of every vertex and, from each
vertex, the ones behind it; a path from the first vertex to the last is a text.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from graftline.evaluate import Array
from graftline.path_search import PathSearch

SUM = 1e-3
"""Most that the chances of the ways on from a vertex may differ from 1 together."""
WANTED = "they must be logarithms of the chances of later vertices, minus infinity elsewhere"


@dataclass(frozen=True)
class Found:
    """The vertices that are kept of each row's path, as positions: `scores` [B, U, V] and `states`
    [B, U, H] of theirs, `counts` [B] of each row's own. U is the most, at least 1; behind its own
    positions a row has the last vertex's scores, and states of zeros."""

    scores: Array
    states: Array
    counts: Array


def best_paths(
    scores: Array, transitions: Array, states: Array, vertices: Array, how: PathSearch
) -> Found:
    """The paths of rows of `vertices` [B] each, by scores [B, L, V], the logarithms of the chances
    of transitions [B, L, L], and states [B, L, H]."""
    rows = zip(_chances(scores), scores.argmax(-1), transitions, vertices, strict=True)
    search = _lookahead if how.by == "lookahead" else _joint_viterbi
    paths = [search(chances, tokens, ways, int(count), how)
             for chances, tokens, ways, count in rows]  # fmt: skip
    most = max(1, *map(len, paths))
    ends = np.asarray(vertices, np.int64) - 1
    at = np.stack([[*path, *[end] * (most - len(path))]
                   for path, end in zip(paths, ends, strict=True)])  # fmt: skip
    counts = np.asarray([len(path) for path in paths], np.int64)
    own = np.arange(most) < counts[:, None]
    row = np.arange(len(at))[:, None]
    return Found(scores[row, at], states[row, at] * own[..., None].astype(states.dtype), counts)


def unlike_chances(transitions: Array, vertices: Array) -> str:
    """Why these are not the logarithms of chances of going on from each of a row's vertices to a
    later one of them; "" where they are."""
    chances = np.exp(transitions.astype(np.float64))
    for row, (table, count) in enumerate(zip(chances, vertices, strict=True)):
        own = table[: int(count), : int(count)]
        if (back := np.tril(own).max(initial=0.0)) > SUM:
            why = f"a vertex of row {row} leads back, or to itself, by a chance of {back:.3g}"
            return f"{why}; {WANTED}"
        for vertex, total in enumerate(own.sum(-1)[:-1]):
            if not abs(total - 1) <= SUM:
                why = f"the chances on from vertex {vertex} of row {row} sum to {total:.3g}, not 1"
                return f"{why}; {WANTED}"
    return ""


def _chances(scores: Array) -> Array:
    """The logarithm of the chance of each vertex's best token [B, L]."""
    most = scores.max(-1)
    return -np.log(np.exp(scores - most[..., None]).sum(-1))


def _lookahead(
    chances: Array, tokens: Array, transitions: Array, count: int, how: PathSearch
) -> list[int]:
    """One row's."""
    path, at, said = list[int](), 0, tokens[0]
    weighed = chances * np.asarray(how.beta, chances.dtype)
    while at < count - 1:
        at = int(np.argmax(transitions[at] + weighed))
        if tokens[at] not in (said, how.pad):
            path.append(at)
        said = tokens[at]
    return path


def _joint_viterbi(
    chances: Array, tokens: Array, transitions: Array, count: int, how: PathSearch
) -> list[int]:
    """One row's."""
    if count <= 2:
        return []
    weighed = chances * np.asarray(how.beta, chances.dtype)
    sums, back = [transitions[0] + weighed + weighed[0]], list[Array]()
    for _ in range(how.longest - 1):
        reached = sums[-1][:, None] + transitions
        back.append(reached.argmax(0))
        sums.append(reached.max(0) + weighed)
    ended = np.stack(sums) + transitions[:, count - 1]
    powers = lengths_to(how).astype(chances.dtype)
    most = int(np.argmax(ended.max(-1) / powers))
    path = [int(ended[most].argmax())]
    for before in reversed(back[:most]):
        path.append(int(before[path[-1]]))
    path.reverse()
    kept = [v for v, after in pairwise(path) if tokens[v] not in (tokens[after], how.pad)]
    return [*kept, path[-1]]


def lengths_to(how: PathSearch) -> Array:
    """What the sums of paths of 1 up to `longest` vertices are divided by."""
    return np.arange(1, how.longest + 1) ** np.float64(how.penalty)
