"""A draft that fills masks: one call a draft, no mask is ever text, and as many as pay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats
from three_tokens import V, drawn_as, three_tokens
from toy_session import FLAT, ToySession

from graftline.errors import GraftlineError
from graftline.facts import DecoderFacts
from graftline.recipe import Recipe, recipe
from graftline.runtimes.chances.depth_chances import DepthChances
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.draft_engine import OwnCaches, usual_cost
from graftline.runtimes.draft_reader import Reader
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.engine import Engine
from graftline.runtimes.resources import Resources
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Floats, Ints, Scores, call_starts

COSTS = Costs({1: 20.0, 2: 22.0, 4: 24.0, 8: 30.0, 16: 45.0, 32: 80.0}, {})
"""About fp32 on two cores."""
MASK = 40
"""The draft knows one id more than the target."""
Law = Callable[[Ints], Floats]
"""What a draft's row says of the (position, token) pairs that it sees."""


def trained(like: ToySession, skill: int = 9) -> Law:
    """A model trained to fill masks: the i-th says what `like` would write i tokens on, in `skill`
    of ten contexts, and something else in the others."""

    def law(seen: Ints) -> Floats:
        tokens = seen[:, 1].tolist()
        masks = next((n for n in range(len(tokens)) if tokens[-1 - n] != MASK), len(tokens))
        text = tokens[: len(tokens) - masks]
        assert MASK not in text, "a mask was left among the text"
        for _ in range(masks):
            text.append(int(like.logits_of(pairs(text)).argmax()))
        logits = like.logits_of(pairs(text))
        wrong = sum(text[-3:]) % 10 >= skill
        return np.append(np.roll(logits, 5) if wrong else logits, np.float32(-9))

    return law


def untrained(like: ToySession) -> Law:
    """Takes a mask for any other token: only the first row is good."""
    good = trained(like)

    def law(seen: Ints) -> Floats:
        if seen[-1, 1] != MASK:
            return good(seen)
        return np.random.default_rng(len(seen)).normal(size=MASK + 1).astype("f4")

    return law


def pairs(tokens: Sequence[int]) -> Ints:
    return np.stack([np.arange(len(tokens)), np.asarray(tokens)], axis=1)


class Filling(ToySession):
    """The session of a draft on caches of its own."""

    def __init__(self, law: Law, **session: Any) -> None:
        self.law = law
        super().__init__(**{"vocabulary": MASK + 1, **session})
        self.facts = replace(self.facts, mask_token=MASK)

    def logits_of(self, seen: Ints) -> Floats:
        return self.law(seen)


class OwnDraft(OwnCaches):
    """Proves, at every call, what lies in its cache behind the text."""

    def __init__(self, law: Law, step: float = 5.0, **session: Any) -> None:
        super().__init__(Filling(law, **session), step, 0.9)
        self.sizes: list[tuple[int, int]] = []
        """Rows, and those whose scores were asked for, of every call."""
        self.text: list[int] = []

    def follow(self, row: int, length: int, tokens: Sequence[int], asked: int = 1) -> Scores:
        self.sizes.append((len(tokens), asked))
        self.text = [*self.text[:length], *tokens]
        scores = super().follow(row, length, tokens, asked)
        slots = self.session._slots[0, : len(self.text)]  # type: ignore[attr-defined]
        assert slots.tolist() == pairs(self.text).tolist()
        assert scores.logits.shape[:2] == (1, asked)
        return scores


class SharedDraft:
    """A draft on the target's slots, whatever sequence of the batch."""

    shares = True
    rows_cost = staticmethod(usual_cost)

    def __init__(self, target: ToySession, law: Law, step: float = 5.0) -> None:
        self.target, self.law, self.step, self.capacity = target, law, step, target.capacity
        self.agreement = 0.9
        self.facts = replace(target.facts, vocabulary=MASK + 1, mask_token=MASK)
        self.sizes: list[tuple[int, int]] = []

    def follow(self, row: int, length: int, tokens: Sequence[int], asked: int = 1) -> Scores:
        self.sizes.append((len(tokens), asked))
        assert length >= self.target.lengths[row], "a committed slot"
        behind = length + np.arange(len(tokens))
        assert behind[-1] < self.capacity
        slots = self.target._slots[row]
        slots[behind] = np.stack([behind, np.asarray(tokens)], axis=1)
        ends = length + len(tokens) - np.arange(asked)[::-1]
        logits = np.stack([self.law(slots[:end]) for end in ends])[None]
        return Scores(logits.argmax(-1), logits)


