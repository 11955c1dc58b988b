"""Draft heads on TensorRT: engines beside the target's, asked about a row of every sequence."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import numpy as np

from graftline.errors import BackendError
from graftline.ports import Port, by_role
from graftline.roles import HEADS_IDS, HEADS_TOPK, LAST
from graftline.runtimes.session import Floats, Ints
from graftline.runtimes.step_times import undisturbed
from graftline.runtimes.trt.device import Device
from graftline.runtimes.trt.plan import EnginePlan
from graftline.runtimes.trt.step import ProfileStep, extents_of

BEST = frozenset({HEADS_IDS, HEADS_TOPK})
"""Roles of the outputs that a call brings to the host."""
ROUNDS = 15
"""Calls by which the cost of one is measured."""


class TrtHead:
    """One engine: of all heads that read a state alone, or of one that also reads tokens."""

    def __init__(self, device: Device, plan: EnginePlan, ports: Sequence[Port]) -> None:
        (best,) = by_role(ports, HEADS_IDS, "out")
        (state,) = by_role(ports, "hidden", "in")
        self.heads, self.width = (int(size) for size in best.shape[2:])
        self.hidden, self.reads_tokens = int(state.shape[-1]), bool(by_role(ports, "tokens", "in"))
        self.reads_last = bool(by_role(ports, LAST, "in"))
        self._batch = plan.batch
        context = device.context(plan.decoding[1], True)
        most = extents_of(self._batch, 1, 1, 1)
        self._step = ProfileStep(device, context, ports, most, True, reads=BEST)

    def __call__(self, hidden: Floats, tokens: Ints | None) -> tuple[Ints, Floats]:
        """Ids and logits [N, heads, width], in as many calls as the engine's batch asks for."""
        starts = range(0, len(hidden), self._batch)
        ends = [(start, min(start + self._batch, len(hidden))) for start in starts]
        parts = [self._part(hidden[a:b], None if tokens is None else tokens[a:b]) for a, b in ends]
        ids, logits = zip(*parts, strict=True)
        return np.concatenate(ids), np.concatenate(logits)

    def _part(self, hidden: Floats, tokens: Ints | None) -> tuple[Ints, Floats]:
        step = self._step
        step.shape(extents_of(len(hidden), 1, 1, 1), {})
        step.arrays["hidden"][:, 0] = hidden
        if self.reads_last:
            assert tokens is not None, "heads with bigrams are told the token behind a state"
            step.arrays[LAST][:] = tokens
        elif tokens is not None:
            step.arrays["tokens"][:, 0] = tokens
        step.run()
        return step.arrays[HEADS_IDS][:, 0].copy(), step.arrays[HEADS_TOPK][:, 0].copy()


class TrtHeads:
    """Draft heads, opened on a GPU. See `runtimes.head_reader.Heads`."""

    def __init__(self, engines: Sequence[TrtHead]) -> None:
        if not engines:
            raise BackendError("a bundle without engines of draft heads; rebuild it with --head")
        self._engines, first = list(engines), engines[0]
        self.sequential, self.hidden, self.width = first.reads_tokens, first.hidden, first.width
        self.reads_last = first.reads_last
        self.heads = len(engines) if self.sequential else first.heads
        self.milliseconds = self._measured()

    def answer(
        self, hidden: Floats, head: int = 0, tokens: Ints | None = None
    ) -> tuple[Ints, Floats]:
        """Ids and logits for states [N, H], and tokens behind them. See `Heads.answer`."""
        return self._engines[head](hidden, tokens)

    def _measured(self) -> float:
        """Milliseconds of a call for one row: the target's costs are measured on this GPU too."""
        state = np.zeros((1, self.hidden), np.float32)
        tokens = np.zeros((1, 1), np.int64) if self.sequential or self.reads_last else None
        times: list[float] = []
        for _ in range(ROUNDS):
            began = perf_counter()
            self.answer(state, 0, tokens)
            times.append(perf_counter() - began)
        return 1e3 * undisturbed(times)
