"""What was read before is not read again, and nothing changes but the work."""

from __future__ import annotations

import random
import sys
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from engines import left_over
from test_ort import HOSTS, sessions
from test_ort_cuda import sessions as cuda_sessions
from toy_drafts import CheckedDraft, engine_of, policy
from toy_session import FLAT, ToySession
from trt_pair import pair

from graftline.errors import BackendError, RequestError
from graftline.models.decoder import TinyDecoder
from graftline.recipe import recipe
from graftline.runtimes.engine import Engine
from graftline.runtimes.prefix_cache import CHUNK, PrefixCache, PromptEnd
from graftline.runtimes.session import Floats, Ints, Scores, Session

PLENTY = 1 << 24


class Rounding(ToySession):
    """Keys and values follow from the call that wrote them, so any other cut gives another text."""

    def __init__(self) -> None:
        super().__init__(capacity=2500, odd=1, row_invariant=False)

    def _read(self, row: int, tokens: Ints) -> Floats:
        mark = 1 + zlib.crc32(np.asarray(tokens, np.int64).tobytes()) % 97
        return super()._read(row, np.asarray(tokens) + self.facts.vocabulary * mark)


class Several(ToySession):
    """A call of a single row rounds unlike one of several, and that is all that matters."""

    def __init__(self) -> None:
        super().__init__(capacity=2500, odd=1, row_invariant=False)
        self.same_rows = 2

    def _read(self, row: int, tokens: Ints) -> Floats:
        return super()._read(row, self._marked(np.asarray(tokens)))

    def score(self, tokens: Ints, *given: Any, **more: Any) -> Scores:
        scores = super().score(tokens, *given, **more)
        for row, length in enumerate(self._lengths):
            stop = length + tokens.shape[1]
            self._slots[row, length:stop, 1] = self._marked(self._slots[row, length:stop, 1])
        return scores

    def _marked(self, tokens: Ints) -> Ints:
        return tokens + self.facts.vocabulary * (len(tokens) == 1)


def engine_with(session: Any, most: int | None = PLENTY) -> Engine:
    prefixes = None if most is None else PrefixCache(most)
    return Engine(session, None, {"eos_token_id": 0}, recipe("plain"), FLAT, prefixes=prefixes)


def tokens_read(session: ToySession) -> int:
    """Tokens of prompts that were read since this was asked last."""
    total = sum(count for _, count in session.reads)
    session.reads.clear()
    return total


def talk(engine: Engine, lengths: list[int], **options: Any) -> list[Any]:
    """A conversation whose turns bring in so many new tokens each; the results."""
    chance = np.random.default_rng(2)
    history: list[int] = []
    results: list[Any] = []
    for length in lengths:
        history += chance.integers(1, 40, length).tolist()
        results.append(engine.generate(history, max_new_tokens=30, **options))
        history += results[-1].tokens
    return results


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "seed": 5}, {"exact": True}])
@pytest.mark.parametrize("kind", [lambda: ToySession(capacity=2500), Rounding, Several])
def test_a_conversation_is_the_same_text_with_and_without(
    kind: Callable[[], ToySession], options: dict[str, Any]
) -> None:
    lengths = [20, 300, 7, 512 - 30, 400, 1, 257]
    known, plain = (engine_with(kind(), most) for most in (PLENTY, None))
    found, want = (talk(engine, lengths, **options) for engine in (known, plain))
    assert [r.tokens for r in found] == [r.tokens for r in want]
    assert sum(r.stats.reused for r in found) > 1000
    assert not any(r.stats.reused for r in want)
    again = talk(known, lengths, **options)
    assert [r.tokens for r in again] == [r.tokens for r in want]


def test_exact_requests_take_nothing_inexact_from_others() -> None:
    """Where rows are alike but for the last bits, others may copy any length; these may not."""
    lengths = [20, 300, 7, 512 - 30, 400, 1]
    known, plain = engine_with(Rounding()), engine_with(Rounding(), None)
    for engine in (known, plain):
        engine.session.row_invariant, engine.session.exact_rows = True, 1
    want = [r.tokens for r in talk(plain, lengths, exact=True)]
    talk(known, lengths)
    assert [r.tokens for r in talk(known, lengths, exact=True)] == want
    history = np.random.default_rng(2).integers(1, 40, 20).tolist()
    for length, tokens in zip(lengths[1:], want, strict=False):  # what was exact, cut elsewhere
        history += [*tokens, *[9] * length]
        known.generate(history[: len(history) - 4], max_new_tokens=2)
        found = known.generate(history, max_new_tokens=5, exact=True)
        assert found.tokens == plain.generate(history, max_new_tokens=5, exact=True).tokens


