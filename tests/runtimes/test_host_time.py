"""The host's own work is counted: a slow rule or drafter is no reason to be slower than plain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from graftline.runtimes.control.account import Account
from graftline.runtimes.control.goodput import CALM, LONG, MODEST, NAP, Goodput
from graftline.runtimes.control.host_time import PATIENCE, WINDOW, HostTime
from graftline.runtimes.control.pacer import Pacer
from graftline.runtimes.control.step_pace import StepPace
from toy_session import FLAT, ToySession

from graftline.recipe import recipe, recipes
from graftline.runtimes import draft_reader, scheduler
from graftline.runtimes.control import account
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.control.paid import PaidGoodput
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
    for module in (scheduler, account):
        monkeypatch.setattr(module, "perf_counter", clock)
    for module in (scheduler, draft_reader):
        monkeypatch.setattr(module, "working", clock)
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
    pacer: Pacer
    if is_paid(drafter):
        pacer = PaidGoodput(FLAT, drafter, False)
    else:
        pacer = Goodput(FLAT, drafter.prior, drafter.branching)
    rule = Slow(clock, pause)
    prompt = np.random.default_rng(0).integers(1, 40, 10)
    one = Decoding(prompt, 400, frozenset(), drafter.fork(), rule)
    steps = scheduler.Scheduler(Timed(clock))
    steps.submit(one, scheduler.Lane(Account(pacer)))
    steps.step()
    began = clock.now
    steps.finish([one])
    return 1e3 * (clock.now - began), rule.drafted[1:]


def ignore(self: HostTime, step: float) -> float:
    return 0.0


@pytest.mark.parametrize(("name", "pause"), [("token-recycling", 60.0), ("draft-model", 300.0)])
def test_a_slow_rule_is_left_to_plain_decoding(
    name: str, pause: float, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = 399 * (FLAT.of(1) + 0.1)
    quick, drafted = spent(clock, name, 0.0)
    assert quick < 0.75 * plain
    assert np.mean(drafted) > 0.9
    slow, drafted = spent(clock, name, pause)
    assert slow < 1.35 * plain  # the first tries
    assert 1 <= sum(drafted) < 20
    bearable, drafted = spent(clock, name, 1.0)
    assert bearable < 0.85 * plain
    assert np.mean(drafted) > 0.9
    monkeypatch.setattr(HostTime, "surcharge", ignore)
    monkeypatch.setattr(StepPace, "dearer", 1.0)  # of a paid draft's step, this sees it too
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


def fed(plain: float, drafted: list[float]) -> HostTime:
    host = HostTime()
    for _ in range(WINDOW):
        host.record(False, plain)
    for milliseconds in drafted:
        host.record(True, milliseconds)
    return host


def test_the_surcharge_is_the_usual_difference() -> None:
    assert fed(0.5, []).surcharge(10.0) == 0.0
    assert fed(0.5, [300.0]).surcharge(10.0) == 0.0  # what happened once says nothing
    assert fed(0.5, [300.0, 2.5, 2.5]).surcharge(10.0) == pytest.approx(2.0)
    assert fed(0.5, [0.69] * 5).surcharge(10.0) == 0.0  # slight
    assert fed(0.5, [0.71] * 5).surcharge(10.0) == pytest.approx(0.21)
    assert fed(5.0, [1.0] * 5).surcharge(10.0) == 0.0
    assert fed(0.5, [9.0] * WINDOW + [0.5] * WINDOW).surcharge(10.0) == 0.0


def test_drafts_are_tried_again_as_dear_ones_are_forgotten() -> None:
    host = fed(0.5, [8.0, 8.0, 2.0, 2.0])
    told: list[float] = []
    for _ in range(5 * PATIENCE):
        host.record(False, 0.5)
        told.append(host.surcharge(10.0))
    assert sorted(told, reverse=True) == told
    assert told[0] > 3.0
    assert told[-1] == 0.0


def test_a_busy_machine_is_not_a_slow_rule(clock: Clock) -> None:
    """The account hands on times as they would be at the measured pace."""
    said: list[tuple[float, float]] = []

    class Listening(Goodput):
        def took(self, step: float, host: float, proposing: float | None = None) -> None:
            said.append((step, host))

    pacer = Account(Listening(FLAT, lambda _: (1.0,), False))
    pacer.begin(1)
    for _ in range(200):
        pacer.choose([(0, Tree.chain([1]))], 100)
        pacer.took(30.0, 0.6)
    assert said[0] == (30.0, 0.6)
    assert said[-1] == pytest.approx((10.0, 0.2), rel=0.05)


@pytest.mark.parametrize(("tokens", "steps"), [(1.0, 20), (8.0, 4)])
def test_the_machines_pace_is_known_after_as_much_time_in_long_steps(
    tokens: float, steps: int
) -> None:
    """A text is ten long steps of a draft model: it would be over before they had settled it."""

    class Expecting(Goodput):
        expected = (tokens, 10.0 * tokens)

    pacer = Account(Expecting(FLAT, lambda _: (1.0,), False))
    pacer.begin(1)
    for _ in range(steps):
        pacer.took(7.0 * tokens, 0.0)
    assert pacer._pace.value == pytest.approx(0.7, abs=0.05)


def test_drafts_that_take_longer_than_measured_are_given_up_and_tried_again() -> None:
    """Measured: 2 rows for 11 ms, 1 for 10. In use 2 take 20, which 1.5 tokens do not pay for."""
    pacer = Goodput(Costs({1: 10.0, 2: 11.0}, {}), lambda _: (1.0, 0.5), False)
    pacer.begin(1)
    chosen: list[int] = []
    for step in range(1500):
        if step % 7 == 6:
            pacer.choose([(0, Tree.chain([1]))], 100)  # nothing to propose
        else:
            chosen.append(pacer.choose([(1, Tree.chain([1, 2]))], 100))
        pacer.learn(0, [2] if step % 2 else [9])
        pacer.took({1: 10.0, 2: 20.0}[pacer.rows], 0.0, 0.0)
    assert chosen[0] == 2
    assert chosen[20:60] == [1] * 40
    assert 1 < chosen[60:].count(2) < 150


@pytest.mark.parametrize("pace", [0.01, 0.5, 1.5, 100.0])
def test_a_machine_that_is_slow_or_fast_as_a_whole_drafts_as_before(pace: float) -> None:
    pacer = Goodput(Costs({1: 10.0, 2: 11.0}, {}), lambda _: (1.0, 0.5), False)
    pacer.begin(1)
    for step in range(200):
        draft = step % 5 > 0
        rows = pacer.choose([(1, Tree.chain([1, 2] if draft else [1]))], 100)
        assert rows == 1 + draft
        pacer.learn(0, [2] if step % 2 else [9])
        pacer.took(pace * (10.0 if rows == 1 else 11.0), 0.0, 0.0)


def nap(pacer: Goodput, steps: int, proposing: float) -> list[bool]:
    """Whether each of so many steps asks for proposals, which take that long and never come true.
    """
    asked: list[bool] = []
    for step in range(steps):
        asked.append(pacer.asking)
        tree = Tree.chain([1, 2] if asked[-1] else [1])
        assert pacer.choose([(1, tree)], 100) == 1
        pacer.learn(0, [9])
        pacer.took(10.0, 0.1, proposing if asked[-1] else None)
        assert step < 2 * CALM or asked[-1] == (pacer._calm % NAP == 1)
    return asked


def test_dear_proposals_are_asked_for_now_and_then_while_none_is_scored() -> None:
    pacer = Goodput(Costs({1: 10.0, 2: 20.0}, {}), lambda _: (1.0, 0.1), False)
    pacer.begin(1)
    asked = nap(pacer, 100, 0.5)
    assert all(asked[:CALM])
    assert sum(asked[2 * CALM :]) == pytest.approx((100 - 2 * CALM) / NAP, abs=1)
    pacer.begin(1)
    assert pacer.asking  # another text may be easier


def test_after_long_without_a_draft_even_cheap_proposals_are_asked_for_seldom() -> None:
    pacer = Goodput(Costs({1: 10.0, 2: 20.0}, {}), lambda _: (1.0, 0.1), False)
    for _ in range(4):
        pacer.begin(1)
        for _ in range(LONG // 4):
            assert pacer.asking
            pacer.choose([(1, Tree.chain([1, 2]))], 100)
            pacer.took(10.0, 0.1, 0.01)
    pacer.begin(1)
    asked: list[bool] = []
    for _ in range(80):
        asked.append(pacer.asking)
        pacer.choose([(1, Tree.chain([1]))], 100)
        pacer.took(10.0, 0.1, 0.01 if asked[-1] else None)
    assert all(asked[:NAP])  # another text may be easier
    assert sum(asked[NAP:]) == pytest.approx(76 / (2 * NAP), abs=1)
    pacer._costs, pacer._steps, pacer._slopes = Costs({1: 10.0, 2: 10.1}, {}), [], []
    assert pacer.choose([(2, Tree.chain([1, 2]))], 100) == 1  # nobody believes in it
    pacer._evidence.clear()
    pacer._prior = lambda _: (1.0, 0.9)
    assert pacer.choose([(2, Tree.chain([1, 2]))], 100) == 2
    assert pacer.asking


def test_naps_end_with_the_first_draft_and_cheap_proposals_are_always_made() -> None:
    sure = Goodput(Costs({1: 10.0, 2: 10.1}, {}), lambda _: (1.0, 0.9), False)
    sure.begin(1)
    for _ in range(3 * CALM):
        assert sure.asking
        assert sure.choose([(1, Tree.chain([1, 2]))], 100) == 2
        sure.took(10.0, 0.1, 0.5)
    sure._calm = 3 * NAP + CALM + 1
    assert not sure.asking
    assert sure.choose([(1, Tree.chain([1, 2]))], 100) == 2
    assert sure.asking
    cheap = Goodput(Costs({1: 10.0, 2: 20.0}, {}), lambda _: (1.0, 0.1), False)
    cheap.begin(1)
    for _ in range(100):
        assert cheap.asking
        cheap.choose([(1, Tree.chain([1, 2]))], 100)
        cheap.took(10.0, 0.1, 0.9 * MODEST * 10.0)


@pytest.mark.parametrize("name", [r.name for r in recipes() if r.lossless and not r.needs])
def test_a_nap_changes_no_token(
    prompts: list[list[int]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a drafter keeps from its last proposal, it may be older than the step before."""
    engine = Engine(ToySession(), None, {}, recipe(name), FLAT)
    options: dict[str, Any] = {"max_new_tokens": 60, "ignore_eos": True}
    plain = [engine.generate(p, recipe="plain", **options).tokens for p in prompts[:3]]
    turn = iter(range(10**6))
    monkeypatch.setattr(Goodput, "asking", property(lambda _: next(turn) % 3 == 0))
    results = [engine.generate(p, **options) for p in prompts[:3]]
    assert [r.tokens for r in results] == plain
    assert next(turn) > 10 or name == "plain"


def test_keeping_the_times_costs_next_to_nothing() -> None:
    """Work, not time: sums of at most WINDOW numbers, whatever was decoded before."""
    host = HostTime()
    for step in range(1000):
        host.record(step % 2 == 0, 1.0)
    kept = [value for value in vars(host).values() if hasattr(value, "__len__")]
    assert max(map(len, kept)) == WINDOW
