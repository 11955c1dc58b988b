"""Draft models decode a batch together: one call for each depth, which all pay for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sub_models import nest
from toy_drafts import CheckedDraft, SharedDraft, draft_of, engine_of, policy
from toy_session import FLAT, ToySession

from graftline.runtimes.draft_engine import IDLE_ROWS, DraftEngine, usual_cost
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.drafters.draft_model import DraftModel
from graftline.runtimes.drafting import draft_together
from graftline.runtimes.lane import Lane
from graftline.runtimes.resources import Resources
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

RAGGED = [[3, 1, 2], [5, 9, 9, 4, 1, 7, 8], [2, 6, 6, 1]]


def batch_of(
    engine: DraftEngine, contexts: list[list[int]], name: str = "draft-model", **options: object
) -> list[Any]:
    """A drafter for each sequence, all with one engine."""
    resources = Resources(draft=lambda: engine, vocabulary=40)
    drafters: list[Any] = [make_drafter(name, options, resources) for _ in contexts]
    for drafter, context in zip(drafters, contexts, strict=True):
        drafter.start(context)
    return drafters


def own(contexts: list[list[int]] = RAGGED) -> tuple[DraftEngine, ToySession]:
    engine = CheckedDraft()
    return engine, engine.session


def shared(contexts: list[list[int]] = RAGGED) -> tuple[DraftEngine, ToySession]:
    target = ToySession()
    target.reset(len(contexts))
    target.prefill([np.asarray(context[:-1]) for context in contexts])
    engine = SharedDraft(target)
    return engine, engine.session


def trees(drafters: list[Any], *rows: int) -> list[list[int]]:
    """What each drafts, of so many rows."""
    made = draft_together(
        [one.draft(Bid.free(n, at)) for at, (one, n) in enumerate(zip(drafters, rows, strict=True))]
    )
    assert all(isinstance(tree, Tree) for tree in made), made
    return [tree.token_list for tree in made if isinstance(tree, Tree)]


def observe(drafter: Any, tokens: list[int], accepted: int, then: int) -> None:
    none: Any = type("NoScores", (), {"topk_logits": None})()
    drafter.observe(Tree.chain(tokens), Verdict(tuple(range(accepted + 1)), then), none, 0)


ALL = {0: 1, 1: 1, 2: 1}


def test_there_is_one_call_for_each_depth() -> None:
    engine, session = shared()
    drafters = batch_of(engine, RAGGED)
    trees(drafters, 6, 6, 6)
    assert session.followed == [ALL] * 5


def test_what_was_not_read_yet_is_read_before_and_once() -> None:
    engine, session = own()
    drafters = batch_of(engine, RAGGED)
    made = trees(drafters, 6, 6, 6)
    assert session.followed == [{0: 2}, {1: 6}, {2: 3}, *[ALL] * 5]
    session.followed.clear()
    observe(drafters[0], made[0], 2, 39)
    observe(drafters[1], made[1], 5, 39)  # its last token was never read
    observe(drafters[2], made[2], 0, 39)
    trees(drafters, 6, 6, 6)
    assert session.followed == [{1: 1}, *[ALL] * 5]


def test_two_that_lack_one_token_read_it_together() -> None:
    engine, session = own()
    drafters = batch_of(engine, RAGGED)
    made = trees(drafters, 4, 4, 4)
    for drafter, tokens in zip(drafters, made, strict=True):
        observe(drafter, tokens, 3, 39)
    session.followed.clear()
    trees(drafters, 4, 4, 4)
    assert session.followed == [ALL] * 4


@pytest.mark.parametrize("make", [own, shared])
def test_one_that_joins_late_reads_its_prompt_beside_the_others(make: Callable[..., Any]) -> None:
    contexts = [*RAGGED, [1, 2, 3, 4] * 70]
    engine, session = make(contexts)
    drafters = batch_of(engine, contexts)
    trees(drafters[:3], 4, 4, 4)
    session.followed.clear()
    made = trees(drafters, 4, 4, 4, 4)
    late = [{3: 279}] if make is own else []
    assert session.followed[: len(late)] == late
    assert session.followed[len(late) :] == [{**ALL, 3: 1}] * 3
    alone, _ = make(contexts)
    apart = batch_of(alone, contexts)
    assert made == [draft_of(one, Bid.free(4, at)).token_list for at, one in enumerate(apart)]


@pytest.mark.parametrize("make", [own, shared])
def test_who_ends_its_draft_adds_no_call(make: Callable[..., Any]) -> None:
    """One between two others goes along in their call, and loses nothing by it; one at the end of
    the batch does not even that."""
    engine, session = make()
    drafters = batch_of(engine, RAGGED)
    trees(drafters, 2, 2, 2)
    session.followed.clear()
    made = trees(drafters, 6, 3, 4)
    assert session.followed == [ALL, ALL, ALL, {0: 1}, {0: 1}]
    assert [len(tree) for tree in made] == [6, 3, 4]
    session.followed.clear()
    again = trees(drafters, 3, 1, 6)
    assert session.followed == [ALL, ALL, {2: 1}, {2: 1}, {2: 1}]
    assert again[2][:4] == made[2]


def test_those_far_apart_do_not_take_all_between_them_along() -> None:
    contexts = RAGGED * 3
    engine, session = shared(contexts)
    drafters = batch_of(engine, contexts)
    far = [0, 1, 1 + IDLE_ROWS + 1, 1 + IDLE_ROWS + 1 + IDLE_ROWS + 2]
    made = draft_together([drafters[row].draft(Bid.free(3, row)) for row in far])
    assert len(made) == 4
    first, last = dict.fromkeys(range(far[0], far[2] + 1), 1), {far[3]: 1}
    assert session.followed == [first, last] * 2


def test_one_that_holds_nothing_yet_does_not_go_along() -> None:
    """Its row would be a first position."""
    engine, session = own()
    drafters = batch_of(engine, RAGGED)
    made = draft_together([drafters[row].draft(Bid.free(3)) for row in (0, 2)])
    assert len(made) == 2
    assert session.followed == [{0: 3}, {2: 4}, {0: 1}, {2: 1}]
    trees(drafters, 3, 3, 3)
    session.followed.clear()
    draft_together([drafters[row].draft(Bid.free(3)) for row in (0, 2)])
    assert session.followed == [ALL, ALL]


def test_the_price_of_a_call_is_shared() -> None:
    engine, _ = shared()
    drafters = batch_of(engine, RAGGED)
    trees(drafters, 6, 6, 3)
    each = 2 * usual_cost(3) / 3 + 3 * usual_cost(2) / 2
    assert drafters[0].reads == drafters[1].reads == pytest.approx(each)
    assert drafters[2].reads == pytest.approx(2 * usual_cost(3) / 3)
    assert drafters[0].share(4) == pytest.approx(usual_cost(4) / 4)
    trees(drafters[:1], 6)
    assert drafters[0].reads == 5.0


def test_a_bid_that_is_shared_asks_less_of_a_call_and_as_much_of_a_row() -> None:
    bid = Bid(3, (0.5, 0.6, 0.7), (0.1, 0.2, 0.3), 2)
    less = bid.shared(0.25)
    assert list(less.draft) == pytest.approx([0.2, 0.3, 0.4])
    assert (less.rows, less.keep, less.row, less.share) == (3, bid.keep, 2, 0.25)


def test_a_chain_is_not_verified_alone_where_the_others_single_rows_cost_less() -> None:
    """A call of four rows costs 2.2, and one of a row that three share in 0.6 of one."""
    text = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3]
    (drafter,) = batch_of(shared([text])[0], [text], "hierarchical-draft")
    bid = Bid.free(9)
    for share, verified in ((1.0, True), (usual_cost(3) / 3, False)):
        draft = drafter.draft(bid.shared(share))
        assert (next(draft).asked > 1) == verified
        draft.close()


def test_sub_models_are_called_once_for_all_who_ask_them_and_share_the_price() -> None:
    target = ToySession()
    target.reset(3)
    target.prefill([np.asarray(context[:-1]) for context in RAGGED])

    def nested(contexts: list[list[int]]) -> tuple[list[Any], list[dict[int, int]]]:
        engines = nest(target, (9, 9, 9))
        resources = Resources(draft=lambda: engines[-1], depths=lambda: engines, vocabulary=40)
        drafters: list[Any] = [make_drafter("sorted-draft", {}, resources) for _ in contexts]
        for drafter, context in zip(drafters, contexts, strict=True):
            drafter.start(context)
        made = draft_together(
            [one.draft(Bid.free(5, RAGGED.index(one._reader.tokens))) for one in drafters]
        )
        assert all(isinstance(tree, Tree) for tree in made)
        return drafters, [rows for engine in engines for rows in engine.session.calls]

    drafters, calls = nested(RAGGED)
    assert len(calls) <= 0.6 * sum(len(answers) for one in drafters for answers in one._answers)
    assert all(ALL.keys() >= rows.keys() for rows in calls)
    apart = [one for context in RAGGED for one in nested([context])[0]]
    together, alone = (sum(one.price(one.reads) for one in ones) for ones in (drafters, apart))
    assert together < 0.85 * alone


def test_what_the_drafts_of_a_step_take_is_what_their_calls_cost(
    prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    drafts: list[Any] = []
    engine = engine_of(drafts, lambda target: SharedDraft(target, 1.0), policy(), FLAT)
    buy, draft, taken, shares = Lane.buy, DraftModel.draft, list[float](), set[float]()

    def counted(self: Lane, *given: Any) -> float:
        taken.append(buy(self, *given))
        return taken[-1]

    def drafting(self: DraftModel, bid: Bid) -> Any:
        shares.add(bid.share)
        return draft(self, bid)

    monkeypatch.setattr(Lane, "buy", counted)
    monkeypatch.setattr(DraftModel, "draft", drafting)
    engine.generate(prompts[:3], max_new_tokens=60, ignore_eos=True)
    calls = [usual_cost(len(rows)) for rows in drafts[0].session.followed]
    assert len(calls) > 20
    assert sum(taken) == pytest.approx(sum(calls))
    assert usual_cost(3) / 3 in shares <= {usual_cost(n) / n for n in (1, 2, 3)}
