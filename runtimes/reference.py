"""The `reference` session: any grafted graph on ONNX's own reference implementation.

Slow and simple. It shares no code with the fast sessions, so what they answer can be held to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.errors import BackendError, RequestError
from graftline.evaluate import Feed, run
from graftline.facts import decoder_facts
from graftline.ports import FEATURES, by_role, read_ports
from graftline.roles import Roles
from graftline.runtimes.scores import joined
from graftline.runtimes.session import Bools, Ints, Scores, Show, Snapshot, Tap

SPARE = 64
"""Slots beyond the capacity, for rows that are scored and not kept."""


@dataclass(frozen=True)
class _Kept:
    """Some slots of one sequence, [K, slots, D] by cache."""

    caches: Feed

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches.values())


class ReferenceSession:
    """A graph with a cache, canonical or lowered, evaluated by numpy. See `session.Session`."""

    def __init__(self, model: ir.Model, capacity: int = 128) -> None:
        self.facts, self.ports, self.capacity = decoder_facts(model), read_ports(model), capacity
        self.largest, self._roles = capacity, Roles.of(self.ports)
        self.most_sequences: int | None = None
        self.row_invariant, self.exact_rows = True, 1
        self.same_rows: int | None = None
        self._model = model
        self._caches = [p for p in self.ports if p.mirror is not None]
        if not self._caches:
            raise BackendError("the graph has no cache; run the pass kv-cache first")
        self.reset(1)

    @property
    def lengths(self) -> Ints:
        """[B]: committed positions of each sequence."""
        return self._lengths

    packs = False

    @property
    def supports_trees(self) -> bool:
        """True when the graph has the port `mask`."""
        return bool(by_role(self.ports, "mask"))

    def reset(self, batch: int) -> None:
        """Empty caches for `batch` sequences."""
        self._lengths = np.zeros(batch, np.int64)
        self._held: Feed = {}
        for port in self._caches:
            assert port.mirror is not None
            sizes = {"B": batch, "S": self.capacity + SPARE}
            shape = [d if isinstance(d, int) else sizes[d] for d in port.shape]
            self._held[port.mirror] = np.zeros(shape, np.dtype(port.dtype))

    def prefill(self, prompts: Sequence[Ints]) -> Scores:
        """Commit each prompt in one piece, sequence by sequence."""
        return joined([self.read(row, prompt) for row, prompt in enumerate(prompts)])

    def seat(self) -> int:
        """One more sequence, with empty caches."""
        for name, cache in self._held.items():
            empty = np.zeros((1, *cache.shape[1:]), cache.dtype)
            self._held[name] = np.concatenate([cache, empty])
        self._lengths = np.append(self._lengths, 0)
        return len(self._lengths) - 1

    def leave(self, row: int) -> None:
        """Forget a sequence; the last one takes its row."""
        order = np.arange(len(self._lengths))
        order[row] = order[-1]
        self._held = {n: c[order[:-1]] for n, c in self._held.items()}
        self._lengths = self._lengths[order[:-1]]

    def read(self, row: int, tokens: Ints, show: Show | None = None) -> Scores:
        """Commit tokens in one piece behind what the sequence has."""
        prompt = tokens
        if not 0 < len(prompt) <= self.capacity - self._lengths[row]:
            raise RequestError(f"{len(prompt)} tokens do not fit a capacity of {self.capacity}")
        scores = self._step(row, np.asarray(prompt, np.int64), None, None)
        self._lengths[row] += len(prompt)
        if show is not None:
            show({tap: states[0] for tap, states in scores.taps.items()})
        return Scores.of({key: part[:, -1:] for key, part in scores.parts().items()})

    def score(
        self,
        tokens: Ints,
        depth: Ints | None = None,
        mask: Bools | None = None,
        counts: Sequence[int] | None = None,
    ) -> Scores:
        """Score N rows of each sequence, one sequence after another."""
        rows = [
            self._step(
                b, tokens[b], None if depth is None else depth[b], None if mask is None else mask[b]
            )
            for b in range(len(tokens))
        ]
        return joined(rows)

    def _step(self, row: int, tokens: Ints, depth: Ints | None, mask: Bools | None) -> Scores:
        start, count = int(self._lengths[row]), len(tokens)
        steps = np.arange(count) if depth is None else depth
        seen = np.ones((count, start + count), np.bool_)
        seen[:, start:] = np.tri(count, dtype=np.bool_) if mask is None else mask
        return self._slots(row, tokens, start + steps, seen)

    def score_slots(self, tokens: Ints, positions: Ints, mask: Bools) -> Scores:
        """Score N rows of each sequence, each of which sees the slots that `mask` says."""
        rows = [self._slots(b, tokens[b], positions[b], mask[b]) for b in range(len(tokens))]
        return joined(rows)

    def _slots(self, row: int, tokens: Ints, positions: Ints, seen: Bools) -> Scores:
        count = len(tokens)
        mask = np.zeros((1, 1, count, self.capacity + SPARE), np.bool_)
        mask[0, 0, :, : seen.shape[1]] = seen
        feed = self._roles.feed(
            tokens=tokens[None], positions=positions[None].astype(np.int64), mask=mask,
            write_index=self._lengths[row : row + 1].copy(), rows=np.arange(count)[None],
        )  # fmt: skip
        held = {name: cache[row : row + 1] for name, cache in self._held.items()}
        out = run(self._model, feed | held)
        for port in self._caches:
            assert port.mirror is not None
            self._held[port.mirror][row] = out[port.name][0]
        taps = [*by_role(self.ports, FEATURES, "out"), *by_role(self.ports, "hidden", "out")]
        logits = out[self._roles.outputs["logits"]].astype(np.float32)
        states = {Tap.of(p): out[p.name].astype(np.float32) for p in taps}
        return Scores(logits.argmax(-1), logits, taps=states)

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Keep the rows of each path."""
        for row, path in enumerate(paths):
            start = int(self._lengths[row])
            for cache in self._held.values():
                kept = cache[row][:, [start + node for node in path]]
                cache[row][:, start : start + len(path)] = kept
            self._lengths[row] += len(path)

    def truncate(self, lengths: Sequence[int]) -> None:
        """Roll back to shorter lengths."""
        self._lengths = np.asarray(lengths, np.int64)

    def snapshot(self, row: int, start: int, stop: int) -> Snapshot:
        """A copy of committed slots."""
        return _Kept({name: c[row, :, start:stop].copy() for name, c in self._held.items()})

    def restore(self, row: int, kept: Snapshot, count: int) -> None:
        """Commit the positions of a copy."""
        assert isinstance(kept, _Kept)
        start = int(self._lengths[row])
        for name, part in kept.caches.items():
            self._held[name][row, :, start : start + count] = part[:, :count]
        self._lengths[row] += count
