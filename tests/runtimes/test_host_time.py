"""The host's own work is counted: a slow rule or drafter is no reason to be slower than plain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from toy_session import FLAT, ToySession

from graftline.recipe import recipe, recipes
from graftline.runtimes import joint_step, lane, scheduler
from graftline.runtimes.control.choose import Terms, choose
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.control.pace import HASTE, ONCE, PATIENCE, Pace
from graftline.runtimes.control.paid import Paid
from graftline.runtimes.control.speculation import BACKOFF, IDLE, Speculation, Track
from graftline.runtimes.decoding import Decoding
from graftline.runtimes.draft_engine import OwnCaches
from graftline.runtimes.draft_reader import Guess
from graftline.runtimes.drafter import is_paid
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.drafters.draft_model import DraftModel
from graftline.runtimes.engine import Engine
from graftline.runtimes.resources import Resources
from graftline.runtimes.rules.greedy import Greedy
from graftline.runtimes.session import Bools, Ints, Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree


@dataclass
class Clock:
    """Stands still but when somebody works; in seconds, as time.perf_counter."""

    now: float = 1.0

    def __call__(self) -> float:
        return self.now

    def work(self, milliseconds: float) -> None:
        self.now += milliseconds / 1e3


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (scheduler, joint_step):
        monkeypatch.setattr(module, "perf_counter", clock)
    return clock


@dataclass
class Timed(ToySession):
    """Takes as long as FLAT says, or `fixed` milliseconds a call."""

    clock: Clock
    fixed: float = 0.0
    vocabulary: int = 40

    def __post_init__(self) -> None:
        super().__init__(self.vocabulary)

    def score(
        self,
        tokens: Ints,
        depth: Ints | None = None,
        mask: Bools | None = None,
        counts: Any = None,
    ) -> Scores:
        self.clock.work(self.fixed or FLAT.of(tokens.shape[1]))
        return super().score(tokens, depth, mask, counts)

    def follow(self, row: int, length: int, tokens: Any, asked: int = 1) -> Scores:
        self.clock.work(self.fixed)
        return super().follow(row, length, tokens, asked)


@dataclass
class Slow(Greedy):
    """Needs `pause` milliseconds for a tree with a draft."""

    clock: Clock
    pause: float
    drafted: list[bool] = field(default_factory=list[bool])

    def __post_init__(self) -> None:
        super().__init__()

    def judge(self, tree: Tree, scores: Scores, row: int) -> Verdict:
        self.drafted.append(len(tree) > 1)
        self.clock.work(0.1 + self.pause * (len(tree) > 1))
        return super().judge(tree, scores, row)


def spent(clock: Clock, name: str, pause: float) -> tuple[float, list[bool]]:
    """Milliseconds of decoding 400 tokens, and which steps drafted."""
    resources = Resources(draft=lambda: OwnCaches(Timed(clock, 1.0), 1.0), vocabulary=40)
    drafter = make_drafter(name, {}, resources)
    costs = replace(FLAT)
    paid = Paid(name, costs) if is_paid(drafter) else None
    control = Speculation(name, costs, drafter.prior, paid=paid)
    rule = Slow(clock, pause)
    prompt = np.random.default_rng(0).integers(1, 40, 10)
    one = Decoding(prompt, 400, frozenset(), drafter.fork(), rule)
    steps = scheduler.Scheduler(Timed(clock))
    steps.submit(one, lane.Lane(control))
    steps.step()
    began = clock.now
    steps.finish([one])
    return 1e3 * (clock.now - began), rule.drafted[1:]


@pytest.mark.parametrize(("name", "pause"), [("token-recycling", 60.0), ("draft-model", 300.0)])
def test_a_slow_rule_is_left_to_plain_decoding(
    name: str, pause: float, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = 399 * (FLAT.of(1) + 0.1)
    quick, drafted = spent(clock, name, 0.0)
    assert quick < 0.75 * plain
    assert np.mean(drafted) > 0.85
    slow, drafted = spent(clock, name, pause)
    assert slow < 1.35 * plain  # the first tries
    assert 1 <= sum(drafted) < 20
    bearable, drafted = spent(clock, name, 1.0)
    assert bearable < 0.85 * plain
    assert np.mean(drafted) > 0.85
    monkeypatch.setattr(Pace, "slower", lambda *_: 1.0)
    unseen, _ = spent(clock, name, pause)
    assert unseen > 1.3 * slow


def test_a_slow_drafter_is_left_to_plain_decoding(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its calls of the model are priced, what it does between them is not."""
    decide = DraftModel._worth  # pyright: ignore[reportPrivateUsage]

    def slowly(self: DraftModel, guess: Guess, drafted: int, paying: bool) -> bool:
        clock.work(50.0)
        return decide(self, guess, drafted, paying)

    monkeypatch.setattr(DraftModel, "_worth", slowly)
    taken, drafted = spent(clock, "draft-model", 0.0)
    assert sum(drafted) < 20
    assert taken < 1.6 * 399 * FLAT.of(1)


