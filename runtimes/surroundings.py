"""What a bundle and its user bring along besides the target: opened when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count, takewhile
from pathlib import Path
from time import perf_counter
from typing import cast
from weakref import finalize

import numpy as np

from graftline.bundle.reader import Bundle
from graftline.bundle.store import load_graph
from graftline.errors import RequestError
from graftline.exits import ALL, rest_stage
from graftline.facts import as_decoder
from graftline.owners import DRAFT, TARGET
from graftline.ports import by_role
from graftline.route import ROUTE, route_stage
from graftline.runtimes.control.costs import NEAR, Costs
from graftline.runtimes.draft_engine import DraftEngine, OwnCaches
from graftline.runtimes.draft_seats import OwnSeats, TargetSeats
from graftline.runtimes.exits import Exit
from graftline.runtimes.ort.rest import RestSession
from graftline.runtimes.ort.resumes import Resumes
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.resources import missing
from graftline.runtimes.session import Floats, Ints
from graftline.runtimes.step_times import undisturbed
from graftline.runtimes.text.corpus import read_corpus
from graftline.runtimes.text.tokenizer import Tokenizer

AGREED, ROWS_READ = 192, 32
"""Tokens of held-out text that draft and target are compared on, and rows of one call."""
ROLE, EMBEDDING = "graftline.role", "embedding"
"""The stamp by which the graph's nodes say what they are."""
ROUNDS = 15
"""Calls of each engine where their steps are compared, at NEAR positions."""

Opened = Callable[[str], "tuple[OrtSession, Match]"]
"""Opens a stage that drafts, and knows how it compares with the target."""


@dataclass(frozen=True)
class Match:
    """A draft beside its target: milliseconds of one row, and the share of its best tokens that are
    the target's on held-out text."""

    step: float
    agreement: float
    table: Callable[[], Costs]
    """What its steps cost, by a table of its own; measured when it is first asked."""

    def rows_cost(self, rows: int) -> float:
        """What one call of so many rows costs, in calls of one row."""
        return self.table().of(rows) / self.table().of(1)

    def cost(self, rows: int, past: float, batch: int) -> float:
        """Milliseconds of so many rows in all, on the scale of the target's costs, of `batch`
        sequences behind `past` positions each."""
        return self.step * self.table().of(rows, False, past, batch) / self.table().of(1)


def draft_opener(
    bundle: Bundle, target: OrtSession, opened: Opened
) -> Callable[[], DraftEngine] | None:
    """Opens the draft engine for all sequences of a target; None without a draft.

    A draft that has the target's own weights works on the target's caches, any other on its own.
    """
    whole = bundle.manifest.engines().get(DRAFT)
    if whole is None:
        return None
    spare: list[OrtSession] = []

    def own() -> OwnCaches:
        session, match = opened(whole)
        mine = spare.pop() if spare else _touched(session.sibling())
        engine = OwnCaches(mine, match.step, match.agreement, match.rows_cost)
        finalize(engine, spare.append, mine)
        return engine

    @cache
    def draft() -> DraftEngine:
        session, match = opened(whole)
        facts = match.step, match.agreement, match.rows_cost, own
        if bundle.manifest.same_weights(DRAFT):
            return DraftEngine(session.sibling(target), TargetSeats(target), *facts)
        return OwnCaches(_touched(session.sibling()), *facts)

    return draft


def _touched(session: OrtSession) -> OrtSession:
    """The first call touches all of the caches' memory, which takes as long as twenty steps: now,
    not within a text. Sequences that come later get the caches of those that have ended."""
    session.prefill([np.zeros(1, np.int64)])
    session.reset(1)
    return session


def depths_opener(
    bundle: Bundle, target: OrtSession, opened: Opened
) -> Callable[[], Sequence[DraftEngine]] | None:
    """Opens the draft's sub-models for all sequences of a target, shallowest first and the whole
    last, over one set of caches: the target's, or the draft's own. None without any."""
    cuts = list(bundle.manifest.of_role("depth", DRAFT))
    if not cuts:
        return None
    stages = [*cuts, bundle.manifest.engines()[DRAFT]]

    @cache
    def depths() -> Sequence[DraftEngine]:
        shares = bundle.manifest.same_weights(DRAFT)
        host = target if shares else opened(stages[-1])[0].sibling()
        seats = TargetSeats(host) if shares else OwnSeats(host)
        engines: list[DraftEngine] = []
        for stage in stages:
            session, m = opened(stage)
            guest = session.sibling(host)
            engines.append(DraftEngine(guest, seats, m.step, m.agreement, m.rows_cost))
        return engines

    return depths


def route_opener(
    bundle: Bundle, target: OrtSession, opened: Opened
) -> Callable[[], DraftEngine] | None:
    """Opens the target's route for all sequences of a target, on the target's caches. None without
    one."""
    if ROUTE not in bundle.manifest.stages:
        return None

    @cache
    def route() -> DraftEngine:
        session, match = opened(ROUTE)
        facts = match.step, match.agreement, match.rows_cost
        return DraftEngine(session.sibling(target), TargetSeats(target), *facts)

    return route


