"""Every drafter, batch and controller emits exactly what plain decoding does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
from toy_session import ToySession

from graftline.errors import GraftlineError, RequestError
from graftline.recipe import Recipe
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.control.speculation import Speculation
from graftline.runtimes.decoding import Decoding
from graftline.runtimes.drafters import DRAFTERS, make_drafter
from graftline.runtimes.engine import Engine
from graftline.runtimes.lane import Lane
from graftline.runtimes.rules.greedy import Greedy
from graftline.runtimes.scheduler import Scheduler
from graftline.runtimes.session import Bools, Ints, Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

Make = Callable[..., Engine]
SPECULATIVE = ["prompt-lookup", "token-recycling", "suffix"]


def policy(drafter: str, **options: object) -> Recipe:
    return Recipe(f"{drafter}{options}", "", "", True, (), "", drafter, "point-mass", options)


@pytest.mark.parametrize("costs", [None, "flat"])
@pytest.mark.parametrize(
    "recipe", [*SPECULATIVE, policy("suffix", branch=True, rows=16), policy("suffix", rows=3)]
)
def test_a_drafter_changes_nothing_but_the_number_of_steps(
    make_engine: Make, prompts: list[list[int]], recipe: str | Recipe, costs: str | None
) -> None:
    engine = make_engine("plain", **({} if costs else {"costs": None}))
    steps = plain_steps = 0
    for prompt in prompts:
        plain = engine.generate(prompt, max_new_tokens=60, ignore_eos=True)
        drafted = engine.generate(prompt, max_new_tokens=60, ignore_eos=True, recipe=recipe)
        assert drafted.tokens == plain.tokens
        assert len(drafted.tokens) == 60
        steps, plain_steps = steps + drafted.stats.steps, plain_steps + plain.stats.steps
    assert steps < 0.9 * plain_steps


@pytest.mark.parametrize("recipe", ["plain", *SPECULATIVE, policy("suffix", branch=True)])
@pytest.mark.parametrize("ignore_eos", [False, True])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "seed": 3, "top_p": 0.95}])
def test_a_ragged_batch_equals_one_by_one(
    make_engine: Make,
    prompts: list[list[int]],
    recipe: str | Recipe,
    ignore_eos: bool,
    settings: dict[str, float],
) -> None:
    """Row b of a seeded batch has its own generator; only row 0 can be compared when sampling."""
    engine = make_engine()
    options = {"max_new_tokens": 30, "ignore_eos": ignore_eos, "recipe": recipe, **settings}
    batch = engine.generate(prompts, **options)
    plain = engine.generate(prompts, **{**options, "recipe": "plain"})
    assert [r.tokens for r in batch] == [r.tokens for r in plain]
    alone = [engine.generate(p, **options) for p in (prompts[:1] if settings else prompts)]
    assert [r.tokens for r in batch[: len(alone)]] == [r.tokens for r in alone]
    assert [r.finish_reason for r in batch[: len(alone)]] == [r.finish_reason for r in alone]


@pytest.mark.parametrize("settings", [{"temperature": 1.0}, {"temperature": 0.7, "top_k": 5}])
@pytest.mark.parametrize("recipe", [*SPECULATIVE, policy("suffix", branch=True)])
def test_one_seed_gives_the_same_sample_under_every_drafter(
    make_engine: Make, prompts: list[list[int]], recipe: str | Recipe, settings: dict[str, float]
) -> None:
    engine = make_engine()
    options = {"max_new_tokens": 40, "ignore_eos": True, "repetition_penalty": 1.1, **settings}
    for seed, prompt in enumerate(prompts):
        plain = engine.generate(prompt, seed=seed, **options)
        assert engine.generate(prompt, seed=seed, recipe=recipe, **options).tokens == plain.tokens
    other = engine.generate(prompts[-1], seed=99, **options)
    assert other.tokens != plain.tokens


@dataclass
class Garbage:
    """Random trees of random size, regardless of anything."""

    branching: ClassVar[bool] = True
    rows: int = 12
    signal: int = 1
    seed: int = 0
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def fork(self) -> Garbage:
        return Garbage(self.rows, seed=int(self.rng.integers(1 << 30)))

    def start(self, context: Sequence[int]) -> None:
        self.last = context[-1]

    def propose(self, budget: int) -> Tree:
        size = int(self.rng.integers(1, min(budget, self.rows) + 1))
        tokens = self.rng.integers(0, 40, size)
        tokens[0] = self.last
        parents = [-1, *(int(self.rng.integers(0, n)) for n in range(1, size))]
        return Tree(tokens, np.asarray(parents, np.int64))

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        self.last = verdict.next

    def prior(self, signal: int) -> Sequence[float]:
        return [0.9**row for row in range(self.rows)]


def test_a_drafter_of_garbage_changes_nothing(
    make_engine: Make, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DRAFTERS, "garbage", Garbage)  # type: ignore[arg-type]
    engine = make_engine(costs=None, vocabulary=40)
    plain = engine.generate(prompts, max_new_tokens=50, ignore_eos=True)
    for attempt in range(3):
        recipe = policy("garbage", seed=attempt)
        drafted = engine.generate(prompts, max_new_tokens=50, ignore_eos=True, recipe=recipe)
        assert [r.tokens for r in drafted] == [r.tokens for r in plain]
        assert sum(r.stats.drafted for r in drafted) > 500


@dataclass
class Oracle(Garbage):
    """Knows the true continuation and hides it among wrong branches: long accepted paths whose
    rows are not contiguous, which is what compaction is for."""

    truth: tuple[int, ...] = ()

    def fork(self) -> Oracle:
        return Oracle(self.rows, truth=self.truth)

    def start(self, context: Sequence[int]) -> None:
        self.last, self.at = context[-1], 0

    def propose(self, budget: int) -> Tree:
        tokens, parents, above = [self.last], [-1], 0
        for token in self.truth[self.at : self.at + 4]:
            for wrong in self.rng.integers(0, 40, 2):
                if wrong != token:
                    tokens.append(int(wrong))
                    parents.append(above)
            tokens.append(token)
            parents.append(above)
            above = len(tokens) - 1
        return Tree(np.asarray(tokens[: self.rows]), np.asarray(parents[: self.rows]))

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        self.last, self.at = verdict.next, self.at + len(verdict.path)


def test_scattered_paths_are_compacted(make_engine: Make, prompts: list[list[int]]) -> None:
    """Also where the last path runs past the limit: only what was emitted is committed."""
    plain = make_engine().generate(prompts, max_new_tokens=41, ignore_eos=True)
    session = ToySession()
    batch = [
        Decoding(np.asarray(prompt), 39, frozenset(), Oracle(13, truth=tuple(one.tokens)), Greedy())
        for prompt, one in zip(prompts, plain, strict=True)
    ]
    scheduler, lane = Scheduler(session), Lane(Speculation.fixed("", 13))
    for one in batch:
        scheduler.submit(one, lane)
    while scheduler.step():
        seated = {one.seat: one for one in batch if one.read and not one.done}
        lengths = session.lengths.tolist()
        assert all(lengths[seat] == one.length for seat, one in seated.items())
    assert [one.tokens for one in batch] == [r.tokens[:39] for r in plain]
    assert batch[0].steps <= 12
    assert batch[0].accepted[0] == batch[0].offered[0]


def test_plain_scores_one_row_per_token(make_engine: Make) -> None:
    engine = make_engine()
    result = engine.generate([1, 2, 3], max_new_tokens=9, ignore_eos=True)
    assert engine.session.calls == [(1, 1)] * 8  # type: ignore[attr-defined]
    assert (result.stats.steps, result.stats.mat, result.stats.drafted) == (8, 1.0, 0)
    assert result.stats.lossless


def test_exact_never_scores_a_single_row(make_engine: Make, prompts: list[list[int]]) -> None:
    engine = make_engine(row_invariant=False, capacity=60)
    plain = make_engine(capacity=60).generate(prompts[0], max_new_tokens=30, ignore_eos=True)
    for recipe in ["plain", *SPECULATIVE]:
        engine.session.calls.clear()  # type: ignore[attr-defined]
        result = engine.generate(
            prompts[0], max_new_tokens=30, ignore_eos=True, recipe=recipe, exact=True
        )
        assert min(n for _, n in engine.session.calls) >= 2  # type: ignore[attr-defined]
        assert result.tokens == plain.tokens
        assert result.stats.lossless
        assert not result.stats.row_invariant
    loose = engine.generate(prompts[0], max_new_tokens=30, recipe="token-recycling")
    assert loose.stats.drafted
    assert not loose.stats.lossless


@pytest.mark.parametrize("invariant", [False, True])
def test_exact_scores_branches_only_where_they_round_alike(
    make_engine: Make, prompts: list[list[int]], invariant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(row_invariant=invariant)
    masks: list[bool] = []
    score = engine.session.score

    def watched(
        tokens: Ints, depth: Ints | None, mask: Bools | None, counts: Sequence[int] | None
    ) -> Scores:
        masks.append(mask is not None)
        return score(tokens, depth, mask, counts)

    monkeypatch.setattr(engine.session, "score", watched)
    options = {"max_new_tokens": 60, "ignore_eos": True, "recipe": "token-recycling"}
    engine.generate(prompts[0], exact=True, **options)
    assert any(masks) == invariant
    engine.generate(prompts[0], **options)
    assert any(masks)


def test_exact_is_refused_where_nothing_makes_it_so(make_engine: Make) -> None:
    engine = make_engine(row_invariant=False)
    engine.session.exact_rows = None
    with pytest.raises(RequestError, match="speculation cannot be exact"):
        engine.generate([1, 2, 3], exact=True)


@pytest.mark.parametrize("recipe", ["plain", *SPECULATIVE])
@pytest.mark.parametrize("exact", [False, True])
def test_a_batch_may_fill_the_capacity_exactly(make_engine: Make, recipe: str, exact: bool) -> None:
    """Short and long prompts, early and late ends, and no slot to spare; the session asserts."""
    prompts = [[5, 6, 7] * 8, [9], [3, 1, 3, 1]]
    roomy = make_engine(capacity=500).generate(prompts, max_new_tokens=16)
    tight = make_engine(capacity=40, row_invariant=False)
    results = tight.generate(prompts, max_new_tokens=16, recipe=recipe, exact=exact)
    assert [r.tokens for r in results] == [r.tokens for r in roomy]


def test_a_session_without_trees_gets_chains(make_engine: Make, prompts: list[list[int]]) -> None:
    engine = make_engine(trees=False)
    plain = engine.generate(prompts, max_new_tokens=30)
    result = engine.generate(prompts, max_new_tokens=30, recipe="token-recycling")
    assert [r.tokens for r in result] == [r.tokens for r in plain]
    assert any(r.stats.accepted_per_depth for r in result)


def test_eos_ends_inside_an_accepted_path(make_engine: Make) -> None:
    engine = make_engine(vocabulary=12)
    reasons: set[str] = set()
    for start in range(1, 12):
        plain = engine.generate([start, 4, 5], max_new_tokens=80)
        for recipe in SPECULATIVE:
            again = engine.generate([start, 4, 5], max_new_tokens=80, recipe=recipe)
            assert (again.tokens, again.finish_reason) == (plain.tokens, plain.finish_reason)
        reasons.add(plain.finish_reason)
        if plain.finish_reason == "eos":
            assert plain.tokens.index(0) == len(plain.tokens) - 1
    assert "eos" in reasons


def test_token_recycling_says_what_is_missing(make_engine: Make) -> None:
    engine = make_engine()
    original = engine.session._answered  # type: ignore[attr-defined]

    def without_topk(logits: np.ndarray, rows: int) -> Scores:
        scores = original(logits, rows)
        return Scores(scores.argmax, scores.logits)

    engine.session._answered = without_topk  # type: ignore[attr-defined]
    with pytest.raises(GraftlineError, match=r"reduce-logits\{topk=8\}"):
        engine.generate([1, 2], recipe="token-recycling")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("prompt-lokup", {}, "did you mean 'prompt-lookup'"),
        ("suffix", {"row": 3}, "did you mean 'rows'"),
        ("suffix", {"rows": "3"}, "must be of type int"),
        ("token-recycling", {"width": 99}, "width=99"),
        ("prompt-lookup", {"longest": 0}, "longest=0"),
        ("none", {"rows": 3}, "no option 'rows'"),
    ],
)
def test_drafter_options_are_checked(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(GraftlineError, match=message):
        make_drafter(name, options)


def test_costs_interpolate() -> None:
    costs = Costs({1: 10.0, 4: 13.0, 8: 21.0}, {2: 12.0, 8: 30.0})
    assert costs.of(4) == 13.0
    assert costs.of(6) == pytest.approx(17.0)
    assert costs.of(16) == pytest.approx(37.0)
    assert costs.of(1, branching=True) == 10.0
    assert costs.of(5, branching=True) == pytest.approx(21.0)
    assert Costs.from_json(costs.to_json()) == costs
