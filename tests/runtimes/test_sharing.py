"""Requests that share steps: they join, leave, fail and end without touching one another."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import left_over
from test_ort import HOSTS, sessions
from toy_session import FLAT, ToySession

from graftline.recipe import recipe
from graftline.runtimes.decoding import Decoding
from graftline.runtimes.engine import Engine
from graftline.runtimes.result import Result
from graftline.runtimes.scheduler import CHUNK
from graftline.runtimes.session import Bools, Ints, Scores, Session, Show
from graftline.tree import Tree

Make = Callable[..., Engine]
RECIPES = ("plain", "prompt-lookup", "token-recycling", "suffix")


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.9, "seed": 3}])
def test_recipes_and_lengths_mix_in_one_batch(
    make_engine: Make, prompts: list[list[int]], settings: dict[str, Any]
) -> None:
    engine = make_engine()
    asked = [
        {"max_new_tokens": 5 + 7 * place, "recipe": RECIPES[place % 4], **settings}
        for place in range(len(prompts))
    ]
    pairs = list(zip(prompts, asked, strict=True))
    alone = [engine.generate(p, **{**o, "recipe": "plain"}).tokens for p, o in pairs]
    engine.session.calls.clear()  # type: ignore[attr-defined]
    begun = [engine.submit(p, **o) for p, o in pairs]
    assert [one.wait().tokens for one in reversed(begun)] == alone[::-1]
    assert max(batch for batch, _ in engine.session.calls) == len(prompts)  # type: ignore[attr-defined]
    assert left_over(engine) == 0


def test_a_step_reads_no_prompt_after_a_whole_chunk() -> None:
    """Who decodes waits for little more than one chunk, however many prompts wait too."""
    session = ToySession(capacity=1000)
    engine = Engine(session, None, {}, recipe("plain"), FLAT)
    begun = [engine.submit([n] * n, max_new_tokens=1) for n in (3, 30, 30, 30)]
    long = [engine.submit([7] * (CHUNK - 50), max_new_tokens=1) for _ in range(3)]
    engine._scheduler.step()
    assert sum(count for _, count in session.reads) == 3 + 30 + 30 + 30 + CHUNK - 50
    assert len([one.wait() for one in begun + long]) == 7


def test_no_more_decode_together_than_there_are_seats(prompts: list[list[int]]) -> None:
    session = ToySession()
    engine = Engine(session, None, {"eos_token_id": 0}, recipe("suffix"), FLAT, seats=3)
    alone = [engine.generate(p, max_new_tokens=20).tokens for p in prompts]
    session.calls.clear()
    assert [r.tokens for r in engine.generate(prompts, max_new_tokens=20)] == alone
    assert {batch for batch, _ in session.calls} <= {1, 2, 3}
    few = ToySession()
    few.most_sequences = 2
    engine = Engine(few, None, {"eos_token_id": 0}, recipe("suffix"), FLAT)
    assert [r.tokens for r in engine.generate(prompts, max_new_tokens=20)] == alone
    assert max(batch for batch, _ in few.calls) == 2


class Logged(ToySession):
    """Notes its calls in order."""

    def __init__(self, **options: Any) -> None:
        self.log: list[tuple[str, int]] = []
        super().__init__(**options)

    def read(self, row: int, tokens: Ints, show: Show | None = None) -> Scores:
        self.log.append(("read", len(tokens)))
        return super().read(row, tokens, show)

    def score(
        self,
        tokens: Ints,
        depth: Ints | None = None,
        mask: Bools | None = None,
        counts: Any = None,
    ) -> Scores:
        self.log.append(("score", len(tokens)))
        return super().score(tokens, depth, mask, counts)


def test_a_long_prompt_is_read_between_the_steps_of_others() -> None:
    session = Logged(capacity=2000)
    engine = Engine(session, None, {}, recipe("plain"), FLAT)
    long = np.random.default_rng(0).integers(1, 40, 3 * CHUNK + 10).tolist()
    expected = engine.generate(long, max_new_tokens=4).tokens
    short = engine.generate([5, 6], max_new_tokens=30).tokens
    session.log.clear()
    first = engine.submit([5, 6], max_new_tokens=30)
    for _ in range(3):
        engine._scheduler.step()
    second = engine.submit(long, max_new_tokens=4)
    assert second.wait().tokens == expected
    assert first.wait().tokens == short
    reads = [place for place, (what, _) in enumerate(session.log) if what == "read"]
    assert [session.log[place][1] for place in reads] == [2, CHUNK, CHUNK, CHUNK, 10]
    gaps = [b - a for a, b in pairwise(reads[1:])]
    assert gaps == [2, 2, 2], "a step of the other between every two chunks"


def test_a_prompt_is_cut_at_the_same_places_in_any_company() -> None:
    """Where rows of a call depend on one another, another cut would give another text."""
    session = Logged(capacity=2000)
    engine = Engine(session, None, {}, recipe("plain"), FLAT)
    chance = np.random.default_rng(1)
    begun = [
        engine.submit(chance.integers(1, 40, length).tolist(), max_new_tokens=3)
        for length in (200, CHUNK + 44, CHUNK + 44)
    ]
    for one in begun:
        one.wait()
    assert [n for what, n in session.log if what == "read"] == [200, CHUNK, 44, CHUNK, 44]


def test_nobody_takes_a_result_while_the_step_that_ends_it_goes_on(
    make_engine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread makes it, and has yet to look for stop texts and to close the account."""
    engine = make_engine()
    ended, go_on, taken = threading.Event(), threading.Event(), threading.Event()
    begun = engine.submit([1, 2], max_new_tokens=3, ignore_eos=True)
    digest = Decoding.digest

    def slowly(one: Decoding) -> None:
        if one.done:
            ended.set()
            assert go_on.wait(60)
        digest(one)

    def take() -> None:
        begun.wait()
        taken.set()

    monkeypatch.setattr(Decoding, "digest", slowly)
    steps = threading.Thread(target=lambda: [engine._scheduler.step() for _ in range(5)])
    steps.start()
    assert ended.wait(60)
    taker = threading.Thread(target=take)
    taker.start()
    assert not taken.wait(0.3)
    go_on.set()
    assert taken.wait(60)
    steps.join(60)
    taker.join(60)
    assert begun.result is not None
    assert begun.result.stats.predicted is not None


