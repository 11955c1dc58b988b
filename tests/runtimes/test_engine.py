"""Requests, streaming, stop strings, threads, statistics."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_session import FLAT, ToySession

from graftline.errors import GraftlineError, RequestError
from graftline.recipe import parse_recipe, recipe, recipes
from graftline.runtimes.decoding import Decoding
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.engine import Engine
from graftline.runtimes.rules.greedy import Greedy
from graftline.runtimes.text.tokenizer import Tokenizer

Make = Callable[..., Engine]


@pytest.fixture(scope="module")
def speaking(smollm2: Path) -> Engine:
    """Says random tokens of the real vocabulary, most of them copied over and over."""
    session = ToySession(vocabulary=49152, capacity=400)
    return Engine(
        session, Tokenizer.from_folder(smollm2), {"eos_token_id": [2]}, recipe("plain"), FLAT
    )


MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "the prompt is empty"),
        ([], {}, "the prompt is empty"),
        (["Hi", ""], {}, "the prompt is empty"),
        ([[1, 2], []], {}, "the prompt is empty"),
        ([1, 49152], {}, "token id 49152 at position 1 is out of range.* 0 to 49151"),
        ([-1], {}, "token id -1"),
        ([1, "a"], {}, "not a list of int and str"),
        ([1, 2.5], {}, "not a list of float and int"),
        (3, {}, "not int"),
        ({"role": "user"}, {}, "not dict"),
        ([{"role": "user"}], {}, "needs the keys 'role' and 'content'"),
        ("Hi", {"max_new_tokens": 0}, "max_new_tokens is 0; use at least 1"),
        ("Hi", {"max_new_tokens": -5}, "use at least 1"),
        ("Hi", {"max_new_tokens": 2.5}, "max_new_tokens is 2.5"),
        ("Hi", {"max_new_tokens": True}, "max_new_tokens is True"),
        ("Hi", {"max_new_tokens": 400}, "431 positions, but the capacity is 400, the most that"),
        ([1] * 273, {}, "273 prompt tokens and 128 new ones need 401"),
        ("Hi", {"temperature": -1}, "temperature is -1"),
        ("Hi", {"temperature": float("nan")}, "temperature is nan"),
        ("Hi", {"top_p": 0}, "top_p must be above 0"),
        ("Hi", {"top_p": 1.5}, "top_p is 1.5"),
        ("Hi", {"min_p": 2}, "min_p is 2"),
        ("Hi", {"top_k": -1}, "top_k is -1"),
        ("Hi", {"repetition_penalty": 0}, "repetition_penalty must be above 0"),
        ("Hi", {"seed": -1}, "seed is -1"),
        ("Hi", {"stop": ["a", ""]}, "stop texts must not be empty"),
        ("Hi", {"temprature": 1}, "unknown option 'temprature'; did you mean 'temperature'"),
        ("Hi", {"recipe": "prompt-lokup"}, "did you mean 'prompt-lookup'"),
        ("Hi", {"raw": 1}, "raw is 1"),
        ("Hi", {"exact": "yes"}, "exact is 'yes'; use True or False"),
    ],
)
def test_bad_requests_are_one_line(
    speaking: Engine, prompt: Any, options: dict[str, Any], message: str
) -> None:
    before = len(speaking.session.calls)  # type: ignore[attr-defined]
    with pytest.raises(GraftlineError, match=message) as caught:
        speaking.generate(prompt, **options)
    assert "\n" not in str(caught.value)
    with pytest.raises(GraftlineError, match=message + "|stream takes one prompt"):
        speaking.stream(prompt, **options)  # at the call, not at the first piece
    assert len(speaking.session.calls) == before  # type: ignore[attr-defined]


def test_max_new_tokens_is_exact(make_engine: Make) -> None:
    engine = make_engine()
    for limit in (1, 2, 3, 17):
        for name in [r.name for r in recipes() if not r.needs]:
            result = engine.generate(
                [1, 2, 1, 2, 1], max_new_tokens=limit, ignore_eos=True, recipe=name
            )
            assert len(result.tokens) == limit
            assert result.finish_reason == "length"


@pytest.mark.parametrize("name", ["suffix", "prompt-lookup"])
def test_no_chain_is_drafted_beyond_the_limit(name: str) -> None:
    """What it would bring is never read: it costs time, and the controller would expect it."""
    prompt = np.asarray([1, 2, 3] * 8)
    session = ToySession()
    one = Decoding(prompt, 4, frozenset(), make_drafter(name, {}), Greedy())
    one.begin(session.prefill([prompt]), 0)
    one.drafter.start([*prompt.tolist(), one.tokens[-1], *prompt.tolist(), one.tokens[-1]])
    _, tree = one.propose(branches=True)
    assert len(tree) == 3  # the root is the first of four tokens, and the last needs no row
    one.limit = 40
    assert len(one.propose(branches=True)[1]) > 20


def test_every_kind_of_prompt(speaking: Engine) -> None:
    tokenizer = speaking.tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode(MESSAGES)
    few = {"max_new_tokens": 8}
    expected = speaking.generate(ids, **few)
    assert speaking.generate("Hi", **few).tokens == expected.tokens
    assert speaking.generate(MESSAGES, **few).tokens == expected.tokens
    assert speaking.generate(np.asarray(ids), **few).tokens == expected.tokens
    assert expected.text == tokenizer.decode(expected.tokens)
    batch = speaking.generate(["Hi", MESSAGES, ids], **few)
    assert [r.tokens for r in batch] == [expected.tokens] * 3
    assert speaking.generate("Hi", raw=True, **few).tokens != expected.tokens


@pytest.mark.parametrize("name", ["plain", "prompt-lookup", "suffix", "token-recycling"])
def test_streamed_pieces_are_valid_and_join_to_the_text(speaking: Engine, name: str) -> None:
    options = {"max_new_tokens": 90, "recipe": name, "ignore_eos": True}
    expected = speaking.generate(MESSAGES, **options)
    stream = speaking.stream(MESSAGES, **options)
    pieces = list(stream)
    assert all(pieces)
    assert "".join(pieces) == expected.text
    for piece in pieces:
        assert piece.encode("utf-8").decode("utf-8") == piece
        assert not piece.endswith("\ufffd") or piece is pieces[-1]
    assert stream.result is not None
    assert stream.result.tokens == expected.tokens


@pytest.mark.parametrize("name", ["plain", "prompt-lookup", "suffix", "token-recycling"])
def test_a_stop_string_ends_at_the_completing_token(speaking: Engine, name: str) -> None:
    tokenizer = speaking.tokenizer
    assert tokenizer is not None
    free = speaking.generate(MESSAGES, max_new_tokens=60, ignore_eos=True)
    for start in (5, 20, 33):
        stop = free.text[start : start + 9]
        place = free.text.index(stop)
        result = speaking.generate(
            MESSAGES, max_new_tokens=60, ignore_eos=True, recipe=name, stop=["never", stop]
        )
        assert result.text == free.text[:place]
        assert result.finish_reason == "stop"
        assert result.tokens == free.tokens[: len(result.tokens)]
        assert stop in tokenizer.decode(result.tokens)
        assert stop not in tokenizer.decode(result.tokens[:-1])
    batch = speaking.generate(
        [MESSAGES, [5, 6]], max_new_tokens=60, ignore_eos=True, recipe=name, stop=stop
    )
    assert batch[0].tokens == result.tokens
    alone = speaking.generate([5, 6], max_new_tokens=60, ignore_eos=True, stop=stop)
    assert batch[1].tokens == alone.tokens


def test_the_end_token_is_counted_but_not_said(make_engine: Make, smollm2: Path) -> None:
    tokenizer = Tokenizer.from_folder(smollm2)
    session = ToySession(vocabulary=30)
    ends = list(range(5, 30, 5))
    engine = Engine(session, tokenizer, {"eos_token_id": ends}, recipe("suffix"), FLAT)
    result = engine.generate([3, 4], max_new_tokens=100)
    assert result.finish_reason == "eos"
    assert result.tokens[-1] in ends
    assert result.text == tokenizer.decode(result.tokens[:-1])
    assert len(engine.generate([3, 4], max_new_tokens=100, ignore_eos=True).tokens) == 100


def test_threads_take_turns(make_engine: Make, prompts: list[list[int]]) -> None:
    engine = make_engine("prompt-lookup")
    expected = [engine.generate(p, max_new_tokens=20).tokens for p in prompts]
    got: dict[int, list[int]] = {}

    def work(place: int) -> None:
        got[place] = engine.generate(prompts[place], max_new_tokens=20).tokens

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [got[i] for i in range(len(prompts))] == expected


@pytest.mark.parametrize("name", ["plain", "suffix"])
def test_passes_are_the_targets_and_give_the_count(speaking: Engine, name: str) -> None:
    options = {"max_new_tokens": 60, "recipe": name, "ignore_eos": True}
    expected = speaking.generate(MESSAGES, **options)
    passes = speaking.passes(MESSAGES, **options)
    counts = list(passes)
    assert counts[0] == 1
    assert counts[-1] == 60
    assert counts == sorted(counts)
    assert passes.result is not None
    assert passes.result.tokens == expected.tokens
    assert len(counts) == 1 + passes.result.stats.steps
    with pytest.raises(RequestError, match="passes takes one prompt"):
        speaking.passes(["Hi", "you"])
    begun = speaking.passes(MESSAGES, **options)
    next(begun)
    speaking.generate("Hi", max_new_tokens=1)  # others do not wait for it
    begun.close()
    assert next(begun, None) is None
    assert begun.result is None


def test_a_backend_with_one_set_of_caches_has_no_sibling(speaking: Engine) -> None:
    with pytest.raises(RequestError, match="load the bundle again"):
        speaking.sibling()


def test_a_stream_that_nobody_reads_holds_nobody_up(speaking: Engine) -> None:
    options: dict[str, Any] = {"max_new_tokens": 50, "ignore_eos": True}
    expected = speaking.generate("Hi", **options)
    stream = speaking.stream("Hi", **options)
    first = next(stream)
    assert speaking.generate("Hi", max_new_tokens=3).tokens == expected.tokens[:3]
    other = threading.Thread(target=speaking.generate, args=("Hi",), kwargs=options)
    other.start()
    other.join(60)
    assert not other.is_alive()
    assert first + "".join(stream) == expected.text  # others' steps were its own, too
    assert stream.result is not None
    assert stream.result.tokens == expected.tokens


def test_a_stream_that_nobody_wants_ends_within_a_step(speaking: Engine) -> None:
    session, options = speaking.session, {"max_new_tokens": 300, "ignore_eos": True}
    for piece in speaking.stream("Hi", **options):  # the loop's end is the stream's
        assert piece
        break
    with speaking.stream("Hi", **options) as closed:
        next(closed)
    assert closed.result is None
    assert list(closed) == []
    kept = speaking.stream("Hi", **options)
    next(kept)
    kept.close()
    speaking.generate("Hi", max_new_tokens=2)
    assert len(session.lengths) <= 1
    waiting = speaking.stream("Hi", max_new_tokens=5)
    del waiting
    gc.collect()
    speaking.generate("Hi", max_new_tokens=2)
    assert len(session.lengths) <= 1


def test_a_failing_backend_frees_the_engine(make_engine: Make, monkeypatch: Any) -> None:
    engine = make_engine()
    with monkeypatch.context() as patch:
        patch.setattr(engine.session, "score", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.generate([1, 2], max_new_tokens=5, ignore_eos=True)
    assert engine.generate([1, 2], max_new_tokens=5, ignore_eos=True).tokens


def test_without_a_tokenizer_only_ids_work(make_engine: Make) -> None:
    engine = make_engine()
    assert engine.generate([1, 2], max_new_tokens=3).text == ""
    for call in (
        lambda: engine.generate("Hi"),
        lambda: engine.generate([1], stop="x"),
        lambda: engine.stream([1]),
    ):
        with pytest.raises(RequestError, match="no tokenizer"):
            call()


def test_statistics_add_up(make_engine: Make) -> None:
    engine = make_engine("prompt-lookup")
    result = engine.generate([1, 2, 3] * 8, max_new_tokens=60, ignore_eos=True)
    stats = result.stats
    assert stats.mat == pytest.approx(59 / stats.steps)
    assert stats.mat > 1.1
    assert 0 < stats.time_to_first_token < stats.seconds
    expected = 59 / (stats.seconds - stats.time_to_first_token)
    assert stats.tokens_per_second == pytest.approx(expected)
    assert all(0 <= share <= 1 for share in stats.accepted_per_depth)
    assert stats.accepted_per_depth[0] > 0
    assert stats.drafted > 0
    assert "prompt-lookup drafted in" in stats.controller
    assert stats.acceptance_rate == pytest.approx((59 - stats.steps) / stats.drafted)
    assert stats.expected_accepted is not None
    assert 0 < stats.expected_accepted < stats.drafted
    assert stats.expected_speedup is not None
    assert stats.step_cost is not None
    assert f"expected {stats.expected_accepted:.2f} accepted tokens a step" in stats.controller
    assert f"{stats.step_cost:.1f} ms a step" in stats.controller
    assert f"{stats.expected_speedup:.2f} times plain decoding" in stats.controller
    assert stats.lossless
    one = engine.generate([1], max_new_tokens=1).stats
    assert (one.steps, one.mat, one.tokens_per_second) == (0, 0.0, 0.0)


def test_a_seed_repeats_itself_and_none_does_not(make_engine: Make) -> None:
    engine = make_engine()
    options: dict[str, Any] = {"temperature": 1.5, "max_new_tokens": 30, "ignore_eos": True}
    first = engine.generate([1], seed=1, **options).tokens
    assert engine.generate([1], seed=1, **options).tokens == first
    assert engine.generate([1], **options).tokens != engine.generate([1], **options).tokens
    twins = engine.generate([[1], [1]], seed=1, **options)
    assert twins[0].tokens == first
    assert twins[1].tokens != first


def test_repetition_penalty_is_the_same_under_drafts(
    make_engine: Make, prompts: list[list[int]]
) -> None:
    engine = make_engine()
    options: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True}
    changed = 0
    for prompt in prompts:
        plain = engine.generate(prompt, repetition_penalty=4.0, **options)
        changed += plain.tokens != engine.generate(prompt, **options).tokens
        for name in ("prompt-lookup", "suffix", "token-recycling"):
            drafted = engine.generate(prompt, repetition_penalty=4.0, recipe=name, **options)
            assert drafted.tokens == plain.tokens
    assert changed > 6


def test_every_recipe_makes_an_engine_or_says_what_it_needs() -> None:
    for one in recipes():
        if one.needs:
            with pytest.raises(GraftlineError, match=r"need"):
                Engine(ToySession(), None, {}, one, None)
        else:
            rule = Engine(ToySession(), None, {}, one, None).generate([1, 2, 3], max_new_tokens=2)
            assert rule.stats.lossless == one.lossless  # type: ignore[union-attr]
    with pytest.raises(GraftlineError, match="did you mean 'suffix'"):
        recipe("sufix")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "x.toml: not TOML"),
        ('nmae = "a"', "unknown key 'nmae'; did you mean 'name'"),
        ('name = "a"', "the key 'system' is missing"),
    ],
)
def test_broken_recipes_are_named(text: str, message: str) -> None:
    with pytest.raises(GraftlineError, match=message):
        parse_recipe(text, "x.toml")
