"""Drafters that learn from text and from the target's answers: no output changes, steps fall."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from store_cases import SHELVES, answer, engine, paths, policy
from toy_session import FLAT, INT4, ToySession

from graftline.errors import GraftlineError
from graftline.recipe import Recipe
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.drafter import Drafter
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.drafters.aded import Aded
from graftline.runtimes.drafters.datastore import Datastore
from graftline.runtimes.drafters.input_copy import InputCopy
from graftline.runtimes.drafters.lookahead import Lookahead
from graftline.runtimes.drafters.merged import Merged
from graftline.runtimes.drafters.stand import Stand
from graftline.runtimes.engine import Engine
from graftline.runtimes.ngram_store import peak_prior
from graftline.runtimes.trees.packing import trim
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

RECIPES = ["aded", "aggressive", "lookahead", "rasd", "rest", "stand", "suffix-recycling"]


VARIANTS = [
    policy("lookahead", text=False, window=6, size=3),
    policy("lookahead", shared=True, rows=16),
    policy("stand", sampled=True, rows=12),
    policy("aded", explore=2.0, rows=5),
    policy("merged", first="aded", second="datastore", rows=9),
    policy("merged", first="lookahead", second="input-copy"),
]


# --- no output changes ------------------------------------------------------------------------


@pytest.mark.parametrize("costs", [None, FLAT, INT4], ids=["fixed", "flat", "int4"])
@pytest.mark.parametrize("chosen", [*RECIPES, *VARIANTS], ids=lambda c: getattr(c, "name", c))
def test_greedy_output_is_plain_s_alone_and_in_a_ragged_batch(
    prompts: list[list[int]], chosen: str | Recipe, costs: Costs | None
) -> None:
    options = {"max_new_tokens": 40, "ignore_eos": True}
    some = prompts[:3]
    plain = engine().generate(some, **options)
    used = engine(costs, [plain[0].tokens, plain[2].tokens])
    for prompt, expected in zip(some, plain, strict=True):
        assert used.generate(prompt, recipe=chosen, **options).tokens == expected.tokens
    batch = used.generate(some, recipe=chosen, **options)
    assert [r.tokens for r in batch] == [r.tokens for r in plain]


@pytest.mark.parametrize("chosen", [*RECIPES, *VARIANTS], ids=lambda c: getattr(c, "name", c))
def test_one_seed_gives_plain_s_sample(prompts: list[list[int]], chosen: str | Recipe) -> None:
    options = {"max_new_tokens": 30, "ignore_eos": True, "temperature": 0.9, "seed": 5}
    used = engine(None)
    for prompt in prompts[:3]:
        plain = used.generate(prompt, **options)
        assert used.generate(prompt, recipe=chosen, **options).tokens == plain.tokens


@pytest.mark.parametrize(
    ("chosen", "share"),
    [
        ("aded", 0.45),
        ("stand", 0.45),
        ("lookahead", 0.75),
        ("rest", 0.35),
        ("rasd", 0.35),
        ("suffix-recycling", 0.5),
    ],
)
def test_steps_fall_where_text_repeats(prompts: list[list[int]], chosen: str, share: float) -> None:
    options = {"max_new_tokens": 60, "ignore_eos": True}
    plain = engine().generate(prompts, **options)
    used = engine(FLAT, [r.tokens for r in plain])
    again = [used.generate(prompt, recipe=chosen, **options) for prompt in prompts]
    assert [r.tokens for r in again] == [r.tokens for r in plain]
    assert sum(r.stats.steps for r in again) < share * sum(r.stats.steps for r in plain)


def test_steps_fall_where_the_output_copies_the_prompt(prompts: list[list[int]]) -> None:
    """The prompt is what the target will say, with one token in twelve replaced."""
    options = {"max_new_tokens": 50, "ignore_eos": True}
    steps = 0
    for prompt in prompts[:4]:
        told = engine().generate(prompt, **options).tokens
        edited = [39 - t if i % 12 == 11 else t for i, t in enumerate(told)]
        steps += _replay(InputCopy(rows=8), edited, told)
    assert steps < 0.3 * 4 * 50


def _replay(drafter: Drafter, prompt: list[int], told: list[int]) -> int:
    """Steps in which `told` is emitted after `prompt` under greedy acceptance."""
    drafter.start(prompt)
    place, steps = 0, 0
    while place < len(told):
        tokens = drafter.propose(drafter.rows).tokens.tolist()
        rest = told[place:]
        kept = 0
        while kept + 1 < min(len(tokens), len(rest)) and tokens[1 + kept] == rest[kept]:
            kept += 1
        verdict = Verdict(tuple(range(kept + 1)), rest[kept])
        drafter.observe(Tree.chain(tokens), verdict, answer((0,) * 3), 0)
        place, steps = place + kept + 1, steps + 1
    return steps


def all_drafters() -> list[Drafter]:
    made = [(name, {}) for name in ("aded", "datastore", "input-copy", "lookahead", "stand")]
    made += [("merged", {}), ("merged", {"first": "datastore", "prune": True})]
    return [make_drafter(name, options, SHELVES) for name, options in made]


@pytest.mark.parametrize("drafter", all_drafters(), ids=lambda d: type(d).__name__)
def test_proposals_are_nested_within_budget_and_have_priors(drafter: Drafter) -> None:
    generator = np.random.default_rng(3)
    text = [*generator.integers(0, 4, 60).tolist(), 1, 2]
    drafter = drafter.fork()
    drafter.start(text)
    sizes: set[int] = set()
    root = 2
    for _ in range(30):
        large = drafter.propose(drafter.rows)
        sizes.add(len(large))
        assert large.tokens[0] == root
        assert len(set(paths(large))) == len(large)  # siblings differ
        for budget in (1, 2, 3, 7, 20, 99):
            small, cut = drafter.propose(budget), trim(large, budget)
            assert small.tokens.tolist() == cut.tokens.tolist()
            assert small.parents.tolist() == cut.parents.tolist()
        prior = drafter.prior(drafter.signal)
        assert prior[0] == 1.0
        assert list(prior) == sorted(prior, reverse=True)
        assert len(prior) >= len(large)
        verdict = Verdict((0,), int(generator.integers(0, 4)))
        best = generator.permuted(np.tile(np.arange(4), (len(large), 1)), axis=1)[:, :3]
        drafter.observe(large, verdict, answer(*best.tolist()), 0)
        root = verdict.next
    assert max(sizes) > 3


# --- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lookahead(rows=8), "rows=8 have no room"),
        (lambda: Lookahead(size=1), "size=1"),
        (lambda: Aded(explore=float("nan")), "explore=nan"),
        (lambda: Aded(width=0), "width=0"),
        (lambda: Stand(longest=1), "longest=1"),
        (lambda: Stand(width=9), "width=9"),
        (lambda: Datastore(shortest=17), "shortest=17"),
        (lambda: InputCopy(longest=0), "longest=0"),
        (lambda: Merged(first="suffix", second="suffix"), "two different drafters"),
        (lambda: Merged(first="merged"), "none of them merged"),
        (lambda: make_drafter("merged", {"first": "sufix"}), "did you mean 'suffix'"),
    ],
)
def test_options_that_do_not_fit_are_refused(make: Callable[[], Drafter], message: str) -> None:
    with pytest.raises(GraftlineError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_priors_of_peaks_rise_with_the_class() -> None:
    assert [peak_prior(s, 4)[1] for s in range(5)] == pytest.approx(
        [0.0, 0.075, 0.225, 0.375, 0.525]
    )


@pytest.mark.parametrize("rule", ["rejection", "point-mass"])
def test_drawn_drafts_leave_the_target_s_distribution(rule: str) -> None:
    """Every token's frequency against its chance given the tokens before it; the store is full of
    the very contexts that are sampled, so nearly every step has drafts that may stand or fall."""
    session = ToySession(vocabulary=10)
    drawn = Recipe("drawn", "", "", True, (), "", "stand", rule, {"sampled": True, "rows": 6})
    used = Engine(session, None, {}, drawn, None)
    prompt = [1, 2, 3]
    observed, expected = np.zeros((4, 10)), np.zeros((4, 10))
    accepted = 0
    for seed in range(60):
        results = used.generate(
            [prompt] * 25, seed=seed, max_new_tokens=5, temperature=2.0, ignore_eos=True
        )
        accepted += sum(sum(r.stats.accepted_per_depth) for r in results)
        for result in results:
            for place in range(1, 5):
                seen = np.asarray([*prompt, *result.tokens[:place]])
                logits = session.logits_of(np.stack([np.arange(len(seen)), seen], axis=1))
                chance = np.exp((logits - logits.max()).astype(np.float64) / 2.0)
                expected[place - 1] += chance / chance.sum()
                observed[place - 1, result.tokens[place]] += 1
    assert accepted > 500
    # 4 x 9 degrees of freedom: above 75 in one of 7000 trials
    assert float(((observed - expected) ** 2 / expected).sum()) < 75
