"""Which size and depth of tree gives the most tokens per millisecond on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from graftline.runtimes.control.costs import Costs
from graftline.runtimes.trees.learned import Accuracies, by_rank
from graftline.runtimes.trees.template import Template


@dataclass(frozen=True)
class Choice:
    """A tree, the tokens its step is expected to give, and the milliseconds it is measured to
    cost."""

    template: Template
    tokens: float
    milliseconds: float

    @property
    def rate(self) -> float:
        """Tokens per millisecond."""
        return self.tokens / self.milliseconds


def cost_of(template: Template, costs: Costs) -> float:
    """Milliseconds of a step with that tree; one path is scored without a tree mask."""
    return costs.of(len(template), branching=not template.shape.is_chain)


def best_rows(template: Template, costs: Costs, drafting: float = 0.0) -> Choice:
    """The first rows of `template` with the most expected tokens per millisecond, at least the
    root; `drafting` milliseconds are added per depth."""
    choices: list[Choice] = []
    for rows in range(1, len(template) + 1):
        part = template.first(rows)
        cost = cost_of(part, costs) + drafting * int(part.shape.depth.max())
        choices.append(Choice(part, part.expected, cost))
    return max(choices, key=lambda choice: choice.rate)


def best_tree(
    accuracies: Accuracies, costs: Costs, rows: int, deepest: int, drafting: float = 0.0
) -> Choice:
    """The tree of at most `rows` rows and depth `deepest` with the most expected tokens per
    measured millisecond: Sequoia's hardware-aware choice (arXiv 2402.12374) and PPD's dynamic
    sparse tree (arXiv 2405.18628). `drafting` is what one depth of drafting costs.

    Chains are tried beside trees, as a step without a tree mask may be cheaper.
    """
    alone = [list(row[:1]) for row in accuracies]
    choices = [
        best_rows(by_rank(kept, rows, depth), costs, drafting)
        for kept in (alone, accuracies)
        for depth in range(1, deepest + 1)
    ]
    return max(choices, key=lambda choice: choice.rate)
