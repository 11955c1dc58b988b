"""Drafters that learn from text and from the target's answers: what they store, and that no output
changes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from toy_session import FLAT, INT4, ToySession

from graftline.errors import GraftlineError
from graftline.recipe import Recipe, recipe
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.drafter import Bid, Drafter
from graftline.runtimes.drafters import DRAFTERS, make_drafter
from graftline.runtimes.drafters.aded import Aded
from graftline.runtimes.drafters.datastore import CorpusIndex, Datastore
from graftline.runtimes.drafters.input_copy import InputCopy
from graftline.runtimes.drafters.lookahead import JacobiWindow, Lookahead, NgramPool, Shoot
from graftline.runtimes.drafters.merged import Merged
from graftline.runtimes.drafters.stand import Stand
from graftline.runtimes.drafters.suffix import Suffix
from graftline.runtimes.drafters.token_recycling import TokenRecycling
from graftline.runtimes.engine import Engine
from graftline.runtimes.ngram_store import NgramStore, peak_prior
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import Scores
from graftline.runtimes.text.corpus import read_corpus
from graftline.runtimes.trees.packing import trim
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

CORPUS = (np.array([5, 1, 2, 3, 4, 9]), np.array([7, 1, 2, 3, 8]), np.array([6, 1, 2, 3, 4]))
SHELVES = Resources(corpus=CORPUS)
RECIPES = ["aded", "aggressive", "lookahead", "rasd", "rest", "stand", "suffix-recycling"]


def policy(drafter: str, **options: object) -> Recipe:
    return Recipe(f"{drafter}{options}", "", "", True, (), "", drafter, "point-mass", options)


VARIANTS = [
    policy("lookahead", text=False, window=6, size=3),
    policy("lookahead", shared=True, rows=16),
    policy("stand", sampled=True, rows=12),
    policy("aded", explore=2.0, rows=5),
    policy("merged", first="aded", second="datastore", rows=9),
    policy("merged", first="lookahead", second="input-copy"),
]


def engine(costs: Costs | None = FLAT, corpus: Sequence[Sequence[int]] = ([1, 2],)) -> Engine:
    shelves = Resources(corpus=tuple(np.asarray(text, np.int64) for text in corpus))
    return Engine(
        ToySession(), None, {"eos_token_id": 0}, recipe("plain"), costs, resources=shelves
    )


def answer(*best: Sequence[int], shares: Sequence[float] = (0.6, 0.3, 0.1)) -> Scores:
    """Scores of one sequence whose row i has the candidates `best[i]`, with these probabilities."""
    ids = np.asarray([best])
    logits = np.log(np.asarray(shares[: ids.shape[-1]], np.float32))
    logits = np.tile(logits, (1, len(best), 1))
    return Scores(ids[..., 0], np.zeros((1, len(best), 20), np.float32), ids, logits)


def emit(drafter: Drafter, root: int, *tokens: int, best: Sequence[int] = (0, 0, 0)) -> None:
    """Plain steps: each chooses one of the tokens; the target's candidates are always `best`."""
    for token in tokens:
        drafter.observe(Tree.chain([root]), Verdict((0,), token), answer(best), 0)
        root = token


def paths(tree: Tree) -> list[tuple[int, ...]]:
    """For every row the tokens from below the root to it."""
    return [tuple(int(tree.tokens[n]) for n in tree.path_to(i)[1:]) for i in range(len(tree))]


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


# --- lookahead --------------------------------------------------------------------------------


def test_the_pool_keeps_the_newest_and_remembers_who_was_first() -> None:
    pool = NgramPool(2)
    pool.add((1, 2, 3), from_window=True)
    pool.add((1, 4, 5), from_window=False)
    pool.add((1, 2, 3), from_window=False)
    assert pool.after(1) == [((2, 3), True), ((4, 5), False)]
    pool.add((1, 6, 7), from_window=False)
    assert pool.after(1) == [((6, 7), False), ((2, 3), True)]
    assert pool.after(9) == []


