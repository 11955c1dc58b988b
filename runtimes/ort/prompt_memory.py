"""The prompt that was read last, for sessions that are asked the same: its caches are copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.runtimes.session import Ints, Scores

Block = npt.NDArray[Any]
"""[caches, B, heads, slots, size]."""


@dataclass(frozen=True)
class _Known:
    prompt: Ints
    caches: list[Block]
    scores: Scores


class PromptMemory:
    """Shared by the siblings of one engine. A prompt that one of them has read, the others do not
    read again: the same graph would compute the same bits."""

    def __init__(self) -> None:
        self._known: _Known | None = None  # replaced as a whole, so threads may share this

    def recall(self, prompt: Ints, blocks: Sequence[Block], row: int) -> Scores | None:
        """Fill sequence `row` of the caches with the prompt's; the scores of its last row. None
        when the prompt is another one."""
        known = self._known
        if known is None or not np.array_equal(known.prompt, prompt):
            return None
        for block, cache in zip(blocks, known.caches, strict=True):
            block[:, row, :, : len(prompt)] = cache
        return known.scores

    def keep(self, prompt: Ints, blocks: Sequence[Block], row: int, scores: Scores) -> None:
        """Sequence `row` holds this prompt and nothing else; `scores` are a copy."""
        caches = [block[:, row, :, : len(prompt)].copy() for block in blocks]
        self._known = _Known(np.array(prompt, np.int64), caches, scores)
