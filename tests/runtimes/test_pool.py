"""Ragged batches and sliding pools of requests give what one request at a time does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_ort import HOSTS, sessions
from toy_session import FLAT, ToySession

from graftline.errors import RequestError
from graftline.recipe import Recipe, recipe
from graftline.runtimes.decoding import Decoding
from graftline.runtimes.engine import Engine
from graftline.runtimes.session import Session

Make = Callable[..., Engine]
RECIPES = ["plain", "eqspec", "exspec", "prompt-lookup", "token-recycling", "suffix"]


def requests(count: int, vocabulary: int = 40, longest: int = 30) -> list[list[int]]:
    """Ragged prompts that repeat themselves."""
    rng = np.random.default_rng(17)
    made: list[list[int]] = []
    for _ in range(count):
        part = rng.integers(1, vocabulary, int(rng.integers(1, 7))).tolist()
        made.append((part * int(rng.integers(1, 6)))[:longest])
    return made


@pytest.mark.parametrize("count", [4, 8])
@pytest.mark.parametrize("name", RECIPES)
def test_a_ragged_batch_is_one_by_one(make_engine: Make, name: str, count: int) -> None:
    engine = make_engine(vocabulary=30)
    asked = requests(count, 30)
    batch = engine.generate(asked, max_new_tokens=40, recipe=name)
    alone = [engine.generate(one, max_new_tokens=40) for one in asked]
    assert [r.tokens for r in batch] == [r.tokens for r in alone]
    assert len({len(r.tokens) for r in alone}) > 2
    assert all(r.stats.lossless for r in batch)


@pytest.mark.parametrize("width", [1, 3, 4, 8, 50])
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "seed": 2}])
def test_a_pool_is_one_batch(
    make_engine: Make, name: str, width: int, settings: dict[str, Any]
) -> None:
    """The seeds are those of the requests' places in the list, so samples are the same too."""
    engine = make_engine(vocabulary=30)
    asked = requests(11, 30)
    options = {"max_new_tokens": 30, "recipe": name, **settings}
    together = engine.generate(asked, **options)
    pooled = engine.generate(asked, batch=width, **options)
    assert [r.tokens for r in pooled] == [r.tokens for r in together]
    assert [r.finish_reason for r in pooled] == [r.finish_reason for r in together]
    assert len({r.finish_reason for r in pooled}) == 2


def test_places_are_taken_as_they_become_free(make_engine: Make) -> None:
    """Two places, nine requests of unequal length: no place is idle before the last request."""
    engine = make_engine(vocabulary=30)
    results = engine.generate(requests(9, 30), batch=2, max_new_tokens=30)
    assert len(engine.session.reads) == 9  # type: ignore[attr-defined]
    calls = [batch for batch, _ in engine.session.calls]  # type: ignore[attr-defined]
    longest = max(r.stats.steps for r in results)
    assert sum(calls) == sum(r.stats.steps for r in results), "who has ended costs nothing"
    assert set(calls[:-longest]) == {2}


def test_a_request_that_ends_at_its_first_token_gives_way_at_once(make_engine: Make) -> None:
    engine = make_engine()
    results = engine.generate(requests(7), batch=2, max_new_tokens=1)
    assert [len(r.tokens) for r in results] == [1] * 7
    assert [r.tokens for r in results] == [
        engine.generate(p, max_new_tokens=1).tokens for p in requests(7)
    ]
    assert engine.session.calls == []  # type: ignore[attr-defined]


