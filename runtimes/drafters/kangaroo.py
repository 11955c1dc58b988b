"""Early exit through an adapter, which stops behind the first token that it is unsure of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from graftline.exits import ADAPTER
from graftline.runtimes.draft_reader import Guess
from graftline.runtimes.drafters.early_exit import EarlyExit


@dataclass
class Kangaroo(EarlyExit):
    """Double early exiting (Kangaroo, arXiv 2404.18911): as early exit, of a target that has an
    adapter between its first blocks and the head.

    Its second exit is a `length` policy: a token of which the adapter is unsure is the last of its
    draft, and is drafted all the same, because its row goes through the first blocks before that is
    known. Without a policy the bid decides, as for every draft model.
    """

    name: ClassVar[str] = "kangaroo"
    need: ClassVar[str] = ADAPTER
    _sure: bool = field(default=True, init=False, repr=False)
    """Whether the policy would go on behind the last token."""

    def _worth(self, guess: Guess, drafted: int, paying: bool) -> bool:
        sure = drafted == 0 or self._sure
        self._sure = super()._worth(guess, drafted, paying)
        return self._sure if self.policy is None else guess.known and sure