def test_a_prompt_whose_rows_are_all_asked_for_is_read_whole() -> None:
    """And, as its calls are others, it is the beginning of no exact request's."""
    prompt = np.random.default_rng(2).integers(1, 40, 600).tolist()
    known, plain = engine_with(Rounding()), engine_with(Rounding(), None)
    want = plain.generate(prompt, max_new_tokens=5)
    for _ in range(2):
        told = known.generate(prompt, max_new_tokens=5, prompt_logprobs=0)
        assert told.stats.reused == 0
        assert len(told.prompt_logprobs) == 600
        found = known.generate(prompt, max_new_tokens=5)
        assert found.tokens == want.tokens
    assert found.stats.reused == 600, "it was read in chunks in between"


class Branching(ToySession):
    """Rows of chains do not depend on one another; a step with a mask rounds in its own way."""

    def __init__(self) -> None:
        super().__init__(capacity=900, odd=1, row_invariant=False)
        self.exact_rows = self.same_rows = 1

    def score(self, tokens: Ints, depth: Any = None, mask: Any = None, *more: Any) -> Scores:
        scores = super().score(tokens, depth, mask, *more)
        for row, length in enumerate(self._lengths if mask is not None else ()):
            self._slots[row, length : length + tokens.shape[1], 1] += self.facts.vocabulary
        return scores


def test_answers_are_reused_where_no_step_of_theirs_was_of_another_kind() -> None:
    known, plain = engine_with(Branching()), engine_with(Branching(), None)
    for exact in (False, True):
        options: dict[str, Any] = {"recipe": "token-recycling", "exact": exact}
        found, want = (talk(engine, [40, 30, 30], **options) for engine in (known, plain))
        assert [r.tokens for r in found] == [r.tokens for r in want]
        assert (found[1].stats.reused > 40) == exact


def test_a_prompt_that_was_read_in_chunks_takes_the_place_of_one_that_was_not() -> None:
    prefixes, ids = PrefixCache(PLENTY), np.arange(9)
    for chunked in (False, True):
        end = PromptEnd(9, Scores(ids[:1], np.zeros((1, 1, 3), np.float32)), chunked)
        prefixes.keep(ids, 0, end, lambda a, b: Fake(ids[a:b], ids[a:b] * 0 + 1))
        known = prefixes.find(ids, False)
        assert (known.length, known.end is not None) == ((9, True) if chunked else (0, False))


@pytest.mark.parametrize("kind", [Rounding, Several])
def test_rounding_shows_a_wrong_cut(kind: Callable[[], ToySession]) -> None:
    """The toys that the tests here stand on: what a step wrote is not what a prompt has."""
    engine = engine_with(kind())
    find = engine._scheduler.prompts.prefixes.find  # type: ignore[union-attr]
    engine._scheduler.prompts.prefixes.find = lambda ids, *given: find(ids, True)  # type: ignore[union-attr, method-assign]
    plain = talk(engine_with(kind(), None), [20, 300, 7])
    assert [r.tokens for r in talk(engine, [20, 300, 7])] != [r.tokens for r in plain]


def test_where_calls_of_several_rows_agree_prompts_are_reused_to_the_last_token() -> None:
    """Answers too, under exact, whose steps are such calls; two rows at least are left to read."""
    session = Several()
    engine = engine_with(session)
    first, _ = talk(engine, [1500, 40])
    assert tokens_read(session) == 1500 + len(first.tokens) + 40
    talk(engine, [1400, 40], exact=True)
    assert tokens_read(session) == 2 + 1 + 40, "the last of an answer is in no cache"
    prompt = np.random.default_rng(3).integers(1, 40, 600).tolist()
    for count, least in ((600, 600), (598, 2), (597, 2), (2 * CHUNK + 1, 1), (300, 2)):
        engine.generate(prompt[:count], max_new_tokens=2)
        assert tokens_read(session) == least, f"of {count}"
    other = [*prompt[:400], *[7] * 30]
    engine.generate(other, max_new_tokens=2)
    assert tokens_read(session) == 30