def paced(plain: float | None, drafted: list[float]) -> Pace:
    """Steps of one recipe that took so many times what their costs say."""
    pace = Pace()
    for _ in range(0 if plain is None else 5):
        pace.record("toy", "plain", 1, plain or 1.0)
    for ratio in drafted:
        pace.record("toy", "chain", 1, ratio)
    return pace


def test_drafted_steps_are_compared_with_plain_ones() -> None:
    def slower(plain: float | None, drafted: list[float]) -> float:
        return paced(plain, drafted).slower("toy", "chain", 1)

    assert slower(1.0, []) == 1.0
    assert slower(1.0, [30.0]) == ONCE, "what happened once may be a hitch"
    assert slower(None, [3.0] * 5) == 1.0, "who is slow as a whole is not known without plain ones"
    assert slower(1.0, [30.0, 1.0]) == 1.0
    assert slower(1.0, [30.0, 30.0]) == 30.0
    assert slower(1.0, [1.04] * 5) == 1.0, "little is nothing"
    assert slower(1.0, [0.3] * 5) == 1.0, "no draft is tried for what steps before it did not take"
    assert slower(2.0, [3.0] * 5) == 1.5
    assert slower(2.0, [2.0] * 5) == 1.0, "a machine that is slow as a whole slows both alike"
    assert slower(100.0, [300.0] * 5) == 1.0, "costs of another machine say nothing of this one"
    assert slower(1.0, [9.0] * 9 + [1.0] * 9) == 1.0


def test_one_recipe_says_nothing_of_another_nor_one_sequence_of_eight() -> None:
    """Twice as many sequences are taken to be alike until they have drafted themselves."""
    pace = paced(1.0, [9.0] * 5)
    assert pace.slower("toy", "chain", 2) == 9.0
    for _ in range(9):
        pace.record("toy", "chain", 2, 1.0)
    assert pace.slower("toy", "chain", 2) == 1.0
    assert pace.slower("toy", "chain", 1) == 9.0
    assert pace.slower("other", "chain", 1) == 1.0
    assert pace.slower("toy", "tree", 1) == 1.0
    assert pace.slower("toy", "chain", 8) == 1.0


def test_drafts_are_tried_again_the_later_the_slower_they_were() -> None:
    def waits(ratio: float, tries: int) -> list[int]:
        pace, found = paced(1.0, [ratio] * 2), list[int]()
        for _ in range(tries):
            found.append(0)
            while pace.slower("toy", "chain", 1) > 1.0:
                pace.record("toy", "plain", 1, 1.0)
                found[-1] += 1
            pace.record("toy", "chain", 1, ratio)
        return found

    waited = [HASTE, 4 * HASTE, PATIENCE, PATIENCE]
    assert waits(2.0, 4) == pytest.approx(waited, rel=0.07)
    assert waits(8.0, 4) == pytest.approx([7 * wait for wait in waited[:4]], rel=0.07)


def test_one_quick_try_ends_a_charge_and_one_slow_plain_step_does_not() -> None:
    pace = paced(1.0, [8.0] * 9)
    pace.record("toy", "plain", 1, 8.0)
    assert pace.slower("toy", "chain", 1) > 7.0
    pace.record("toy", "chain", 1, 1.0)
    assert pace.slower("toy", "chain", 1) == 1.0


