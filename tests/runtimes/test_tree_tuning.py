"""Trees learned from data: better on steps that they have not seen, or not kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from toy_session import FLAT, INT4, ToySession
from tree_cases import CHEAP, spelled

from graftline.errors import GraftlineError
from graftline.runtimes.drafters.token_recycling import TokenRecycling, template
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import Scores
from graftline.runtimes.study.recorder import Recorder, Step
from graftline.runtimes.study.rehearsal import Rehearsal
from graftline.runtimes.study.tuned import Prior, tuned_prior
from graftline.runtimes.study.tuning import (
    beliefs,
    expected_rate,
    shaped,
    tune_priors,
    tune_template,
)
from graftline.runtimes.trees.learned import by_paths, by_rank, measured_accuracies, reach
from graftline.runtimes.trees.packing import trim
from graftline.runtimes.trees.static import PUBLISHED, static
from graftline.runtimes.trees.template import Ranks, Template
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

# -- trees from data


def recorded(count: int, seed: int = 0) -> list[Ranks]:
    """Steps whose third candidate is often right, and which go on well after it only."""
    rng = np.random.default_rng(seed)
    paths: list[Ranks] = []
    for _ in range(count):
        first = int(rng.choice(4, p=[0.3, 0.05, 0.45, 0.2]))
        if first == 3:
            paths.append(())
        elif first == 2 and rng.random() < 0.8:
            paths.append((2, 1, 0) if rng.random() < 0.6 else (2, 1))
        else:
            paths.append((first,))
    return paths


def test_accuracies_are_shares_of_what_reached_each_depth() -> None:
    paths: list[Ranks] = [(0, 1), (0,), (2,), ()]
    counted = [[0.5, 0.0, 0.25], [0.0, 1 / 3, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    assert measured_accuracies(paths, [0.6, 0.3, 0.1], 4, weight=0.0) == counted
    first = [(2 + 4 * 0.6) / 8, 4 * 0.3 / 8, (1 + 4 * 0.1) / 8]
    second = [4 * first[0] / 7, (1 + 4 * first[1]) / 7, 4 * first[2] / 7]
    held = measured_accuracies(paths, [0.6, 0.3, 0.1], 4, weight=4.0)
    assert held[0] == pytest.approx(first)
    assert held[1] == pytest.approx(second)


def test_a_learned_tree_accepts_more_of_its_data_than_any_published_one() -> None:
    paths = recorded(2000)
    learned = by_paths(paths, measured_accuracies(paths, [0.1] * 10, 5, 0.0), 26, weight=0.0)
    for name in PUBLISHED:
        published = static(name, [[0.5**r for r in range(1, 11)]])
        assert sum(reach(learned, paths)) > sum(reach(published.first(26), paths)) + 0.2
    by_depth = by_rank(measured_accuracies(paths, [0.1] * 10, 5, 0.0), 5)
    assert sum(reach(learned.first(5), paths)) >= sum(reach(by_depth, paths))
    assert reach(learned, paths) == pytest.approx(learned.chances)


def test_what_few_steps_say_is_held_to_the_accuracies() -> None:
    paths: list[Ranks] = [(0,)] * 60 + [(1, 2)]
    shares = [[0.9, 0.1, 0.0], [0.5, 0.3, 0.1]]
    bold = by_paths(paths, shares, 6, weight=0.0)
    careful = by_paths(paths, shares, 6, weight=10.0)
    assert dict(zip(bold.paths, bold.chances, strict=True))[1, 2] == pytest.approx(1 / 61)
    known = dict(zip(careful.paths, careful.chances, strict=True))
    assert known[0,] == pytest.approx((60 + 10 * 0.9) / 71)
    assert known[0, 0] == pytest.approx(known[0,] * 5 / 70)


# -- tuning


def test_the_recorder_follows_the_whole_proposal_though_few_rows_are_offered() -> None:
    class Given(TokenRecycling):
        def propose(self, budget: int) -> Tree:
            self.signal = 2
            return trim(Tree(np.array([0, 7, 8, 5, 6]), np.array([-1, 0, 0, 2, 2])), budget)

        def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
            pass

    recorder = Recorder(Given(), rows=8)
    recorder.start([0])
    offered = recorder.propose(2)
    assert len(offered) == 2
    nothing = Scores(np.zeros((1, 1), np.int64), np.zeros((1, 1, 1), np.float32))
    recorder.observe(offered, Verdict((0,), 8), nothing, 0)
    recorder.observe(Tree.chain([8]), Verdict((0,), 6), nothing, 0)
    assert recorder.steps == []
    recorder.observe(Tree.chain([6]), Verdict((0,), 1), nothing, 0)
    assert recorder.steps == [Step(2, 5, (2, 4), (1, 1))]


def steps_of(paths: Sequence[Ranks], signal: int = 1) -> list[Step]:
    wide = by_rank([[0.4, 0.3, 0.2, 0.1]], 400)
    row_of = {path: row for row, path in enumerate(wide.paths)}
    return [
        Step(signal, 400, tuple(row_of[p[:d]] for d in range(1, len(p) + 1)), p) for p in paths
    ]


def believed(plan: Template) -> Prior:
    return lambda signal: plan.chances


def test_a_tuned_tree_beats_the_default_on_steps_it_has_not_seen() -> None:
    halves = (steps_of(recorded(400, seed=1)), steps_of(recorded(400, seed=2)))
    default = template(16, 4)
    found = tune_template("token-recycling", halves, 4, default, believed, CHEAP)
    assert found.steps == 800
    assert found.after > 1.1 * found.before
    plan = Template.from_json(found.table["template"])
    assert {(2,), (2, 1), (2, 1, 0), (0,)} == set(plan.paths[1:5])
    unseen = steps_of(recorded(400, seed=3))
    belief = tuned_prior({"token-recycling": found.table}, "token-recycling", lambda s: (1.0,))
    assert expected_rate(shaped(plan, unseen), belief, CHEAP, True) > 1.1 * expected_rate(
        shaped(default, unseen), lambda s: default.chances, CHEAP, True
    )
    assert list(found.tree) == plan.shape.parents.tolist()


def test_what_is_no_better_is_not_kept() -> None:
    halves = (steps_of([()] * 50), steps_of([()] * 50))
    shy = Template.of({(0,): 0.1, (1,): 0.05})
    found = tune_template("x", halves, 4, shy, believed, INT4)
    assert (found.before, found.after) == (pytest.approx(1e3 / 6.9), pytest.approx(1e3 / 6.9))
    assert found.table == {}
    assert found.tree == ()


def test_beliefs_are_shares_that_start_from_the_prior_and_never_rise() -> None:
    steps = [Step(3, 4, (1, 2), (0, 0))] * 30 + [Step(3, 4, (), ())] * 10 + [Step(0, 1, (), ())]
    prior = (1.0, 0.5, 0.25, 0.125)
    known = beliefs(steps, lambda signal: prior)
    assert known.keys() == {3}
    measured = (1.0, (30 + 10 * 0.5) / 50, (30 + 10 * 0.25) / 50, 10 * 0.125 / 50)
    assert known[3] == pytest.approx(measured)
    rising = [Step(1, 4, (2,), (1,))] * 40  # the second row came true, the first never did
    pooled = beliefs(rising, lambda signal: (1.0, 0.0, 0.0, 0.0))[1]
    assert pooled == pytest.approx((1.0, 0.4, 0.4, 0.0))
    better = [[Step(3, 4, (1, 2, 3), (0, 0, 0))] * 40] * 2
    found = tune_priors("suffix", better, lambda signal: (1.0, 0.1, 0.01, 0.001), INT4, False)
    assert found.after > 1.5 * found.before
    assert tuned_prior({"suffix": found.table}, "suffix", lambda s: prior)(4) == prior
    with pytest.raises(GraftlineError, match="tuned priors of suffix cannot be read"):
        tuned_prior({"suffix": {"priors": {"a": [1]}}}, "suffix", lambda s: prior)


def test_token_recycling_takes_the_tuned_tree_and_hands_it_on() -> None:
    plan = static([(0,), (1,), (1, 1), (1, 1, 0)], [[0.5, 0.4]])
    tuned = {"token-recycling": {"template": plan.to_json()}}
    drafter = TokenRecycling(rows=4, width=2)
    drafter.equip(Resources(tuned=tuned))
    drafter.start([7])
    ids = np.array([[[5, 6], [1, 2], [3, 4]]])
    scores = Scores(ids[..., 0], np.zeros((1, 3, 9), np.float32), ids)
    seen = Tree(np.array([7, 5, 6]), np.array([-1, 0, 0]))
    drafter.observe(seen, Verdict((0,), 7), scores, 0)
    for one in (drafter, drafter.fork()):
        one.start([7])
        assert spelled(one.propose(9)) == [(7,), (7, 5), (7, 6), (7, 6, 4)]
        assert one.prior(0) == plan.chances[:4]
    narrow = TokenRecycling(rows=4, width=1)
    narrow.equip(Resources(tuned=tuned))
    assert narrow.plan.paths == ((), (0,))
    asked = TokenRecycling(rows=64, tree="medusa-mc-sim-7b-63")
    asked.equip(Resources(tuned=tuned))
    whole = PUBLISHED["medusa-mc-sim-7b-63"]
    assert set(asked.fork().plan.paths[1:]) == {path for path in whole if max(path) < 8}
    untouched = TokenRecycling(rows=4, width=2)
    untouched.equip(Resources())
    assert untouched.plan is template(4, 2)


def test_a_rehearsal_on_a_session_tunes_stores_and_refuses_what_has_nothing_to_tune() -> None:
    from graftline.recipe import recipe

    rng = np.random.default_rng(5)
    prompts = [rng.integers(1, 40, 12) for _ in range(6)]
    told: list[str] = []
    rehearsal = Rehearsal(ToySession(odd=3), FLAT, Resources(), prompts, 60)
    found = rehearsal.tune(recipe("token-recycling"), told.append)
    assert told == [f"token-recycling: {i}/6" for i in range(1, 7)]
    assert found.steps > 60
    assert found.after >= found.before > 1e3 / 11.0
    assert rehearsal.tune(recipe("token-recycling"), told.append) == found
    assert rehearsal.tune(recipe("suffix"), told.append).steps > 60
    with pytest.raises(GraftlineError, match="plain: its drafter has nothing to tune"):
        rehearsal.tune(recipe("plain"), told.append)
    with pytest.raises(GraftlineError, match="give at least 2"):
        Rehearsal(ToySession(), FLAT, Resources(), prompts[:1], 60).tune(
            recipe("suffix"), told.append
        )
    with pytest.raises(GraftlineError, match="this bundle scores none"):
        Rehearsal(ToySession(trees=False), FLAT, Resources(), prompts, 9).tune(
            recipe("token-recycling"), told.append
        )