Make = Callable[[ToySession], Any]
TRAINED: dict[str, Make] = {
    "own": lambda target: OwnDraft(trained(target)),
    "shared": lambda target: SharedDraft(target, trained(target)),
}


def engine_of(
    make: Make, chosen: Recipe, costs: Costs | None, **session: Any
) -> tuple[Engine, list[Any]]:
    """An engine, and the drafts that it will have opened."""
    target, drafts = ToySession(**session), list[Any]()

    def opened() -> Any:
        drafts.append(make(target))
        return drafts[-1]

    resources = Resources(draft=opened, vocabulary=target.facts.vocabulary)
    return Engine(target, None, {"eos_token_id": 0}, chosen, costs, resources=resources), drafts


def policy(rule: str = "point-mass", drafter: str = "parallel-draft", **options: object) -> Recipe:
    return Recipe(f"{rule}{drafter}{options}", "", "", True, (), "", drafter, rule, options)


def drafter_of(engine: Any, **options: object) -> Any:
    return make_drafter("parallel-draft", options, Resources(draft=lambda: engine, vocabulary=40))


@pytest.mark.parametrize("costs", [None, FLAT, COSTS], ids=["fixed", "flat", "fp32"])
@pytest.mark.parametrize("caches", ["own", "shared"])
@pytest.mark.parametrize("name", ["pard", "gad"])
def test_greedy_output_is_plains(
    prompts: list[list[int]], name: str, caches: str, costs: Costs | None
) -> None:
    """Alone, in a ragged batch, and where sequences wait for a place."""
    plain = Engine(ToySession(), None, {}, recipe("plain"), costs)
    engine, _ = engine_of(TRAINED[caches], recipe(name), costs)
    options: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True}
    expected = [plain.generate(prompt, **options).tokens for prompt in prompts[:6]]
    alone = [engine.generate(prompt, **options) for prompt in prompts[:6]]
    assert [r.tokens for r in alone] == expected
    assert sum(r.stats.steps for r in alone) < 0.5 * 6 * 39
    ragged = engine.generate(prompts[:3], **options)
    assert [r.tokens for r in ragged] == expected[:3]
    waiting = engine.generate(prompts[:6], batch=2, **options)
    assert [r.tokens for r in waiting] == expected


@pytest.mark.parametrize("caches", ["own", "shared"])
def test_a_draft_is_one_call_however_long(prompts: list[list[int]], caches: str) -> None:
    """Its rows: what the target chose since the last one, and masks for all but one token."""
    engine, drafts = engine_of(TRAINED[caches], policy(rows=6), None)
    result = engine.generate(prompts[1], max_new_tokens=60, ignore_eos=True)
    (sizes,) = [draft.sizes for draft in drafts if draft.sizes]
    assert len(sizes) == result.stats.steps
    assert {asked for _, asked in sizes[:-6]} == {5}
    if caches == "own":
        assert sizes[0] == (len(prompts[1]) + 1 + 4, 5)
        assert sum(rows - asked + 1 for rows, asked in sizes) <= len(prompts[1]) + 60
    else:
        assert all(rows == asked for rows, asked in sizes)


def test_no_mask_is_read_as_text_after_a_rejected_draft() -> None:
    """Every answer is that of an engine which has read the same text and nothing else."""
    like = ToySession()
    reader = Reader(OwnDraft(trained(like)))
    text = [3, 1, 2]
    reader.start(text)
    random = np.random.default_rng(2)
    for turn in range(12):
        fresh = Reader(OwnDraft(trained(like)))
        fresh.start(text)
        if turn % 3 == 2:
            assert np.array_equal(reader.read([7]).logits, fresh.read([7]).logits)
        else:
            found = reader.fill(MASK, 1 + turn % 5).logits
            assert np.array_equal(found, fresh.fill(MASK, 1 + turn % 5).logits)
        chosen = random.integers(0, 40, 1 + turn % 4).tolist()
        reader.append(chosen)
        text += chosen
        assert reader.unread == len(chosen) - 1
    reader.fill(MASK, 3)
    reader.append([5, 5])
    reader._held += 1  # as if the slot of a mask held text
    with pytest.raises(AssertionError, match="left among the text"):
        reader.fill(MASK, 3)


