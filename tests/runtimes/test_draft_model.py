"""A draft model drafts from what the target said, never changes it, and is left when it loses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from three_tokens import V, drawn_as, three_tokens
from toy_drafts import COSTS, CheckedDraft, Garbage, SharedDraft, begin, engine_of, policy
from toy_session import FLAT, ToySession

from graftline.errors import GraftlineError
from graftline.recipe import Recipe, recipe
from graftline.runtimes.control.choose import Terms, choose
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.control.pace import COMPARED
from graftline.runtimes.control.paid import Paid, promised
from graftline.runtimes.control.speculation import Speculation
from graftline.runtimes.draft_engine import OwnCaches
from graftline.runtimes.draft_reader import Reader
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters import make_drafter, pearl
from graftline.runtimes.engine import Engine
from graftline.runtimes.resources import Resources
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

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
    reader.read([])
    reader.read([5])
    reader.read([5, 6])
    assert draft.calls == [4, 1, 1]
    reader.append([5, 7])
    assert reader.unread == 0
    reader.read([])
    assert (draft.calls[-1], draft.sequence) == (1, [1, 2, 3, 4, 5, 7])
    reader.read([8])
    reader.read([8, 9])
    reader.append([8])  # what was read beyond still holds
    reader.read([9, 3])
    assert (draft.calls[-1], draft.sequence[-3:]) == (1, [8, 9, 3])
    reader.append([1] * 70)
    assert reader.unread == 69
    reader.read([])
    assert draft.sequence[-71:] == [8, *[1] * 70]


def test_a_useless_draft_is_left_and_tried_again_within_its_budget(
    prompts: list[list[int]],
) -> None:
    drafts: list[Any] = []
    engine = engine_of(drafts, lambda _: OwnCaches(Garbage(odd=1), 5.0), policy(), COSTS)
    results = [engine.generate(p, max_new_tokens=120, ignore_eos=True) for p in prompts[:6]]
    assert sum(r.stats.drafted for r in results[:2]) > 5  # it was believed at first
    paid = engine._policies[engine.recipe.name].control.paid
    assert paid is not None
    paid.budget = 0.0
    late = [engine.generate(p, max_new_tokens=120, ignore_eos=True) for p in prompts[:6]]
    steps, drafted = (sum(getattr(r.stats, n) for r in late) for n in ("steps", "drafted"))
    assert steps > 6 * 119 * 0.98
    assert 0 < drafted * 7.0 <= 0.012 * steps * 20.0 + 7.0  # a try costs 5 + 2 ms


def test_a_draft_that_becomes_good_is_taken_up_again(prompts: list[list[int]]) -> None:
    class Moody(SharedDraft):
        good = False

        def follow(self, row: int, length: int, tokens: Sequence[int], asked: int = 1) -> Scores:
            scores = super().follow(row, length, tokens, asked)
            if not Moody.good:
                scores.argmax[...] = (scores.argmax + 7) % 40
            return scores

    engine = engine_of([], Moody, policy(), COSTS)
    options: dict[str, Any] = {"max_new_tokens": 200, "ignore_eos": True}
    for prompt in prompts[:4]:
        engine.generate(prompt, **options)
    off = engine.generate(prompts[4], **options).stats
    Moody.good = True
    again = [engine.generate(p, **options).stats for p in prompts[5:11]]
    assert off.drafted < 12  # tries
    assert again[-1].drafted > 60
    assert again[-1].steps < 150


def test_a_bid_bounds_the_draft_and_unsure_tokens_are_not_offered() -> None:
    reading = SharedDraft(ToySession())
    drafter: Any = make_drafter("draft-model", {}, Resources(draft=lambda: reading))
    begin(drafter, reading.target, [1, 2, 3])
    assert len(drafter.propose(12)) == 1
    assert len(drafter.draft(Bid.free(5))) == 5
    assert drafter.reads == 4
    assert len(drafter.draft(Bid.free(64))) == 12
    assert len(drafter.draft(Bid(12, (1.1,) * 12, (0.0,) * 12))) == 2  # one call was promised
    assert len(drafter.draft(Bid(12, (0.0,) * 12, (1.1,) * 12))) == 1  # nothing worth a row
    assert drafter.reads == 1
    reading.capacity = 5
    assert len(drafter.draft(Bid.free(12))) == 3


def test_a_stopping_policy_sees_the_whole_distribution_and_its_verdicts() -> None:
    seen: list[tuple[Any, ...]] = []

    class Spy:
        def go_on(self, depth: int, confidence: float, entropy: float) -> bool:
            seen.append((depth, confidence, entropy))
            return depth < 2

        def observe(self, accepted: int, offered: int) -> None:
            seen.append((accepted, offered))

    reading = SharedDraft(ToySession())
    drafter: Any = make_drafter("draft-model", {}, Resources(draft=lambda: reading))
    begin(drafter, reading.target, [1, 2, 3])
    drafter.policy = Spy()
    tree = drafter.draft(Bid.free(9))
    assert len(tree) == 3
    logits = reading.model.logits_of(np.asarray([[0, 1], [1, 2], [2, 3]])).astype(np.float64)
    probs = np.exp(logits) / np.exp(logits).sum()
    assert seen[0] == pytest.approx((0, probs.max(), -(probs * np.log(probs)).sum()))
    assert [s[0] for s in seen] == [0, 1, 2]
    verdict = Verdict((0, 1), int(tree.tokens[2]) + 1)
    drafter.observe(tree, verdict, Scores(np.zeros((1, 3), np.int64), logits[None, None]), 0)
    assert seen[-1] == (1, 2)


class Small(SharedDraft):
    """A draft over three tokens, whose distribution is far from the target's."""

    def __init__(self, target: ToySession) -> None:
        super().__init__(target)
        self.model = ToySession(vocabulary=V, odd=2)

    def follow(self, row: int, length: int, tokens: Sequence[int], asked: int = 1) -> Scores:
        scores = super().follow(row, length, tokens, asked)
        return Scores(scores.argmax, np.roll(scores.logits, 1, axis=-1) * 0.5)