def test_a_row_that_was_read_alone_is_the_beginning_of_no_other_prompt() -> None:
    """It is that of the same prompt, which reads it alone as well."""
    session = Several()
    engine, plain = engine_with(session), engine_with(Several(), None)
    prompt = np.random.default_rng(3).integers(1, 40, 300).tolist()
    engine.generate(prompt[: CHUNK + 1], max_new_tokens=9)
    for count in (300, CHUNK + 1, CHUNK + 2):
        found = engine.generate(prompt[:count], max_new_tokens=9)
        assert found.tokens == plain.generate(prompt[:count], max_new_tokens=9).tokens


def test_a_second_turn_reads_what_is_new() -> None:
    """One token more: the last of an answer was chosen, and never put in the cache."""
    session = ToySession(capacity=2500)
    engine = engine_with(session)
    talk(engine, [1500, 40])
    assert tokens_read(session) == 1500 + 1 + 40
    prompt = np.random.default_rng(3).integers(1, 40, 600).tolist()
    engine.generate(prompt, max_new_tokens=9)
    tokens_read(session)
    result = engine.generate(prompt, max_new_tokens=5)
    assert tokens_read(session) == 0, "the scores of its last row are known as well"
    assert result.stats.reused == 600
    result = engine.generate([*prompt[:400], 1, 2], max_new_tokens=5)
    assert (tokens_read(session), result.stats.reused) == (2, 400)


def test_where_rows_depend_on_one_another_whole_chunks_are_reused() -> None:
    session = Rounding()
    engine = engine_with(session)
    talk(engine, [1500, 40])
    second = 1500 + 30 + 40
    assert tokens_read(session) == 1500 + second - 1500 // CHUNK * CHUNK
    prompt = np.random.default_rng(3).integers(1, 40, 600).tolist()
    first = engine.generate(prompt, max_new_tokens=9)
    tokens_read(session)
    assert engine.generate(prompt, max_new_tokens=9).tokens == first.tokens
    assert tokens_read(session) == 0, "the same prompt is the same call, and the same bits"
    engine.generate(prompt[:599], max_new_tokens=9)
    assert tokens_read(session) == 599 - 2 * CHUNK


@pytest.mark.parametrize("kind", [lambda: ToySession(capacity=900), Rounding])
def test_requests_that_share_a_system_prompt(kind: Callable[[], ToySession]) -> None:
    """Submitted together: the first reads it, the others wait their turn and copy."""
    session = kind()
    engine = engine_with(session)
    system = np.random.default_rng(4).integers(1, 40, 2 * CHUNK).tolist()
    prompts = [[*system, *range(1, 3 + n)] for n in range(6)]
    plain = engine_with(kind(), None)
    alone = [plain.generate(p, max_new_tokens=8).tokens for p in prompts]
    results = engine.generate(prompts, max_new_tokens=8)
    assert [r.tokens for r in results] == alone
    assert [r.stats.reused >= len(system) for r in results] == [False, *[True] * 5]
    assert tokens_read(session) <= len(system) + sum(len(p) - len(system) for p in prompts)
    batch = engine.generate([prompts[3]] * 4, max_new_tokens=8)
    assert [r.tokens for r in batch] == [alone[3]] * 4
    assert tokens_read(session) == 0


def test_what_was_given_up_is_nobodys_beginning() -> None:
    session = ToySession(capacity=900)
    engine = engine_with(session)
    prefixes = engine._scheduler.prompts.prefixes
    assert prefixes is not None
    prompt = np.random.default_rng(5).integers(1, 40, 300).tolist()
    passes = engine.passes(prompt, max_new_tokens=50, ignore_eos=True)
    for _ in range(20):
        next(passes)
    tokens = list(passes._generation.one.tokens)
    passes.close()
    assert left_over(engine) == 0
    known = prefixes.find(np.asarray([*prompt, *tokens]), True)
    assert known.length == 300, "the prompt was read in full, and its answer was cancelled"
    for call in ("read", "score"):
        prefixes = PrefixCache(PLENTY)
        broken = ToySession(capacity=900)
        engine = Engine(broken, None, {}, recipe("plain"), FLAT, prefixes=prefixes)
        if call == "score":
            engine.generate(prompt[:9], max_new_tokens=1)
        before = len(prefixes)
        setattr(broken, call, _raise)
        with pytest.raises(BackendError, match="it broke"):
            engine.generate(prompt[:9], max_new_tokens=4)
        assert len(prefixes) == before


def _raise(*given: Any) -> Scores:
    raise BackendError("it broke")


