"""How sure the target was of the token that it chose last, in a few classes."""

from __future__ import annotations

from math import exp

from graftline.runtimes.session import Scores

CLASSES = 4


def certainty(scores: Scores, row: int, node: int) -> int:
    """The class, from 1, of the largest share among the candidates behind a node; 0 where the graph
    does not name them."""
    if scores.topk_logits is None:
        return 0
    # plain numbers: between two steps an array's first use costs more than this does
    values: list[float] = scores.topk_logits[row, node].tolist()
    best = max(values)
    share = 1.0 / sum(exp(value - best) for value in values)
    return 1 + min(int(share * CLASSES), CLASSES - 1)
