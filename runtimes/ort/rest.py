"""A graph of the blocks behind an exit, on ONNX Runtime: it starts from hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.facts import DecoderFacts
from graftline.ports import STREAM, Port, by_role
from graftline.runtimes.ort.packed import of_rows
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.ort.step_arrays import Assembly
from graftline.runtimes.scores import copied
from graftline.runtimes.session import Bools, Floats, Ints, Scores, Tap


class RestSession(OrtSession):
    """Rows that an exit has begun are ended here, on the caches of its target. Of the ways to score
    rows only `resume` gives answers of the model; `score` times its steps, on zeros."""

    def __init__(
        self, graph: Path, facts: DecoderFacts, ports: Sequence[Port], **more: Any
    ) -> None:
        (port,) = by_role(ports, STREAM, "in")
        self.width = int(port.shape[-1])
        super().__init__(graph, facts, ports, **more)
        self.reads = Tap("hidden", port.tap, port.layer)
        """What leaves the block before."""

    def _step_inputs(
        self, batch: int, count: int, asked: int, masked: bool
    ) -> dict[str, npt.NDArray[Any]]:
        made = super()._step_inputs(batch, count, asked, masked)
        return {**made, STREAM: np.zeros((batch, count, self.width), np.float32)}

    def score(
        self,
        tokens: Ints,
        depth: Ints | None = None,
        mask: Bools | None = None,
        counts: Sequence[int] | None = None,
    ) -> Scores:
        each = [tokens.shape[1]] * len(tokens) if counts is None else counts
        zeros = [np.zeros((count, self.width), np.float32) for count in each]
        return self.resume(0, self.lengths.tolist(), zeros)

    def resume(self, first: int, starts: Sequence[int], states: Sequence[Floats]) -> Scores:
        """The scores [B, N] of chains of the sequences from `first` on, each of whose hidden states
        [rows, H] lie behind the first `starts` slots. N is the longest; scores of the rows that a
        sequence does not have are nothing."""
        counts = [len(part) for part in states]
        if max(counts) > 1 and len(counts) > 1:
            return self._each(first, starts, states, counts)
        call = self._call(len(counts), counts[0], counts[0], first, chains=True)
        call.filled = -1
        steps = np.arange(counts[0])
        for row, (start, part) in enumerate(zip(starts, states, strict=True)):
            call.write_index[row], call.positions[row] = start, start + steps
            assert call.states is not None
            call.states[row] = part
            if call.mask is not None:
                call.mask_chain(row, start, counts[0])
        return self._run(call)

    def resume_tree(
        self, row: int, start: int, states: Floats, depth: Ints, seen: Bools
    ) -> Scores:
        """The scores [1, N] of a tree of sequence `row`, whose rows' hidden states [N, H] lie
        behind the first `start` slots, `depth` [N] levels below its root, and see one another as
        `seen` [N, N] says."""
        call, end = self._call(1, len(states), len(states), row), start + len(states)
        call.filled = -1
        call.write_index[0], call.positions[0] = start, start + depth
        assert call.states is not None
        call.states[0] = states
        assert call.mask is not None, "the blocks behind an exit that drafts trees have a mask"
        call.mask[0, 0, :, :start] = True
        call.mask[0, 0, :, start:end] = seen
        call.mask[0, 0, :, end:] = False
        return self._run(call)

    def _each(
        self, first: int, starts: Sequence[int], states: Sequence[Floats], counts: Sequence[int]
    ) -> Scores:
        """Of several sequences with several rows: in as few calls as there are graphs for, else one
        for each."""
        whole = Assembly(self._together, len(counts), max(counts))
        most = max(self._forms.most, 1)
        for begin in range(0, len(counts), most):
            some = slice(begin, begin + most)
            parts = states[some]
            if len(parts) == 1:
                whole.put(begin, self.resume(first + begin, starts[some], parts), 0)
                continue
            found, at = self._run_packed(first + begin, parts, starts[some]), 0
            for row, part in enumerate(parts, begin):
                whole.put(row, of_rows(found, slice(at, at + len(part))), 0)
                at += len(part)
        return whole.scores()

    def shadow(self, states: Floats) -> Scores:
        """The scores [1, N] of hidden states [N, H], as a copy: of a graph without blocks, which
        reads those of any."""
        return copied(self.resume(0, [0], [states]))
