"""What a draft model offers: within its bid, drawn as it says, refused where it cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from three_tokens import V, drawn_as, three_tokens
from toy_drafts import CheckedDraft, Guest, SharedDraft, begin, draft_of, policy
from toy_session import ToySession

from graftline.errors import GraftlineError
from graftline.recipe import Recipe, recipe
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.engine import Engine
from graftline.runtimes.resources import Resources
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Floats, Ints, Scores
from graftline.runtimes.verdict import Verdict


def test_a_bid_bounds_the_draft_and_unsure_tokens_are_not_offered() -> None:
    reading = SharedDraft(ToySession())
    drafter: Any = make_drafter("draft-model", {}, Resources(draft=lambda: reading))
    begin(drafter, reading.target, [1, 2, 3])
    assert len(drafter.propose(12)) == 1
    assert len(draft_of(drafter, Bid.free(5))) == 5
    assert drafter.reads == 4
    assert len(draft_of(drafter, Bid.free(64))) == 12
    assert len(draft_of(drafter, Bid(12, (1.1,) * 12, (0.0,) * 12))) == 2  # one call was promised
    assert len(draft_of(drafter, Bid(12, (0.0,) * 12, (1.1,) * 12))) == 1  # nothing worth a row
    assert drafter.reads == 1
    reading.capacity = 5
    assert len(draft_of(drafter, Bid.free(12))) == 3


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
    tree = draft_of(drafter, Bid.free(9))
    assert len(tree) == 3
    logits = reading.model.logits_of(np.asarray([[0, 1], [1, 2], [2, 3]])).astype(np.float64)
    probs = np.exp(logits) / np.exp(logits).sum()
    assert seen[0] == pytest.approx((0, probs.max(), -(probs * np.log(probs)).sum()))
    assert [s[0] for s in seen] == [0, 1, 2]
    verdict = Verdict((0, 1), int(tree.tokens[2]) + 1)
    drafter.observe(tree, verdict, Scores(np.zeros((1, 3), np.int64), logits[None, None]), 0)
    assert seen[-1] == (1, 2)


class Far(Guest):
    """A distribution far from the target's."""

    def logits_of(self, seen: Ints) -> Floats:
        return np.roll(super().logits_of(seen), 1) * np.float32(0.5)


class Small(SharedDraft):
    """A draft over three tokens."""

    def __init__(self, target: ToySession) -> None:
        super().__init__(target, guest=Far(target, odd=2, vocabulary=V))


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
        tree = draft_of(drafter, Bid.free(13))
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
        tree = draft_of(single, Bid.free(13))
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
        tokens = draft_of(drafter, Bid(64, (9.0,) * 64, (9.0,) * 64)).tokens.tolist()
        assert len(tokens) == 48 or tokens[-1] % 5 == 0
        assert all(token % 5 for token in tokens[1:-1])
        begin(long, reading.target, [start, 3])
        assert len(draft_of(long, Bid.free(64))) == 20


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
    draft._own = None  # one sequence, so one set of caches
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
