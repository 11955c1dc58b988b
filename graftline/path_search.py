"""How a path through a directed acyclic graph of vertices is found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Search = Literal["lookahead"]


@dataclass(frozen=True)
class PathSearch:
    """How a path is found.

    `lookahead`: from each vertex to the one whose transition and best token, `beta` times its
    logarithm, are likeliest together (equation 12 of arXiv 2205.07459); of equal ones the first.
    The first vertex begins every text and is no position of it. A vertex whose token is that of the
    vertex before it on the path, or `pad`, is passed and not kept.
    """

    by: Search = "lookahead"
    beta: float = 1.0
    pad: int = -1
