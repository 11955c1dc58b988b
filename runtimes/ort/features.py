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
from graftline.runtimes.session import Scores, Tap


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
