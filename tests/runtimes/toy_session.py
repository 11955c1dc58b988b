"""A tiny deterministic causal model with a real cache: anything wrong with a cache changes results.

A row's logits follow from exactly what it sees: the (position, token) pairs of the committed slots
and of the rows its mask admits. Mostly the last token decides, so that copying pays; one
context in `odd` is decided by everything seen, so that no wrong mask, position or compaction stays
unseen. Answers are poisoned as soon as the session is called again.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from graftline.facts import DecoderFacts
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.session import Bools, Floats, Ints, Scores, Show

FLAT = Costs({1: 10.0, 32: 11.0}, {1: 10.0, 32: 11.0})
"""Speculation is nearly free."""
INT4 = Costs(
    {1: 6.9, 2: 9.6, 3: 11.8, 4: 13.9, 6: 18.5, 8: 22.9, 16: 41.1, 32: 78.0},
    {1: 8.6, 2: 11.6, 4: 16.5, 8: 25.5, 16: 44.0, 32: 83.7},
)
"""Step costs measured on the real model (FINDINGS.md)."""


@lru_cache(1 << 14)
def _row(seed: int, best: int, vocabulary: int) -> Floats:
    """[V], seeded, with one token ahead; most tests read the same contexts again and again."""
    logits = np.random.default_rng(seed).normal(size=vocabulary)
    logits[best] += 6.0
    return logits.astype(np.float32)


class ToySession:
    packs = False

    def __init__(
        self,
        vocabulary: int = 40,
        capacity: int = 512,
        odd: int = 6,
        topk: int = 8,
        trees: bool = True,
        row_invariant: bool = True,
    ) -> None:
        self.facts = DecoderFacts(vocabulary, 8, 1, 1, 1, 8, capacity)
        self.capacity, self.row_invariant, self.supports_trees = capacity, row_invariant, trees
        self.largest = capacity
        self.most_sequences: int | None = None
        self.exact_rows: int | None = 1 if row_invariant else 2
        self.same_rows: int | None = None
        self.odd, self.topk = odd, topk
        self.calls: list[tuple[int, ...]] = []
        self.reads: list[tuple[int, int]] = []
        self.restored: list[tuple[int, int]] = []
        self.followed: list[dict[int, int]] = []
        """Of every call of a draft, the number of tokens by row."""
        self.reset(1)

    @property
    def lengths(self) -> Ints:
        return np.asarray(self._lengths, np.int64)

    def reset(self, batch: int) -> None:
        self._lengths = [0] * batch
        self._slots = np.full((batch, self.capacity, 2), -7, np.int64)
        self._rows = 0
        self._answer: Scores | None = None

    def prefill(self, prompts: Sequence[Ints]) -> Scores:
        assert len(prompts) == len(self._lengths)
        logits = np.empty((len(prompts), 1, self.facts.vocabulary), np.float32)
        for b, prompt in enumerate(prompts):
            logits[b, 0] = self._read(b, prompt)
        return self._answered(logits, 1)

    def seat(self) -> int:
        self._poison()
        self._rows = 0
        self._lengths.append(0)
        self._slots = np.concatenate([self._slots, np.full((1, self.capacity, 2), -7, np.int64)])
        return len(self._lengths) - 1

    def leave(self, row: int) -> None:
        self._poison()
        self._rows = 0
        self._slots[row] = self._slots[-1]
        self._slots = self._slots[:-1]
        self._lengths[row] = self._lengths[-1]
        self._lengths.pop()

    def read(self, row: int, tokens: Ints, show: Show | None = None) -> Scores:
        assert show is None, "a toy has no hidden states"
        self.reads.append((row, len(tokens)))
        return self._answered(self._read(row, tokens)[None, None].copy(), 0)

    def _read(self, row: int, tokens: Ints) -> Floats:
        start = self._lengths[row]
        end = start + len(tokens)
        assert start < end <= self.capacity
        self._slots[row, start:end] = np.stack([np.arange(start, end), tokens], axis=1)
        self._lengths[row] = end
        return self.logits_of(self._slots[row, :end])

    def score(
        self,
        tokens: Ints,
        depth: Ints | None = None,
        mask: Bools | None = None,
        counts: Sequence[int] | None = None,
    ) -> Scores:
        batch, count = tokens.shape
        assert batch == len(self._lengths)
        assert tokens.dtype == np.int64
        assert mask is None or self.supports_trees
        assert (depth is None) == (mask is None)
        lengths = self.lengths
        steps = np.tile(np.arange(count), (batch, 1)) if depth is None else depth
        seen = np.zeros((batch, count, int(lengths.max()) + count), np.bool_)
        for b, length in enumerate(self._lengths):
            seen[b, :, :length] = True
            fresh = np.tri(count, dtype=bool) if mask is None else mask[b]
            seen[b, :, length : length + count] = fresh
        scores = self.score_slots(tokens, lengths[:, None] + steps, seen)
        for b, real in enumerate(counts or ()):
            scores.argmax[b, real:] = 10**9
            scores.logits[b, real:] = np.nan
        return scores

    def score_slots(self, tokens: Ints, positions: Ints, mask: Bools) -> Scores:
        batch, count = tokens.shape
        assert 0 <= tokens.min() <= tokens.max() < self.facts.vocabulary, "ids without an embedding"
        self.calls.append((batch, count))
        logits = np.empty((batch, count, self.facts.vocabulary), np.float32)
        for b, length in enumerate(self._lengths):
            assert length + count <= self.capacity, "rows beyond the capacity"
            self._slots[b, length : length + count] = np.stack([positions[b], tokens[b]], axis=1)
            for row in range(count):
                seen = self._slots[b, : mask.shape[2]][mask[b, row]]
                # the row's own entry is the last by position, as a query is
                logits[b, row] = self.logits_of(seen[np.argsort(seen[:, 0], kind="stable")])
        return self._answered(logits, count)

    def follow(self, row: int, length: int, tokens: Sequence[int], asked: int = 1) -> Scores:
        self.followed.append({row: len(tokens)})
        ends = range(length + 1, length + len(tokens) + 1)
        logits = [self._put(row, end - 1, t) for end, t in zip(ends, tokens, strict=True)]
        return self._answered(np.stack(logits[-asked:])[None], 0)

    def follow_rows(self, first: int, starts: Sequence[int], tokens: Sequence[int]) -> Scores:
        self.followed.append({first + place: 1 for place in range(len(starts))})
        triples = zip(range(first, first + len(starts)), starts, tokens, strict=True)
        return self._answered(np.stack([self._put(*triple) for triple in triples])[:, None], 0)

    def _put(self, row: int, slot: int, token: int) -> Floats:
        """Write one token of a draft; [V] of what follows it."""
        assert 0 <= token < self.facts.vocabulary
        slots = self._caches(row)
        assert slot < self.capacity, "rows beyond the capacity"
        slots[slot] = slot, token
        return self.logits_of(slots[: slot + 1])

    def _caches(self, row: int) -> Ints:
        return self._slots[row]

    def advance(self, row: int, count: int) -> None:
        self._lengths[row] += count

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        assert len(paths) == len(self._lengths)
        self._poison()
        for b, path in enumerate(paths):
            kept = list(path)
            assert kept == sorted(set(kept))
            assert all(0 <= row < self._rows for row in kept)
            start = self._lengths[b]
            self._slots[b, start : start + len(kept)] = self._slots[b, [start + r for r in kept]]
            self._lengths[b] += len(kept)
        self._rows = 0

    def truncate(self, lengths: Sequence[int]) -> None:
        assert all(new <= old for new, old in zip(lengths, self._lengths, strict=True))
        self._lengths = list(lengths)

    def snapshot(self, row: int, start: int, stop: int) -> Ints:
        assert 0 <= start < stop <= self._lengths[row], "not committed"
        return self._slots[row, start:stop].copy()

    def restore(self, row: int, kept: Ints, count: int) -> None:
        start = self._lengths[row]
        assert 0 < count <= len(kept)
        self._slots[row, start : start + count] = kept[:count]
        self._lengths[row] = start + count
        self.restored.append((row, count))

    def logits_of(self, seen: Ints) -> Floats:
        """[V] from the (position, token) pairs in order."""
        everything = zlib.crc32(np.ascontiguousarray(seen).tobytes())
        recent = zlib.crc32(np.ascontiguousarray(seen[-1:, 1]).tobytes())
        contiguous = np.array_equal(seen[:, 0], np.arange(len(seen)))
        odd = everything % self.odd == 0 or not contiguous
        best = (everything if odd else recent) % self.facts.vocabulary
        return _row(everything, best, self.facts.vocabulary).copy()

    def _answered(self, logits: Floats, rows: int) -> Scores:
        self._poison()
        self._rows = rows
        ids = np.argsort(-logits, axis=-1, kind="stable")[..., : self.topk].astype(np.int64)
        best = np.take_along_axis(logits, ids, axis=-1)
        argmax = ids[..., 0].copy()
        self._answer = Scores(argmax, logits, ids, best, best[..., 0] - best[..., 1])
        return self._answer

    def _poison(self) -> None:
        """Whoever still reads the last answer reads nonsense."""
        if self._answer is not None:
            a = self._answer
            a.argmax[...] = 10**9
            a.logits[...] = np.nan
            if a.topk_ids is not None and a.topk_logits is not None:
                a.topk_ids[...] = 10**9
                a.topk_logits[...] = np.nan
        self._answer = None
