"""A head's tree and a store's proposal on one tree: what is scored of both, and what is learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest

from graftline.errors import GraftlineError
from graftline.recipe import recipe, recipes
from graftline.runtimes.drafter import Bid, is_paid, sees
from graftline.runtimes.drafters import DRAFTERS, make_drafter
from graftline.runtimes.drafters.head_and_store import HeadAndStore
from graftline.runtimes.drafting import Draft, draft_alone
from graftline.runtimes.resources import Resources
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree
from tests.runtimes.tree_cases import spelled

TEXT = [7, 1, 2, 3, 9, 1, 2]
"""Its last two tokens were followed by 3 and 9."""
HEAD = Tree(np.array([2, 3, 4, 5]), np.array([-1, 0, 0, 1]), np.array([1, 0.5, 0.3, 0.5], "f4"))
"""Behind 2: 3 by 0.5, 4 by 0.3, and 5 behind 3 by 0.5."""


@dataclass
class Head:
    """A head that always says the same."""

    branching: ClassVar[bool] = True
    says: ClassVar[Tree] = HEAD
    rows: int = 32
    width: int = 1
    signal: int = field(default=0, init=False)
    reads: float = field(default=0.0, init=False)
    observed: list[Any] = field(default_factory=list[Any], init=False)

    def draft(self, bid: Bid) -> Draft:
        yield from ()
        self.reads = 1.0
        return self.says

    def fork(self) -> Head:
        return type(self)(self.rows, self.width)

    def start(self, context: Sequence[int]) -> None:
        self.observed = list(context)

    def observe(self, tree: Tree, verdict: Verdict, scores: Any, row: int) -> None:
        self.observed += verdict.tokens(tree)

    def foresight(self) -> int:
        return 0

    def hope(self, foresight: int) -> Sequence[float]:
        return (1.0, 0.5)

    def price(self, reads: float) -> float:
        return 2.0 * reads

    def share(self, sequences: int) -> float:
        return 1.0 / sequences

    def debt(self) -> float:
        return 3.0


class Shown(Head):
    """One that reads the target's hidden states."""

    def see(self, start: int, states: Any) -> None:
        raise AssertionError("no state is shown here")


@pytest.fixture
def drafter(monkeypatch: pytest.MonkeyPatch) -> HeadAndStore:
    monkeypatch.setitem(DRAFTERS, "stub", Head)
    made: Any = make_drafter("head-and-store", {"head": "stub", "width": 5}, Resources())
    made.start(TEXT)
    return made


def paths(tree: Tree) -> set[tuple[int, ...]]:
    return {tuple(path) for path in spelled(tree)}


def test_the_tree_is_the_union_and_the_likeliest_rows_come_first(drafter: HeadAndStore) -> None:
    stored = drafter.propose(8)
    assert stored.token_list[:3] == [2, 3, 9]
    chances = drafter.prior(drafter.signal)
    tree = draft_alone(drafter.draft(Bid.free(32)))
    assert paths(tree) == paths(stored) | paths(HEAD)
    known = dict(zip((tuple(path) for path in spelled(tree)), tree.reach, strict=True))
    assert known[2, 3] == pytest.approx(max(0.5, chances[1]))
    assert known[2, 4] == pytest.approx(0.3, rel=1e-6)
    assert tree.reach == sorted(tree.reach, reverse=True)


def test_rows_that_are_not_worth_their_step_are_left_out(drafter: HeadAndStore) -> None:
    drafter.propose(32)
    keep = [0.0, *[0.28] * 31]
    tree = draft_alone(drafter.draft(Bid(32, [0.0] * 32, keep)))
    assert paths(tree) >= {(2, 3), (2, 4)}
    assert min(tree.reach) >= 0.28 > 0.25  # 5 behind 3 has 0.25
    few = draft_alone(drafter.draft(Bid.free(2)))
    assert len(few) == 2


