"""Reflective drafts: their layout, what of it may be accepted, and that no prompt gets out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from toy_session import ToySession

from graftline.errors import GraftlineError
from graftline.runtimes.acceptance.reflection import Reflection
from graftline.runtimes.control.speculation import Speculation
from graftline.runtimes.decoding import Decoding
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters import DRAFTERS, make_drafter
from graftline.runtimes.drafters.none import NoDrafts
from graftline.runtimes.drafting import Draft
from graftline.runtimes.lane import Lane
from graftline.runtimes.resources import Resources
from graftline.runtimes.rules import make_rule
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.scheduler import Scheduler
from graftline.runtimes.session import Floats, Ints, Scores
from graftline.runtimes.shaping import ShapedScores, Shaper
from graftline.runtimes.trees.packing import trim
from graftline.runtimes.verdict import Rule, Verdict
from graftline.tree import Tree

PROMPT = (31, 32, 33)
RESOURCES = Resources(encode=lambda text: list(PROMPT))
LAYOUT = Reflection(PROMPT)


def rule(weight: float, sampling: Sampling | None = None, seed: int = 0) -> Rule:
    generator = np.random.default_rng(seed)
    made = make_rule("reflective", sampling or Sampling(), generator, {"weight": weight}, RESOURCES)
    return made


@pytest.mark.parametrize("draft", [[5], [5, 6, 7], [5, 31, 32, 9], [5, 5, 5, 5]])
def test_a_layout_cut_anywhere_is_read(draft: list[int]) -> None:
    """At most what the draft and the cut prompt have in common is taken for prompt."""
    whole = LAYOUT.chain(1, draft)
    assert whole == [1, *draft, *PROMPT, *draft]
    for rows in range(1, len(whole) + 1):
        drafted = LAYOUT.drafted(whole[:rows])
        assert drafted <= min(rows - 1, len(draft))
        if 31 not in draft or rows > len(draft) + 1:
            assert drafted == min(rows - 1, len(draft))
    assert LAYOUT.longest(len(whole)) == len(draft)


def test_the_drafter_lays_out_the_drafts_of_its_source() -> None:
    drafter = make_drafter("reflective", {"rows": 12, "source": "prompt-lookup"}, RESOURCES).fork()
    drafter.start([1, 2, 3, 4, 5, 6, 1, 2])
    whole = drafter.propose(12)
    assert whole.tokens.tolist() == [2, 3, 4, 5, 6, *PROMPT, 3, 4, 5, 6]
    assert drafter.signal == 2
    assert drafter.propose(9).tokens.tolist() == [2, 3, 4, *PROMPT, 3, 4]
    assert drafter.propose(5).tokens.tolist() == [2, 3, 4, 5, 6]  # holds no layout
    assert drafter.propose(1).tokens.tolist() == [2]
    prior = drafter.prior(drafter.signal)
    assert len(prior) == 12
    assert min(prior[:5]) > max(prior[5:]) == 0.0
    nothing = Scores(np.zeros((1, 12), np.int64), np.zeros((1, 12, 40), np.float32))
    drafter.observe(whole, Verdict((0, 1, 2), 9), nothing, 0)
    drafter.observe(Tree.chain([9]), Verdict((0,), 3), nothing, 0)
    assert drafter.propose(4).tokens.tolist() == [3, 4, 9, 3]  # it saw 3 4 9 3, and no prompt


def scored(best: list[int], sure: list[float]) -> Scores:
    """Logits [1, N, 40]: `best` of every row is ahead of 0 by `sure`."""
    logits = np.zeros((1, len(best), 40), np.float32)
    logits[0, np.arange(len(best)), best] = sure
    return Scores(logits.argmax(-1), logits)


TREE = Tree.chain(LAYOUT.chain(1, [5, 6, 7]))
"""Rows: 1 5 6 7 | 31 32 33 | 5 6 7; rows 6, 7 and 8 say again what follows 1, 5 and 6."""


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (0.0, Verdict((0,), 9)),
        (0.49, Verdict((0,), 9)),
        (0.51, Verdict((0, 1, 2), 8)),  # reading on: 9, 6, 8; reflected: 5, 0, 0
        (1.0, Verdict((0, 1, 2), 8)),
    ],
)
def test_both_readings_are_weighed(weight: float, expected: Verdict) -> None:
    best = [9, 6, 8, 3, 0, 0, 5, 0, 0, 0]
    sure = [4.0, 4.0, 4.0, 4.0, 0, 0, 4.0, 0, 0, 0]
    assert rule(weight).judge(TREE, scored(best, sure), 0) == expected


def test_all_that_is_repeated_on_reflection_stands_but_never_the_prompt() -> None:
    """The target would go on with the prompt's own tokens, and all the same it is left out."""
    best, sure = [9, 9, 9, 31, 32, 33, 5, 6, 7, 2], [1.0] * 6 + [5.0] * 4
    assert rule(0.9).judge(TREE, scored(best, sure), 0) == Verdict((0, 1, 2, 3), 31)
    assert rule(0.9).judge(trim(TREE, 8), scored(best[:8], sure[:8]), 0) == Verdict((0, 1, 2), 9)
    assert rule(0.9).judge(trim(TREE, 6), scored(best[:6], sure[:6]), 0) == Verdict((0,), 9)