SAMPLED = [
    policy("draft-model", "rejection", sampled=True, rows=3),
    policy("hierarchical-draft", "rejection", sampled=True, rows=3),
    policy("draft-paths", "rejection", rows=5, paths=2, replacement=False),
    policy("draft-paths", "k-sequential", rows=5, paths=2),
    policy("draft-paths", "greedy-multipath-block", rows=5, paths=2),
]


@pytest.mark.parametrize("chosen", SAMPLED, ids=[r.name for r in SAMPLED])
def test_drawn_drafts_keep_the_targets_distribution(chosen: Recipe) -> None:
    """Chi-square over all sequences of three tokens, many seeds; each request draws anew."""
    session = ToySession(vocabulary=V)
    resources = Resources(draft=lambda: Small(session), vocabulary=V)
    engine = Engine(session, None, {}, chosen, None, resources=resources)
    prompt, sampling = [1, 2], Sampling(temperature=4.0)
    law = three_tokens(session, prompt, sampling)
    assert drawn_as(law, engine, prompt, 4.0, count=1000) > 0.9 * 1000


def test_paths_are_drawn_as_their_draws_say() -> None:
    target = ToySession(vocabulary=V)
    resources = Resources(draft=lambda: Small(target), vocabulary=V)
    options: dict[str, object] = {"rows": 13, "paths": 3}
    drafter: Any = make_drafter("draft-paths", options, resources)
    begin(drafter, target, [1, 2])
    twice = 0
    first = np.zeros(V)
    for _ in range(400):
        tree = drafter.draft(Bid.free(13))
        assert len(tree.draws[0].order) == 3
        assert all(d.replacement for d in tree.draws.values())
        assert sum(len(d.order) for d in tree.draws.values()) == 3 * 4
        twice += len(set(tree.draws[0].order)) < 3
        first[int(tree.tokens[tree.draws[0].order[0]])] += 1
    assert 0 < twice < 400
    expected = tree.draws[0].probs * 400
    assert stats.chisquare(first, expected).pvalue > 1e-3
    single: Any = make_drafter("draft-paths", {**options, "replacement": False}, resources)
    begin(single, target, [1, 2])
    for _ in range(50):
        tree = single.draft(Bid.free(13))
        assert len(set(tree.draws[0].order)) == len(tree.draws[0].order) == 3
        assert not tree.draws[0].replacement