def test_the_window_is_the_paper_s_mask_and_completes_n_grams() -> None:
    """W = 3, N = 4; the target always answers its row's number plus 100."""
    window = JacobiWindow(3, 4, [50])
    seen: list[tuple[int, ...]] = []
    for step in range(4):
        shoot = Shoot(7)
        rows = window.grow(shoot)
        if step == 2:
            above = shoot.parents
            # level 0 is the root and two to its right; levels 1 and 2 hang below their column
            assert above[:3] == [-1, 0, 1]
            assert above[3:6] == [0, 1, 2]
            assert above[6:9] == [3, 4, 5]
            assert rows == [6, 7, 8]
        columns = [level[1:] for level in window.levels]
        seen = window.advance(7, [100 + row for row in rows])
        if step < 2:
            assert seen == []
            assert len(window.levels) == step + 2
        else:
            assert [ngram[-1] for ngram in seen] == [100 + row for row in rows]
            assert [list(ngram[:3]) for ngram in seen[1:]] == [
                list(c) for c in zip(*columns, strict=True)
            ]
            assert seen[0][0] == 7
            assert len(window.levels) == 3


def told_by_successor(drafter: Lookahead, steps: int, rows: int = 99) -> int:
    """Tokens per `steps` steps of a target that says t + 1 after t, modulo 17; greedy."""
    root, emitted = 3, 0
    for _ in range(steps):
        tree = trim(drafter.propose(drafter.rows), rows)
        choice = ((tree.tokens + 1) % 17).tolist()
        node, path = 0, [0]
        while True:
            fits = [k for k in tree.children[node] if tree.tokens[k] == choice[node]]
            if not fits:
                break
            node = fits[0]
            path.append(node)
        scores = Scores(np.asarray([choice]), np.zeros((1, len(tree), 17), np.float32))
        drafter.observe(tree, Verdict(tuple(path), choice[node]), scores, 0)
        assert choice[node] == (root + len(path)) % 17
        root, emitted = choice[node], emitted + len(path)
    return emitted


def test_the_window_alone_finds_a_text_never_seen_before() -> None:
    """The prompt counts down, the target up: every accepted n-gram comes from the window."""
    drafter = Lookahead(text=False)
    drafter.start([*range(16, 2, -1)])
    assert told_by_successor(drafter, 20) > 40
    drafter.start([*range(16, 2, -1)])
    assert told_by_successor(drafter, 20, rows=10) == 20  # a window that was cut gives nothing


def test_a_window_that_is_cut_or_bears_nothing_pauses_ever_longer() -> None:
    drafter = Lookahead(text=False)
    drafter.start([3])
    offered = []
    for _ in range(60):
        offered.append(len(drafter.propose(32)) > 1)
        emit(drafter, 3, 3)  # the root alone was scored
    assert [i for i, was in enumerate(offered) if was] == [0, 9, 26, 59]
    drafter.start([3])
    assert len(drafter.propose(32)) > 1  # a new text starts anew
    offered = []
    for token in range(40):
        tree = drafter.propose(32)
        offered.append(len(tree) > 1)
        random = np.random.default_rng(token).integers(0, 1 << 40, (1, len(tree)))
        drafter.observe(tree, Verdict((0,), token), Scores(random, np.zeros((1, 1, 1))), 0)
    assert offered.count(False) == 8
    assert offered.index(False) == 24


def test_a_tree_that_is_not_its_own_teaches_the_window_nothing() -> None:
    """As in a merge: the rows are others, so their answers are not the window's."""
    drafter = Lookahead(text=False)
    drafter.start([3, 5])
    drafter._pool.add((5, 6, 7, 8), from_window=True)
    tree = drafter.propose(32)
    levels = [list(level) for level in drafter._window.levels]
    drafter._pause = 64
    other = Tree(tree.tokens[[0, *range(len(tree) - 1, 0, -1)]], np.arange(-1, len(tree) - 1))
    answers = Scores(np.full((1, len(tree)), 4), np.zeros((1, 1, 1), np.float32))
    drafter.observe(other, Verdict(tuple(range(len(tree))), 5), answers, 0)
    assert drafter._window.levels == levels
    assert len(drafter._pool.after(3)) == 0
    assert len(drafter.propose(32)) == 4  # the window pauses; the pool's n-gram is offered
    assert drafter._wait == 64  # and the n-gram was not taken for accepted


