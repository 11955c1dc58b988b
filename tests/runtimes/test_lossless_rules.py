"""Rules for drawn drafts: their exact output law, and how much they accept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product

import numpy as np
import pytest
from all_outcomes import DEPTH, Branches, Prefix, Sketch, V, World, accepted, error, paths
from scipy import stats

from graftline.runtimes.acceptance.stochastic import Dice, StochasticRule
from graftline.runtimes.processors import Shaping
from graftline.runtimes.rules import block, k_sequential, make_rule, rejection
from graftline.runtimes.rules.block import Block, Contest, GreedyMultipathBlock
from graftline.runtimes.rules.greedy import Greedy
from graftline.runtimes.rules.k_sequential import KSequential
from graftline.runtimes.rules.rejection import Rejection
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Scores
from graftline.runtimes.shaping import ShapedScores
from graftline.runtimes.trees.packing import trim
from graftline.runtimes.verdict import Rule
from graftline.tree import Draws, Tree

RULES = (Rejection, KSequential, Block, GreedyMultipathBlock)
NAMES = ("rejection", "k-sequential", "block", "greedy-multipath-block")


def distinct(sketch: Sketch) -> None:
    """Two different children of the root, and two of the first of them."""
    first = sketch.draw(0, 2, replacement=False)[0]
    sketch.draw(first, 2, replacement=False)


def apart(sketch: Sketch) -> None:
    """Two independent draws at the root; the first goes on with two of its own, the other one."""
    first, second = sketch.draw(0, 2, replacement=True)
    sketch.draw(first, 2, replacement=True)
    if second != first:
        sketch.draw(second, 1, replacement=True)


def points_then_draws(sketch: Sketch) -> None:
    sketch.draw(sketch.put(0, 2), 2, replacement=True)
    sketch.draw(sketch.put(0, 1), 2, replacement=False)


def draws_then_points(sketch: Sketch) -> None:
    for node in sorted(set(sketch.draw(0, 2, replacement=True))):
        sketch.put(node, 2)
        sketch.put(node, 0)


DRAFTS: Mapping[str, Callable[[Sketch], None]] = {
    "chain": paths(1),
    "two paths": paths(2),
    "distinct children": distinct,
    "apart": apart,
    "points then draws": points_then_draws,
    "draws then points": draws_then_points,
}
WORLDS = (
    World(1, Sampling(1.0)),
    World(2, Sampling(0.8), shaping=Shaping(1.6, frequency_penalty=0.4)),
    World(3, Sampling(1.0, top_k=2), "near"),
    World(4, Sampling(1.0), "equal"),
    World(5, Sampling(0.7), "one-hot"),
    World(6, Sampling(1.0), "zeros"),
    World(7, Sampling(1.0, top_k=1), "disjoint"),
    World(8, Sampling(1.0, top_p=0.6), "tilted"),
)


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("kind", RULES)
def test_the_output_has_exactly_the_targets_law(kind: type[StochasticRule], draft: str) -> None:
    for world in WORLDS:
        assert error(kind, world, DRAFTS[draft]) < 1e-12, world


def test_contests_of_some_of_the_paths_keep_the_law() -> None:
    """Three paths: here two compete at the root, and the third is verified after them."""
    world = World(1, Sampling(1.0), "near")
    assert Contest.between(world.p(()), world.q(()), 3).entrants == 2
    assert error(GreedyMultipathBlock, world, paths(3)) < 1e-12


@pytest.mark.parametrize("rows", [2, 3, 4])
@pytest.mark.parametrize("kind", RULES)
def test_a_proposal_cut_after_any_row_keeps_the_law(
    kind: type[StochasticRule], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With distinct draws. Draws that share nodes must not be cut: that the second of two was
    kept would tell that it equals the first."""
    drawn = Sketch.tree
    monkeypatch.setattr(Sketch, "tree", lambda sketch: trim(drawn(sketch), rows))
    assert error(kind, WORLDS[0], distinct) < 1e-12


def break_residual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejection, "residual", lambda p, q: p)


def break_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k_sequential, "threshold", lambda p, q, k: 1.0)


def break_keeping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block, "keeping", lambda stage: stage.w)


