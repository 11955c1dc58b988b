"""DFlash: a head fills a whole block of masks at once, over its target's hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graftline.facts import DecoderFacts, DraftBlockFacts
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters.p_eagle import PEagle
from graftline.runtimes.feature_reader import ContextReader, FeatureReader
from graftline.runtimes.resources import missing


@dataclass
class DFlash(PEagle):
    """DFlash: what the target has read lies in the head's caches as keys and values of its hidden
    states. One call reads what is new of them, the last token, and masks behind it: the block. A
    block that sees itself whole is always called whole, whatever is taken of it; one that is causal
    (JetSpec) is called as far as it is drafted.

    Each sequence's draft is a call of its own.
    """

    name: ClassVar[str] = "dflash"
    reads_as: ClassVar[type[FeatureReader]] = ContextReader

    def _know(self, facts: DecoderFacts) -> None:
        super()._know(facts)
        if not isinstance(facts, DraftBlockFacts) or not facts.block:
            raise missing(self.name, "head")
        self._block, self._whole = facts.block, not facts.causal
        self._first = 0 if facts.anchor_drafts else 1

    def _most(self, bid: Bid) -> int:
        room = self._reader.room
        drafted = min(bid.rows, self.rows, self._block - self._first + 1) - 1
        if self._whole:
            return drafted if self._block <= room else 0
        return min(drafted, room - self._first)

    def _called(self, count: int) -> int:
        return self._block if self._whole else count + self._first
