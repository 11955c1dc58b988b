"""A draft head's engine on ONNX Runtime: its rows have features besides tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.facts import DraftBlockFacts
from graftline.ports import CONFIDENCE, DRAFTS, FEATURES, Port, by_role, state_port
from graftline.runtimes.feature_engine import WalkedScores
from graftline.runtimes.ort.cuda import CudaSession
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.ort.step_arrays import StepArrays
from graftline.runtimes.session import Bools, Floats, Scores, Tap


class FeatureSession(OrtSession):
    """A head over its target's hidden states. Only `follow`, `follow_rows` and `follow_level` may
    be called to score rows, with features; the tap `state` of a row stands for the feature of the
    next position."""

    def __init__(
        self,
        graph: Path,
        facts: DraftBlockFacts,
        ports: Sequence[Port],
        *,
        capacity: int | None = None,
        threads: int | None = None,
        **more: Any,
    ) -> None:
        (port,) = by_role(ports, FEATURES, "in")
        self.width = int(port.shape[-1])
        named = by_role(ports, "topk_ids", "out")
        self.candidates = int(named[0].shape[-1]) if named else 0
        super().__init__(graph, facts, ports, capacity=capacity, threads=threads, **more)
        self._whole = not facts.causal  # a block sees itself whole
        self.state = Tap.of(state_port(ports, facts.normed_state))

    def _step_inputs(
        self, batch: int, count: int, asked: int, masked: bool
    ) -> dict[str, npt.NDArray[Any]]:
        made = super()._step_inputs(batch, count, asked, masked)
        return {**made, FEATURES: np.zeros((batch, count, self.width), np.float32)}

    def _scores(self, asked: Callable[[str], npt.NDArray[Any] | None]) -> Scores:
        return _walked(super()._scores(asked), asked)

    def _open_block(self, call: StepArrays, asked: int, end: int) -> None:
        if call.mask is not None and self._whole:
            call.mask[0, 0, -asked:, :end] = True

    def follow_level(
        self,
        row: int,
        base: int,
        start: int,
        tokens: Sequence[int],
        features: Floats,
        depth: int,
        seen: Bools,
    ) -> Scores:
        """The scores [1, N] of N nodes of a tree behind the first `base` slots of sequence `row`,
        all `depth` levels below its root, which holds the last of those. They are put into the
        slots from `start` on; `seen` [N, start - base + N] says which of the tree's slots each of
        them sees, besides all before."""
        positions = np.full(len(tokens), base - 1 + depth, np.int64)
        call = self._placed(row, start, tokens, positions)
        assert call.mask is not None, "a head whose graph takes trees has a mask"
        call.set_features(features)
        end = base + seen.shape[1]
        call.mask[0, 0, :, :base] = True
        call.mask[0, 0, :, base:end] = seen
        call.mask[0, 0, :, end:] = False
        return self._run(call)


class CudaFeatureSession(FeatureSession, CudaSession):
    """The same, with its caches on the GPU. `device` as `CudaSession` takes it."""

    def _run(self, call: StepArrays) -> Scores:
        return _walked(super()._run(call), call.asked)


def _walked(scores: Scores, asked: Callable[[str], npt.NDArray[Any] | None]) -> Scores:
    """The scores of a head that walks its block, where it does."""
    if (drafts := asked(DRAFTS)) is None:
        return scores
    return WalkedScores(
        drafts, scores.logits, scores.topk_ids, scores.topk_logits, scores.top_gap, scores.taps,
        confidence=asked(CONFIDENCE),
    )  # fmt: skip


def features_beside(target: OrtSession) -> Callable[..., FeatureSession]:
    """What opens a head beside its target: on the same device."""
    if isinstance(target, CudaSession):
        return partial(CudaFeatureSession, device=target.device)
    return FeatureSession
