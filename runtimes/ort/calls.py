"""Engine calls over bound arrays: each shape of call has its own, made when it first comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt

from graftline.errors import BackendError
from graftline.ports import Port, by_role
from graftline.runtimes.ort.caches import HostCaches
from graftline.runtimes.ort.graph import open_graph
from graftline.runtimes.ort.step_arrays import OutputMemory, StepArrays, bind, step_inputs
from graftline.runtimes.session import Scores

MOST_ROWS = 64
"""Most rows of one `score`; caches hold as many slots beyond the capacity."""
CHUNK = 256
"""Rows of one prefill call."""
MOST_CALLS = 512
"""Call shapes whose arrays stay bound."""


class BoundCalls:
    """The calls of one session; `_memory` has its caches."""

    ports: tuple[Port, ...]
    threads: int
    capacity: int
    _graph: Path
    _session: Any
    _run_bound: Any
    _memory: HostCaches
    _outputs: OutputMemory
    _calls: dict[tuple[int, int, int, int], StepArrays]
    _last: StepArrays | None
    _tree: bool
    _hidden: str | None

    def _open(self, company: bool) -> Any:
        return open_graph(self._graph, self.threads, company)

    @property
    def taps(self) -> dict[str, npt.NDArray[Any]]:
        """What every `tap` brought out of the last call, [B, N, H] by port; valid until the next.
        """
        names = (p.name for p in by_role(self.ports, "hidden", "out"))
        return {} if self._last is None else {name: self._last.outputs[name] for name in names}

    def _run(self, call: StepArrays) -> Scores:
        try:
            self._run_bound(call.binding)
        except Exception as error:  # onnxruntime raises its own types, and plain RuntimeError
            raise BackendError(f"onnxruntime failed in a step: {error}") from error
        self._last = call
        logits = call.asked("logits")
        assert logits is not None, "every bundle has logits"
        argmax = call.asked("argmax")
        argmax = logits.argmax(-1) if argmax is None else argmax
        top, values, gap = (call.asked(n) for n in ("topk_ids", "topk_logits", "top_gap"))
        return Scores(argmax, logits, top, values, gap, call.tapped(self._hidden))

    def _call(self, batch: int, count: int, asked: int, row: int) -> StepArrays:
        """The bound arrays for a call shape; `row` picks the caches for one of many."""
        key = (batch, count, asked, row)
        if (call := self._calls.get(key)) is None:
            if len(self._calls) >= MOST_CALLS:
                del self._calls[next(iter(self._calls))]
            self._calls[key] = call = self._bind(*key)
        return call

    def _bind(self, batch: int, count: int, asked: int, row: int) -> StepArrays:
        inputs = self._step_inputs(batch, count, asked)
        caches = self._memory.of(row, batch)
        return bind(self._session, self.ports, inputs, caches, self._outputs)

    def _step_inputs(self, batch: int, count: int, asked: int) -> dict[str, npt.NDArray[Any]]:
        slots = self.capacity + MOST_ROWS if self._tree else None
        return step_inputs(batch, count, asked, slots)
