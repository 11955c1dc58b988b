"""Draft models decode a batch together: one call for each depth, and what each drafts alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sub_models import nest
from toy_drafts import CheckedDraft, Guest, SharedDraft, draft_of, engine_of, policy
from toy_session import FLAT, ToySession

from graftline.errors import BackendError
from graftline.recipe import Recipe, recipe
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.draft_engine import IDLE_ROWS, DraftEngine, usual_cost
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.drafters.draft_model import DraftModel
from graftline.runtimes.drafting import draft_together
from graftline.runtimes.lane import Lane
from graftline.runtimes.resources import Resources
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

RAGGED = [[3, 1, 2], [5, 9, 9, 4, 1, 7, 8], [2, 6, 6, 1]]


def batch_of(
    engine: DraftEngine, contexts: list[list[int]], name: str = "draft-model", **options: object
) -> list[Any]:
    """A drafter for each sequence, all with one engine."""
    resources = Resources(draft=lambda: engine, vocabulary=40)
    drafters: list[Any] = [make_drafter(name, options, resources) for _ in contexts]
    for drafter, context in zip(drafters, contexts, strict=True):
        drafter.start(context)
    return drafters


def own(contexts: list[list[int]] = RAGGED) -> tuple[DraftEngine, ToySession]:
    engine = CheckedDraft()
    return engine, engine.session


def shared(contexts: list[list[int]] = RAGGED) -> tuple[DraftEngine, ToySession]:
    target = ToySession()
    target.reset(len(contexts))
    target.prefill([np.asarray(context[:-1]) for context in contexts])
    engine = SharedDraft(target)
    return engine, engine.session


def trees(drafters: list[Any], *rows: int) -> list[list[int]]:
    """What each drafts, of so many rows."""
    made = draft_together(
        [one.draft(Bid.free(n, at)) for at, (one, n) in enumerate(zip(drafters, rows, strict=True))]
    )
    assert all(isinstance(tree, Tree) for tree in made), made
    return [tree.token_list for tree in made if isinstance(tree, Tree)]


def observe(drafter: Any, tokens: list[int], accepted: int, then: int) -> None:
    none: Any = type("NoScores", (), {"topk_logits": None})()
    drafter.observe(Tree.chain(tokens), Verdict(tuple(range(accepted + 1)), then), none, 0)


ALL = {0: 1, 1: 1, 2: 1}


def test_there_is_one_call_for_each_depth() -> None:
    engine, session = shared()
    drafters = batch_of(engine, RAGGED)
    trees(drafters, 6, 6, 6)
    assert session.followed == [ALL] * 5


def test_what_was_not_read_yet_is_read_before_and_once() -> None:
    engine, session = own()
    drafters = batch_of(engine, RAGGED)
    made = trees(drafters, 6, 6, 6)
    assert session.followed == [{0: 2}, {1: 6}, {2: 3}, *[ALL] * 5]
    session.followed.clear()
    observe(drafters[0], made[0], 2, 39)
    observe(drafters[1], made[1], 5, 39)  # its last token was never read
    observe(drafters[2], made[2], 0, 39)
    trees(drafters, 6, 6, 6)
    assert session.followed == [{1: 1}, *[ALL] * 5]


def test_two_that_lack_one_token_read_it_together() -> None:
    engine, session = own()
    drafters = batch_of(engine, RAGGED)
    made = trees(drafters, 4, 4, 4)
    for drafter, tokens in zip(drafters, made, strict=True):
        observe(drafter, tokens, 3, 39)
    session.followed.clear()
    trees(drafters, 4, 4, 4)
    assert session.followed == [ALL] * 4


@pytest.mark.parametrize("make", [own, shared])
def test_one_that_joins_late_reads_its_prompt_beside_the_others(make: Callable[..., Any]) -> None:
    contexts = [*RAGGED, [1, 2, 3, 4] * 70]
    engine, session = make(contexts)
    drafters = batch_of(engine, contexts)
    trees(drafters[:3], 4, 4, 4)
    session.followed.clear()
    made = trees(drafters, 4, 4, 4, 4)
    late = [{3: 279}] if make is own else []
    assert session.followed[: len(late)] == late
    assert session.followed[len(late) :] == [{**ALL, 3: 1}] * 3
    alone, _ = make(contexts)
    apart = batch_of(alone, contexts)
    assert made == [draft_of(one, Bid.free(4, at)).token_list for at, one in enumerate(apart)]


@pytest.mark.parametrize("make", [own, shared])
def test_who_ends_its_draft_adds_no_call(make: Callable[..., Any]) -> None:
    """One between two others goes along in their call, and loses nothing by it; one at the end of
    the batch does not even that."""
    engine, session = make()
    drafters = batch_of(engine, RAGGED)
    trees(drafters, 2, 2, 2)
    session.followed.clear()
    made = trees(drafters, 6, 3, 4)
    assert session.followed == [ALL, ALL, ALL, {0: 1}, {0: 1}]
    assert [len(tree) for tree in made] == [6, 3, 4]
    session.followed.clear()
    again = trees(drafters, 3, 1, 6)
    assert session.followed == [ALL, ALL, {2: 1}, {2: 1}, {2: 1}]
    assert again[2][:4] == made[2]


def test_those_far_apart_do_not_take_all_between_them_along() -> None:
    contexts = RAGGED * 3
    engine, session = shared(contexts)
    drafters = batch_of(engine, contexts)
    far = [0, 1, 1 + IDLE_ROWS + 1, 1 + IDLE_ROWS + 1 + IDLE_ROWS + 2]
    made = draft_together([drafters[row].draft(Bid.free(3, row)) for row in far])
    assert len(made) == 4
    first, last = dict.fromkeys(range(far[0], far[2] + 1), 1), {far[3]: 1}
    assert session.followed == [first, last] * 2


def test_one_that_holds_nothing_yet_does_not_go_along() -> None:
    """Its row would be a first position."""
    engine, session = own()
    drafters = batch_of(engine, RAGGED)
    made = draft_together([drafters[row].draft(Bid.free(3)) for row in (0, 2)])
    assert len(made) == 2
    assert session.followed == [{0: 3}, {2: 4}, {0: 1}, {2: 1}]
    trees(drafters, 3, 3, 3)
    session.followed.clear()
    draft_together([drafters[row].draft(Bid.free(3)) for row in (0, 2)])
    assert session.followed == [ALL, ALL]


def test_the_price_of_a_call_is_shared() -> None:
    engine, _ = shared()
    drafters = batch_of(engine, RAGGED)
    trees(drafters, 6, 6, 3)
    each = 2 * usual_cost(3) / 3 + 3 * usual_cost(2) / 2
    assert drafters[0].reads == drafters[1].reads == pytest.approx(each)
    assert drafters[2].reads == pytest.approx(2 * usual_cost(3) / 3)
    assert drafters[0].share(4) == pytest.approx(usual_cost(4) / 4)
    trees(drafters[:1], 6)
    assert drafters[0].reads == 5.0


def test_a_bid_that_is_shared_asks_less_of_a_call_and_as_much_of_a_row() -> None:
    bid = Bid(3, (0.5, 0.6, 0.7), (0.1, 0.2, 0.3), 2)
    less = bid.shared(0.25)
    assert list(less.draft) == pytest.approx([0.2, 0.3, 0.4])
    assert (less.rows, less.keep, less.row, less.share) == (3, bid.keep, 2, 0.25)


def test_a_chain_is_not_verified_alone_where_the_others_single_rows_cost_less() -> None:
    """A call of four rows costs 2.2, and one of a row that three share in 0.6 of one."""
    text = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3]
    (drafter,) = batch_of(shared([text])[0], [text], "hierarchical-draft")
    bid = Bid.free(9)
    for share, verified in ((1.0, True), (usual_cost(3) / 3, False)):
        draft = drafter.draft(bid.shared(share))
        assert (next(draft).asked > 1) == verified
        draft.close()


def test_sub_models_are_called_once_for_all_who_ask_them_and_share_the_price() -> None:
    target = ToySession()
    target.reset(3)
    target.prefill([np.asarray(context[:-1]) for context in RAGGED])

    def nested(contexts: list[list[int]]) -> tuple[list[Any], list[dict[int, int]]]:
        engines = nest(target, (9, 9, 9))
        resources = Resources(draft=lambda: engines[-1], depths=lambda: engines, vocabulary=40)
        drafters: list[Any] = [make_drafter("sorted-draft", {}, resources) for _ in contexts]
        for drafter, context in zip(drafters, contexts, strict=True):
            drafter.start(context)
        made = draft_together(
            [one.draft(Bid.free(5, RAGGED.index(one._reader.tokens))) for one in drafters]
        )
        assert all(isinstance(tree, Tree) for tree in made)
        return drafters, [rows for engine in engines for rows in engine.session.calls]

    drafters, calls = nested(RAGGED)
    assert len(calls) <= 0.6 * sum(len(answers) for one in drafters for answers in one._answers)
    assert all(ALL.keys() >= rows.keys() for rows in calls)
    apart = [one for context in RAGGED for one in nested([context])[0]]
    together, alone = (sum(one.price(one.reads) for one in ones) for ones in (drafters, apart))
    assert together < 0.85 * alone


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


def test_what_the_drafts_of_a_step_take_is_what_their_calls_cost(
    prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    drafts: list[Any] = []
    engine = engine_of(drafts, lambda target: SharedDraft(target, 1.0), policy(), FLAT)
    buy, draft, taken, shares = Lane.buy, DraftModel.draft, list[float](), set[float]()

    def counted(self: Lane, *given: Any) -> float:
        taken.append(buy(self, *given))
        return taken[-1]

    def drafting(self: DraftModel, bid: Bid) -> Any:
        shares.add(bid.share)
        return draft(self, bid)

    monkeypatch.setattr(Lane, "buy", counted)
    monkeypatch.setattr(DraftModel, "draft", drafting)
    engine.generate(prompts[:3], max_new_tokens=60, ignore_eos=True)
    calls = [usual_cost(len(rows)) for rows in drafts[0].session.followed]
    assert len(calls) > 20
    assert sum(taken) == pytest.approx(sum(calls))
    assert usual_cost(3) / 3 in shares <= {usual_cost(n) / n for n in (1, 2, 3)}


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
