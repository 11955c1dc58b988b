"""A draft model that fills masks: several tokens in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from graftline.errors import GraftlineError
from graftline.facts import DecoderFacts
from graftline.runtimes.chances.depth_chances import DepthChances
from graftline.runtimes.draft_reader import drawn
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters.draft_model import DraftModel
from graftline.runtimes.drafting import Draft
from graftline.runtimes.resources import Resources, missing
from graftline.runtimes.session import Scores
from graftline.tree import Draws, Tree

_EXPLORE = 0.01
"""Share of what is spent on drafts that pays for trying one token more."""


@dataclass
class ParallelDraft(DraftModel):
    """Parallel drafting over masks, of a causal model that was trained for it (PARD, arXiv
    2504.18583), which is also what a non-autoregressive drafter does for a decoder (GAD, arXiv
    2203.16487): one call reads what is new and k - 1 masks behind it. The row of the last token
    gives the first token of the draft, that of each mask the next one.

    k is the number of tokens that promises most, less what the call and the target's rows must
    bring in at the bid's prices. Both are known before the call: how often each depth came true,
    and what a call of more rows costs the draft, as measured. A depth left out is tried again from
    a budget. With `sampled` every token is drawn from its row's distribution: the rows do not
    depend on the tokens drawn, and neither does k.

    Each sequence's draft is a call of its own: GroupQueryAttention takes several new rows behind a
    past for one sequence only.
    """

    name: ClassVar[str] = "parallel-draft"
    mask: int = -1
    """The draft's mask token; -1: the one that its checkpoint names."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length:
            raise GraftlineError(
                f"{self.name}: the offer decides how far to draft; leave out `length`"
            )

    def equip(self, resources: Resources) -> None:
        """Open the draft engine. Raises GraftlineError for a bundle without one, and where there is
        no mask token, or none that the draft knows."""
        super().equip(resources)
        self._know(self._reader.engine.facts)

    def _know(self, facts: DecoderFacts) -> None:
        """Take the mask of an engine of these facts. Raises GraftlineError."""
        named = facts.mask_token if self.mask == -1 else self.mask
        if named is None:
            raise missing(self.name, "mask token")
        if not 0 <= named < facts.vocabulary:
            raise GraftlineError(
                f"{self.name}: the mask token {named} is not among the {facts.vocabulary} ids "
                "of the draft; name another one: the recipe's option mask"
            )
        self._mask, self._first = named, 0
        """The mask, and the first row of a call that drafts."""
        self.chances = DepthChances(self.rows - 1, self._agreement)

    def fork(self) -> Self:
        other = super().fork()
        other.chances = self.chances
        return other

    def draft(self, bid: Bid) -> Draft:
        self.signal, self.reads, self._drafted = self.foresight(), 0, []
        reader = self._reader
        reader.sit(bid.row)
        most = self._most(bid)
        if most < 1:
            return Tree.chain(reader.tokens[-1:])
        count = self._count(bid, most)
        rows = self._called(count)
        self.reads = self._carried + rows
        scores = yield reader.fill(self._mask, rows)
        tokens, draws = self._filled(scores, count)
        self._drafted = [(token, 1.0) for token in tokens]
        chain = Tree.chain([reader.tokens[-1], *tokens])
        given = [1.0, *self.chances.each()][: len(chain)]
        return Tree(chain.tokens, chain.parents, np.asarray(given, np.float32), draws or None)

    def _most(self, bid: Bid) -> int:
        """Tokens that may be drafted."""
        return min(bid.rows, self.rows, self._reader.room + 1) - 1

    def _called(self, count: int) -> int:
        """Rows of a call that drafts so many tokens, the last token's row included."""
        return count

    def hope(self, foresight: int) -> Sequence[float]:
        return tuple(self.chances.reach())

    def price(self, reads: float) -> float:
        """Of one call of `reads` rows: its rows are what this drafter counts."""
        return self._cost(reads) * self._reader.milliseconds

    def share(self, sequences: int) -> float:
        return 1.0

    def debt(self) -> float:
        behind = self._reader.unread - self._carried
        return (self._cost(1 + behind) - 1.0) * self._reader.milliseconds

    @property
    def _carried(self) -> int:
        """Rows of the next call that belong to no draft, but come with each: what was accepted
        lies where masks were, so it is read again. Longer texts are debt."""
        return min(self._reader.unread, self.rows - 1)

    def _cost(self, rows: float) -> float:
        """What a call costs, in calls of one row."""
        return self._reader.engine.rows_cost(round(rows)) if rows else 0.0

    def _count(self, bid: Bid, most: int) -> int:
        """How many tokens to draft, at least one: whether to draft at all is the bid's."""
        reach, call = self.chances.reach(), bid.call(1)
        cost = [call * self._cost(self._carried + self._called(d)) for d in range(most + 1)]
        price = [0.0] + [cost[d] - cost[d - 1] + bid.keep[d] for d in range(1, most + 1)]
        count, total, best = 1, 0.0, 0.0
        for depth in range(2, most + 1):
            total += reach[depth] - price[depth]
            if total >= best:
                count, best = depth, total
        if count == most:
            return count
        return count + self.chances.affords(price[count + 1], _EXPLORE * cost[count])

    def _filled(self, scores: Scores, count: int) -> tuple[list[int], dict[int, Draws]]:
        """The token of every row, and the draws where they are drawn. Best tokens end where the
        target has no such id."""
        reader, tokens, first = self._reader, list[int](), self._first
        if self._sampling.greedy:
            for token in scores.argmax[0, first : first + count].tolist():
                if not reader.knows(token):
                    break
                tokens.append(token)
            return tokens, {}
        draws: dict[int, Draws] = {}
        for place in range(count):
            law = reader.distribution(scores, first + place, self._sampling)
            tokens.append(drawn(law, self._generator))
            draws[place] = Draws(law, (place + 1,))
        return tokens, draws

    def _learn(self, fresh: Sequence[int]) -> int:
        pairs = list(zip(self._drafted, fresh, strict=False))
        accepted = next((at for at, ((t, _), new) in enumerate(pairs) if t != new), len(pairs))
        self.chances.record(len(self._drafted), accepted)
        return accepted