def test_a_target_of_chains_gets_the_better_of_both(drafter: HeadAndStore) -> None:
    straight, stored = Bid(32, [0.0] * 32, [0.0] * 32, branches=False), drafter.propose(8)
    for chance, wanted in ((0.1, stored.token_list), (0.9, [2, 8, 8])):
        says = Tree(np.array([2, 8, 8]), np.array([-1, 0, 1]), np.array([1, chance, chance], "f4"))
        drafter._model.says = says  # type: ignore[attr-defined]
        assert draft_alone(drafter.draft(straight)).token_list == wanted


def test_without_a_proposal_of_this_step_the_head_drafts_alone(drafter: HeadAndStore) -> None:
    """The store is not asked in every step where proposals do not pay; an earlier one is over."""
    drafter.propose(32)
    drafter.observe(Tree.chain([2]), Verdict((0,), 6), NotImplemented, 0)
    assert draft_alone(drafter.draft(Bid.free(32))) is HEAD
    assert drafter.propose(32).token_list == [6]
    assert draft_alone(drafter.draft(Bid.free(32))) is HEAD


def test_both_learn_and_proposals_that_fail_count_for_less(drafter: HeadAndStore) -> None:
    rows = [1.0]
    for _ in range(12):
        drafter.start(TEXT)
        stored = drafter.propose(32)
        tree = draft_alone(drafter.draft(Bid.free(32)))
        known = dict(zip((tuple(path) for path in spelled(tree)), tree.reach, strict=True))
        rows.append(known.get((2, 3, 9), 0.0))
        drafter.observe(stored, Verdict((0,), 4), NotImplemented, 0)
        assert drafter._model.observed == [*TEXT, 4]  # type: ignore[attr-defined]
    assert rows[-1] < rows[1] / 2
    other = drafter.fork()
    assert other._record.evidence is drafter._record.evidence


def test_it_is_paid_for_as_the_head_is(drafter: HeadAndStore) -> None:
    assert is_paid(drafter)
    assert (drafter.price(2), drafter.share(4), drafter.debt()) == (4.0, 0.25, 3.0)
    assert drafter._model.width == 5  # type: ignore[attr-defined]
    assert drafter.foresight() == 0
    drafter.propose(32)
    assert drafter.foresight() in (2, 4)
    assert tuple(drafter.hope(0)) == (1.0, 0.5)


def test_prompts_are_shown_where_the_head_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DRAFTERS, "blind", Head)
    monkeypatch.setitem(DRAFTERS, "shown", Shown)
    blind, shown = (make_drafter("head-and-store", {"head": h}, None) for h in ("blind", "shown"))
    assert [sees(one) for one in (blind, shown, blind.fork(), shown.fork())] == [
        False, True, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"store": "sufix"}, "no store 'sufix'; did you mean 'suffix'"),
        ({"head": "suffix"}, "suffix drafts no trees with a head; use eagle, hydra or medusa"),
        ({"head": "draft-model"}, "draft-model drafts no trees with a head"),
        ({"head": "eagel"}, "unknown drafter 'eagel'"),
        ({"head": "head-and-store"}, "joins a store to a head's own drafter"),
    ],
)
def test_what_asks_no_head_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(GraftlineError, match=message):
        make_drafter("head-and-store", options, Resources())


def test_every_recipe_of_it_is_that_of_a_head_with_a_store() -> None:
    """Built as the head's own recipe is, so that either runs on the other's bundle."""
    found = [one for one in recipes() if one.drafter == "head-and-store"]
    assert {one.asks for one in found} == {"eagle", "hydra", "medusa"}
    alone = {"eagle-suffix": "eagle-2"}
    for one in found:
        of = recipe(alone.get(one.name, one.name.removesuffix("-suffix")))
        assert (one.passes, one.head, one.needs) == (of.passes, of.head, of.needs)
        assert one.asks == of.asks == of.drafter
        assert {k: v for k, v in one.options.items() if k != "head"} == of.options