def test_a_charge_ends_when_plain_steps_have_become_as_slow() -> None:
    pace = paced(1.0, [2.0] * 5)
    assert pace.slower("toy", "chain", 1) == 2.0
    for _ in range(5):
        pace.record("toy", "plain", 1, 2.0)
    assert pace.slower("toy", "chain", 1) == 1.0


def test_drafts_that_take_longer_than_measured_are_given_up_and_tried_again() -> None:
    """Measured: 2 rows for 11 ms, 1 for 10. In use 2 take 20, which 1.5 tokens do not pay for."""
    chosen = decided(lambda rows: {1: 10.0, 2: 20.0}[rows], 1500)
    assert chosen[0] == 2
    tries = [step for step, rows in enumerate(chosen) if rows == 2 and step > 10]
    assert tries[0] < 20, "it may have been a hitch"
    assert all(after - before > 100 for before, after in pairwise(tries[3:]))
    assert 4 < len(tries) < 16


@pytest.mark.parametrize("pace", [0.01, 0.5, 1.5, 100.0])
def test_a_machine_that_is_slow_or_fast_as_a_whole_drafts_as_before(pace: float) -> None:
    chosen = decided(lambda rows: pace * (10.0 if rows == 1 else 11.0), 200)
    assert set(chosen) == {2}


def decided(true: Callable[[int], float], steps: int) -> list[int]:
    """Rows where a draft of one token, accepted every other time, is proposed in four steps of
    five, and steps take what `true` says."""
    costs = Costs({1: 10.0, 2: 11.0}, {})
    control = Speculation("toy", costs, lambda _: (1.0, 0.5))
    track, terms, chosen = Track(), Terms(1, 100, 256, 0.002), list[int]()
    for step in range(steps):
        rows = 1
        if step % 5:
            tree = Tree.chain([1, 2])
            offer = control.offer(0, 1, tree, terms)
            rows = choose([offer], 1, costs.of, 1).rows.get(0, 1)
            control.chose(track, 1, tree, rows)
            chosen.append(rows)
        control.learn(track, [2] if step % 2 else [9])
        costs.pace.record("toy", "chain" if rows > 1 else "plain", 1, true(rows) / costs.of(rows))
    return chosen


def test_a_busy_machine_changes_what_is_expected() -> None:
    pace = Pace()
    for _ in range(60):
        pace.step("plain", 3.0)
    assert pace.value == pytest.approx(3.0, rel=0.05)
    pace.step("plain", 500.0)
    assert pace.value < 3.5, "a hitch is hardly noticed"


def test_proposals_are_asked_for_now_and_then_while_none_is_scored() -> None:
    control = Speculation("toy", Costs({1: 10.0, 2: 20.0}, {}), lambda _: (1.0, 0.1))

    def asked(steps: int) -> list[bool]:
        """Whether each of so many steps without a draft asks for proposals."""
        told: list[bool] = []
        for _ in range(steps):
            told.append(control.asking)
            control.stepped(drafted=False)
        return told

    told = asked(3 * IDLE)
    assert all(told[:IDLE])
    assert sum(told[IDLE:]) == 2 * IDLE // BACKOFF
    control.stepped(drafted=True)
    assert all(asked(IDLE)), "the first draft ends it"
    control.stepped(drafted=True)
    assert control.asking, "another text may be easier"


@pytest.mark.parametrize("name", [r.name for r in recipes() if r.lossless and not r.needs])
def test_a_nap_changes_no_token(
    prompts: list[list[int]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a drafter keeps from its last proposal, it may be older than the step before."""
    engine = Engine(ToySession(), None, {}, recipe(name), FLAT)
    options: dict[str, Any] = {"max_new_tokens": 60, "ignore_eos": True}
    plain = [engine.generate(p, recipe="plain", **options).tokens for p in prompts[:3]]
    turn = iter(range(10**6))
    monkeypatch.setattr(Speculation, "asking", property(lambda _: next(turn) % 3 == 0))
    results = [engine.generate(p, **options) for p in prompts[:3]]
    assert [r.tokens for r in results] == plain
    assert next(turn) > 10 or name == "plain"