def break_contest(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Contest.between
    monkeypatch.setattr(
        Contest,
        "between",
        lambda wanted, q, most: Contest(2, q, whole(wanted, q, most).rank),
    )


def break_proposal(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rejection, block):
        monkeypatch.setattr(module, "proposal", lambda draws, tokens, place: draws.probs)


@pytest.mark.parametrize(
    ("kind", "draft", "fault"),
    [
        (Rejection, "chain", break_residual),
        (Rejection, "distinct children", break_proposal),
        (KSequential, "two paths", break_threshold),
        (Block, "chain", break_keeping),
        (Block, "distinct children", break_proposal),
        (GreedyMultipathBlock, "two paths", break_contest),
    ],
)
def test_a_rule_made_wrong_is_caught(
    kind: type[StochasticRule],
    draft: str,
    fault: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault(monkeypatch)
    assert error(kind, WORLDS[0], DRAFTS[draft]) > 1e-3


@pytest.mark.parametrize("kind", RULES)
def test_a_draft_that_is_the_target_is_accepted_whole(kind: type[StochasticRule]) -> None:
    for draft in (paths(1), paths(2)):
        assert accepted(kind, WORLDS[3], draft) == pytest.approx(DEPTH, abs=1e-4)


def test_block_verification_accepts_no_less_than_rejection_on_a_chain() -> None:
    gains: list[float] = []
    for seed in range(12):
        world = World(seed, Sampling(1.0))
        gains.append(accepted(Block, world, paths(1)) - accepted(Rejection, world, paths(1)))
    assert min(gains) > -1e-12
    assert max(gains) > 0.01


def test_block_verification_accepts_no_less_on_any_one_draft() -> None:
    """On recorded chains of a larger vocabulary: the chance that the first i drafts stand, when
    they are all there is."""
    world = World(3, Sampling(1.0), "near", vocabulary=40)
    rng, larger = np.random.default_rng(0), 0
    for _ in range(12):
        sketch = Sketch(world, Dice(rng))
        node = 0
        for _ in range(4):
            node = sketch.draw(node, 1, replacement=False)[-1]
        tree = sketch.tree()
        for count in range(1, 5):
            begun = trim(tree, 1 + count)
            jointly, singly = (whole(kind, world, begun) for kind in (Block, Rejection))
            assert jointly >= singly - 1e-12
            larger += jointly > singly + 1e-3
    assert larger > 5


def whole(kind: type[StochasticRule], world: World, chain: Tree) -> float:
    """The chance that all of a chain stands."""
    dice = Branches()
    rule = kind(world.sampling, dice)
    scores = world.scores(chain)
    found = dice.outcomes(lambda: (chain, rule.judge(chain, scores, 0)))
    return sum(chance for chance, _, length in found if length == len(chain) - 1)


@pytest.mark.parametrize("draft", ["tilted", "near"])
def test_more_paths_accept_more(draft: str) -> None:
    """Two paths beat one under every rule, and the best of them beat trying one by one."""
    totals = np.zeros(6)
    for seed in range(4):
        world = World(seed, Sampling(1.0), draft)
        one = [accepted(kind, world, paths(1)) for kind in (Rejection, Block)]
        two = [accepted(kind, world, paths(2)) for kind in RULES]
        assert two[0] > one[0]  # recursive rejection, against rejection
        assert two[1] > one[0]  # k-sequential selection
        assert two[2] > one[1]  # block verification of one path after another
        assert two[3] > one[1]  # greedy multi-path block verification
        totals += [*one, *two]
    _, _, recursive, sequential, block_of_two, greedy = totals.tolist()
    assert greedy > block_of_two > recursive
    assert sequential > recursive


def test_the_threshold_is_the_smallest_that_keeps_the_residual_positive() -> None:
    rng = np.random.default_rng(4)
    for k in (2, 3, 7):
        p, q = rng.dirichlet(np.full(50, 0.5), 2)
        rho = k_sequential.threshold(p, q, k)
        assert 1.0 < rho < k
        one, less = k_sequential.beta(p, q, rho), k_sequential.beta(p, q, rho - 1e-3)
        assert 1 - (1 - one) ** k <= rho * one
        assert 1 - (1 - less) ** k > (rho - 1e-3) * less


def test_the_best_of_several_draws_has_the_contests_law() -> None:
    """By enumeration of the draws; where p is q, nobody competes."""
    p, q = np.array([0.7, 0.05, 0.05, 0.2]), np.array([0.15, 0.25, 0.35, 0.25])
    contest = Contest.between(p, q, 3)
    assert contest.entrants == 3
    law = np.zeros(4)
    for drawn in product(range(4), repeat=3):
        law[min(drawn, key=lambda t: int(contest.rank[t]))] += np.prod(q[list(drawn)])
    np.testing.assert_allclose(contest.q, law, atol=1e-15)
    assert Contest.between(q, q, 3).entrants == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("world", [WORLDS[i] for i in (0, 1, 2, 5, 6)], ids=lambda w: w.draft)
def test_sampled_output_has_the_targets_law(name: str, world: World) -> None:
    """Chi-square over the first two tokens, jointly, from real dice and whole steps."""
    rng = np.random.default_rng(9)
    rule = make_rule(name, world.sampling, np.random.default_rng(5))
    count = 1200
    seen: dict[Prefix, int] = {}
    for _ in range(count):
        tokens = two_tokens(rule, world, rng)
        seen[tokens] = seen.get(tokens, 0) + 1
    law = {t: world.p(())[t[0]] * world.p(t[:1])[t[1]] for t in product(range(V), repeat=2)}
    assert all(law[tokens] > 0 for tokens in seen)
    likely = [tokens for tokens, chance in law.items() if chance * count >= 5]
    observed = [seen.get(tokens, 0) for tokens in likely]
    expected = np.array([law[tokens] for tokens in likely])
    if len(likely) > 1:
        found = stats.chisquare(observed, expected / expected.sum() * sum(observed))
        assert float(found.pvalue) > 1e-3
    assert sum(observed) > 0.97 * count


def two_tokens(rule: Rule, world: World, rng: np.random.Generator) -> Prefix:
    sketch = Sketch(world, Dice(rng))
    paths(2)(sketch)
    tree = sketch.tree()
    tokens = tuple(rule.judge(tree, world.scores(tree), 0).tokens(tree))
    if len(tokens) == 1:  # a plain step
        root, shaper = Tree.chain(tokens), world.shaper()
        shaper.extend(tokens)
        logits = world.logits(tokens)[None, None]
        scores = ShapedScores(Scores(logits.argmax(-1), logits), root, shaper)
        tokens += tuple(rule.judge(root, scores, 0).tokens(root))
    return tokens[:2]


@pytest.mark.parametrize("name", NAMES)
def test_rows_off_the_path_are_not_read(name: str) -> None:
    """A law is computed where the walk goes: other rows may hold anything, here NaN."""
    q = np.array([0.0, 0.5, 0.5])
    tree = Tree(np.array([0, 1, 2]), np.array([-1, 0, 0]), draws={0: Draws(q, (1, 2))})
    logits = np.zeros((1, 3, V), np.float32)
    logits[0, 0] = [-99.0, 9.0, -99.0]  # the first draw stands
    logits[0, 2] = np.nan
    rule = make_rule(name, Sampling(1.0), np.random.default_rng(0))
    assert rule.judge(tree, Scores(logits.argmax(-1), logits), 0).path == (0, 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("standing", [0, 1, 2, 3, 4])
def test_a_path_ends_where_the_target_goes_another_way(name: str, standing: int) -> None:
    """Deeper than the laws above are summed: of four drafts as many stand as the target wants."""
    drafts = [1, 2, 1, 2]
    wanted = [*drafts[:standing], 0, 0, 0, 0, 0]
    logits = np.full((1, 5, V), -np.inf, np.float32)
    logits[0, range(5), wanted[:5]] = 0.0
    rule = make_rule(name, Sampling(1.0), np.random.default_rng(0))
    verdict = rule.judge(Tree.chain([0, *drafts]), Scores(logits.argmax(-1), logits), 0)
    assert (verdict.path, verdict.next) == (tuple(range(standing + 1)), 0)


@pytest.mark.parametrize("name", NAMES)
def test_temperature_zero_is_greedy(name: str) -> None:
    assert isinstance(make_rule(name, Sampling(), np.random.default_rng(0)), Greedy)


def test_dice_never_show_what_has_no_chance() -> None:
    class Edge:
        def random(self) -> float:
            return np.nextafter(1.0, 0.0)

    dice = Dice(Edge())  # type: ignore[arg-type]
    assert dice.draw(np.array([0.1, 0.2, 0.7 + 1e-17, 0.0, 0.0])) == 2
    assert not dice.coin(0.0)
    assert dice.coin(1.0)
