"""Engine calls over bound arrays: each shape of call has its own, made when it first comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy.typing as npt

from graftline.errors import BackendError
from graftline.ports import SKIPPED, Port, by_role
from graftline.runtimes.ort.caches import HostCaches
from graftline.runtimes.ort.forms import Forms
from graftline.runtimes.ort.graph import open_graph
from graftline.runtimes.ort.packed import PackedCall, of_rows, regrouped
from graftline.runtimes.ort.step_arrays import (
    Assembly,
    OutputMemory,
    StepArrays,
    bind,
    step_inputs,
)
from graftline.runtimes.scores import STALE, LazyTaps
from graftline.runtimes.session import Ints, Scores, Tap

P = ParamSpec("P")
T = TypeVar("T")

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
    _forms: Forms
    _memory: HostCaches
    _lengths: Ints
    _outputs: OutputMemory
    _together: OutputMemory
    _packed: dict[tuple[int, int], PackedCall]
    _calls: dict[tuple[int, int, int, int, bool], StepArrays]
    _last: StepArrays | None
    _turn: int
    """Calls so far."""
    _tree: bool
    _taps: dict[Tap, str]

    def _open(self) -> Any:
        return open_graph(self._graph, self.threads)

    @property
    def taps(self) -> dict[str, npt.NDArray[Any]]:
        """What every `tap` brought out of the last call, [B, N, H] by port; valid until the next.
        """
        names = (p.name for p in by_role(self.ports, "hidden", "out"))
        return {} if self._last is None else {name: self._last.outputs[name] for name in names}

    @property
    def skipped(self) -> Ints | None:
        """How many MLPs each row [B, N] of the last call passed by; None where none is gated."""
        return None if self._last is None else self._last.outputs.get(SKIPPED)

    def _run(self, call: StepArrays) -> Scores:
        """Make a call that is filled in."""
        self._turn += 1
        try:
            call.run(call.binding)
        except Exception as error:  # onnxruntime raises its own types, and plain RuntimeError
            raise BackendError(f"onnxruntime failed in a step: {error}") from error
        self._last = call
        return self._scores(call.asked)

    def _scores(self, asked: Callable[[str], npt.NDArray[Any] | None]) -> Scores:
        """What a call says of the rows that were asked for; `asked` gives its outputs by name."""
        logits = asked("logits")
        assert logits is not None, "every bundle has logits"
        argmax = asked("argmax")
        argmax = logits.argmax(-1) if argmax is None else argmax
        top, values, gap = (asked(n) for n in ("topk_ids", "topk_logits", "top_gap"))
        taps = self._lazy(partial(_asked, asked))
        return Scores(argmax, logits, top, values, gap, taps)

    def _lazy(self, fetch: Callable[[str], npt.NDArray[Any]]) -> LazyTaps[str]:
        """Hidden states of the call that was made last; read after the next one they raise
        BackendError, for they lie in the same memory."""
        return LazyTaps(self._taps, self._of_this_call(fetch))

    def _of_this_call(self, fetch: Callable[P, T]) -> Callable[P, T]:
        """`fetch`, which raises BackendError once another call was made."""
        turn = self._turn

        def read(*given: P.args, **named: P.kwargs) -> T:
            if self._turn != turn:
                raise BackendError(STALE)
            return fetch(*given, **named)

        return read

    def _call(
        self, batch: int, count: int, asked: int, row: int, chains: bool = False
    ) -> StepArrays:
        """The bound arrays for a call shape; `row` picks the caches for one of many. Rows that are
        `chains` need no mask, where there is a graph without."""
        key = (batch, count, asked, row, chains and self._forms.chains is not None)
        if (call := self._calls.get(key)) is None:
            if len(self._calls) >= MOST_CALLS:
                del self._calls[next(iter(self._calls))]
            self._calls[key] = call = self._bind(*key)
        return call

    def _bind(self, batch: int, count: int, asked: int, row: int, chains: bool) -> StepArrays:
        found = self._forms.chains if chains else None
        engine, ports = found or (self._session, self.ports)
        inputs = self._step_inputs(batch, count, asked, masked=self._tree and found is None)
        return bind(engine, ports, inputs, self._memory.of(row, batch), self._outputs)

    def _step_inputs(
        self, batch: int, count: int, asked: int, masked: bool
    ) -> dict[str, npt.NDArray[Any]]:
        slots = self.capacity + MOST_ROWS if masked else None
        return step_inputs(batch, count, asked, slots)

    def open_forms(self, sequences: int) -> None:
        """Open now what so many sequences together may need."""
        self._forms.open(sequences)

    @property
    def packs(self) -> bool:
        """Whether chains of several sequences are scored in one engine call."""
        return self._forms.most > 1

    def _packed_rows(self, tokens: Ints, counts: Sequence[int], base: int = 0) -> Scores:
        """Chains of several sequences, from `base` on, in as few calls as there are graphs for."""
        batch, most = len(tokens), self._forms.most
        whole = Assembly(self._together, *tokens.shape)
        for first in range(0, batch, most):
            rows = range(first, min(first + most, batch))
            parts = [tokens[row, : counts[row]] for row in rows]
            starts = self._lengths[base + first : base + rows.stop].tolist()
            found = self._run_packed(base + first, parts, starts)
            if len(rows) == batch and min(counts) == max(counts):
                return regrouped(of_rows(found, slice(0, batch * counts[0])), batch)
            start = 0
            for row in rows:
                whole.put(row, of_rows(found, slice(start, start + counts[row])), 0)
                start += counts[row]
        return whole.scores()

    def _run_packed(
        self, first: int, parts: Sequence[npt.NDArray[Any]], starts: Sequence[int]
    ) -> Scores:
        """The scores [1, all rows] of chains of the sequences from `first` on, in one call: of each
        its tokens [rows], or what stands for them [rows, H], behind the first `starts` slots."""
        call, self._last = self._packed_call(first, len(parts)), None
        self._turn += 1
        return self._scores(call(parts, starts).get)

    def _packed_call(self, first: int, sequences: int) -> PackedCall:
        """The call for sequences from `first` on, bound to their caches."""
        key = first, sequences
        if (call := self._packed.get(key)) is None:
            graph = self._forms.packed(sequences)
            caches = [self._memory.of(row, 1) for row in range(first, first + sequences)]
            call = self._packed[key] = PackedCall(graph, self.ports, caches, self._outputs)
        return call


def _asked(
    asked: Callable[[str], npt.NDArray[Any] | None], name: str
) -> npt.NDArray[Any]:
    """A hidden state of the rows that were asked for."""
    state = asked(name)
    assert state is not None, "a tap is an output"
    return state