def test_a_stop_text_ends_what_is_kept() -> None:
    """What was committed behind it is no part of the answer."""
    session = ToySession(capacity=900)
    engine = engine_with(session)
    result = engine.generate([1, 2, 3], max_new_tokens=20, ignore_eos=True)
    one = engine._scheduler._seated[0]
    del one.tokens[8:]
    left_over(engine)
    known = engine._scheduler.prompts.prefixes.find(  # type: ignore[union-attr]
        np.asarray([1, 2, 3, *result.tokens]), True
    )
    assert known.length == 3 + 8


def test_the_bound_is_kept_and_the_oldest_goes() -> None:
    session = ToySession(capacity=900)
    one = 600 * 16  # bytes of 600 positions of the toy; there is more to a block
    engine = engine_with(session, 3 * one)
    prefixes = engine._scheduler.prompts.prefixes
    assert prefixes is not None
    chance = np.random.default_rng(6)
    prompts = [chance.integers(1, 40, 600).tolist() for _ in range(9)]
    for prompt in prompts:
        engine.generate(prompt, max_new_tokens=3)
        engine.generate(prompts[0], max_new_tokens=3)
        assert 0 < prefixes.nbytes <= 3 * one
        assert prefixes.nbytes == counted(prefixes)
    tokens_read(session)
    engine.generate(prompts[0], max_new_tokens=3)
    assert tokens_read(session) == 0, "it was used all the time"
    engine.generate(prompts[1], max_new_tokens=3)
    assert tokens_read(session) == 600
    tiny = engine_with(session, 10)
    tiny.generate(prompts[0], max_new_tokens=3)
    assert tiny._scheduler.prompts.prefixes.nbytes == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [lambda: ToySession(capacity=900), Rounding])
def test_threads_that_cancel_at_random_get_their_texts(kind: Callable[[], ToySession]) -> None:
    """Over a cache that is too small for all, with prompts that share beginnings."""
    chance = np.random.default_rng(7)
    shared = chance.integers(1, 40, 2 * CHUNK).tolist()
    lengths = [5, 40, CHUNK, CHUNK + 9, 2 * CHUNK]
    prompts = [[*shared[:n], *chance.integers(1, 40, 3).tolist()] for n in lengths * 2]
    plain = engine_with(kind(), None)
    expected = [plain.generate(p, max_new_tokens=9).tokens for p in prompts]
    engine = engine_with(kind(), 40_000)
    prefixes = engine._scheduler.prompts.prefixes
    assert prefixes is not None
    wrong: list[object] = []

    def work(number: int) -> None:
        mine = random.Random(number)
        for _ in range(12):
            place = mine.randrange(len(prompts))
            if mine.random() < 0.3:
                passes = engine.passes(prompts[place], max_new_tokens=9)
                for _ in range(mine.randrange(4)):
                    next(passes, None)
                passes.close()
            else:
                found = engine.generate(prompts[place], max_new_tokens=9).tokens
                wrong.extend([found] if found != expected[place] else [])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong
    assert left_over(engine) == 0
    assert engine.stats().prefix_cache_hits > 1000
    assert prefixes.nbytes == counted(prefixes) <= prefixes.most


def counted(prefixes: PrefixCache) -> int:
    """Bytes of all blocks that hang together."""
    total, blocks = 0, list(prefixes._root.following)
    while blocks:
        block = blocks.pop()
        total += block.nbytes
        blocks += block.following
        assert [b.key for b in block.following] == sorted(b.key for b in block.following)
    return total


@dataclass
class Fake:
    """A snapshot that says which tokens it is of, and which call wrote each (0: a step)."""

    ids: Ints
    marks: Ints
    nbytes: int = 10_000


