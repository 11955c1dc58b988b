"""Packs hold whole texts, each once an epoch, and say which of their positions count."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from graftline.models.training.frozen import States
from graftline.models.training.losses import VARIATION, Scored
from graftline.models.training.packs import Order, Pack, epoch, pack
from graftline.models.training.rows import Row
from graftline.models.training.student import Acceptance, acceptance, loss_of, spoken

LENGTHS = [3, 40, 7, 7, 90, 12, 33, 5, 64, 8] * 14
VOCABULARY = 11


def row(ids: list[int], start: int) -> Row:
    """A text that a host continues with its own next token, which the best ids say."""
    best = np.asarray([*ids[1:], 0], np.int32)[:, None]
    best = np.concatenate([best, (best + 1) % VOCABULARY], axis=1)
    taps = np.asarray(ids, np.float16)[:, None] * np.ones((1, 4), np.float16)
    scores = np.log(np.full((len(ids), 2), [0.7, 0.2])).astype(np.float16)
    return Row(np.asarray(ids, np.int64), States(taps, best, scores), start, 0, True)


def test_an_epoch_has_every_text_once_and_no_pack_too_large() -> None:
    packs = epoch(LENGTHS, 128, 3, 0)
    assert sorted(i for one in packs for i in one) == list(range(len(LENGTHS)))
    sizes = [len(one) * max(LENGTHS[i] for i in one) for one in packs]
    assert max(sizes) <= 128
    filled = sum(LENGTHS) / sum(sizes)
    assert filled > 0.8, "texts of like length are together"
    assert packs != epoch(LENGTHS, 128, 3, 1)
    assert epoch([500, 4], 128, 0, 0) in ([[0], [1]], [[1], [0]]), "a long text is a pack"


def test_a_step_reads_what_it_reads_wherever_one_begins() -> None:
    whole = Order(LENGTHS, 128, 5)
    steps = [whole.at(step) for step in range(140)]
    for begun in (1, 60, 139):
        assert Order(LENGTHS, 128, 5).at(begun) == steps[begun]


def test_which_positions_count() -> None:
    """Text of 6 with its answer from 3 on: the state at 2 gave the first token of the answer."""
    one = pack([row([1, 2, 3, 4, 5, 6], 3), row([1, 2, 3], 2)])
    assert one.counted(2).tolist() == [[False, False, True, True, False, False], [False] * 6]
    assert one.counted(1)[1].tolist() == [False, True, False, False, False, False]
    assert one.counted(2, 1)[0].tolist() == [False, False, False, True, False, False]
    assert one.shifted(one.ids, 2)[0].tolist() == [3, 4, 5, 6, 6, 6]
    assert one.lengths.tolist() == [6, 3]
    assert set(spoken(one).tolist()) == {*range(8)}


class Says:
    """A student that drafts what the text says, but at (depth, where drafting began) `instead`."""

    module = torch.nn.Module()
    depths, vocabulary, drafted = 3, VOCABULARY, torch.arange(VOCABULARY)

    def __init__(self, chained: bool, instead: dict[tuple[int, int], int]) -> None:
        self.chained, self.instead = chained, instead
        self.asked: list[list[float]] = []

    def drafts(self, one: Pack) -> list[torch.Tensor]:
        found: list[torch.Tensor] = []
        for depth in range(self.depths):
            token = one.shifted(one.ids, depth + 2 - self.place(depth)).clone()
            for (at, begun), wrong in self.instead.items():
                if at == depth:
                    token[:, begun + self.place(depth)] = wrong
            found.append(token[..., None].float())
        return found

    def scores(self, states: torch.Tensor, depth: int, ids: torch.Tensor | None) -> torch.Tensor:
        self.asked.append(states[:, 0].tolist())
        logits = 12 * torch.nn.functional.one_hot(states[:, 0].long(), VOCABULARY).float()
        return logits[:, self.drafted if ids is None else ids]

    def place(self, depth: int) -> int:
        return depth if self.chained else 0

    def weight(self, depth: int) -> float:
        return 1.0


TEXT = [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("chained", [False, True])
def test_acceptance_counts_a_depth_where_all_shallower_ones_are_right(chained: bool) -> None:
    """An answer from 2 on: drafting begins at 1 to 5, 1 to 4 and 1 to 3, as deep as it is."""
    found = acceptance(Says(chained, {(0, 2): 0, (1, 3): 0, (2, 2): 0}), pack([row(TEXT, 2)]))
    assert found == Acceptance((5, 3, 1), (4, 2, 1))
    assert found.shares == (4 / 5, 2 / 3, 1.0)
    assert found.tokens == pytest.approx(1 + 4 / 5 + 4 / 5 * 2 / 3 + 4 / 5 * 2 / 3)


def test_what_a_head_cannot_draft_is_wrong() -> None:
    """All is as the text says, but of the tokens it drafts 7 is none; places are not ids."""
    student = Says(True, {})
    student.drafted = torch.tensor([2, 3, 4, 5, 6, 8])
    assert acceptance(student, pack([row(TEXT, 2)])) == Acceptance((5, 3, 2), (4, 2, 1))


@pytest.mark.parametrize("chained", [False, True])
def test_a_chain_ends_where_the_text_is_not_the_hosts_best(chained: bool) -> None:
    given = row(TEXT, 2)
    given.states.best[3, 0] = 9  # behind 3 the host would have said 9, and the text says 5
    found = acceptance(Says(chained, {(0, 2): 9}), pack([given]))
    # from 2 the draft is the host's best, and what follows it is of another text; from 1 the
    # second draft is the text's 5, and wrong
    assert found == Acceptance((5, 3, 1), (5, 2, 1))


@pytest.mark.parametrize("chained", [False, True])
def test_the_loss_asks_for_the_token_of_each_depth(chained: bool) -> None:
    text = pack([row(TEXT, 2)])
    scored = Scored.choose(
        spoken(text), torch.arange(VOCABULARY), VOCABULARY, VOCABULARY, torch.Generator()
    )
    student = Says(chained, {})
    right = loss_of(student, text, scored, True)
    assert student.asked == [[4, 5, 6, 7, 8], [5, 6, 7, 8], [6, 7, 8]]
    # the host gives the text's token 0.7, the draft gives it all
    warm = loss_of(student, text, scored, False)
    torch.testing.assert_close(warm, torch.tensor(VARIATION * 0.3), atol=1e-3, rtol=0)
    for depth in range(3):
        assert loss_of(Says(chained, {(depth, 3): 0}), text, scored, True) > right
