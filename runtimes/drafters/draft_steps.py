"""A draft model that writes whole steps of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from graftline.errors import GraftlineError
from graftline.runtimes.draft_reader import Guess
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters.draft_model import DraftModel
from graftline.runtimes.resources import Resources, missing


@dataclass
class DraftSteps(DraftModel):
    """Writes until a step ends, for rules that accept or reject it whole (SpecReason, arXiv
    2504.07891). A step ends with an empty line or, `sentences`, with a sentence; at the latest when
    there are `rows` rows."""

    name: ClassVar[str] = "draft-steps"
    rows: int = 48
    sentences: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampled or self.length:
            raise GraftlineError("draft-steps: writes its best tokens; no `sampled`, no `length`")

    def equip(self, resources: Resources) -> None:
        super().equip(resources)
        if resources.decode is None:
            raise missing("draft-steps", "tokenizer")
        self._decode = resources.decode

    def _promises(self, chance: float, bid: Bid, depth: int) -> bool:
        return True

    def _worth(self, guess: Guess, drafted: int, paying: bool) -> bool:
        return guess.known

    def _complete(self, ahead: Sequence[int]) -> bool:
        text = self._decode(ahead)
        return "\n\n" in text or (self.sentences and text.rstrip().endswith((".", "!", "?")))

    def hope(self, foresight: int) -> Sequence[float]:
        return tuple(0.95**row for row in range(self.rows))
