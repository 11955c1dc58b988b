"""A draft head's engine on ONNX Runtime's CPU provider: its rows have features besides tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.facts import DraftBlockFacts
from graftline.ports import CONFIDENCE, DRAFTS, FEATURES, Port, by_role, state_port
from graftline.runtimes.feature_engine import WalkedScores
from graftline.runtimes.ort.calls import CHUNK
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.session import Floats, Scores, call_starts


class FeatureSession(OrtSession):
    """A head over its target's hidden states. Only `follow_features` may be called to score rows;
    `Scores.hidden` is the state of a row, which stands for the feature of the next position."""

    def __init__(
        self,
        graph: Path,
        facts: DraftBlockFacts,
        ports: Sequence[Port],
        *,
        capacity: int | None = None,
        threads: int | None = None,
    ) -> None:
        (port,) = by_role(ports, FEATURES, "in")
        self.width = int(port.shape[-1])
        super().__init__(graph, facts, ports, capacity=capacity, threads=threads)
        self._whole = not facts.causal  # a block sees itself whole
        self._hidden = state_port(ports, facts.normed_state)

    def _step_inputs(
        self, batch: int, count: int, asked: int, masked: bool
    ) -> dict[str, npt.NDArray[Any]]:
        made = super()._step_inputs(batch, count, asked, masked)
        return {**made, FEATURES: np.zeros((batch, count, self.width), np.float32)}

    def _scores(self, asked: Callable[[str], npt.NDArray[Any] | None]) -> Scores:
        scores, drafts = super()._scores(asked), asked(DRAFTS)
        if drafts is None:
            return scores
        given = {f.name: getattr(scores, f.name) for f in fields(Scores)}
        return WalkedScores(**{**given, "argmax": drafts}, confidence=asked(CONFIDENCE))

    def follow_features(
        self, row: int, length: int, tokens: Sequence[int], features: Floats, asked: int = 1
    ) -> Scores:
        """The last `asked` rows' scores of N tokens with their features [N, H], put behind the
        first `length` slots of sequence `row`."""
        count = len(tokens)
        for start, end in pairwise([*call_starts(count, asked, CHUNK), count]):
            part = np.asarray(tokens[start:end], np.int64)
            wanted = asked if end == count else 1
            call = self._call(1, len(part), wanted, row, chains=True)
            assert call.features is not None, "a head's graph has features"
            call.features[0] = features[start:end]
            call.rows[0] = np.arange(len(part) - wanted, len(part))
            call.set_chain(part, length + start)
            if call.mask is not None and self._whole:
                call.mask[0, 0, -wanted:, : length + end] = True
            scores = self._run(call)
        return scores  # pyright: ignore[reportPossiblyUnboundVariable]

    def follow_rows_features(
        self, first: int, starts: Sequence[int], tokens: Sequence[int], features: Floats
    ) -> Scores:
        """Scores [B, 1] of one token, with its feature of [B, H], for each of the sequences from
        `first` on, in one call; each is put into the slot that `starts` says."""
        call = self._call(len(tokens), 1, 1, first, chains=True)
        assert call.features is not None, "a head's graph has features"
        call.filled = -1
        call.tokens[:, 0], call.features[:, 0] = tokens, features
        call.write_index[:] = starts
        call.positions[:, 0] = starts
        return self._run(call)