def test_what_is_barred_does_not_stand_on_reflection() -> None:
    """What the copy says is shaped by the path to the token's own place."""
    best, sure = [9, 9, 9, 31, 32, 33, 5, 6, 7, 2], [1.0] * 6 + [5.0] * 4
    paths: list[list[int]] = []

    def bar(path: Ints, logits: Floats) -> Floats:
        paths.append(path.tolist())
        logits[6] = -np.inf
        return logits

    shaper = Shaper(np.array([1]), [("bar", bar)])
    scores = ShapedScores(scored(best, sure), TREE, shaper)
    assert rule(0.9).judge(TREE, scores, 0) == Verdict((0, 1), 9)
    assert paths == [[1], [1], [1, 5], [1, 5]]


def test_sampling_draws_both_choices_with_one_number() -> None:
    """Reading on says 5 or 9, as likely; reflected, surely 5: it stands whatever is drawn."""
    logits = np.full((1, 10, 40), -50.0, np.float32)
    logits[0, 0, [5, 9]] = 0.0
    logits[0, 1:, 2] = 0.0
    logits[0, 6, 5] = 200.0
    scores = Scores(logits.argmax(-1), logits)
    kept = [len(rule(0.5, Sampling(1.0), n).judge(TREE, scores, 0).path) > 1 for n in range(60)]
    assert all(kept)
    kept = [len(rule(0.0, Sampling(1.0), n).judge(TREE, scores, 0).path) > 1 for n in range(60)]
    assert 15 < sum(kept) < 45


def decoded(prompts: list[list[int]], weight: float | None) -> tuple[list[list[int]], int]:
    """Tokens and steps over the toy, with room for whole layouts; weight None: plain."""
    session = ToySession(capacity=200)
    source = make_drafter("reflective", {"rows": 33}, RESOURCES)
    batch = [
        Decoding(
            np.asarray(prompt),
            60,
            frozenset(),
            NoDrafts() if weight is None else source.fork(),
            make_rule("greedy", Sampling(), np.random.default_rng(0))
            if weight is None
            else rule(weight),
        )
        for prompt in prompts
    ]
    scheduler, lane = Scheduler(session), Lane(Speculation.fixed("", 33))
    for one in batch:
        scheduler.submit(one, lane)
    while scheduler.step():
        for one in batch:
            if one.read and not one.done:
                kept = [*one.prompt.tolist(), *one.tokens][: one.length]
                assert session._slots[one.seat, : one.length, 1].tolist() == kept
    return [one.tokens for one in batch], sum(one.steps for one in batch)


def test_the_cache_holds_what_was_said_and_no_prompt(prompts: list[list[int]]) -> None:
    plain, plain_steps = decoded(prompts, None)
    strict, strict_steps = decoded(prompts, 0.0)
    loose, loose_steps = decoded(prompts, 1.0)
    assert strict == plain != loose
    assert plain_steps > strict_steps > loose_steps


@dataclass
class Paid(NoDrafts):
    """A drafter that asks a model, by the method that says so."""

    def draft(self, bid: Bid) -> Draft:
        raise AssertionError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 5}, "use rows >= 6"),
        ({"source": "reflective"}, "would draft itself"),
        ({"source": "sufix"}, "did you mean 'suffix'"),
        ({"source": "paid"}, "drafts with a model"),
    ],
)
def test_bad_options_are_refused(
    options: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DRAFTERS, "paid", Paid)
    with pytest.raises(GraftlineError, match=message):
        make_drafter("reflective", options, RESOURCES)
    with pytest.raises(GraftlineError, match="needs a tokenizer"):
        make_drafter("reflective", {})
