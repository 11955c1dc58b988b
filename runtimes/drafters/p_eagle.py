"""P-EAGLE: a head of the target's own hidden states drafts several tokens in one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graftline.runtimes.drafters.eagle import Eagle
from graftline.runtimes.drafters.parallel_draft import ParallelDraft
from graftline.runtimes.resources import Resources


@dataclass
class PEagle(Eagle, ParallelDraft):
    """P-EAGLE: reads what EAGLE-3 reads, and behind the last token k - 1 masks, which have a
    feature of the head's own. Its row gives the first token of the draft, that of each mask the
    next one. How many, and at what price, is as in `parallel-draft`.

    Each sequence's draft is a call of its own: GroupQueryAttention takes several new rows behind a
    past for one sequence only.
    """

    branching: ClassVar[bool] = False
    name: ClassVar[str] = "p-eagle"

    def equip(self, resources: Resources) -> None:
        """Open the head. Raises GraftlineError for a bundle without one, or whose head has no mask.
        """
        Eagle.equip(self, resources)
        self._know(self._reader.engine.facts)