def test_calls_are_cut_so_that_the_last_holds_all_that_are_asked() -> None:
    assert call_starts(5, 1, 4) == [0, 4]
    assert call_starts(8, 1, 4) == [0, 4]
    assert call_starts(9, 3, 4) == [0, 4, 6]
    assert call_starts(9, 6, 4) == [0, 3]
    assert call_starts(6, 6, 4) == [0]
    draft = OwnDraft(trained(ToySession()))
    reader = Reader(draft)
    reader.start([1])
    assert reader.fill(MASK, 4).argmax.shape == (1, 4)  # nothing before what is asked
    reader.append(list(range(1, 39)) * 2)
    assert reader.fill(MASK, 40).argmax.shape == (1, 40)


def test_masks_write_what_one_token_at_a_time_would() -> None:
    """A perfect filler drafts the target's own text."""
    target = ToySession(odd=10**9)
    drafter = drafter_of(OwnDraft(trained(target, skill=10)), rows=9)
    text = [3, 1, 2]
    drafter.start(text)
    tree = drafter.draft(Bid.free(9))
    for token in tree.tokens[1:].tolist():
        assert token == int(target.logits_of(pairs(text)).argmax())
        text.append(token)
    assert len(text) == 3 + 8
    assert drafter.reads == 2 + 8  # the two tokens before the last, and eight rows


def test_a_trained_draft_beats_writing_token_by_token(prompts: list[list[int]]) -> None:
    """Tokens of a pass, and milliseconds by the known costs, for the same text and the same draft;
    a row of the draft costs 5 ms, every further one of a call 2."""
    options: dict[str, Any] = {"max_new_tokens": 150, "ignore_eos": True}
    spent: dict[str, float] = {}
    passes: dict[str, int] = {}
    for drafter in ("parallel-draft", "draft-model"):
        engine, drafts = engine_of(TRAINED["shared"], policy(drafter=drafter, rows=12), COSTS)
        target = 0.0
        for prompt in prompts[:8]:
            result = engine.generate(prompt, **options)
            rows = 1 + result.stats.drafted / max(result.stats.steps, 1)
            target += result.stats.steps * COSTS.of(round(rows))
            passes[drafter] = passes.get(drafter, 0) + result.stats.steps
        calls = [rows for draft in drafts for rows, _ in draft.sizes]
        spent[drafter] = target + sum(5.0 * usual_cost(rows) for rows in calls)
    assert passes["parallel-draft"] < 0.9 * passes["draft-model"]
    assert spent["parallel-draft"] < 0.85 * spent["draft-model"]