def test_text_and_stop_strings_in_a_pool(make_engine: Make) -> None:
    """A stop string found between two passes frees the place too."""
    from tokenizers import Tokenizer as HFTokenizer
    from tokenizers import models

    from graftline.runtimes.text.tokenizer import Tokenizer

    letters = {chr(65 + n): n for n in range(30)}
    tokenizer = Tokenizer(HFTokenizer(models.WordLevel(letters, unk_token="A")))
    engine = Engine(ToySession(vocabulary=30), tokenizer, {}, recipe("suffix"), FLAT)
    free = engine.generate(requests(9, 30), max_new_tokens=30)
    options: dict[str, Any] = {"max_new_tokens": 30, "stop": [free[0].text[20]]}
    alone = [engine.generate(p, **options) for p in requests(9, 30)]
    pooled = engine.generate(requests(9, 30), batch=3, **options)
    assert [(r.text, r.tokens, r.finish_reason) for r in pooled] == [
        (r.text, r.tokens, r.finish_reason) for r in alone
    ]
    assert {r.finish_reason for r in pooled} == {"stop", "length"}
    assert all(r.text for r in pooled if r.finish_reason == "length")


def test_a_proposal_is_not_held_against_the_next_sequence(make_engine: Make) -> None:
    """What was proposed for the one that has left is not followed along the newcomer's tokens."""
    engine = make_engine("token-recycling", vocabulary=30)
    engine.generate(requests(3, 30), max_new_tokens=30)
    lane = engine.policies.of("token-recycling").lane
    left: list[bool] = []
    leave, join = lane.leave, lane.join

    def leaves(one: Decoding) -> None:
        left.append(lane._tracks[one][0].walk is not None)
        others = {other: track for other, track in lane._tracks.items() if other is not one}
        leave(one)
        assert lane._tracks == others

    def joins(one: Decoding) -> None:
        join(one)
        assert lane._tracks[one][0].walk is None

    lane.leave, lane.join = leaves, joins  # type: ignore[method-assign]
    engine.generate(requests(12, 30), batch=2, max_new_tokens=60, ignore_eos=True)
    assert len(left) == 12
    assert any(left), "nothing was followed"
    assert sum(left) > 0


class Forgetful(ToySession):
    """Leaves the last slot of a sequence that has left to the one that takes its row."""

    def leave(self, row: int) -> None:
        last, moved = self._slots[row, self._lengths[row] - 1].copy(), row < len(self._lengths) - 1
        super().leave(row)
        if moved:
            self._slots[row, 0] = last


def test_a_slot_left_behind_would_be_seen() -> None:
    def run(session: Session) -> list[list[int]]:
        engine = Engine(session, None, {"eos_token_id": 0}, recipe("exspec"), FLAT)
        return [r.tokens for r in engine.generate(requests(9), batch=2, max_new_tokens=30)]

    assert run(Forgetful()) != run(ToySession())


@pytest.mark.parametrize("name", ["prompt-lookup", "token-recycling"])
@pytest.mark.parametrize("count", [4, 8])
def test_real_sessions_batch_and_pool(name: str, count: int, tmp_path: Path) -> None:
    fast, slow = sessions(HOSTS["grouped"], tmp_path)
    asked = requests(count, 61, 20)
    slowly = [slow] if count == 4 and name == "prompt-lookup" else []
    for session in (fast, *slowly):
        session.row_invariant, session.exact_rows = True, 1
        engine = Engine(session, None, {}, recipe(name), FLAT)
        options: dict[str, Any] = {"max_new_tokens": 20 if session is fast else 6}
        alone = [engine.generate(p, recipe="plain", **options).tokens for p in asked]
        batch = engine.generate(asked, **options)
        assert [r.tokens for r in batch] == alone
        assert [r.tokens for r in engine.generate(asked, batch=3, **options)] == alone
        assert sum(r.stats.drafted for r in batch) > 0


def test_a_pool_needs_a_place(make_engine: Make) -> None:
    with pytest.raises(RequestError, match="batch is 0; use at least 1"):
        make_engine().generate([[1], [2]], batch=0)


def test_recipes_differ_in_name_only() -> None:
    """Batching is the runtime's: any recipe may be batched and pooled."""

    def policy(one: Recipe) -> tuple[object, ...]:
        return one.drafter, one.rule, one.passes

    assert policy(recipe("eqspec")) == policy(recipe("exspec"))
