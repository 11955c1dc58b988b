"""What an answer says besides its text, and what a call can ask for: log-probabilities, several
answers, options per prompt, ids, usage, kept stop texts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import left_over
from test_ort import HOSTS, sessions
from toy_session import FLAT, ToySession
from trt_pair import pair

from graftline.errors import RequestError
from graftline.models.decoder import TinyDecoder
from graftline.recipe import recipe
from graftline.runtimes.engine import Engine
from graftline.runtimes.logprobs import TokenLogprob
from graftline.runtimes.result import Result, Usage
from graftline.runtimes.session import Floats
from graftline.runtimes.streams import Event
from graftline.runtimes.text.tokenizer import StopStrings, Tokenizer
from tests.rounding import assert_same_sums, decoder_terms
from tests.tiny_checkpoints import write_tokenizer

Make = Callable[..., Engine]
RECIPES = ("plain", "prompt-lookup", "token-recycling", "suffix")


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Writes random bytes."""
    folder = tmp_path_factory.mktemp("bytes")
    write_tokenizer(folder)
    session = ToySession(vocabulary=260, capacity=300)
    return Engine(session, Tokenizer.from_folder(folder), {}, recipe("plain"), FLAT)


def logits_after(session: ToySession, context: list[int]) -> Floats:
    pairs = np.stack([np.arange(len(context)), np.asarray(context)], axis=1)
    return session.logits_of(pairs)


def check_logprob(found: TokenLogprob, token: int, logits: Floats, count: int) -> None:
    """By the definition, in the plainest form."""
    wide = logits.astype(np.float64)
    expected = wide - np.log(np.exp(wide).sum())
    assert found.token == token
    assert found.logprob == pytest.approx(expected[token], abs=1e-9)
    best = np.argsort(-expected, kind="stable")[:count]
    assert [i for i, _ in found.top] == best.tolist()
    np.testing.assert_allclose([p for _, p in found.top], expected[best], atol=1e-9)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(
    "given", [{}, {"temperature": 0.7, "top_k": 3, "seed": 2}, {"presence_penalty": 9.0}]
)
def test_logprobs_are_the_models_own(
    make_engine: Make, prompts: list[list[int]], name: str, given: dict[str, Any]
) -> None:
    """Before temperature, filters and penalties, whatever was drafted; in a batch."""
    engine = make_engine()
    options: dict[str, Any] = {"max_new_tokens": 20, "recipe": name, **given}
    bare: Any = engine.generate(prompts[:3], **options)
    found: Any = engine.generate(prompts[:3], logprobs=3, **options)
    for prompt, one, without in zip(prompts, found, bare, strict=False):
        assert one.tokens == without.tokens
        assert without.logprobs is None
        assert len(one.logprobs) == len(one.tokens)
        for place, (token, told) in enumerate(zip(one.tokens, one.logprobs, strict=True)):
            context = [*prompt, *one.tokens[:place]]
            check_logprob(told, token, logits_after(engine.session, context), 3)  # type: ignore[arg-type]
            assert told.logprob < 0


def test_logprobs_count_from_none_to_all(make_engine: Make) -> None:
    engine = make_engine()
    few: Any = engine.generate([1, 2], max_new_tokens=2, logprobs=0)
    assert [one.top for one in few.logprobs] == [(), ()]
    full: Any = engine.generate([1, 2], max_new_tokens=2, logprobs=40, ignore_eos=True)
    assert [len(one.top) for one in full.logprobs] == [40, 40]
    assert sum(np.exp(p) for _, p in full.logprobs[0].top) == pytest.approx(1.0)
    for name in ("logprobs", "prompt_logprobs"):
        with pytest.raises(RequestError, match=f"{name} is more than the vocabulary has, 40"):
            engine.generate([1, 2], **{name: 41})  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [1, 2, 32, 33, 100, 300])
def test_prompt_logprobs_beside_others(length: int) -> None:
    """While others decode and read: their tokens, and its own, are as ever."""
    session = ToySession(capacity=400)
    engine = Engine(session, None, {}, recipe("suffix"), FLAT)
    prompt = np.random.default_rng(length).integers(1, 40, length).tolist()
    options: dict[str, Any] = {"max_new_tokens": 12}
    alone: Any = [engine.generate(p, **options) for p in ([3, 4, 3, 4], prompt, [7] * 50)]
    first = engine.submit([3, 4, 3, 4], **options)
    engine._scheduler.step()
    second = engine.submit(prompt, prompt_logprobs=2, logprobs=1, **options)
    third = engine.submit([7] * 50, **options)
    found = [one.wait() for one in (first, second, third)]
    assert [r.tokens for r in found] == [r.tokens for r in alone]
    told = found[1].prompt_logprobs
    assert told is not None
    assert told[0] is None
    assert len(told) == length
    for place, one in enumerate(told[1:], 1):
        assert one is not None
        check_logprob(one, prompt[place], logits_after(session, prompt[:place]), 2)
    assert found[0].prompt_logprobs is None
    assert len(found[1].logprobs or ()) == 12