def test_a_step_is_written_to_its_end() -> None:
    """Ids are letters; id 5 ends a sentence."""
    reading = SharedDraft(ToySession())
    resources = Resources(
        draft=lambda: reading,
        vocabulary=40,
        decode=lambda ids: "".join("." if token % 5 == 0 else "x" for token in ids),
    )
    drafter: Any = make_drafter("draft-steps", {}, resources)
    long: Any = make_drafter("draft-steps", {"sentences": False, "rows": 20}, resources)
    for start in range(1, 9):
        begin(drafter, reading.target, [start, 3])
        tokens = drafter.draft(Bid(64, (9.0,) * 64, (9.0,) * 64)).tokens.tolist()
        assert len(tokens) == 48 or tokens[-1] % 5 == 0
        assert all(token % 5 for token in tokens[1:-1])
        begin(long, reading.target, [start, 3])
        assert len(long.draft(Bid.free(64))) == 20


@pytest.mark.parametrize("name", ["bild", "specreason", "arbitrage"])
def test_lossy_recipes_say_so_and_accept_more(prompts: list[list[int]], name: str) -> None:
    chosen = recipe(name)
    assert not chosen.lossless
    session = ToySession()
    resources = Resources(
        draft=lambda: SharedDraft(session), vocabulary=40, decode=lambda ids: "." * (len(ids) > 5)
    )
    options = chosen.rule_options
    loose = replace(chosen, name="loose", rule_options={**options, "threshold": LOOSE[name]})
    strict = replace(chosen, name="strict", rule_options={**options, "threshold": STRICT[name]})
    engine = Engine(session, None, {}, loose, None, resources=resources)
    asked: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True}
    plain = [engine.generate(p, recipe="plain", **asked) for p in prompts[:4]]
    every = [engine.generate(p, **asked) for p in prompts[:4]]
    exact = [engine.generate(p, recipe=strict, **asked) for p in prompts[:4]]
    assert [r.tokens for r in exact] == [r.tokens for r in plain]
    assert [r.tokens for r in every] != [r.tokens for r in plain]
    assert sum(r.stats.steps for r in every) < sum(r.stats.steps for r in exact)
    assert not every[0].stats.lossless


LOOSE = {"bild": float("inf"), "specreason": float("-inf"), "arbitrage": float("-inf")}
STRICT = {"bild": 0.0, "specreason": 1.0, "arbitrage": 1.0}


def test_pearls_stream_outlives_a_step_whose_guesses_all_came_true() -> None:
    """The target is the draft: after the first step every proposal is full, and no token is
    drafted twice."""
    draft = CheckedDraft(odd=6)
    resources = Resources(draft=lambda: draft, vocabulary=40)
    engine = Engine(ToySession(), None, {}, policy("pearl", rows=4), None, resources=resources)
    result = engine.generate([3, 1, 2], max_new_tokens=61, ignore_eos=True)
    assert set(draft.calls[1:]) == {1}
    assert result.stats.steps <= 60 / 3 + 4
    assert result.stats.accepted_per_depth[0] == 1.0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("draft-model", {"rows": 1}, "rows=1 is not valid"),
        ("draft-model", {"length": "confidense"}, "did you mean 'confidence'"),
        ("draft-paths", {"paths": 12}, "paths=12, rows=12"),
        ("draft-steps", {"sampled": True}, "its best tokens"),
        ("pearl", {"overlap": 1.5}, "overlap=1.5"),
        ("cascade", {"store": "sufix"}, "did you mean 'suffix'"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, object], message: str) -> None:
    resources = Resources(draft=lambda: CheckedDraft(), vocabulary=40, decode=str)
    with pytest.raises(GraftlineError, match=message):
        make_drafter(name, options, resources)


