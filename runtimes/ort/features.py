"""A draft head's engine on ONNX Runtime: its rows have features besides tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.facts import DraftBlockFacts
from graftline.ports import FEATURES, Port, by_role, state_port
from graftline.runtimes.ort.cuda import CudaSession
from graftline.runtimes.ort.session import OrtSession
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
        self.state = Tap.of(state_port(ports, facts.normed_state))

    def _step_inputs(
        self, batch: int, count: int, asked: int, masked: bool
    ) -> dict[str, npt.NDArray[Any]]:
        made = super()._step_inputs(batch, count, asked, masked)
        return {**made, FEATURES: np.zeros((batch, count, self.width), np.float32)}

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


def features_beside(target: OrtSession) -> Callable[..., FeatureSession]:
    """What opens a head beside its target: on the same device."""
    if isinstance(target, CudaSession):
        return partial(CudaFeatureSession, device=target.device)
    return FeatureSession
