"""A draft head that is a decoder of its own, on TensorRT: an engine over features of its target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np

from graftline.errors import BackendError
from graftline.facts import DraftBlockFacts
from graftline.owners import HEAD
from graftline.ports import FEATURES, Port, by_role, slot_ports, state_port
from graftline.runtimes.feature_engine import FeatureEngine
from graftline.runtimes.session import Bools, Floats, Scores, Show, Tap
from graftline.runtimes.step_times import undisturbed
from graftline.runtimes.trt.device import Device
from graftline.runtimes.trt.new_rows import NewRows
from graftline.runtimes.trt.plan import EnginePlan
from graftline.runtimes.trt.session import TrtSession
from graftline.runtimes.trt.step import extents_of

ROUNDS = 15
"""Calls by which the cost of one is measured."""
CHAIN = np.ones((1, 1), np.bool_)


class TrtFeatureSession(TrtSession):
    """A head over its target's hidden states. See `runtimes.feature_engine.HeadSession`: only
    `follow`, `follow_rows` and `follow_level` may be called to score rows."""

    def __init__(
        self,
        device: Device,
        plan: EnginePlan,
        facts: DraftBlockFacts,
        ports: Sequence[Port],
        graph: Path,
        capacity: int | None = None,
    ) -> None:
        (port,) = by_role(ports, FEATURES, "in")
        self.width = int(port.shape[-1])
        named = by_role(ports, "topk_ids", "out")
        self.candidates = int(named[0].shape[-1]) if named else 0
        self.state = Tap.of(state_port(ports, facts.normed_state))
        super().__init__(device, plan, facts, ports, graph, capacity)

    def follow(
        self,
        row: int,
        length: int,
        tokens: Sequence[int],
        asked: int = 1,
        features: Floats | None = None,
        show: Show | None = None,
    ) -> Scores:
        """The last row's scores of `tokens`, put behind the first `length` slots of sequence `row`,
        with features [N, H]. Raises BackendError where several rows are asked for, or shown."""
        assert features is not None, "a head reads features"
        if asked != 1 or show is not None:
            raise BackendError("this head's engine scores one row of a call, or a level of a tree")
        return self.follow_at(self._caches.addresses(row), length, tokens, features)

    def follow_at(
        self, caches: Mapping[str, int], length: int, tokens: Sequence[int], features: Floats
    ) -> Scores:
        """The same for a sequence whose caches lie elsewhere: addresses by the names of inputs."""
        if len(tokens) == 1:
            return self._rows_at(caches, [length], tokens, features)
        step, chunk = self._step("prefill"), self.plan.rows("prefill")
        for first in range(0, len(tokens), chunk):
            part = np.asarray(tokens[first : first + chunk], np.int64)
            count, past = len(part), length + first
            step.shape(extents_of(1, count, 1, 1), caches)
            chain = np.tri(count, dtype=np.bool_)
            rows = NewRows(part, past + np.arange(count), past, past, chain)
            rows.write(step, 0, 0, count, self._caches.slots)
            step.arrays[FEATURES][0] = features[first : first + count]
            step.arrays["rows"][0, 0] = count - 1
            step.run()
        return self._scores(step, count, wanted=1)  # pyright: ignore[reportPossiblyUnboundVariable]

    def follow_rows(
        self,
        first: int,
        starts: Sequence[int],
        tokens: Sequence[int],
        features: Floats | None = None,
    ) -> Scores:
        """Scores [B, 1] of one token, with features [B, H], for each of the sequences from `first`
        on, each in the slot that `starts` says."""
        assert features is not None, "a head reads features"
        return self._rows_at(self._caches.addresses(first), starts, tokens, features)

    def _rows_at(
        self,
        caches: Mapping[str, int],
        starts: Sequence[int],
        tokens: Sequence[int],
        features: Floats,
    ) -> Scores:
        step = self._step("decode.1")
        step.shape(extents_of(len(tokens), 1, 1, 1), caches)
        for place, (start, token) in enumerate(zip(starts, tokens, strict=True)):
            one, at = np.asarray([token], np.int64), np.asarray([start], np.int64)
            NewRows(one, at, start, start, CHAIN).write(step, place, 0, 1, self._caches.slots)
        step.arrays[FEATURES][:, 0] = features
        step.arrays["rows"][:] = 0
        step.run()
        return self._scores(step, 1, wanted=1)

    def follow_level(
        self,
        row: int,
        base: int,
        start: int,
        tokens: Sequence[int],
        features: Floats | None,
        depth: int,
        seen: Bools,
    ) -> Scores:
        """The scores [1, N] of a level of a tree. See `TreeSession.follow_level`."""
        assert features is not None, "a head reads features"
        count = len(tokens)
        wide = next((n for n in self.plan.decoding if n >= count), None)
        if wide is None:
            raise self.plan.refusal(f"a level of {count} nodes is wider than any step", True)
        step = self._step(f"decode.{wide}")
        step.shape(extents_of(1, wide, wide, wide), self._caches.addresses(row))
        positions = np.full(count, base - 1 + depth, np.int64)
        rows = NewRows(np.asarray(tokens, np.int64), positions, start, base, seen)
        rows.write(step, 0, 0, count, self._caches.slots)
        step.arrays[FEATURES][0, :count] = features
        step.arrays[FEATURES][0, count:] = 0.0
        step.arrays["rows"][:] = np.arange(wide)
        step.run()
        return self._scores(step, count, wanted=count)


class LentCaches:
    """A head's engine over the caches that a fused engine has for its head, which it fills with
    prompts. Raises BackendError where they are of other sizes."""

    def __init__(self, head: TrtFeatureSession, session: TrtSession) -> None:
        lent = {p.name: (p.shape, p.dtype) for p in slot_ports(session.ports, "in", HEAD)}
        own = slot_ports(head.ports, "in")
        if {f"{HEAD}.{p.name}": (p.shape, p.dtype) for p in own} != lent:
            raise head.plan.refusal(
                "the head's engine and the fused step have caches of other sizes", rebuild=True
            )
        self._head, self._session = head, session

    def follow(
        self,
        row: int,
        length: int,
        tokens: Sequence[int],
        asked: int = 1,
        features: Floats | None = None,
    ) -> Scores:
        """See `HeadSession.follow`."""
        assert features is not None, "a head reads features"
        at = self._session.head_addresses(row)
        return self._head.follow_at(at, length, tokens, features)


def feature_engine(session: TrtFeatureSession, reads: Tap) -> FeatureEngine:
    """The head as a draft engine, its costs measured here: the target's are too."""
    one, more, levels = _measured(session)
    widest = max(session.plan.decoding)
    scored = max(levels - one, 0.0) / max(widest - 1, 1)
    return FeatureEngine(
        session, reads, one, more, rows_cost=lambda rows: 1.0 + scored / one * (rows - 1)
    )


def _measured(session: TrtFeatureSession) -> tuple[float, float, float]:
    """Milliseconds of a call for one row, of one more row that is read, and of a widest level."""
    chunk, widest = session.plan.rows("prefill"), max(session.plan.decoding)
    chunk = min(chunk, session.capacity)
    zeros = np.zeros((max(chunk, widest), session.width), np.float32)
    ids, tree = [0] * len(zeros), np.eye(widest, dtype=np.bool_)
    session.reset(1)

    def took(call: Callable[[], object]) -> float:
        times: list[float] = []
        for _ in range(ROUNDS):
            began = perf_counter()
            call()
            times.append(perf_counter() - began)
        return 1e3 * undisturbed(times)

    one = took(lambda: session.follow(0, 0, ids[:1], 1, zeros[:1]))
    many = took(lambda: session.follow(0, 0, ids[:chunk], 1, zeros[:chunk]))
    level = took(
        lambda: session.follow_level(0, 1, 1, ids[:widest], zeros[:widest], 1, tree)
    )
    return one, max(many - one, 0.0) / max(chunk - 1, 1), level
