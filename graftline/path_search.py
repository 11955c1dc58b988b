"""How a path through a directed acyclic graph of vertices is found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Search = Literal["lookahead", "joint-viterbi"]


@dataclass(frozen=True)
class PathSearch:
    """How a path is found, from the first vertex, which begins every text and is no position of it.

    `lookahead`: from each vertex to the one whose transition and best token, `beta` times its
    logarithm, are likeliest together (equation 12 of arXiv 2205.07459). The last vertex is a
    position like others; of a run of vertices with one token the first is kept.

    `joint-viterbi` (Shao et al., arXiv 2210.05193): of all paths of up to `longest` vertices
    between the first and the last, the one with the likeliest transitions and tokens (`beta`)
    together, their sum over the number of vertices to the power of `penalty`. The last vertex ends
    a text and is no position of it; of a run of vertices with one token the last is kept.

    Of equal ones the first is taken. A vertex whose token is `pad` is passed and not kept, but for
    the last of a path by joint-viterbi.
    """

    by: Search = "lookahead"
    beta: float = 1.0
    pad: int = -1
    penalty: float = 1.0
    longest: int = 64
