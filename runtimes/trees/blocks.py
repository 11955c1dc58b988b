"""Trees of blocks, for drafters that give several tokens in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graftline.errors import GraftlineError
from graftline.runtimes.trees.learned import Accuracies
from graftline.runtimes.trees.template import Ranks, Template


@dataclass(frozen=True)
class BlockTree:
    """`passes[i]`: the nodes, rows of `template`, at which blocks of drafting pass i begin; the
    first pass begins at the root."""

    template: Template
    passes: tuple[tuple[int, ...], ...]


def block_tree(
    widths: Sequence[Sequence[int]], begins: Sequence[int], accuracies: Accuracies
) -> BlockTree:
    """The decoding tree of a semi-autoregressive drafter (Falcon, arXiv 2412.12639): each pass
    drafts a block of k tokens, and the next pass begins at the most promising ends of the blocks.

    `widths[i][j]` is the number of children of every node at level j of a block of pass i, so a
    block has len(widths[i]) levels: within a block a level's candidates do not depend on what was
    taken above it. `begins[i]` is how many ends of pass i go on; the last pass has none to give.
    `accuracies` rank the nodes. Raises GraftlineError for sizes that do not fit.
    """
    if not widths or len(begins) != len(widths) - 1 or min([1, *begins]) < 1:
        raise GraftlineError(
            f"block tree: {len(widths)} passes need {max(len(widths) - 1, 0)} numbers of ends that "
            f"go on, each at least 1, not {list(begins)}"
        )
    widest = min(len(row) for row in accuracies)
    chances: dict[Ranks, float] = {}
    roots: list[list[Ranks]] = []
    ends: list[Ranks] = [()]
    for block, count in zip(widths, [1, *begins], strict=True):
        if not block or not all(1 <= width <= widest for width in block):
            raise GraftlineError(
                f"block tree: the widths {list(block)} are not valid; use 1 to {widest} for each "
                "level"
            )
        starts = sorted(ends, key=lambda path: -chances.get(path, 1.0))[:count]
        roots.append(starts)
        ends = starts
        for width in block:
            ends = [(*path, rank) for path in ends for rank in range(width)]
            for path in ends:
                shares = accuracies[min(len(path), len(accuracies)) - 1]
                chances[path] = chances.get(path[:-1], 1.0) * shares[path[-1]]
    template = Template.of(chances)
    row = {path: i for i, path in enumerate(template.paths)}
    return BlockTree(template, tuple(tuple(row[path] for path in starts) for starts in roots))