def test_a_shared_pool_outlives_the_request() -> None:
    ngrams = [1, 2, 3, 4, 5, 1]
    for shared in (False, True):
        drafter = Lookahead(shared=shared)
        first, second = drafter.fork(), drafter.fork()
        first.start(ngrams)
        second.start([9, 1])
        assert ((2, 3, 4) in paths(second.propose(32))) == shared
        assert (2, 3, 4) in paths(first.propose(32))


# --- stores of the target's answers -----------------------------------------------------------


def test_answers_are_averaged_then_forgotten_exponentially() -> None:
    store = NgramStore(width=2, horizon=2)
    store.learn((1,), [5, 6], [0.8, 0.2])
    store.learn((1,), [6, 7], [0.9, 0.1])
    known = store.find((1,))
    assert known is not None
    assert (known.tokens, known.seen) == ([6, 5], 2)
    assert known.probs == pytest.approx([0.55, 0.4])
    store.learn((1,), [5, 6], [1.0, 0.0])
    assert known.tokens == [5, 6]
    assert known.probs == pytest.approx([0.7, 0.275])  # half of the old, half of the new
    assert store.find((2,)) is None


def test_a_full_store_forgets_its_oldest_half() -> None:
    store = NgramStore(width=1, horizon=1, most=4)
    for token in range(5):
        store.learn((token,), [0], [1.0])
    assert [store.find((t,)) is not None for t in range(5)] == [False, False, True, True, True]


def test_aded_learns_every_row_and_searches_by_joint_probability() -> None:
    drafter = Aded(rows=6, explore=0.0)
    drafter.start([8, 7])
    tree = Tree(np.array([7, 1, 2, 4]), np.array([-1, 0, 0, 1]))
    told = answer((1, 2, 3), (4, 5, 6), (9, 5, 6), (10, 5, 6))
    drafter.observe(tree, Verdict((0,), 8), told, 0)  # all drafts rejected, and learned
    emit(drafter, 8, 7, best=(7, 11, 12))
    # after 8 7: 1 (.6), 2 (.3), 3 (.1); after 7 1: 4 (.36); after 1 4: 10 (.216); after 7 2: 9
    assert paths(drafter.propose(6)) == [(), (1,), (1, 4), (2,), (1, 4, 10), (1, 5)]
    assert drafter.signal == 1 + 2  # a peak of 0.6, seen once
    drafter.observe(drafter.propose(3), Verdict((0, 1, 2), 5), answer(*[(3, 4, 5)] * 3), 0)
    emit(drafter, 5, 4, best=(6, 3, 2))  # what follows 4 5, the last accepted and the next
    drafter.start([4, 5])
    assert paths(drafter.propose(2)) == [(), (6,)]
    wide = Aded(rows=6, explore=3.0)
    wide._matrix = drafter._matrix
    wide.start([7, 2])
    assert paths(wide.propose(4)) == [(), (9,), (5,), (6,)]


def test_aded_starts_from_the_tri_grams_of_the_prompt() -> None:
    for text in (True, False):
        drafter = Aded(text=text)
        drafter.start([1, 2, 3, 4, 1, 2, 5, 1, 2])
        # after 1 2 both 3 and 5 were seen, the later one no more often
        assert set(paths(drafter.propose(3))[1:]) == ({(3,), (5,)} if text else set())
        drafter.start([3])
        assert len(drafter.propose(3)) == 1


