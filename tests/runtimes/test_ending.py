"""How requests end: by time, by a fault, by a token; nothing of one stays, or reaches another."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import left_over
from toy_session import FLAT, ToySession

from graftline.errors import BackendError, RequestError
from graftline.recipe import recipe
from graftline.runtimes.drafters import DRAFTERS
from graftline.runtimes.drafters.prompt_lookup import PromptLookup
from graftline.runtimes.engine import Engine
from graftline.runtimes.session import Ints
from graftline.runtimes.text.tokenizer import Tokenizer
from graftline.tree import Tree

Make = Callable[..., Engine]
RECIPES = ("plain", "prompt-lookup", "token-recycling", "suffix")


def test_time_that_has_run_out_ends_a_text_where_it_is(make_engine: Make) -> None:
    engine = make_engine()
    late = engine.generate([1, 2], max_new_tokens=50, timeout=0.0)
    assert (late.finish_reason, late.tokens) == ("timeout", [])
    begun = engine.submit([1, 2], max_new_tokens=50, ignore_eos=True, timeout=1000.0)
    for _ in range(4):
        engine._scheduler.step()
    begun._generation.one.deadline = 0.0
    result = begun.wait()
    assert result.finish_reason == "timeout"
    assert result.tokens == engine.generate([1, 2], max_new_tokens=4, ignore_eos=True).tokens
    assert left_over(engine) == 0
    with pytest.raises(RequestError, match="timeout is -1"):
        engine.generate([1], timeout=-1)


class Failing(PromptLookup):
    """Fails in the third step of a prompt that begins with 13."""

    def start(self, context: Any) -> None:
        super().start(context)
        self.left = 3 if context and context[0] == 13 else 1000

    def fork(self) -> Failing:
        return Failing(self.rows)

    def propose(self, budget: int) -> Tree:
        self.left -= 1
        if self.left == 0:
            raise ZeroDivisionError("a drafter's fault")
        return super().propose(budget)


def test_what_fails_for_one_ends_that_one_alone(
    make_engine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DRAFTERS, "failing", Failing)  # type: ignore[arg-type]
    engine = make_engine()
    chosen = recipe("prompt-lookup")
    chosen = type(chosen)(**{**vars(chosen), "name": "failing", "drafter": "failing"})
    options: dict[str, Any] = {"max_new_tokens": 20, "ignore_eos": True}
    expected = engine.generate([5, 6, 5, 6], **options).tokens
    sane = engine.submit([5, 6, 5, 6], recipe=chosen, **options)
    ill = engine.submit([13, 6, 13, 6], recipe=chosen, **options)
    other = engine.submit([5, 6, 5, 6], recipe="suffix", **options)
    with pytest.raises(ZeroDivisionError, match="a drafter's fault"):
        ill.wait()
    assert sane.wait().tokens == other.wait().tokens == expected
    with pytest.raises(ZeroDivisionError):
        engine.generate([[5, 6], [13, 6, 13, 6]], recipe=chosen, **options)
    assert left_over(engine) == 0


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_a_step_that_fails_ends_those_who_took_part(
    make_engine: Make, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    engine = make_engine()
    beside = engine.submit([3, 4], max_new_tokens=20, ignore_eos=True)
    engine._scheduler.step()

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(engine.session, "score", fail)
        with pytest.raises(type(error)):
            engine.generate([1, 2], max_new_tokens=5, ignore_eos=True)
    with pytest.raises(ValueError if isinstance(error, ValueError) else BackendError):
        beside.wait()
    assert engine.generate([1, 2], max_new_tokens=5, ignore_eos=True).tokens
    assert left_over(engine) == 0


def test_scores_that_are_no_numbers_are_no_answer(make_engine: Make) -> None:
    engine = make_engine()
    real = engine.session.logits_of  # type: ignore[attr-defined]

    def ill(seen: Ints) -> np.ndarray:
        return real(seen) * (np.nan if len(seen) > 6 else 1.0)

    engine.session.logits_of = ill  # type: ignore[attr-defined]
    for name in RECIPES:
        with pytest.raises(BackendError, match=r"not numbers \(NaN\)"):
            engine.generate([1, 2, 3], max_new_tokens=20, ignore_eos=True, recipe=name)
    assert len(engine.generate([1, 2, 3], max_new_tokens=2, ignore_eos=True).tokens) == 2


class Asking(PromptLookup):
    """Asks the engine that it drafts for."""

    engine: Any = None

    def fork(self) -> Asking:
        return Asking(self.rows)

    def propose(self, budget: int) -> Tree:
        Asking.engine.generate([1], max_new_tokens=1)
        raise AssertionError("it waits for itself")


def test_a_step_does_not_wait_for_itself(
    make_engine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DRAFTERS, "asking", Asking)  # type: ignore[arg-type]
    engine = make_engine()
    monkeypatch.setattr(Asking, "engine", engine)
    chosen = recipe("prompt-lookup")
    chosen = type(chosen)(**{**vars(chosen), "name": "asking", "drafter": "asking"})
    with pytest.raises(RequestError, match="from within a step of the same engine"):
        engine.generate([1, 2], recipe=chosen)


def test_a_forked_process_is_told_to_load_again(
    make_engine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    monkeypatch.setattr("graftline.runtimes.scheduler.os.getpid", lambda: -1)
    with pytest.raises(RequestError, match="forked after the bundle was loaded; load it in"):
        engine.generate([1, 2])


def test_a_drafter_goes_with_its_sequence(make_engine: Make, prompts: list[list[int]]) -> None:
    """Its caches may be larger than the text's own; those that wait have none yet."""
    engine = make_engine("suffix")
    drafter = engine.policies.of("suffix").drafter
    made: list[weakref.ref[Any]] = []
    fork = type(drafter).fork

    def noted(self: Any) -> Any:
        one = fork(self)
        made.append(weakref.ref(one))
        return one

    type(drafter).fork = noted  # type: ignore[method-assign]
    try:
        waiting = [engine.submit(p, max_new_tokens=9, recipe="suffix") for p in prompts]
        assert not made
        results = [one.wait() for one in waiting]
        left_over(engine)
        gc.collect()
    finally:
        type(drafter).fork = fork  # type: ignore[method-assign]
    assert len(made) == len(results)
    assert not any(one() for one in made)


