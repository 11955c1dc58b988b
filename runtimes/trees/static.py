"""Published trees, as the paths of ranks that their authors list."""

from __future__ import annotations

from collections.abc import Iterable

from graftline.errors import GraftlineError, nearest
from graftline.runtimes.trees.learned import Accuracies
from graftline.runtimes.trees.template import Ranks, Template

_DIGITS = {
    "medusa-mc-sim-7b-63": "0 00 1 01 2 000 10 02 3 03 4 04 20 05 001 5 06 6 07 010 11 7 08 002 30 "
    "09 8 9 100 020 12 003 40 21 004 005 0000 011 006 030 50 13 007 008 009 60 040 14 70 012 200 "
    "31 22 80 050 15 101 021 90 060 0001 16 070",
    "medusa-vicuna-7b-stage2": "0 00 1 01 000 10 2 02 001 03 3 010 20 4 002 04 11 100 0000 5 003 "
    "05 020 30 011 06 6 07 004 40 12 08 7 030 0001 005 21 006 101 0010 200 50 09 012 8 040 021 13 "
    "007 0002 008 110 0100 60 9 013 0003 102 050 31 0020 70 14",
    "eagle-mc-sim-7b-63": "0 1 2 3 00 01 02 10 11 20 21 30 000 001 002 010 011 020 021 100 0000 "
    "0001 0002 00000 00001",
}
"""Medusa's choices (arXiv 2401.10774) and EAGLE-1's (arXiv 2401.15077); a digit is a rank."""

PUBLISHED: dict[str, tuple[Ranks, ...]] = {
    name: tuple(tuple(int(rank) for rank in path) for path in text.split())
    for name, text in _DIGITS.items()
}
"""The paths of each tree, without the root."""


def static(paths: str | Iterable[Ranks], accuracies: Accuracies) -> Template:
    """A published tree by name, or the tree of a list of paths, with `accuracies` as first belief.

    Its rows are in the order of their chances, so that a cut keeps the best. Raises GraftlineError
    for an unknown name, a path without its parent, and a rank that the accuracies do not have.
    """
    if isinstance(paths, str):
        if paths not in PUBLISHED:
            raise GraftlineError(f"unknown tree '{paths}'{nearest(paths, PUBLISHED)}")
        paths = PUBLISHED[paths]
    chances: dict[Ranks, float] = {}
    for path in paths:
        chance = 1.0
        for depth, rank in enumerate(path):
            shares = accuracies[min(depth, len(accuracies) - 1)]
            if not 0 <= rank < len(shares):
                raise GraftlineError(
                    f"tree: the path {path} takes rank {rank}, and there are {len(shares)} "
                    "candidates; keep more candidates or drop the path"
                )
            chance *= shares[rank]
        chances[path] = chance
    return Template.of(chances)