@dataclass
class Writer:
    """Reads prompts as `PromptReader` does, with chunks of four tokens."""

    prefixes: PrefixCache
    kept: list[tuple[list[int], int]]
    """Everything that was kept, and how much of it was read in chunks."""
    least: int | None = None
    """Where calls of so many rows agree: how many."""

    def request(self, ids: list[int], answer: list[int], any_length: bool) -> None:
        known = self.prefixes.find(np.asarray(ids), any_length, self.least)
        parts = [(part, count) for part, count in known.parts if isinstance(part, Fake)]
        copied = [token for part, count in parts for token in part.ids[:count].tolist()]
        assert copied == ids[: known.length]
        assert known.length == len(ids) if known.end else known.length < len(ids)
        self.enough(ids, known.length, any_length)
        marks = [mark for part, count in parts for mark in part.marks[:count].tolist()]
        chunked = known.chunked
        while len(marks) < len(ids):
            chunk = ids[len(marks) : len(marks) // 4 * 4 + 4]
            chunked += len(chunk) if chunked == len(marks) else 0
            marks += self.call(len(marks), chunk)
        if not any_length:
            assert marks == self.afresh(ids), "other bits than those of reading it all"
            assert chunked == len(ids)
        scores = Scores(np.zeros(1, np.int64), np.asarray(marks[-1:], np.float32))
        end = known.end or PromptEnd(len(ids), scores, chunked == len(ids))
        assert any_length or end.scores.logits.tolist() == scores.logits.tolist()
        whole, marked = np.asarray(ids + answer), np.asarray(marks + [0] * len(answer))
        rest = chunked % 4
        alike = chunked - rest if self.least is None or 0 < rest < self.least else chunked
        self.prefixes.keep(
            whole, alike, end, lambda a, b: Fake(whole[a:b].copy(), marked[a:b].copy())
        )
        self.kept.append((ids + answer, chunked))

    def call(self, start: int, chunk: list[int]) -> list[int]:
        """What a call writes for each of its tokens: what depends on their company."""
        if self.least is not None:
            return [1 + (len(chunk) < self.least)] * len(chunk)
        return [1 + zlib.crc32(str((start, chunk)).encode())] * len(chunk)

    def enough(self, ids: list[int], found: int, any_length: bool) -> None:
        """No less was found than a search through everything finds."""
        shared = [(common(ids, other), chunked) for other, chunked in self.kept]
        lengths = [s if any_length else min(s, c) // 4 * 4 for s, c in shared]
        most = max(lengths, default=0)
        assert found >= min(most, len(ids) - 1 if any_length else (len(ids) - 1) // 4 * 4)

    def afresh(self, ids: list[int]) -> list[int]:
        marks: list[int] = []
        for start in range(0, len(ids), 4):
            marks += self.call(start, ids[start : start + 4])
        return marks


@pytest.mark.parametrize("least", [None, 1, 2, 3])
@pytest.mark.parametrize("most", [1 << 40, 400_000])
def test_random_histories_are_found_as_far_as_they_are_known(
    most: int, least: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests for whole chunks and for any length share a cache."""
    monkeypatch.setattr("graftline.runtimes.prefix_cache.CHUNK", 4)
    chance = np.random.default_rng(8)
    writer = Writer(PrefixCache(most), [], least)
    for turn in range(400):
        ids = chance.integers(0, 3, int(chance.integers(1, 15))).tolist()
        answer = chance.integers(0, 3, int(chance.integers(0, 6))).tolist()
        writer.request(ids, answer, bool(chance.integers(2)))
        if turn % 10 == 0:
            assert writer.prefixes.nbytes == counted(writer.prefixes) <= most
        if most < 1 << 30:
            writer.kept.clear()  # what has been dropped need not be found


def common(first: list[int], second: list[int]) -> int:
    same = (a == b for a, b in zip(first, second, strict=False))
    return next((place for place, one in enumerate(same) if not one), min(len(first), len(second)))


SESSIONS: dict[str, Callable[[Path], Any]] = {
    "ort-cpu": lambda folder: sessions(HOSTS["grouped"], folder)[0],
    "window": lambda folder: sessions(HOSTS["window"], folder)[0],
    "ort-cuda": lambda folder: cuda_sessions(TinyDecoder(), folder, "fp32")[0],
    "ort-cuda-fp16": lambda folder: cuda_sessions(TinyDecoder(), folder, "fp16")[0],
    "trt": lambda folder: pair(folder).trt,
    "reference": lambda folder: sessions(HOSTS["grouped"], folder)[1],
    "toy": lambda folder: ToySession(vocabulary=61),
}


@pytest.mark.parametrize("kind", SESSIONS)
def test_every_session_takes_back_what_it_gave(kind: str, tmp_path: Path) -> None:
    """In pieces, to another row, of which only the first positions, and after its memory moved."""
    session: Session = SESSIONS[kind](tmp_path)
    chance = np.random.default_rng(1)
    ids, others = chance.integers(0, 61, 30), chance.integers(0, 61, 30)
    step = chance.integers(0, 61, (1, 3))
    session.reset(1)
    session.read(0, ids)
    session.truncate([20])
    want = session.score(step).logits.copy()
    parts = [session.snapshot(0, 0, 9), session.snapshot(0, 9, 20)]
    last = session.snapshot(0, 4, 20)
    assert sum(part.nbytes for part in parts) > last.nbytes > 0
    session.reset(0)
    for _ in range(3):
        session.read(session.seat(), others)
    session.leave(0)
    row = session.seat()
    session.restore(row, parts[0], 4)
    session.restore(row, last, 16)
    assert session.lengths.tolist() == [30, 30, 20]
    session.leave(0)
    session.leave(1)
    assert session.lengths.tolist() == [20]
    assert np.array_equal(session.score(step).logits, want)
    session.truncate([4])
    session.restore(0, session.snapshot(0, 0, 4), 2)  # whatever follows is of the restored row
    session.truncate([4])
    session.restore(0, last, 16)
    session.commit([()])
    del parts, last
    session.score(step)


def test_device_memory_is_given_back_with_the_last_reference(tmp_path: Path) -> None:
    both = pair(tmp_path)
    both.trt.prefill([np.arange(12)])
    end = PromptEnd(12, both.trt.score(np.zeros((1, 1), np.int64)), True)
    before = dict(both.device.live)
    prefixes = PrefixCache(20_000)
    for turn in range(5):
        ids = np.asarray([turn, *range(11)])
        prefixes.keep(ids, 12, end, lambda a, b: both.trt.snapshot(0, a, b))
        mine = {a: n for a, n in both.device.live.items() if a not in before}
        assert sum(mine.values()) <= prefixes.nbytes <= 20_000
    assert mine
    held = both.trt.snapshot(0, 0, 12)
    both.trt.reset(1)
    both.trt.restore(0, held, 12)
    del held, prefixes  # before the copy is through: it waits for it
    assert both.device.live == before
    both.trt.score(np.zeros((1, 1), np.int64))


@pytest.mark.parametrize("kind", ["ort-cpu", "trt", "ort-cuda"])
def test_engines_answer_alike_with_and_without(kind: str, tmp_path: Path) -> None:
    tokens: list[list[list[int]]] = []
    reused = 0
    for most in (None, PLENTY):
        session = SESSIONS[kind](tmp_path / str(most))
        session.row_invariant, session.exact_rows = kind != "trt", 1
        engine = engine_with(session, most)
        history = [5, 9, 5, 9, 7]
        found: list[list[int]] = []
        for turn in range(3):
            results = engine.generate([history, [*history, 3]], max_new_tokens=6)
            found += [r.tokens for r in results]
            reused += sum(r.stats.reused for r in results)
            history = [*history, *results[0].tokens, turn + 1]
        tokens.append(found)
    assert tokens[0] == tokens[1]
    assert reused > 0 or kind == "trt"


def test_a_draft_with_caches_of_its_own_reads_its_own_prompt() -> None:
    """CheckedDraft answers nonsense where its slots are not the sequence's."""
    engine = engine_of([], lambda _: CheckedDraft(), policy(), None)
    engine._scheduler.prompts.prefixes = PrefixCache(PLENTY)
    plain = Engine(ToySession(), None, {}, recipe("plain"), None)
    for length in (20, 25, 25, 12):
        prompt = [1, 2, 3, 4, 5] * (length // 5)
        options: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True}
        found = engine.generate(prompt, **options)
        assert found.tokens == plain.generate(prompt, **options).tokens
    assert found.stats.reused > 0
    assert found.stats.drafted > 0


def test_siblings_share_what_they_have_read(tmp_path: Path) -> None:
    session = sessions(HOSTS["grouped"], tmp_path)[0]
    engine = Engine(
        session, None, {}, recipe("plain"), FLAT, prefixes=PrefixCache(PLENTY),
        twin=lambda: (session.sibling(), engine.resources),
    )  # fmt: skip
    want = engine.generate([3, 1, 4, 1, 5], max_new_tokens=5)
    found = engine.sibling().generate([3, 1, 4, 1, 5], max_new_tokens=5)
    assert (found.tokens, found.stats.reused) == (want.tokens, 5)


def test_a_cache_of_negative_size_is_refused(tmp_path: Path) -> None:
    from graftline.runtimes.load import load

    with pytest.raises(RequestError, match="prefix_cache=-1: use bytes, or 0"):
        load(tmp_path, prefix_cache=-1)
