"""A draft that is drafted for writes what it writes alone, in fewer calls."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from toy_drafts import COSTS, CheckedDraft, CheckedSession, SharedDraft, begin, draft_of, policy
from toy_session import ToySession

from graftline.errors import GraftlineError
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.draft_engine import OwnCaches
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.engine import Engine
from graftline.runtimes.resources import Resources
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.verdict import Verdict

LOOP = [7, 1, 2, 3, 4, 5, 6] * 4


class Looping(CheckedSession):
    """Writes LOOP for ever; `stray`, every so many positions another token."""

    stray = 10**9

    def logits_of(self, seen: Any) -> Any:
        logits = np.zeros(self.facts.vocabulary, np.float32)
        place, last = seen[-1].tolist()
        follows = LOOP[LOOP.index(last) + 1] if last in LOOP else 7
        logits[9 if place % self.stray == self.stray - 1 else follows] = 9.0
        return logits


class LoopingDraft(CheckedDraft):
    def __init__(self, stray: int = 10**9) -> None:
        OwnCaches.__init__(self, Looping(), 5.0)
        self.session.stray = stray


def drafters(make: Any, **options: Any) -> tuple[Any, Any, list[Any]]:
    """The hierarchical one, the plain one, and the engines of both."""
    made: list[Any] = []

    def opened() -> Any:
        made.append(make())
        return made[-1]

    resources = Resources(draft=opened, vocabulary=40)
    names = ("hierarchical-draft", "draft-model")
    pair = [make_drafter(name, {"rows": 12, **options}, resources) for name in names]
    return pair[0], pair[1], made


@pytest.mark.parametrize("stray", [10**9, 13, 5, 2])
def test_it_drafts_what_the_draft_alone_does_in_fewer_calls(stray: int) -> None:
    fast, alone, (verifying, reading) = drafters(lambda: LoopingDraft(stray))
    context = list(LOOP)
    calls = reads = 0.0
    for one in (fast, alone):
        one.start(context)
    for step in range(12):
        trees = [draft_of(one, Bid.free(4 + step % 9)) for one in (fast, alone)]
        assert trees[0].tokens.tolist() == trees[1].tokens.tolist()
        assert trees[0].probs.tolist() == pytest.approx(trees[1].probs.tolist())
        if step > 3:
            calls, reads = calls + fast.reads, reads + alone.reads
        kept = [*trees[0].tokens.tolist()[1 : 1 + step % 5], 9 if step % 3 else 7]
        path = tuple(range(len(kept)))
        for one, tree in zip((fast, alone), trees, strict=True):
            one.observe(tree, Verdict(path, kept[-1]), no_scores(), 0)
    assert verifying.sequence[: len(context)] == context
    assert len(verifying.calls) <= len(reading.calls)
    if stray > 100:
        assert calls < 0.85 * reads
        assert len(verifying.calls) < 0.6 * len(reading.calls)


def no_scores() -> Any:
    return type("NoScores", (), {"topk_logits": None})()


def test_what_never_comes_true_is_not_verified() -> None:
    """The text's n-grams go on as the draft never does: after a few rows, none is spent."""
    fast, _, (draft, _) = drafters(LoopingDraft)
    text = [1, 8, 2, 8, 3, 8, 4, 8, 5, 8, 6, 8]
    fast.start(text * 3)
    sizes: list[int] = []
    for _ in range(30):
        before = len(draft.calls)
        draft_of(fast, Bid.free(6))
        sizes += draft.calls[before + 1 :]
        fast.observe(fast.propose(1), Verdict((0,), 8), no_scores(), 0)
    assert max(sizes[len(sizes) // 2 :]) <= 2


def test_a_bid_that_ends_the_draft_is_kept_though_more_is_known() -> None:
    fast, alone, _ = drafters(LoopingDraft)
    for one in (fast, alone):
        one.start(LOOP)
    bid = Bid(8, [0.0] * 8, [0.0, 0.1, 0.1, 2.0, 2.0, 2.0, 2.0, 2.0])
    trees = [draft_of(one, bid) for one in (fast, alone)]
    assert len(trees[0]) == len(trees[1]) == 3
    nothing = draft_of(fast, Bid(1, [0.0], [0.0]))
    assert len(nothing) == 1


def test_drawn_tokens_follow_the_drafts_own_law() -> None:
    """A copied token stands where it is drawn, so what it says of the next one can be used."""
    fast, alone, _ = drafters(lambda: CheckedDraft(odd=10**9), sampled=True)
    sampling = Sampling(temperature=0.8)
    context = [3, 1, 2, 3, 1, 2, 3, 1, 2, 3]
    found: list[list[tuple[list[int], list[Any]]]] = [[], []]
    for which, one in enumerate((fast, alone)):
        one.sample_with(sampling, np.random.default_rng(4))
        one.start(context)
        for _ in range(200):
            tree = draft_of(one, Bid.free(5))
            laws = [tree.draws[row].probs for row in range(len(tree) - 1)]
            found[which].append((tree.tokens.tolist(), laws))
    for (tokens, laws), (others, theirs) in zip(*found, strict=True):
        assert tokens == others  # the same draws of the same laws
        assert np.allclose(laws, theirs)


def test_output_is_plains_near_the_end_of_the_caches() -> None:
    """The draft's rows lie in the target's slots, of which there are no more than 80."""
    costs: list[Costs | None] = [None, COSTS]
    for cost in costs:
        session = ToySession(capacity=80)
        resources = Resources(draft=partial(SharedDraft, session), vocabulary=40)
        chosen = policy("hierarchical-draft", rows=16)
        engine = Engine(session, None, {}, chosen, cost, resources=resources)
        options: dict[str, Any] = {"max_new_tokens": 80 - 28, "ignore_eos": True}
        found = engine.generate(LOOP, **options)
        assert found.tokens == engine.generate(LOOP, recipe="plain", **options).tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ahead": 0}, "ahead=0 are not valid"),
        ({"ahead": 40}, "verifies 1 to 31"),
        ({"length": "confidence{threshold=0.6}"}, "the offer decides how far"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    resources = Resources(draft=lambda: CheckedDraft(), vocabulary=40)
    with pytest.raises(GraftlineError, match=message):
        make_drafter("hierarchical-draft", options, resources)
    with pytest.raises(GraftlineError, match="--draft int8"):
        make_drafter("hierarchical-draft", {})


def test_the_reader_goes_on_from_what_was_verified() -> None:
    fast, _, (draft, _) = drafters(lambda: CheckedDraft(odd=10**9))
    begin(fast, ToySession(), [1, 2, 3, 4])
    reader = fast._reader
    scores = reader.verify([5], [6, 7]).scores()
    assert scores.logits.shape[1] == 3
    assert draft.sequence == [1, 2, 3, 4, 5, 6, 7]
    reader.read([5, 6, 7, 8]).scores()
    assert draft.calls[-1] == 1
    reader.append([5, 6, 9])
    reader.read([]).scores()
    assert (draft.calls[-1], draft.sequence) == (1, [1, 2, 3, 4, 5, 6, 9])
