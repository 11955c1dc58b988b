"""Opens the draft head of a bundle, and measures what it costs beside its target's step."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from time import perf_counter

import numpy as np

from graftline.bundle.reader import Bundle
from graftline.facts import DraftBlockFacts
from graftline.owners import head_owner
from graftline.ports import FEATURES, by_role
from graftline.runtimes.control.costs import NEAR, Costs
from graftline.runtimes.feature_engine import FeatureEngine
from graftline.runtimes.head_reader import Heads
from graftline.runtimes.ort.features import FeatureSession, features_beside
from graftline.runtimes.ort.heads import OrtHeads
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.session import FINAL, MADE
from graftline.runtimes.step_times import undisturbed

ROUNDS = 15
"""Calls of each engine where their steps are compared, at NEAR positions."""
MANY = 32
"""Rows of the calls that tell what one more row costs."""


def head_opener(
    bundle: Bundle,
    target: OrtSession,
    key: str,
    costs: Costs,
    watch: Callable[[str], None] | None = None,
) -> Callable[[], Heads | FeatureEngine] | None:
    """Opens the bundle's draft head, once, and measures it where this machine, by its `key`, has
    not: parallel heads, or a decoder over features. None without any."""
    owners = bundle.manifest.engines()
    stages = [owners[head] for head in map(head_owner, range(len(owners))) if head in owners]
    if not stages:
        return None

    @cache
    def opened() -> Heads | FeatureEngine:
        if watch is not None:
            watch("opening the draft head")
        made, name = bundle.manifest.stages[stages[0]], f"{key}, {stages[0]} beside the target"
        row, known = costs.of(1), bundle.read_costs(name)
        if not isinstance(made.facts, DraftBlockFacts):
            pairs = [(bundle.graph(stage), bundle.manifest.stages[stage].ports) for stage in stages]
            heads = OrtHeads(pairs, target.threads, target.device)
            found = known or heads_cost(heads, target)
            heads.milliseconds = float(found["ratio"]) * row
        else:
            first, *others = [_session(bundle, stage, target) for stage in stages]
            found = known or block_cost(first, target)
            one, read, scored = (float(found[n]) for n in ("ratio", "reading", "scored"))
            reads = MADE if by_role(target.ports, FEATURES, "out") else FINAL

            def engine(session: FeatureSession, *deeper: FeatureEngine) -> FeatureEngine:
                return FeatureEngine(
                    session, reads, one * row, read * row,
                    rows_cost=lambda n: 1.0 + scored / one * (n - 1), deeper=deeper,
                )  # fmt: skip

            heads = engine(first, *map(engine, others))  # layers of one size, of one cost
        if known is None:
            bundle.write_costs(name, found)
        return heads

    return opened


def _session(bundle: Bundle, stage: str, target: OrtSession) -> FeatureSession:
    """A head's own graph beside its target."""
    made = bundle.manifest.stages[stage]
    assert isinstance(made.facts, DraftBlockFacts), "all layers of a head are decoders"
    return features_beside(target)(
        bundle.graph(stage), made.facts, made.ports,
        capacity=target.capacity, threads=target.threads,
    )  # fmt: skip


def heads_cost(heads: OrtHeads, target: OrtSession) -> dict[str, float]:
    """`ratio`: what a call of the heads costs, over a step of the target, measured in turn."""
    state = np.random.default_rng(0).standard_normal((1, heads.hidden)).astype(np.float32)
    told = heads.sequential or heads.reads_last
    first = np.zeros((1, 1), np.int64) if told else None
    return {"ratio": _beside(target, [lambda: heads.answer(state, 0, first)])[0]}


def block_cost(session: FeatureSession, target: OrtSession) -> dict[str, float]:
    """What a head costs, over a step of the target, measured in turn: `ratio` a call of one row,
    `reading` one more row of it, and `scored` one more that is scored."""
    random = np.random.default_rng(0)
    past = min(NEAR, session.capacity // 2)
    count = min(MANY, session.capacity - past)
    ids = random.integers(0, session.facts.vocabulary, past + count).tolist()
    states = random.standard_normal((past + count, session.width)).astype(np.float32)
    session.reset(1)
    session.follow(0, 0, ids[:past], features=states[:past])

    def call(rows: int, asked: int) -> Callable[[], object]:
        part = slice(past, past + rows)
        return lambda: session.follow(0, past, ids[part], asked, states[part])

    one, read, scored = _beside(target, [call(1, 1), call(count, 1), call(count, count)])
    more = max(count - 1, 1)
    each = {"reading": read, "scored": scored}
    return {"ratio": one, **{name: max(taken - one, 0.0) / more for name, taken in each.items()}}


def _beside(target: OrtSession, calls: list[Callable[[], object]]) -> list[float]:
    """What each call takes, over a step of the target just before it."""
    random = np.random.default_rng(0)
    past, session = min(NEAR, target.capacity // 2), target.sibling()
    session.prefill([random.integers(0, target.facts.vocabulary, past, dtype=np.int64)])
    plain: list[float] = []
    times: list[list[float]] = [[] for _ in calls]
    for token in random.integers(0, target.facts.vocabulary, ROUNDS).tolist():
        for call, taken in zip(calls, times, strict=True):
            began = perf_counter()
            session.follow(0, past, [token])
            between = perf_counter()
            call()
            taken.append(perf_counter() - between)
            plain.append(between - began)
    step = undisturbed(plain)
    return [undisturbed(taken) / step for taken in times]