def test_stand_means_the_answers_of_accepted_rows_and_prefers_long_n_grams() -> None:
    drafter = Stand(rows=8, longest=3)
    drafter.start([8, 7])
    tree = Tree(np.array([7, 2, 1]), np.array([-1, 0, 0]))
    drafter.observe(tree, Verdict((0, 2), 7), answer((1, 2, 3), (9, 8, 6), (7, 5, 6)), 0)
    accepted = drafter._store.find((7, 1))
    assert accepted is not None
    assert accepted.tokens == [7, 5, 6]
    assert drafter._store.find((2,)) is None  # the rejected row
    emit(drafter, 7, 3, 7, best=(4, 5, 6))
    # one token back, after 7, the mean of two answers; two back, after 1 7, one answer
    after = drafter._store.find((7,))
    assert after is not None
    assert after.probs == pytest.approx([0.3, 0.3, 0.15, 0.15, 0.05, 0.05])
    drafter.start([1, 7])
    assert [path for path in paths(drafter.propose(8)) if len(path) == 1] == [(4,), (5,), (6,)]
    drafter.start([0, 7])
    assert {path for path in paths(drafter.propose(99)) if len(path) == 1} == {(1,), (4,), (2,)}


def test_stand_takes_the_tuned_tree() -> None:
    drafter = Stand()
    drafter.equip(Resources(tuned={"tree": [-1, 0, 0, 1, 3]}))
    drafter = drafter.fork()
    drafter.start([9])
    emit(drafter, 9, 9, best=(9, 4, 5))
    tree = drafter.propose(32)
    assert paths(tree) == [(), (9,), (4,), (9, 9), (9, 9, 9)]
    for wrong in ([0, 1], "tree", [-1, 5]):
        with pytest.raises(GraftlineError, match="graftline tune"):
            Stand().equip(Resources(tuned={"tree": wrong}))


def test_drawn_children_follow_the_stored_distribution_without_replacement() -> None:
    drafter = Stand(rows=6, sampled=True, seed=1)
    drafter.start([9])
    emit(drafter, 9, 9, best=(9, 4, 5))
    firsts: list[int] = []
    pairs: list[tuple[int, int]] = []
    for _ in range(4000):
        tree = drafter.propose(6)
        assert len(tree) == 6  # whatever was drawn, also where nothing is known
        assert tree.draws is not None
        root = tree.draws[0]
        assert root.probs[[9, 4, 5]] == pytest.approx([0.6, 0.3, 0.1])
        assert root.probs.sum() == pytest.approx(1.0)
        assert root.order == tuple(sorted(tree.children[0]))
        drawn = [int(tree.tokens[node]) for node in root.order]
        assert len(set(drawn)) == len(drawn)
        firsts.append(drawn[0])
        pairs.append((drawn[0], drawn[1]))
        for node, draws in tree.draws.items():
            assert draws.order == tree.children[node]
    share = np.bincount(firsts, minlength=10)[[9, 4, 5]] / 4000
    assert share == pytest.approx([0.6, 0.3, 0.1], abs=0.025)
    assert pairs.count((9, 4)) / 4000 == pytest.approx(0.6 * 0.3 / 0.4, abs=0.025)


def test_stores_outlive_requests_and_are_shared() -> None:
    for kind in (Aded, Stand):
        drafter = kind()
        one, other = drafter.fork(), drafter.fork()
        one.start([1, 2])
        emit(one, 2, 4, best=(3, 4, 5))
        other.start([1, 2])
        assert (3,) in paths(other.propose(8))


def test_a_graph_without_top_k_is_named() -> None:
    bare = Scores(np.zeros((1, 1), np.int64), np.zeros((1, 1, 9), np.float32))
    for drafter in (Aded(), Stand()):
        drafter.start([1, 2])
        with pytest.raises(GraftlineError, match=r"reduce-logits\{topk=8\}"):
            drafter.observe(Tree.chain([2]), Verdict((0,), 3), bare, 0)


# --- retrieval --------------------------------------------------------------------------------


def test_the_index_finds_the_longest_suffix_and_every_place_of_it() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        documents = [generator.integers(0, 3, generator.integers(1, 40)) for _ in range(3)]
        index = CorpusIndex(documents, longest=5, depth=4)
        texts = [document.tolist() for document in documents]
        for _ in range(30):
            context = generator.integers(0, 4, 8).tolist()
            length, low, high = index.match(context)
            ends = {n: _ends(texts, context[-n:]) for n in range(1, 6)}
            assert length == max((n for n in ends if ends[n]), default=0)
            if length:
                follow = [[*text[end:], -1][:4] for text, end in ends[length]]
                found = index.continuations(low, high, 1000)
                cut = [f[: f.index(-1) + 1] if -1 in f else f for f in found]
                assert sorted(cut) == sorted(f[:4] for f in follow)
                assert len(index.continuations(low, high, 2)) == min(2, len(follow))


