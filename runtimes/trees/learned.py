"""Trees from measured acceptances."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from graftline.runtimes.trees.template import Ranks, Template

Accuracies = Sequence[Sequence[float]]
"""[depth][rank]: the chance that the true token is the candidate of that rank, given that all
before it were found; the last row stands for all greater depths."""


def best_first(
    given: Callable[[Ranks], Sequence[float]], rows: int, deepest: int | None = None
) -> Template:
    """The tree of at most `rows` rows that is expected to accept most, when `given(path)` are the
    chances by rank of a node's children given that the node is accepted.

    The expectation is the sum of the nodes' chances, each the product along its path and so never
    more than its parent's. Hence taking the likeliest open node until there are enough is optimal,
    for every number of rows at once. `deepest` bounds the depth.
    """
    chances: dict[Ranks, float] = {}
    heap: list[tuple[float, int, Ranks]] = []

    def open_children(path: Ranks, chance: float) -> None:
        if deepest is None or len(path) < deepest:
            for rank, share in enumerate(given(path)):
                if share > 0:
                    heapq.heappush(heap, (-chance * share, len(path), (*path, rank)))

    open_children((), 1.0)
    while heap and len(chances) < rows - 1:
        chance, _, path = heapq.heappop(heap)
        chances[path] = -chance
        open_children(path, -chance)
    return Template.of(chances)


def by_rank(accuracies: Accuracies, rows: int, deepest: int | None = None) -> Template:
    """The best tree when a node's chance follows from its depth and rank alone: Medusa's greedy
    expansion (arXiv 2401.10774). Where all depths have one row of accuracies, this is the optimum
    of Sequoia's dynamic programme (arXiv 2402.12374)."""
    return best_first(lambda path: accuracies[min(len(path), len(accuracies) - 1)], rows, deepest)


def by_paths(paths: Sequence[Ranks], accuracies: Accuracies, rows: int, weight: float) -> Template:
    """The tree of the paths that were found most often in recorded steps: STAND's data-driven tree
    (arXiv 2506.04708).

    What few steps say is held to the accuracies: given its parent, a node's chance is as if
    `weight` more steps had reached the parent and found what the accuracies say. 0 keeps to the
    counts: the best tree for these very steps.
    """
    counts = _counted(paths)

    def given(path: Ranks) -> list[float]:
        reached = counts[path] + weight
        shares = accuracies[min(len(path), len(accuracies) - 1)]
        if reached == 0:
            return []
        return [(counts[*path, r] + weight * share) / reached for r, share in enumerate(shares)]

    return best_first(given, rows)


def measured_accuracies(
    paths: Iterable[Ranks], first: Sequence[float], deepest: int, weight: float
) -> list[list[float]]:
    """Accuracies [deepest][rank] of recorded steps: for each the ranks under which the tokens that
    came were found, up to the first that was not.

    `first` is what one believes of depth 1, and each depth is what one believes of the next: it
    counts as `weight` steps.
    """
    reached = [0] * (deepest + 1)
    found = [[0] * len(first) for _ in range(deepest)]
    for path in paths:
        reached[0] += 1
        for depth, rank in enumerate(path[:deepest]):
            found[depth][rank] += 1
            reached[depth + 1] += 1
    accuracies, above = list[list[float]](), list(first)
    for count, row in zip(reached, found, strict=False):
        if count + weight > 0:
            above = [(h + weight * a) / (count + weight) for h, a in zip(row, above, strict=True)]
        accuracies.append(above)
    return accuracies


def reach(template: Template, paths: Sequence[Ranks]) -> tuple[float, ...]:
    """For every node the share of the recorded steps in which it would have been accepted."""
    counts = _counted(paths)
    return tuple(counts[path] / max(len(paths), 1) for path in template.paths)


def _counted(paths: Iterable[Ranks]) -> Counter[Ranks]:
    """How often each path was found, whatever came after it."""
    return Counter(path[:depth] for path in paths for depth in range(len(path) + 1))
