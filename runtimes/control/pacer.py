"""Who chooses how many rows a step scores, and the one that always takes as many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from graftline.runtimes.control.costs import NEAR
from graftline.runtimes.drafter import Bid, Drafter, is_paid
from graftline.tree import Tree


class Pacer(Protocol):
    """Chooses how many rows a step scores, for all sequences of a batch alike.

    First `choose` among the proposals that cost nothing to make; then a `bid` may replace them by
    drafts that a model makes, whose rows `bought` counts.
    """

    @property
    def expected(self) -> tuple[float, float] | None:
        """Tokens and milliseconds that the step chosen last is expected to bring and to take, for
        the whole batch; None: nothing is expected."""
        ...

    @property
    def asking(self) -> bool:
        """Whether the coming step wants proposals; without, all sequences propose their root."""
        ...

    def begin(self, batch: int) -> None:
        """`batch` sequences start, after a time without any."""
        ...

    def join(self) -> None:
        """One more sequence starts, behind the others."""
        ...

    def leave(self, sequence: int) -> None:
        """The sequence at that place has ended, and those behind it move up."""
        ...

    def choose(self, proposals: Sequence[tuple[int, Tree]], room: int, past: int = NEAR) -> int:
        """Rows of this step, 1 to `room`, given every sequence's signal and proposal, and the
        committed positions of the longest."""
        ...

    def bid(self, drafters: Sequence[Drafter], room: int) -> Bid | None:
        """What to spend on drafts of at most `room` rows. None: nothing, the free proposals are
        scored."""
        ...

    def bought(self, proposals: Sequence[tuple[int, Tree]], drafters: Sequence[Drafter]) -> int:
        """Rows of a step whose proposals were paid for."""
        ...

    def learn(self, sequence: int, fresh: Sequence[int]) -> None:
        """The sequence at that place of the batch emitted `fresh`."""
        ...

    def took(self, step: float, host: float, proposing: float | None = None) -> None:
        """The step has ended: milliseconds it took, those that the host worked on it outside the
        target's engine, and those of them that making proposals took, if any were asked for."""
        ...


class Fixed:
    """Always as many rows as proposed, up to `rows`: what is done when costs are unknown."""

    def __init__(self, rows: int = 8) -> None:
        self.rows = rows

    @property
    def expected(self) -> tuple[float, float] | None:
        return None

    @property
    def asking(self) -> bool:
        return True

    def begin(self, batch: int) -> None:
        pass

    def join(self) -> None:
        pass

    def leave(self, sequence: int) -> None:
        pass

    def choose(self, proposals: Sequence[tuple[int, Tree]], room: int, past: int = NEAR) -> int:
        return max(1, min(room, self.rows, max((len(t) for _, t in proposals), default=1)))

    def bid(self, drafters: Sequence[Drafter], room: int) -> Bid | None:
        rows = min(room, self.rows)
        paid = rows > 1 and any(is_paid(d) for d in drafters)
        return Bid.free(rows) if paid else None

    def bought(self, proposals: Sequence[tuple[int, Tree]], drafters: Sequence[Drafter]) -> int:
        return max(len(tree) for _, tree in proposals)

    def learn(self, sequence: int, fresh: Sequence[int]) -> None:
        pass

    def took(self, step: float, host: float, proposing: float | None = None) -> None:
        pass