def _ends(texts: list[list[int]], part: list[int]) -> list[tuple[list[int], int]]:
    size = len(part)
    return [(t, i + size) for t in texts for i in range(len(t)) if t[i : i + size] == part]


def test_retrieved_continuations_are_ranked_by_how_many_agree() -> None:
    drafter = Datastore(rows=6)
    drafter.equip(SHELVES)
    drafter = drafter.fork()
    drafter.start([11, 1, 2])
    assert paths(drafter.propose(6)) == [(), (3,), (3, 4), (3, 8), (3, 4, 9)]
    assert drafter.signal == 2
    assert paths(drafter.propose(3)) == [(), (3,), (3, 4)]
    emit(drafter, 2, 3, 8)
    assert len(drafter.propose(6)) == 1  # the end of a document
    emit(drafter, 8, 1)
    assert (len(drafter.propose(6)), drafter.signal) == (1, 0)  # one token is too short a match


def test_tokens_outside_the_corpus_match_nothing() -> None:
    drafter = Datastore(shortest=1)
    drafter.equip(SHELVES)
    for last in (10_000, 0, 10):
        drafter.start([1, 2, last])
        assert len(drafter.propose(8)) == 1


def test_a_datastore_without_a_corpus_says_what_to_give() -> None:
    for chosen in ("rest", "rasd"):
        with pytest.raises(GraftlineError, match="--corpus"):
            Engine(ToySession(), None, {}, recipe(chosen), None)


# --- several sources --------------------------------------------------------------------------


def test_merged_trees_share_prefixes_and_the_better_source_leads() -> None:
    drafter = make_drafter("merged", {"first": "suffix", "second": "token-recycling"}, SHELVES)
    assert isinstance(drafter, Merged)
    drafter = drafter.fork()
    drafter.start([1, 2, 3, 9, 1, 2])
    suffix, recycling = drafter._sources
    assert isinstance(suffix, Suffix)
    assert isinstance(recycling, TokenRecycling)
    emit(drafter, 2, 3, best=(3, 4, 5))
    emit(drafter, 3, 9, best=(9, 4, 5))
    emit(drafter, 9, 1, best=(1, 4, 5))
    emit(drafter, 1, 2, best=(2, 4, 5))
    own = [paths(source.propose(32)) for source in (suffix, recycling)]
    union = set(own[0]) | set(own[1])
    assert set(paths(drafter.propose(1000))) <= union
    merged = paths(drafter.propose(8))
    assert merged[1] == (3,)  # both sources say so
    assert (3, 9, 1, 2) in merged
    assert {(3,), (4,)} <= set(paths(drafter.propose(32)))  # the matrix alone knows 4


def test_merged_learns_which_source_to_trust() -> None:
    """The documents promise much and are wrong at every third token."""
    told = [2, 5, 1] * 9
    resources = Resources(corpus=(np.array([*told[:12], 3, 8, 8]),))
    drafter = make_drafter("merged", {"first": "datastore", "second": "token-recycling"}, resources)
    drafter.start(told[:12])
    leaders: list[int] = []
    orders: list[bool] = []
    for last, token in pairwise(told[11:]):
        tokens = drafter.propose(32).tokens.tolist()
        if last == 1 and 2 in tokens:  # the longest match says 3, the target 2
            leaders.append(drafter.signal & 1)
            orders.append(tokens.index(2) < tokens.index(3))
        drafter.observe(Tree.chain([last]), Verdict((0,), token), answer((token, 9, 10)), 0)
    assert (leaders[0], orders[0]) == (0, False)
    assert (leaders[-1], orders[-1]) == (1, True)
    other = drafter.fork()
    other.start(told[:12])
    tokens = other.propose(32).tokens.tolist()  # what was learned holds for other sequences
    assert tokens.index(2) < tokens.index(3)