def test_a_text_ends_at_a_token_that_the_request_names(make_engine: Make, smollm2: Path) -> None:
    engine = make_engine()
    free = engine.generate([1, 2], max_new_tokens=40, ignore_eos=True).tokens
    place = next(n for n in range(8, 40) if free[n] not in free[:n])
    for name in RECIPES:
        result = engine.generate(
            [1, 2], max_new_tokens=40, ignore_eos=True, recipe=name, stop_token_ids=[free[place]]
        )
        assert (result.tokens, result.finish_reason) == (free[: place + 1], "stop")
    with pytest.raises(RequestError, match=r"stop_token_ids is 'x'"):
        engine.generate([1], stop_token_ids="x")
    with pytest.raises(RequestError, match=r"stop is None"):
        engine.generate([1], stop=None)
    tokenizer = Tokenizer.from_folder(smollm2)
    special = tokenizer.id_of("<|im_end|>")
    speaking = Engine(ToySession(vocabulary=49152), tokenizer, {}, recipe("plain"), FLAT)
    text = speaking.generate([3, 4], max_new_tokens=20, ignore_eos=True)
    speaking.session.logits_of = lambda seen: (  # type: ignore[attr-defined]
        np.arange(49152) == (special if len(seen) > 5 else 100)
    ).astype(np.float32)
    result = speaking.generate([3, 4], max_new_tokens=20, ignore_eos=True, stop="<|im_end|>")
    assert (result.finish_reason, result.tokens[-1], len(result.tokens)) == ("stop", special, 5)
    assert "im_end" not in result.text
    assert text.finish_reason == "length"


def test_none_is_as_many_tokens_as_fit(make_engine: Make) -> None:
    engine = make_engine(capacity=50)
    result = engine.generate([1, 2, 3], max_new_tokens=None, ignore_eos=True)
    assert (len(result.tokens), result.finish_reason) == (47, "length")
    with pytest.raises(RequestError, match="50 prompt tokens and 1 new ones need 51"):
        engine.generate([1] * 50, max_new_tokens=None)
    with pytest.raises(RequestError, match="say max_new_tokens"):
        engine.branches([1], [[2], [3]], max_new_tokens=None)
