"""A draft that fills masks: as many as pay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mask_filling import COSTS, MASK, OwnDraft, drafter_of, engine_of, trained
from toy_drafts import draft_of
from toy_session import ToySession

from graftline.recipe import recipe
from graftline.runtimes.chances.depth_chances import DepthChances
from graftline.runtimes.drafter import Bid
from graftline.runtimes.session import Floats, Ints


def test_a_useless_draft_is_left(prompts: list[list[int]]) -> None:
    def noise(seen: Ints) -> Floats:
        return np.random.default_rng(len(seen)).normal(size=MASK + 1).astype("f4")

    engine, drafts = engine_of(lambda _: OwnDraft(noise), recipe("gad"), COSTS)
    options: dict[str, Any] = {"max_new_tokens": 120, "ignore_eos": True}
    for prompt in prompts[:6]:
        engine.generate(prompt, **options)
    drafts.clear()
    late = [engine.generate(prompt, **options) for prompt in prompts[:6]]
    assert sum(r.stats.drafted for r in late) < 0.03 * 6 * 119


def test_a_depth_that_becomes_good_is_taken_up_again() -> None:
    drafter = drafter_of(OwnDraft(trained(ToySession())), rows=8)
    drafter.start([1, 2, 3])
    bid = Bid(8, (0.25,) * 8, (0.05,) * 8)
    for _ in range(40):
        drafter.chances.record(2, 1)
    counts = [drafter._count(bid, 7) for _ in range(400)]
    assert set(counts) == {1, 2}
    assert 0.01 < np.mean([c == 2 for c in counts]) < 0.05
    for _ in range(60):
        drafter.chances.record(2, 2)
    assert drafter._count(bid, 7) > 2


def test_how_deep_follows_from_the_cost_of_rows_and_from_the_bid() -> None:
    engine = OwnDraft(trained(ToySession()))
    drafter = drafter_of(engine, rows=12)
    drafter.start([1])
    drafter.chances = DepthChances(11, 0.8)
    keep = (0.08,) * 12
    dear = Bid(12, (0.48,) * 12, keep)
    cheap = Bid(12, (0.18,) * 12, keep)
    assert 1 < drafter._count(dear, 11) < drafter._count(cheap, 11) < 11
    engine.rows_cost = lambda rows: float(rows)
    assert drafter._count(dear, 11) < 4
    engine.rows_cost = lambda rows: 1.0
    assert drafter._count(dear, 11) == drafter._count(cheap, 11) > 5


def test_chances_are_those_of_a_depth_after_the_ones_before_it() -> None:
    chances = DepthChances(3, 0.8, weight=1e-6, horizon=1e9)
    for accepted in (0, 1, 2, 3):
        chances.record(3, accepted)
    chances.record(1, 1)  # drafted no deeper
    assert chances.each() == pytest.approx([4 / 5, 2 / 3, 1 / 2], abs=1e-5)
    assert chances.reach() == pytest.approx([1.0, 4 / 5, 8 / 15, 4 / 15], abs=1e-5)


def test_a_depth_never_drafted_is_believed_to_do_as_the_one_before_it() -> None:
    chances = DepthChances(4, 0.6)
    assert chances.each() == pytest.approx([0.6] * 4)
    for _ in range(100):
        chances.record(2, 2)
    assert chances.each()[3] == chances.each()[1] > 0.95
    for _ in range(100):
        chances.record(2, 1)
    assert chances.each()[3] == chances.each()[1] < 0.55


def test_the_price_is_that_of_one_call_of_all_rows() -> None:
    engine = OwnDraft(trained(ToySession()), step=5.0)
    engine.rows_cost = {1: 1.0, 2: 1.5, 3: 1.6, 4: 1.8, 8: 2.5}.__getitem__
    drafter = drafter_of(engine, rows=3)
    assert drafter.price(2) == 7.5
    assert drafter.price(0) == 0.0
    drafter.start([1] * 10)
    assert drafter.debt() == (2.5 - 1.0) * 5.0  # two of the nine unread come with every call
    draft_of(drafter, Bid.free(3))
    assert drafter.reads == 2 + 2
    assert drafter.debt() == 0.0


def test_room_and_unknown_ids_end_a_draft() -> None:
    engine = OwnDraft(trained(ToySession()), capacity=6)
    drafter = drafter_of(engine)
    drafter.start([1, 2, 3])
    assert len(draft_of(drafter, Bid.free(12))) == 1 + 3
    assert len(engine.text) <= 6
    drafter.start([1, 2, 3, 4, 5, 6])
    assert len(draft_of(drafter, Bid.free(12))) == 1
    assert drafter.reads == 0

    def mask_lover(seen: Ints) -> Floats:
        return np.eye(MASK + 1, dtype=np.float32)[MASK if len(seen) > 4 else 7]

    drafter = drafter_of(OwnDraft(mask_lover))
    drafter.start([1, 2, 3])
    assert draft_of(drafter, Bid.free(12)).tokens.tolist() == [3, 7, 7]