def test_drafts_with_a_price_are_not_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    class Paid(Suffix):
        def draft(self, bid: Bid) -> Tree:
            return self.propose(bid.rows)

    monkeypatch.setitem(DRAFTERS, "paid", Paid)
    with pytest.raises(GraftlineError, match="merged: paid drafts with a model"):
        make_drafter("merged", {"first": "paid"}, SHELVES)


def test_pruning_keeps_retrieved_branches_that_the_drafter_agrees_with() -> None:
    for prune in (False, True):
        options = {"first": "datastore", "second": "token-recycling", "prune": prune}
        drafter = make_drafter("merged", options, SHELVES)
        drafter.start([1, 2])
        assert (3, 4) in paths(drafter.propose(32))  # nothing drafted yet: nothing pruned
        emit(drafter, 2, 1, 2, best=(5, 6, 7))
        assert ((3, 4) in paths(drafter.propose(32))) != prune


# --- copying the input ------------------------------------------------------------------------


def test_input_copy_starts_at_the_input_and_aligns_anew_after_a_mismatch() -> None:
    drafter = InputCopy(rows=4)
    drafter.start([1, 2, 3, 4, 5, 6, 2, 3, 7])
    assert drafter.propose(4).tokens.tolist() == [7, 1, 2, 3]
    emit(drafter, 7, 1, 2)
    assert drafter.propose(4).tokens.tolist() == [2, 3, 4, 5]
    assert drafter.signal == 2
    emit(drafter, 2, 9)  # 3 was replaced: go on after it
    assert drafter.propose(4).tokens.tolist() == [9, 4, 5, 6]
    assert drafter.signal == 8
    emit(drafter, 9, 3)  # occurs twice: not told where
    assert drafter.propose(4).tokens.tolist() == [3, 5, 6, 2]
    emit(drafter, 3, 7)  # occurs once, at the end
    assert (drafter.propose(4).tokens.tolist(), drafter.signal) == ([7], 0)
    emit(drafter, 7, 6, 2)
    assert drafter.propose(4).tokens.tolist() == [2, 3, 7]
    drafter.start([1, 2, 9, 2, 8, 1, 7])
    emit(drafter, 7, 4, 1, 2)  # 1 and 2 occur twice, 1 2 once
    assert drafter.propose(4).tokens.tolist() == [2, 9, 2, 8]
    assert drafter.signal == 2


# --- reading a corpus -------------------------------------------------------------------------


def encode(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_a_folder_of_texts_is_read_by_name(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.md").write_text("zwei ü", encoding="utf-8")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfeins")
    (tmp_path / "c.jsonl").write_text('{"text": "x"}\n\n{"prompt": "y\\n"}\n')
    (tmp_path / "ignored.bin").write_bytes(b"\xff")
    (tmp_path / "empty.txt").write_text("")
    read = read_corpus(tmp_path, encode)
    assert ["".join(chr(i) for i in ids) for ids in read] == ["eins", "zwei ü", "x", "y\n"]
    assert all(ids.dtype == np.int64 for ids in read)
    assert len(read_corpus(str(tmp_path / "a.txt"), encode)) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "grün".encode("latin-1"), "a.txt: byte 2 is not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\nx', "line 2 is not JSON"),
        ("a.jsonl", b'{"body": "x"}', 'line 1 has no text in a field "text" or "prompt"'),
        ("a.jsonl", b"[1]", "line 1 has no text"),
        ("a.md", b"", "no text in it"),
        ("a.pdf", b"x", r"not one of \.txt, \.md, \.jsonl"),
    ],
)
def test_a_bad_corpus_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(GraftlineError, match=message) as caught:
        read_corpus(tmp_path / name, encode)
    assert "\n" not in str(caught.value)


def test_a_missing_or_empty_or_locked_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GraftlineError, match="there is no such file or folder"):
        read_corpus(tmp_path / "none.txt", encode)
    with pytest.raises(GraftlineError, match="holds no file of"):
        read_corpus(tmp_path, encode)
    (tmp_path / "a.txt").write_text("x")
    if os.geteuid() != 0:
        (tmp_path / "a.txt").chmod(0)
        with pytest.raises(GraftlineError, match="cannot be read"):
            read_corpus(tmp_path, encode)


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
