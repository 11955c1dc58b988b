"""Whoever drafts together gets what each gets alone, and a fault is of those it happened to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sub_models import nest
from toy_drafts import CheckedDraft, Guest, SharedDraft, engine_of, policy
from toy_session import FLAT, ToySession

from graftline.errors import BackendError
from graftline.recipe import Recipe, recipe
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.drafters.draft_model import DraftModel
from graftline.runtimes.drafting import draft_together
from graftline.runtimes.resources import Resources
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree


class World:
    """A target and drafters for some of its sequences: either all with one engine, or each with
    one of its own."""

    def __init__(self, joint: bool, caches: str, name: str, options: dict[str, object]) -> None:
        self.joint, self.caches, self.name, self.options = joint, caches, name, options
        self.target = ToySession()
        self.target.reset(0)
        self.resources = self._resources()
        self.drafters: list[Any] = []

    def _resources(self) -> Resources:
        if self.name == "sorted-draft":
            engines = nest(self.target if self.caches == "shared" else None, (5, 7, 9))
            return Resources(lambda: engines[-1], lambda: engines, vocabulary=40)
        engine = SharedDraft(self.target) if self.caches == "shared" else CheckedDraft()
        return Resources(lambda: engine, vocabulary=40)

    def join(self, context: list[int], seed: int) -> None:
        row = self.target.seat()
        self.target.read(row, np.asarray(context[:-1]))
        resources = self.resources if self.joint else self._resources()
        drafter: Any = make_drafter(self.name, self.options, resources)
        if self.options.get("sampled"):
            drafter.sample_with(Sampling(temperature=0.9), np.random.default_rng(seed))
        drafter.start(context)
        self.drafters.append(drafter)

    def leave(self, row: int) -> None:
        self.target.leave(row)
        last = self.drafters.pop()
        if row < len(self.drafters):
            self.drafters[row] = last

    def draft(self, bids: dict[int, Bid]) -> list[Tree]:
        begun = [self.drafters[row].draft(bid) for row, bid in bids.items()]
        made = draft_together(begun) if self.joint else [draft_together([one])[0] for one in begun]
        for tree in made:
            if not isinstance(tree, Tree):
                raise tree
        return [tree for tree in made if isinstance(tree, Tree)]

    def kept(self, row: int, tree: Tree, path: tuple[int, ...], then: int) -> None:
        fresh = [*(tree.token_list[node] for node in path), then]
        self.target.read(row, np.asarray(fresh[:-1]))
        none: Any = type("NoScores", (), {"topk_logits": None})()
        self.drafters[row].observe(tree, Verdict(path, then), none, row)


KINDS: list[tuple[str, dict[str, object]]] = [
    ("draft-model", {}),
    ("draft-model", {"sampled": True}),
    ("draft-paths", {"rows": 9, "paths": 3}),
    ("hierarchical-draft", {}),
    ("hierarchical-draft", {"sampled": True}),
    ("sorted-draft", {}),
]


@pytest.mark.parametrize("caches", ["own", "shared"])
@pytest.mark.parametrize(("name", "options"), KINDS, ids=str)
def test_whoever_drafts_with_it_each_drafts_what_it_drafts_alone(
    caches: str, name: str, options: dict[str, object]
) -> None:
    """Sequences join and leave, some of them draft, as much as any may, and keep any part of it."""
    random = np.random.default_rng(len(name) + len(caches))
    both = [World(joint, caches, name, options) for joint in (True, False)]
    for turn in range(50):
        held = len(both[0].drafters)
        if held < 2 or (held < 7 and random.random() < 0.3):
            context = random.integers(1, 40, int(random.integers(2, 60))).tolist()
            for world in both:
                world.join(context, turn)
        elif held > 2 and random.random() < 0.2:
            leaving = int(random.integers(held))
            for world in both:
                world.leave(leaving)
        held = len(both[0].drafters)
        asked = [row for row in range(held) if random.random() < 0.7]
        bids = {row: Bid.free(int(random.integers(1, 9)), row) for row in asked}
        made, expected = (world.draft(bids) for world in both)
        for row, tree, other in zip(bids, made, expected, strict=True):
            same(tree, other)
            path = [0]
            while random.random() < 0.7:
                below = [n for n in range(len(tree)) if tree.parent_list[n] == path[-1]]
                if not below:
                    break
                path.append(below[0])
            for world in both:
                world.kept(row, tree, tuple(path), 1 + turn % 39)


def same(tree: Tree, other: Tree) -> None:
    assert tree.token_list == other.token_list
    assert tree.parent_list == other.parent_list
    assert (tree.draws or {}).keys() == (other.draws or {}).keys()
    for node, drawn in (tree.draws or {}).items():
        assert drawn.order == (other.draws or {})[node].order
        assert np.array_equal(drawn.probs, (other.draws or {})[node].probs)


RECIPES = {
    "model": policy(),
    "sampled": policy(rule="rejection", sampled=True),
    "cascade": policy("cascade"),
    "paths": policy("draft-paths", "rejection", rows=9),
}


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("make", [lambda _: CheckedDraft(), SharedDraft], ids=["own", "shared"])
@pytest.mark.parametrize("chosen", RECIPES.values(), ids=RECIPES)
def test_a_request_gets_in_a_batch_what_it_gets_alone(
    prompts: list[list[int]], chosen: Recipe, make: Callable[[ToySession], Any], temperature: float
) -> None:
    """Without costs, so that as much is drafted: drawn drafts depend on that."""
    options: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True}
    options["temperature"] = temperature
    engine = engine_of([], make, chosen, None)
    seeds: list[Any] = [{"seed": seed} for seed in range(5)]
    alone = [
        engine.generate(prompt, **options, **seed).tokens
        for prompt, seed in zip(prompts[:5], seeds, strict=True)
    ]
    batch = engine.generate(prompts[:5], options=seeds, batch=3, **options)
    assert isinstance(batch, list)
    assert [one.tokens for one in batch] == alone


@pytest.mark.parametrize("costs", [None, FLAT], ids=["fixed", "flat"])
def test_a_drafter_that_fails_ends_its_own_request(
    prompts: list[list[int]], costs: Costs | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of([], lambda target: SharedDraft(target, 0.05), policy(), costs)
    options: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True}
    plain = engine.generate(prompts[:3], recipe="plain", **options)
    complete, broken = DraftModel._complete, prompts[1]

    def failing(self: DraftModel, ahead: Any) -> bool:
        if self._reader.tokens[: len(broken)] == broken and len(self._reader.tokens) > 8:
            raise ZeroDivisionError("a drafter's own fault")
        return complete(self, ahead)

    monkeypatch.setattr(DraftModel, "_complete", failing)
    begun = [engine.submit(prompt, **options) for prompt in prompts[:3]]
    assert begun[0].wait().tokens == plain[0].tokens
    assert begun[2].wait().tokens == plain[2].tokens
    with pytest.raises(ZeroDivisionError, match="own fault"):
        begun[1].wait()


def test_a_call_that_fails_ends_those_whose_call_it_was(prompts: list[list[int]]) -> None:
    class Failing(Guest):
        def follow_rows(self, first: int, starts: Any, tokens: Any) -> Scores:
            raise BackendError("out of memory")

    engine = engine_of([], lambda t: SharedDraft(t, guest=Failing(t)), policy(), None)
    options: dict[str, Any] = {"max_new_tokens": 20, "ignore_eos": True}
    plain = engine.generate(prompts[0], recipe="plain", **options)
    other = engine.submit(prompts[0], recipe="plain", **options)
    begun = [engine.submit(prompt, **options) for prompt in prompts[1:3]]
    assert other.wait().tokens == plain.tokens
    for one in begun:
        with pytest.raises(BackendError, match="out of memory"):
            one.wait()
    assert engine.generate(prompts[0], **options).tokens == plain.tokens


def test_a_batch_has_one_set_of_caches_and_seats_are_given_back(prompts: list[list[int]]) -> None:
    drafts: list[Any] = []
    engine = engine_of(drafts, lambda _: CheckedDraft(), policy(), None)
    options: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True}
    for _ in range(3):
        engine.generate(prompts[:9], batch=3, **options)
    assert len(drafts) == 1
    session = drafts[0].session
    assert len(session.texts) <= 4  # a seat is given back with the next call or sequence
    joint = [rows for rows in session.followed if len(rows) > 1]
    assert max(len(rows) for rows in session.followed) == 3
    assert len(joint) > 0.5 * len(session.followed)


def test_every_recipe_of_a_draft_makes_fewer_calls_together(prompts: list[list[int]]) -> None:
    """Three at a time make about a third of the calls."""
    for name in ("draft-model", "cascade-drafting"):
        drafts: list[Any] = []
        engine = engine_of(drafts, SharedDraft, recipe(name), None)
        options: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True}
        for prompt in prompts[:3]:
            engine.generate(prompt, **options)
        alone = len(drafts[0].session.followed)
        engine.generate([prompts[0]] * 3, **options)
        assert len(drafts[0].session.followed) - alone < 0.6 * alone, name
