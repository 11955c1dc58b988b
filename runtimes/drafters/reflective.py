"""Reflective drafts: another drafter's chain, a prompt to reflect on it, and the chain again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from graftline.errors import GraftlineError
from graftline.runtimes.acceptance.reflection import REFLECTIVE_PROMPT, Reflection
from graftline.runtimes.drafter import is_paid
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import Scores
from graftline.runtimes.trees.packing import first_path, trim
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree


@dataclass
class Reflective:
    """Lays out the drafts of `source` for the rule `reflective` (arXiv 2505.18629).

    Only the draft itself can be accepted; the rows behind it are the price of judging it twice.
    A budget too small for the whole layout gets a shorter draft laid out, and one too small for
    any gets a draft alone: proposals are not nested, and one that is cut is judged once only.
    """

    branching: ClassVar[bool] = False
    whole: ClassVar[bool] = True
    """A layout that is cut is judged once only, so it is scored as it is or not at all."""
    rows: int = 48
    """Rows of the whole layout."""
    source: str = "prompt-lookup"
    """The drafter, with its own defaults, whose first path is drafted."""
    prompt: str = REFLECTIVE_PROMPT
    signal: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.source == "reflective":
            raise GraftlineError("reflective: source='reflective' would draft itself; name another")

    def equip(self, resources: Resources) -> None:
        """Read the prompt and make the source. Raises GraftlineError for what does not fit."""
        from graftline.runtimes.drafters import make_drafter  # the table has this file in it

        self._layout = Reflection.of("the drafter reflective", self.prompt, resources)
        self._source = make_drafter(self.source, {}, resources)
        if is_paid(self._source):
            raise GraftlineError(
                f"reflective: source='{self.source}' drafts with a model, whose cost would not "
                "weigh here; name a drafter that copies or looks up"
            )
        self._longest = self._layout.longest(self.rows)
        if self._longest < 1:
            raise GraftlineError(
                f"reflective: rows={self.rows} hold no draft beside a prompt of "
                f"{len(self._layout.prompt)} tokens; use rows >= {len(self._layout.prompt) + 3}"
            )

    def fork(self) -> Reflective:
        other = Reflective(self.rows, self.source, self.prompt)
        other._layout, other._longest = self._layout, self._longest
        other._source = self._source.fork()
        return other

    def start(self, context: Sequence[int]) -> None:
        self._source.start(context)

    def propose(self, budget: int) -> Tree:
        rows = min(budget, self.rows)
        length = self._layout.longest(rows)
        drafted = length + 1 if length > 0 else rows
        draft = first_path(trim(self._source.propose(drafted), drafted))
        self.signal = self._source.signal
        if length < 1 or len(draft) == 1:
            return draft
        tokens = draft.token_list
        return Tree.chain(self._layout.chain(tokens[0], tokens[1:]))

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        drafted = self._layout.drafted(tree.token_list)
        self._source.observe(trim(tree, drafted + 1), verdict, scores, row)

    def prior(self, signal: int) -> Sequence[float]:
        chances = list(self._source.prior(signal))[: self._longest + 1]
        return chances + [0.0] * (self.rows - len(chances))
