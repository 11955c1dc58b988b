"""The engine: ends, threads, seeds, failing backends, statistics."""

from __future__ import annotations

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