def test_prompt_logprobs_where_single_rows_round_differently() -> None:
    """Under `exact` no call scores one row only."""
    session = ToySession(row_invariant=False)
    engine = Engine(session, None, {}, recipe("plain"), FLAT)
    result: Any = engine.generate([5] * 33, prompt_logprobs=0, exact=True, max_new_tokens=3)
    assert len(result.prompt_logprobs) == 33
    assert {rows for _, rows in session.calls} == {2, 32}


@pytest.mark.parametrize("host", HOSTS)
def test_prompt_logprobs_on_the_real_runtime(host: str, tmp_path: Path) -> None:
    """As the reference has them, beside a sequence that decodes, and the text is as ever."""
    prompt = np.random.default_rng(1).integers(0, 61, 40).tolist()
    told: list[list[float]] = []
    for session in sessions(HOSTS[host], tmp_path):
        engine = Engine(session, None, {}, recipe("plain"), None)
        beside = engine.submit(prompt[:9], max_new_tokens=9, ignore_eos=True)
        engine._scheduler.step()
        asked: Any = engine.generate(prompt, max_new_tokens=4, prompt_logprobs=3)
        plain: Any = engine.generate(prompt, max_new_tokens=4)
        assert asked.tokens == plain.tokens
        assert len(beside.wait().tokens) == 9
        assert [one.token for one in asked.prompt_logprobs[1:]] == prompt[1:]
        told.append([one.logprob for one in asked.prompt_logprobs[1:]])
    # a log-probability moves by at most twice as much as the logits do
    assert_same_sums(*map(np.asarray, told), 4 * decoder_terms(HOSTS[host], seen=44))


def test_prompt_logprobs_on_a_gpu_session(tmp_path: Path) -> None:
    """The TensorRT session, on a device that is simulated."""
    both, told = pair(tmp_path), list[list[float]]()
    prompt = np.random.default_rng(1).integers(0, 61, 40).tolist()
    for session in both.both:
        engine = Engine(session, None, {}, recipe("plain"), None)
        beside = engine.submit(prompt[:9], max_new_tokens=9, ignore_eos=True)
        engine._scheduler.step()
        asked: Any = engine.generate(prompt, max_new_tokens=4, prompt_logprobs=3, logprobs=1)
        assert len(beside.wait().tokens) == 9
        told.append([one.logprob for one in (*asked.prompt_logprobs[1:], *asked.logprobs)])
    assert_same_sums(*map(np.asarray, told), 4 * decoder_terms(TinyDecoder(), seen=44))


def test_several_answers_differ_and_are_repeatable(make_engine: Make) -> None:
    engine = make_engine()
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 3.0, "seed": 4}
    found: Any = engine.generate([1, 2, 3], n=3, **options)
    assert len({tuple(r.tokens) for r in found}) == 3
    again: Any = engine.generate([1, 2, 3], n=3, recipe="suffix", **options)
    assert [r.tokens for r in again] == [r.tokens for r in found]
    assert engine.generate([1, 2, 3], **options).tokens == found[0].tokens  # type: ignore[union-attr]
    both: Any = engine.generate([[1, 2, 3], [4]], n=2, **options)
    assert [r.tokens for r in both[:2]] == [r.tokens for r in found[:2]]
    assert [r.id for r in both] == [both[0].id] * 2 + [both[2].id] * 2
    assert both[0].id != both[2].id
    with pytest.raises(RequestError, match="n=2 at temperature 0 is the same text 2 times"):
        engine.generate([1], n=2)
    for call in (engine.submit, engine.passes, engine.agenerate):
        with pytest.raises(RequestError, match="takes one prompt and n=1; use generate"):
            call([1], n=2, temperature=1.0)