@pytest.mark.parametrize("caches", ["own", "shared"])
def test_an_untrained_draft_fills_no_masks(prompts: list[list[int]], caches: str) -> None:
    """Only its first row is any good, so that is soon all that it is asked for, but for a try now
    and then."""
    make: dict[str, Make] = {
        "own": lambda target: OwnDraft(untrained(target)),
        "shared": lambda target: SharedDraft(target, untrained(target)),
    }
    engine, drafts = engine_of(make[caches], recipe("pard"), COSTS)
    for prompt in prompts[:6]:
        engine.generate(prompt, max_new_tokens=100, ignore_eos=True)
    asked = [asked for draft in drafts for _, asked in draft.sizes]
    late = asked[len(asked) // 2 :]
    assert len(late) > 50
    assert np.mean(late) < 1.1
    assert max(late) > 1


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
    drafter.draft(Bid.free(3))
    assert drafter.reads == 2 + 2
    assert drafter.debt() == 0.0


def test_room_and_unknown_ids_end_a_draft() -> None:
    engine = OwnDraft(trained(ToySession()), capacity=6)
    drafter = drafter_of(engine)
    drafter.start([1, 2, 3])
    assert len(drafter.draft(Bid.free(12))) == 1 + 3
    assert len(engine.text) <= 6
    drafter.start([1, 2, 3, 4, 5, 6])
    assert len(drafter.draft(Bid.free(12))) == 1
    assert drafter.reads == 0

    def mask_lover(seen: Ints) -> Floats:
        return np.eye(MASK + 1, dtype=np.float32)[MASK if len(seen) > 4 else 7]

    drafter = drafter_of(OwnDraft(mask_lover))
    drafter.start([1, 2, 3])
    assert drafter.draft(Bid.free(12)).tokens.tolist() == [3, 7, 7]


@pytest.mark.parametrize("caches", ["own", "shared"])
@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_drawn_drafts_keep_the_targets_distribution(rule: str, caches: str) -> None:
    """Chi-square over all sequences of three tokens, the last two drafted in one call; many seeds,
    and a draft far from the target."""

    def far(seen: Ints) -> Floats:
        logits = like.logits_of(np.where(seen == MASK, 1, seen))
        return np.append(np.roll(logits, 1) * 0.5, np.full(MASK + 1 - V, -2, np.float32))

    like = ToySession(vocabulary=V)
    make: dict[str, Make] = {
        "own": lambda target: OwnDraft(far),
        "shared": lambda target: SharedDraft(target, far),
    }
    engine, drafts = engine_of(make[caches], policy(rule, sampled=True, rows=3), None, vocabulary=V)
    prompt, sampling = [1, 2], Sampling(temperature=4.0)

    law = three_tokens(like, prompt, sampling)
    count = 1500
    assert drawn_as(law, engine, prompt, 4.0, count, tokens=4) > 1.9 * count
    assert sum(asked == 2 for draft in drafts for _, asked in draft.sizes) >= count


def test_every_token_is_drawn_from_its_own_row() -> None:
    target = ToySession()
    law = trained(target)
    drafter = drafter_of(OwnDraft(law), sampled=True, rows=3)
    drafter.start([1, 2])
    drafter.sample_with(Sampling(temperature=3.0), np.random.default_rng(0))
    first = np.zeros(40)
    for _ in range(2000):
        tree = drafter.draft(Bid.free(3))
        first[int(tree.tokens[2])] += 1
    row = law(pairs([1, 2, MASK]))[:40].astype(np.float64) / 3.0
    expected = np.exp(row) / np.exp(row).sum()
    assert tree.draws[1].probs == pytest.approx(expected)
    assert tree.draws[1].order == (2,)
    assert stats.chisquare(first, expected * 2000).pvalue > 1e-3


@pytest.mark.parametrize(
    ("named", "options", "message"),
    [
        (None, {}, "needs a mask token here; .* or name its id: the recipe's option mask"),
        (41, {}, "the mask token 41 is not among the 41 ids of the draft"),
        (40, {"mask": 99}, "the mask token 99 is not among"),
        (40, {"mask": -3}, "the mask token -3 is not among"),
        (40, {"length": "confidence"}, "leave out `length`"),
        (40, {"rows": 1}, "rows=1 is not valid"),
    ],
)
def test_bad_masks_and_options_are_refused(
    named: int | None, options: dict[str, object], message: str
) -> None:
    engine = OwnDraft(trained(ToySession()))
    engine.session.facts = DecoderFacts(41, 8, 1, 1, 1, 8, 512, mask_token=named)
    with pytest.raises(GraftlineError, match=message) as caught:
        drafter_of(engine, **options)
    assert "\n" not in str(caught.value)


def test_the_option_names_another_mask_than_the_checkpoint() -> None:
    engine = OwnDraft(lambda seen: np.zeros(MASK + 1, np.float32))
    drafter = drafter_of(engine, mask=17, rows=4)
    drafter.start([1, 2])
    drafter.draft(Bid.free(4))
    assert engine.text == [1, 2, 17, 17]
    other = drafter.fork()
    other.start([3])
    other.draft(Bid.free(3))
    assert engine.text[:2] == [3, 17]


def test_without_a_draft_engine_it_says_how_to_get_one() -> None:
    with pytest.raises(GraftlineError, match=r"parallel-draft needs a draft here; .*--draft int8"):
        make_drafter("parallel-draft", {})