def routes_opener(
    bundle: Bundle, target: OrtSession, opened: Callable[[str], OrtSession]
) -> Callable[[str], Sequence[OrtSession] | None]:
    """Opens the routes of a schedule for all sequences of a target, on the target's caches and
    behind it; None for a schedule of which the bundle has none."""

    @cache
    def routes(schedule: str) -> Sequence[OrtSession] | None:
        stages = bundle.manifest.stages
        numbers = takewhile(lambda n: route_stage(schedule, n) in stages, count(1))
        found = [opened(route_stage(schedule, number)).sibling(target) for number in numbers]
        return [target, *found] if found else None

    return routes


def exits_opener(
    bundle: Bundle, target: OrtSession, opened: Opened
) -> Callable[[], Sequence[Exit]] | None:
    """Opens the exits of a target for all its sequences, the first one first. None without any."""
    stages = bundle.manifest.of_role("exit", TARGET)
    if not stages:
        return None

    @cache
    def exits() -> Sequence[Exit]:
        seats, resumes = TargetSeats(target), Resumes(target)
        chooses = ALL in bundle.manifest.stages
        head = cast("RestSession", opened(ALL)[0]).sibling(target) if chooses else None
        found: list[Exit] = []
        for name, stage in stages.items():
            blocks = as_decoder(stage.facts).layers
            first, match = opened(name)
            whole, left = opened(rest_stage(blocks))
            facts = match.step, match.agreement, cache(match.rows_cost)  # asked for every row
            engine = DraftEngine(first.sibling(target), seats, *facts)
            rest = cast("RestSession", whole).sibling(target)
            adapted = bool(by_role(stage.ports, "adapter.key"))
            found.append(Exit(blocks, engine, rest, left.cost, resumes, head, adapted))
        target.resumes = resumes
        return found

    return exits


def step_ratio(draft: OrtSession, target: OrtSession) -> float:
    """What one row costs the draft, over what it costs the target: measured in turn, because only
    then a machine that is busy for a while slows both alike."""
    random = np.random.default_rng(0)
    past = min(NEAR, draft.capacity // 2, target.capacity // 2)
    known = min(draft.facts.vocabulary, target.facts.vocabulary)
    pair = (draft.sibling(), target.sibling())
    for session in pair:
        session.prefill([random.integers(0, known, past, dtype=np.int64)])
    times: tuple[list[float], list[float]] = ([], [])
    for token in random.integers(0, known, ROUNDS).tolist():
        for session, taken in zip(pair, times, strict=True):
            began = perf_counter()
            session.follow(0, past, [token])
            taken.append(perf_counter() - began)
    return undisturbed(times[0]) / undisturbed(times[1])


def agreement(draft: OrtSession, target: OrtSession, text: Sequence[int]) -> float:
    """Share of the positions of `text` at which both find the same best token; between 0.05 and
    0.98, because a text is a sample. Each reads the text into caches of its own."""
    ids = np.asarray(text[: min(AGREED, draft.capacity, target.capacity)], np.int64)
    best: list[Ints] = []
    for session in (draft.sibling(), target.sibling()):
        rows = [session.prefill([ids[:1]]).argmax[0]]
        for start in range(1, len(ids), ROWS_READ):
            part = ids[None, start : start + ROWS_READ]
            rows.append(session.score(part).argmax[0].copy())
            session.commit([range(part.shape[1])])
        best.append(np.concatenate(rows))
    return min(max(float((best[0] == best[1]).mean()), 0.05), 0.98)


def embedding_of(bundle: Bundle) -> Callable[[], Floats]:
    """Reads the target's token embedding [V, H], once: from the engine's graph, or where that holds
    it in another form from the canonical one.

    The reader raises GraftlineError when no graph that is there shows one.
    """

    @cache
    def read() -> Floats:
        stages = [bundle.manifest.target]
        stages += [] if bundle.without_source() else ["canonical"]
        for stage in stages:
            graph = load_graph(bundle.graph(stage)).graph
            node = next((n for n in graph if n.metadata_props.get(ROLE) == EMBEDDING), None)
            value = node.inputs[0] if node is not None else None
            tensor = value.const_value if value is not None else None
            if tensor is not None and len(tensor.shape) == 2 and tensor.dtype.is_floating_point():
                return np.asarray(tensor.numpy(), np.float32)
        raise missing(str(bundle.path), "embedding")

    return read


def corpus_of(corpus: str | Path, tokenizer: Tokenizer | None) -> tuple[Ints, ...]:
    """The user's documents as token ids. Raises RequestError without a tokenizer."""
    if tokenizer is None:
        raise RequestError("this bundle has no tokenizer, so a corpus cannot be read")
    return read_corpus(corpus, tokenizer.encode_part)
