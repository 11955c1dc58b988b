"""Sub-models of one draft: their caches stay true, and the one that is sure is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from sub_models import COSTS, MAKE, SubModel, calls, drafter_of, engine_of, nest, policy
from three_tokens import V, drawn_as, three_tokens
from toy_drafts import draft_of
from toy_session import FLAT, ToySession

from graftline.errors import GraftlineError
from graftline.recipe import Recipe, recipe
from graftline.runtimes.chances.calibration import Calibration
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.draft_reader import Reader
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.engine import Engine
from graftline.runtimes.nested_reader import NestedReader
from graftline.runtimes.resources import Resources
from graftline.runtimes.sampling import Sampling


@pytest.mark.parametrize("costs", [None, FLAT, COSTS], ids=["fixed", "flat", "fp32"])
@pytest.mark.parametrize("caches", ["own", "shared"])
@pytest.mark.parametrize("chosen", [recipe("s2d"), policy("greedy", rows=4)], ids=["s2d", "rows=4"])
def test_greedy_output_is_plains(
    prompts: list[list[int]], chosen: Recipe, caches: str, costs: Costs | None
) -> None:
    """Alone, in a ragged batch, and where sequences wait for a place."""
    plain = Engine(ToySession(), None, {}, recipe("plain"), costs)
    engine = engine_of(MAKE[caches], chosen, costs)
    options: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True}
    expected = [plain.generate(prompt, **options).tokens for prompt in prompts[:6]]
    results = [engine.generate(prompt, **options) for prompt in prompts[:6]]
    assert [r.tokens for r in results] == expected
    assert sum(r.stats.steps for r in results) < 0.6 * 6 * 39
    assert [r.tokens for r in engine.generate(prompts[:6], **options)] == expected
    assert [r.tokens for r in engine.generate(prompts[:6], batch=2, **options)] == expected


def walks(shared: bool) -> None:
    for seed in range(20):
        walk(ToySession() if shared else None, seed)


def walk(target: ToySession | None, seed: int) -> None:
    """Random questions to random sub-models, and random verdicts: after every question all blocks
    of the one that was asked hold the sequence and what was ahead."""
    random = np.random.default_rng(seed)
    context = [1, 2, 3]
    if target is not None:
        target.prefill([np.asarray(context[:-1])])
    engines = nest(target)
    reader = NestedReader.of(engines, 40)
    reader.start(context)
    for _ in range(40):
        ahead: list[int] = []
        for _ in range(int(random.integers(1, 6))):
            depth = int(random.integers(3))
            before = [len(e.calls) for e in engines]
            reader.ask(depth, ahead).scores()
            text = engines[depth].session.blocks.read(0, 2 * depth + 2)
            assert text == [*reader.tokens, *ahead]
            assert [len(e.calls) for e in engines] == [
                n + (place == depth) for place, n in enumerate(before)
            ]
            ahead.append(int(random.integers(1, 3)))
            if random.random() < 0.5:
                ahead = ahead[: int(random.integers(len(ahead) + 1))]
        accepted = ahead[: int(random.integers(len(ahead) + 1))]
        fresh = accepted or [5]
        if target is not None:
            rows = [reader.tokens[-1], *fresh[:-1]]
            target.score(np.asarray([rows]))
            target.commit([range(len(rows))])
        reader.append(fresh)


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_every_sub_model_reads_a_true_text(shared: bool) -> None:
    walks(shared)


@pytest.mark.parametrize("claim", ["overwritten", "filled"])
def test_a_claim_that_is_not_true_is_caught(monkeypatch: pytest.MonkeyPatch, claim: str) -> None:
    """A deeper one that does not hear of it, or believes that its own blocks were filled."""

    def ignored(self: Reader, ahead: Sequence[int]) -> None:
        pass

    wrong = ignored if claim == "overwritten" else Reader.filled
    monkeypatch.setattr(Reader, "overwritten", wrong)
    with pytest.raises(AssertionError, match=r"different texts|never filled"):
        walks(shared=False)


def test_a_deeper_one_reads_what_it_lacks_in_one_call_and_the_shallower_need_not() -> None:
    engines = nest(None)
    reader = NestedReader.of(engines, 40)
    reader.start([1, 2, 3, 4])
    for ahead in ([], [5], [5, 6]):
        reader.ask(0, ahead).scores()
    assert engines[0].calls == [4, 1, 1]
    assert reader.depths[2].unread == 3
    assert reader.depths[2].rows([5, 6, 7]) == 4
    reader.ask(2, [5, 6, 7]).scores()
    assert engines[2].calls == [7]
    assert [r.unread for r in reader.depths] == [0, 0, 0]
    assert [r.rows([5, 6, 7, 8]) for r in reader.depths] == [1, 1, 1]
    reader.ask(1, [5, 6, 7, 8]).scores()
    assert engines[1].calls == [1]
    assert [r.rows([5, 6, 7, 8, 9]) for r in reader.depths] == [1, 1, 2]


@pytest.mark.parametrize("price", [0.0, 0.28])
def test_sure_answers_stand_and_unsure_ones_are_passed_on(price: float) -> None:
    """The next deeper one is asked wherever it is expected to know better, by enough."""
    target = ToySession()
    target.prefill([np.asarray([1, 2])])
    drafter = drafter_of(nest(target))
    drafter.start([1, 2, 3])
    draft_of(drafter, Bid(12, (price + 0.02,) * 12, (0.02,) * 12))
    asked: list[tuple[int, ...]] = []
    for answers in drafter._answers:
        odds = [drafter._calibrations[p].of(g.confidence) for p, g, _ in answers]
        assert [stood for _, _, stood in answers].index(True) == int(np.argmax(odds))
        asked.append(tuple(place for place, _, _ in answers))
        for (place, _, _), chance in zip(answers[1:], odds, strict=False):
            assert drafter._calibrations[place].usual > chance + (0.1 if price else 0.0)
    assert {len(places) for places in asked} == ({1, 2} if price else {2, 3})


def test_a_call_that_costs_more_than_it_brings_is_not_made() -> None:
    target = ToySession()
    target.prefill([np.asarray([1, 2])])
    dear = drafter_of(nest(target, steps=(1.0, 400.0, 500.0)))
    dear.start([1, 2, 3])
    tree = draft_of(dear, Bid(12, (0.62,) * 12, (0.02,) * 12))  # 0.6 tokens a call of the whole one
    assert len(tree) > 1
    assert dear._asked[0] == 0
    assert all(place == 0 for answers in dear._answers for place, _, _ in answers[:1])
    nothing = drafter_of(nest(target))
    nothing.start([1, 2, 3])
    draft_of(nothing, Bid(12, (9.0,) * 12, (0.0,) * 12))
    assert len(nothing._answers) == 1  # one call was promised
    assert len(nothing._asked) == 1


def test_the_price_is_of_the_calls_that_were_made() -> None:
    target = ToySession()
    target.prefill([np.asarray([1, 2])])
    engines = nest(target)
    drafter = drafter_of(engines)
    drafter.start([1, 2, 3])
    draft_of(drafter, Bid.free(12))
    spent = sum(e.step * (1 + 0.4 * (rows - 1)) for e in engines for rows in e.calls)
    assert drafter.price(drafter.reads) == pytest.approx(spent)
    assert drafter.price(1) == 5.0


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_drawn_drafts_keep_the_targets_distribution(rule: str) -> None:
    """Chi-square over all sequences of three tokens, many seeds; sub-models far from the target."""
    chosen = policy(rule, sampled=True, rows=3)
    made: list[Sequence[SubModel]] = []

    def make(target: ToySession) -> Sequence[SubModel]:
        made.append(nest(target, (4, 6, 7), vocabulary=V, odd=2))
        for engine in made[-1]:
            engine.session.heat = 0.5
        return made[-1]

    engine = engine_of(make, chosen, None, vocabulary=V)
    session, prompt, sampling = ToySession(vocabulary=V), [1, 2], Sampling(temperature=4.0)
    law = three_tokens(session, prompt, sampling)
    count = 1500
    assert drawn_as(law, engine, prompt, 4.0, count) > 0.9 * count
    assert all(total > 0.1 * count for total in np.sum([calls(e) for e in made], axis=0))


def test_outcomes_are_what_was_seen() -> None:
    calibration = Calibration(0.5)
    for turn in range(2000):
        calibration.record(0.99 if turn % 4 else 0.1, hit=bool(turn % 4))
    outcomes = calibration.outcomes()
    assert sum(share for share, _ in outcomes) == pytest.approx(1.0)
    (low, low_chance), (high, high_chance) = outcomes[0], outcomes[9]
    assert low == pytest.approx(0.25, abs=0.03)
    assert high == pytest.approx(0.75, abs=0.03)
    assert low_chance < 0.05
    assert high_chance > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [({"length": "confidence"}, "leave out `length`"), ({"rows": 1}, "rows=1 is not valid")],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(GraftlineError, match=message):
        drafter_of(nest(None), **options)


def test_without_sub_models_it_says_how_to_get_them() -> None:
    with pytest.raises(GraftlineError, match="--draft int8"):
        make_drafter("sorted-draft", {})
    with pytest.raises(GraftlineError, match=r"needs depths here; .*--draft-depths 12,20"):
        make_drafter("sorted-draft", {}, Resources(draft=lambda: nest(None)[-1]))
