"""A draft that fills masks: one call a draft, and no mask is ever text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mask_filling import (
    COSTS,
    MASK,
    TRAINED,
    Make,
    OwnDraft,
    SharedDraft,
    drafter_of,
    engine_of,
    pairs,
    policy,
    trained,
    untrained,
)
from scipy import stats
from three_tokens import V, drawn_as, three_tokens
from toy_drafts import draft_of
from toy_session import FLAT, ToySession

from graftline.errors import GraftlineError
from graftline.facts import DecoderFacts
from graftline.recipe import recipe
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.draft_engine import usual_cost
from graftline.runtimes.draft_reader import Reader
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.engine import Engine
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Floats, Ints, call_starts


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
            assert np.array_equal(reader.read([7]).scores().logits, fresh.read([7]).scores().logits)
        else:
            found = reader.fill(MASK, 1 + turn % 5).scores().logits
            assert np.array_equal(found, fresh.fill(MASK, 1 + turn % 5).scores().logits)
        chosen = random.integers(0, 40, 1 + turn % 4).tolist()
        reader.append(chosen)
        text += chosen
        assert reader.unread == len(chosen) - 1
    reader.fill(MASK, 3).scores()
    reader.append([5, 5])
    reader._held += 1  # as if the slot of a mask held text
    with pytest.raises(AssertionError, match="left among the text"):
        reader.fill(MASK, 3).scores()


def test_calls_are_cut_so_that_the_last_holds_all_that_are_asked() -> None:
    assert call_starts(5, 1, 4) == [0, 4]
    assert call_starts(8, 1, 4) == [0, 4]
    assert call_starts(9, 3, 4) == [0, 4, 6]
    assert call_starts(9, 6, 4) == [0, 3]
    assert call_starts(6, 6, 4) == [0]
    draft = OwnDraft(trained(ToySession()))
    reader = Reader(draft)
    reader.start([1])
    assert reader.fill(MASK, 4).scores().argmax.shape == (1, 4)  # nothing before what is asked
    reader.append(list(range(1, 39)) * 2)
    assert reader.fill(MASK, 40).scores().argmax.shape == (1, 40)


def test_masks_write_what_one_token_at_a_time_would() -> None:
    """A perfect filler drafts the target's own text."""
    target = ToySession(odd=10**9)
    drafter = drafter_of(OwnDraft(trained(target, skill=10)), rows=9)
    text = [3, 1, 2]
    drafter.start(text)
    tree = draft_of(drafter, Bid.free(9))
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
        tree = draft_of(drafter, Bid.free(3))
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
    draft_of(drafter, Bid.free(4))
    assert engine.text == [1, 2, 17, 17]
    other = drafter.fork()
    other.start([3])
    draft_of(other, Bid.free(3))
    assert engine.session.texts == [[1, 2, 17, 17], [3, 17]]


def test_without_a_draft_engine_it_says_how_to_get_one() -> None:
    with pytest.raises(GraftlineError, match=r"parallel-draft needs a draft here; .*--draft int8"):
        make_drafter("parallel-draft", {})