def test_every_prompt_may_have_options_of_its_own(
    make_engine: Make, prompts: list[list[int]]
) -> None:
    engine = make_engine()
    own: list[Any] = [
        {"max_new_tokens": 4}, {"temperature": 2.0, "seed": 7}, {"recipe": "suffix"},
        {"presence_penalty": 5.0, "stop_token_ids": [1, 2, 3]}, {},
    ]  # fmt: skip
    found: Any = engine.generate(prompts[:5], own, max_new_tokens=15)
    alone = [
        engine.generate(prompt, **{"max_new_tokens": 15, **options})
        for prompt, options in zip(prompts, own, strict=False)
    ]
    assert [r.tokens for r in found] == [r.tokens for r in alone]  # type: ignore[union-attr]
    assert len(found[0].tokens) == 4


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ([1, 2], [{}], "is for a list of prompts"),
        ([[1], [2]], [{}], "options is 1 sets for 2 prompts"),
        ([[1], [2]], {}, "options is {} for 2 prompts"),
        ([[1], [2]], [{}, 3], r"options\[1\] is 3; use a dict"),
        ([[1], [2]], [{}, {"batch": 2}], r"options\[1\] has batch, which is one for the whole"),
        ([[1], [2]], [{}, {"tmp": 2}], "unknown option 'tmp'"),
    ],
)
def test_options_that_fit_no_prompt_are_refused(
    make_engine: Make, prompt: Any, options: Any, words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        make_engine().generate(prompt, options)


def test_requests_are_cancelled_by_id(make_engine: Make) -> None:
    engine = make_engine()
    endless: dict[str, Any] = {"max_new_tokens": 400, "ignore_eos": True}
    one = engine.submit([1, 2], request_id="mine", **endless)
    other = engine.submit([1, 2], **endless)
    assert (one.id, other.id[:8]) == ("mine", "request-")
    with pytest.raises(RequestError, match="request_id 'mine' is that of a request under way"):
        engine.submit([1], request_id="mine")
    for _ in range(5):
        engine._scheduler.step()
    assert engine.cancel("mine")
    result = one.wait()
    assert (result.finish_reason, result.id) == ("cancelled", "mine")
    assert 0 < len(result.tokens) < 400
    assert result.usage == Usage(2, len(result.tokens))
    assert not engine.cancel("mine")
    assert not engine.cancel("nobody")
    assert engine.generate([1], request_id="mine", max_new_tokens=2).id == "mine"  # type: ignore[union-attr]
    assert engine.cancel(other.id)
    assert left_over(engine) == 0


def test_all_answers_of_a_call_are_cancelled_by_its_id(make_engine: Make) -> None:
    engine, found = make_engine(), list[Result]()
    began = threading.Event()

    def slowly(path: Any, logits: Any) -> Any:
        began.set()
        return logits

    def call() -> None:
        results = engine.generate(
            [[1], [2]], n=2, temperature=1.0, max_new_tokens=500, ignore_eos=True,
            request_id="all", logits_processors=[slowly],
        )  # fmt: skip
        assert isinstance(results, list)
        found.extend(results)

    thread = threading.Thread(target=call)
    thread.start()
    assert began.wait(60)
    assert engine.cancel("all")
    thread.join(60)
    assert [r.finish_reason for r in found] == ["cancelled"] * 4
    assert left_over(engine) == 0


def test_events_tell_ids_usage_and_logprobs(make_engine: Make) -> None:
    engine = make_engine(name="suffix")

    async def listen() -> list[Event]:
        asked = engine.agenerate([1, 2, 1, 2], max_new_tokens=30, logprobs=1, request_id="it")
        assert asked.id == "it"
        return [event async for event in asked]

    events = asyncio.run(listen())
    assert {event.id for event in events} == {"it"}
    counts = [event.usage.completion_tokens for event in events]
    assert counts == np.cumsum([len(event.tokens) for event in events]).tolist()
    assert all(event.usage.prompt_tokens == 4 for event in events)
    told = [one for event in events for one in event.logprobs or ()]
    last = events[-1]
    assert last.result is not None
    assert told == last.result.logprobs
    assert [one.token for one in told] == last.result.tokens
    assert (last.finish_reason, last.result.usage) == ("length", last.usage)
    assert [e.finish_reason for e in events[:-1]] == [None] * (len(events) - 1)


def test_a_stop_text_is_kept_where_it_is_wanted(speaking: Engine) -> None:
    options: dict[str, Any] = {"max_new_tokens": 60, "raw": True}
    whole: Any = speaking.generate("To be", **options)
    stop = whole.text[20:22]
    at = whole.text.index(stop)
    cut: Any = speaking.generate("To be", stop=stop, **options)
    kept: Any = speaking.generate("To be", stop=stop, include_stop=True, **options)
    assert (cut.text, kept.text) == (whole.text[:at], whole.text[: at + 2])
    assert cut.tokens == kept.tokens
    assert "".join(speaking.stream("To be", stop=stop, include_stop=True, **options)) == kept.text
    late: Any = speaking.generate("To be", stop=stop, min_tokens=len(cut.tokens) + 1, **options)
    assert late.text[: at + 2] == kept.text
    on_time: Any = speaking.generate("To be", stop=stop, min_tokens=len(cut.tokens), **options)
    assert on_time.text == cut.text
    assert len(late.tokens) > len(cut.tokens)


def test_the_stop_that_a_token_is_can_be_kept(speaking: Engine) -> None:
    special = speaking.tokenizer
    assert special is not None
    text = special.special["eos_token"]
    ends: dict[str, Any] = {"max_new_tokens": 40, "raw": True, "ignore_eos": True}
    always = {special.id_of(text): 100.0}
    for keep, expected in ((False, ""), (True, text)):
        found: Any = speaking.generate(
            "To be", stop=text, include_stop=keep, logit_bias=always, **ends
        )
        assert (found.text, found.finish_reason, len(found.tokens)) == (expected, "stop", 1)
    letter = special.encode_part("q")[0]
    for keep, expected in ((False, ""), (True, "q")):
        found = speaking.generate(
            "To be", stop_token_ids=[letter], include_stop=keep, logit_bias={letter: 100.0}, **ends
        )
        assert (found.text, found.tokens) == (expected, [letter])


def test_kept_stops_end_where_the_first_whole_one_does() -> None:
    for pieces in (["xabc"], ["xa", "bc"], list("xabc")):
        cutter = StopStrings(["abc", "ab", "bc"], keep=True)
        assert "".join(cutter.feed(piece) for piece in pieces) == "xab"
        assert cutter.hit
