"""A draft model drafts from what the target said, never changes it, and is left when it loses."""

from __future__ import annotations

from typing import Any

import pytest
from toy_drafts import COSTS, CheckedDraft, Garbage, Guest, SharedDraft, engine_of, policy
from toy_session import FLAT, ToySession

from graftline.recipe import Recipe, recipe
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.draft_engine import OwnCaches
from graftline.runtimes.draft_reader import Reader
from graftline.runtimes.engine import Engine
from graftline.runtimes.session import Floats, Scores

MAKE = {"own": lambda _: CheckedDraft(), "shared": SharedDraft}


RECIPES = [
    policy(),
    policy(rows=3),
    policy(length="running{first=2,most=6}"),
    policy("cascade"),
    policy("draft-paths", "rejection", rows=9),
    policy("draft-paths", "k-sequential", rows=9, paths=3, replacement=False),
    policy("pearl"),
    policy("hierarchical-draft"),
]


IDS = ["model", "rows=3", "running", "cascade", "paths", "children", "pearl", "hierarchical"]


@pytest.mark.parametrize("costs", [None, FLAT, COSTS], ids=["fixed", "flat", "fp32"])
@pytest.mark.parametrize("caches", ["own", "shared"])
@pytest.mark.parametrize("chosen", RECIPES, ids=IDS)
def test_greedy_output_is_plains(
    prompts: list[list[int]], chosen: Recipe, caches: str, costs: Costs | None
) -> None:
    """Alone and in a ragged batch of three; fewer steps show that drafts were accepted."""
    plain = Engine(ToySession(), None, {}, recipe("plain"), costs)
    engine = engine_of([], MAKE[caches], chosen, costs)
    options: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True}
    steps = 0
    for prompt in prompts[:5]:
        result = engine.generate(prompt, **options)
        assert result.tokens == plain.generate(prompt, **options).tokens
        steps += result.stats.steps
    assert steps < 0.8 * 5 * 39 or costs is not None
    batch = engine.generate(prompts[5:8], **options)
    assert [r.tokens for r in batch] == [r.tokens for r in plain.generate(prompts[5:8], **options)]
    if costs is None:
        assert sum(r.stats.drafted for r in batch) > 10


def test_sequences_that_wait_for_a_place_draft_on_their_own_slots(prompts: list[list[int]]) -> None:
    """Shared caches: a wrong place in the batch would write into another sequence."""
    plain = Engine(ToySession(), None, {}, recipe("plain"), None)
    engine = engine_of([], SharedDraft, policy(), None)
    options: dict[str, Any] = {"max_new_tokens": 25, "ignore_eos": True, "batch": 2}
    drafted = engine.generate(prompts[:6], **options)
    assert [r.tokens for r in drafted] == [r.tokens for r in plain.generate(prompts[:6], **options)]


def test_nothing_is_read_twice(prompts: list[list[int]]) -> None:
    """A draft's calls: the prompt once, then one token each, two after a draft accepted whole."""
    drafts: list[Any] = []
    engine = engine_of(drafts, MAKE["own"], policy(rows=4), None)
    engine.generate(prompts[1], max_new_tokens=40, ignore_eos=True)
    calls = drafts[-1].calls
    assert calls[0] == len(prompts[1]) + 1
    assert set(calls[1:]) == {1, 2}


def test_a_reader_goes_back_no_further_than_it_must() -> None:
    draft = CheckedDraft()
    reader = Reader(draft)
    reader.start([1, 2, 3, 4])
    reader.read([]).scores()
    reader.read([5]).scores()
    reader.read([5, 6]).scores()
    assert draft.calls == [4, 1, 1]
    reader.append([5, 7])
    assert reader.unread == 0
    reader.read([]).scores()
    assert (draft.calls[-1], draft.sequence) == (1, [1, 2, 3, 4, 5, 7])
    reader.read([8]).scores()
    reader.read([8, 9]).scores()
    reader.append([8])  # what was read beyond still holds
    reader.read([9, 3]).scores()
    assert (draft.calls[-1], draft.sequence[-3:]) == (1, [8, 9, 3])
    reader.append([1] * 70)
    assert reader.unread == 69
    reader.read([]).scores()
    assert draft.sequence[-71:] == [8, *[1] * 70]


def test_a_useless_draft_is_left_and_trying_it_again_costs_next_to_nothing(
    prompts: list[list[int]],
) -> None:
    drafts: list[Any] = []
    engine = engine_of(drafts, lambda _: OwnCaches(Garbage(odd=1), 5.0), policy(), COSTS)
    results = [engine.generate(p, max_new_tokens=120, ignore_eos=True) for p in prompts[:6]]
    assert sum(r.stats.drafted for r in results[:2]) > 5  # it was believed at first
    late = [engine.generate(p, max_new_tokens=120, ignore_eos=True) for p in prompts[:6]]
    steps, drafted = (sum(getattr(r.stats, n) for r in late) for n in ("steps", "drafted"))
    assert steps > 6 * 119 * 0.98
    assert 0 < drafted * 7.0 <= 0.012 * steps * 20.0 + 7.0  # a try costs 5 + 2 ms


def test_a_draft_that_becomes_good_is_taken_up_again(prompts: list[list[int]]) -> None:
    class Moody(Guest):
        good = False

        def _answered(self, logits: Floats, rows: int) -> Scores:
            scores = super()._answered(logits, rows)
            if not Moody.good:
                scores.argmax[...] = (scores.argmax + 7) % 40
            return scores

    engine = engine_of([], lambda t: SharedDraft(t, guest=Moody(t)), policy(), COSTS)
    options: dict[str, Any] = {"max_new_tokens": 200, "ignore_eos": True}
    for prompt in prompts[:4]:
        engine.generate(prompt, **options)
    off = engine.generate(prompts[4], **options).stats
    Moody.good = True
    again = [engine.generate(p, **options).stats for p in prompts[5:11]]
    assert off.drafted < 12  # tries
    assert again[-1].drafted > 60
    assert again[-1].steps < 150