NAMES = ["draft-model", "draft-paths", "draft-steps", "hierarchical-draft", "parallel-draft"]
NAMES += ["pearl", "sorted-draft"]


@pytest.mark.parametrize("name", NAMES)
def test_without_a_draft_engine_it_says_how_to_get_one(name: str) -> None:
    with pytest.raises(GraftlineError, match=f"^{name} needs a draft.*--draft int8"):
        make_drafter(name, {})


TERMS = Terms(1, 100, 256, 0.002)


class Bidding:
    """Steps of one sequence whose draft model drafts as much as is given, on toy costs."""

    def __init__(self, drafter: Any, costs: Costs = COSTS, settle: int = COMPARED) -> None:
        self.costs, self.drafter = replace(costs), drafter
        self.paid = Paid("toy", self.costs)
        for _ in range(settle):
            self.plain()

    def plain(self, taken: float = 1.0) -> None:
        """A step without a draft; times what it should take."""
        assert not self.bids()
        self.costs.pace.record("toy", "plain", 1, taken)
        self.paid.took(1, self.costs.of(1), self.costs.of(1) * taken, self.costs.of(1))

    def bids(self) -> bool:
        """Whether a draft is expected to pay; else there may be a try."""
        offers = self.paid.offers([(0, self.drafter)], TERMS)
        return bool(choose(offers, 1, self.costs.of, 1).rows)

    def tries(self) -> bool:
        return self.paid.try_again([(0, self.drafter)], TERMS)

    def draft(self, rows: int, accepted: int, taken: float = 1.0) -> None:
        """A step with a draft of `rows` tokens."""
        self.drafter.reads = rows
        price = self.paid.drafted(0, self.drafter, rows, TERMS)
        self.paid.learn(0, accepted)
        expected = self.costs.of(rows + 1) + price
        self.costs.pace.record("toy", "paid", 1, taken)
        self.paid.took(accepted + 1, expected, taken * expected, self.costs.of(1))


def drafting() -> Any:
    drafter: Any = make_drafter("draft-model", {}, Resources(draft=lambda: CheckedDraft()))
    begin(drafter, drafter._reader.engine.session, [1, 2, 3])
    return drafter


def test_the_first_steps_are_plain_and_a_slow_draft_is_found_out() -> None:
    """As PEARL's where two threads share two cores."""
    steps, drafted = Bidding(drafting(), settle=0), 0
    for step in range(40):
        if not steps.bids():
            steps.costs.pace.record("toy", "plain", 1, 1.0)
            continue
        assert step >= COMPARED
        drafted += 1
        steps.draft(3, 3, taken=8.0)
    assert drafted == 2  # one may be a hitch


def test_a_draft_that_is_hardly_better_than_plain_has_to_show_it_first() -> None:
    """Believed 1.06 times as fast: not drafted on a belief, but on what it has brought."""
    drafter = drafting()
    drafter.price = lambda reads: 9.0 * reads
    drafter.hope = lambda foresight: (1.0, 0.86)
    assert 1.03 < 1.86 * 20.0 / (26.0 + 9.0) < 1.1
    steps = Bidding(drafter, Costs({1: 20.0, 2: 26.0}, {}))
    assert not steps.bids()
    for _ in range(12):
        steps.paid.budget = 100.0
        assert steps.bids() or steps.tries()
        steps.draft(1, 1)
    assert steps.bids()


def test_pearl_hopes_for_no_more_than_its_steps_that_verify() -> None:
    resources = Resources(draft=lambda: CheckedDraft(), vocabulary=40)
    pearl: Any = make_drafter("pearl", {"rows": 4}, resources)
    share = pearl._reader.engine.agreement
    stands = share**3
    verifying, idle = 1.0, 1.0 - stands  # of two steps in a row, after one that verified
    mean = verifying / (verifying + idle)
    assert pearl.hope(1) == pytest.approx((1, *(mean * share**row for row in (1, 2, 3))))