def test_threads_that_cancel_at_random_lose_no_seat(
    make_engine: Make, prompts: list[list[int]]
) -> None:
    engine = make_engine()
    options: dict[str, Any] = {"max_new_tokens": 25, "ignore_eos": True}
    expected = [engine.generate(p, **options).tokens for p in prompts]
    wrong: list[object] = []

    def work(number: int) -> None:
        chance = random.Random(number)
        for _ in range(12):
            place = chance.randrange(len(prompts))
            given = {**options, "recipe": chance.choice(RECIPES)}
            if chance.random() < 0.4:
                begun = engine.passes(prompts[place], **given)
                for _ in range(chance.randrange(4)):
                    next(begun, None)
                begun.close()
            else:
                found = engine.generate(prompts[place], **given).tokens
                wrong.extend([found] if found != expected[place] else [])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert left_over(engine) == 0
    assert engine.session.lengths.tolist() == []


def test_coroutines_share_steps_and_cancel(make_engine: Make, prompts: list[list[int]]) -> None:
    engine = make_engine()
    options: dict[str, Any] = {"max_new_tokens": 25, "ignore_eos": True}
    expected = [engine.generate(p, **options).tokens for p in prompts]

    async def one(place: int) -> list[int]:
        tokens: list[int] = []
        events = engine.agenerate(prompts[place], recipe=RECIPES[place % 4], **options)
        async for event in events:
            tokens += event.tokens
            last = event
        assert last.finish_reason == "length"
        assert isinstance(last.result, Result)
        assert last.result.tokens == tokens
        return tokens

    async def everything() -> list[list[int]]:
        gone = [asyncio.create_task(one(place)) for place in range(5)]
        await asyncio.sleep(0.005)
        for task in gone:
            task.cancel()
        found = await asyncio.gather(*(one(place) for place in range(len(prompts))))
        ended = await asyncio.gather(*gone, return_exceptions=True)
        assert any(isinstance(e, asyncio.CancelledError) for e in ended)
        return found

    assert asyncio.run(everything()) == expected
    assert left_over(engine) == 0


def test_sequences_come_and_go_as_in_the_reference(tmp_path: Path) -> None:
    """Random seats, prompts, trees, commits, rollbacks and leaves, on the real runtime."""
    chance = np.random.default_rng(11)
    both: list[Session] = [*sessions(HOSTS["grouped"], tmp_path)]
    for session in both:
        session.reset(0)
    for _ in range(60):
        batch = len(both[0].lengths)
        kind = chance.choice(["join", "step", "step", "leave", "back"])
        if batch == 0 or (kind == "join" and batch < 7):
            prompt = chance.integers(0, 61, int(chance.integers(1, 12)))
            same([s.read(s.seat(), prompt).logits] for s in both)
        elif kind == "leave":
            row = int(chance.integers(0, batch))
            for session in both:
                session.leave(row)
        elif kind == "back":
            lengths = [int(chance.integers(1, n + 1)) for n in both[0].lengths]
            for session in both:
                session.truncate(lengths)
        elif both[0].lengths.max() < 50:
            count = int(chance.integers(1, 5))
            parents = [int(chance.integers(0, n)) if n else -1 for n in range(count)]
            trees = [Tree(chance.integers(0, 61, count), np.asarray(parents)) for _ in range(batch)]
            tokens = np.stack([t.tokens for t in trees])
            depth, mask = np.stack([t.depth for t in trees]), np.stack([t.mask for t in trees])
            counts = chance.choice([1, count, int(chance.integers(1, count + 1))], batch).tolist()
            given = [counts if chance.random() < 0.7 else [count] * batch, [count] * batch]
            scores = [s.score(tokens, depth, mask, c) for s, c in zip(both, given, strict=True)]
            same([s.logits[b, :n] for b, n in enumerate(given[0])] for s in scores)
            nodes = [int(chance.integers(0, n)) for n in given[0]]
            paths = [t.path_to(node) for t, node in zip(trees, nodes, strict=True)]
            for session in both:
                session.commit(paths)
        assert both[0].lengths.tolist() == both[1].lengths.tolist()


def same(answers: Iterable[list[np.ndarray]]) -> None:
    for found, want in zip(*answers, strict=True):
        assert found.shape == want.shape
        assert np.abs(found - want).max() <= 2e-4 * max(1.0, np.abs(want).max())
