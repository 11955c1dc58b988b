"""The engine of a recogniser: a signal in, the ids of its text out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graftline.errors import RequestError
from graftline.facts import Facts
from graftline.ports import Port, by_role
from graftline.roles import COUNTS, SCORES
from graftline.runtimes.one_pass.engine import DecodeEngine
from graftline.runtimes.one_pass.feeding import feed_of


class RecogniseEngine(DecodeEngine):
    """Writes texts in one pass. Threads may share it: a call keeps nothing for the next."""

    def __init__(
        self, path: Path, facts: Facts, ports: Sequence[Port], own: Sequence[Port], session: Any
    ) -> None:
        super().__init__(path, facts, ports, own, session)
        self.output = by_role(self.ports, SCORES, "out")[0]
        self._counts = next(iter(by_role(self.ports, COUNTS, "out")), None)

    def recognise(self, signal: Any, **conditions: Any) -> list[list[int]]:
        """The best token of every position of each row of a batch [B, T, C] or [B, C, H, W]; of as
        many positions as the network counts for the row, or of all where it counts none.

        `conditions` as of `decode`: `lengths` [B] are the places of each row that are heard. Raises
        RequestError for what does not fit, and for a text of more positions than the engine scores.
        """
        feed = feed_of(self.ports, self.names, signal, conditions, 0)
        wanted = [p.name for p in (self.output, self._counts) if p is not None]
        scores, *counts = self._asked(feed, wanted)
        best: list[list[int]] = scores.argmax(-1).tolist()
        if not counts:
            return best
        each: list[int] = np.asarray(counts[0], np.int64).tolist()
        if max(each, default=0) > scores.shape[1]:
            raise RequestError(
                f"{self.path}: a text of {max(each)} positions, and the engine scores "
                f"{scores.shape[1]}; give shorter signals, or rebuild it with more: "
                f"--passes pad-positions{{positions={max(each)}}}"
            )
        return [ids[:count] for ids, count in zip(best, each, strict=True)]