def test_pearl_is_priced_by_the_cores_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draft and target with two threads each on two cores: neither hides the other."""
    monkeypatch.setattr(CheckedDraft, "threads", 2, raising=False)

    def price(cores: int, **options: Any) -> float:
        monkeypatch.setattr(pearl.os, "cpu_count", lambda: cores)
        drafter: Any = make_drafter(
            "pearl", options, Resources(draft=lambda: CheckedDraft(), vocabulary=40)
        )
        return drafter.price(2)

    assert price(4) == price(8) == 2 * 5.0
    assert price(2) == 2 * 5.0 * (1 + pearl.CROWDED)
    assert price(2, overlap=1.0) == 0.0


def test_catching_up_is_priced_and_tries_are_paid_for_whatever_they_take() -> None:
    drafter = drafting()
    begin(drafter, drafter._reader.engine.session, list(range(30)))
    steps = Bidding(drafter)
    due = drafter.debt()
    assert due > 20.0
    (offer,) = steps.paid.offers([(0, drafter)], TERMS)
    assert offer.price == pytest.approx(drafter.price(offer.size) + due / 32)
    assert steps.paid.bid(drafter, TERMS, 0.1).rows == 2, "the first draft of all"
    steps.draft(1, 0)
    assert steps.paid.bid(drafter, TERMS, 0.1).rows > 2
    steps.paid.trying, steps.paid.budget = True, 1.0
    expected = COSTS.of(2) + 5.0
    steps.draft(1, 0, taken=(expected + 50.0) / expected)
    assert steps.paid.budget == pytest.approx(-49.0)


def test_tries_are_saved_for_only_while_nothing_is_drafted_and_failures_make_them_rarer() -> None:
    steps = Bidding(drafting())
    for _ in range(50):
        assert steps.bids()
        steps.draft(3, 3)
    assert steps.paid.budget == 0.0
    waits: list[int] = []
    for _ in range(3):
        waits.append(1)
        while not steps.tries():
            waits[-1] += 1
            steps.paid._idle = 0
        steps.draft(1, 0)
    assert waits[1] > 1.5 * waits[0]
    assert waits[2] > 1.5 * waits[1]


def test_what_a_drafted_step_is_expected_to_bring_is_known_once_it_is_drafted() -> None:
    """By the draft's own account of each token, put right by what such accounts were worth."""
    probs = np.asarray([1, 0.8, 0.5, 0.5], np.float32)
    tree = Tree(np.arange(4), np.arange(-1, 3), probs)
    assert promised(tree) == pytest.approx(0.8 + 0.4 + 0.2)
    assert promised(Tree.chain([0, 1])) == 0.0
    control = Speculation("toy", COSTS, lambda _: (1.0,), paid=Paid("toy", COSTS))
    track, told = control.track(), list[float]()
    for _ in range(40):
        track.promise = promised(tree)
        told.append(control.chose(track, 4))
        control.learn(track, [1, 2, 3, 9])  # more than it promised
    assert told[0] == pytest.approx(1.4)
    assert told[-1] == pytest.approx(3.0, rel=0.1)


def test_a_draft_is_as_deep_as_its_rows_bring_in() -> None:
    """Dinkelbach: one more row while its chance is at least the rate times its cost."""
    steps = Bidding(drafting())
    steps.draft(1, 0)
    bid = steps.paid.bid(steps.drafter, TERMS, 0.1)
    assert bid.keep[1] == pytest.approx(0.1 * (COSTS.of(5) - COSTS.of(1)) / 4)
    assert bid.call(3) == pytest.approx(0.1 * 5.0)
    slower = steps.paid.bid(steps.drafter, TERMS, 0.05)
    assert slower.keep[1] == bid.keep[1] / 2, "never less than plain's rate"
