"""A draft vocabulary holds what the host says, as far as held-out texts show."""

from __future__ import annotations

import numpy as np
import pytest

from graftline.models.training.frozen import States
from graftline.models.training.rows import Row
from graftline.models.training.vocabulary import COVERAGE, ROUND, draft_vocabulary

SIZE = 1000


def row(said: list[int], second: int = 0, first: float = 0.9, start: int = 1) -> Row:
    """A text of which the host says `said` in turn, and thinks of `second` everywhere else."""
    best = np.asarray([[token, second] for token in said], np.int32)
    scores = np.log(np.full(best.shape, [first, 1 - first])).astype(np.float16)
    taps = np.zeros((len(said), 4), np.float16)
    ids = np.asarray([0, *said[:-1]], np.int64)
    return Row(ids, States(taps, best, scores), start, 0, True)


def drawn(count: int, seed: int) -> list[int]:
    """Tokens of which each is half as likely as the one a hundred ids before."""
    random = np.random.default_rng(seed)
    shares = 0.5 ** (np.arange(SIZE) / 100)
    return random.choice(SIZE, count, p=shares / shares.sum()).tolist()


def test_it_is_the_smallest_that_covers_enough() -> None:
    learned, held_out = [row(drawn(4000, n)) for n in range(4)], [row(drawn(4000, 9))]
    found = draft_vocabulary(learned, held_out, SIZE)
    said = held_out[0].states.best[:-1, 0]
    ids = found.ids.numpy()
    assert found.coverage == np.isin(said, ids).mean() >= COVERAGE
    assert len(ids) % ROUND == 0
    assert (np.diff(ids) > 0).all()
    mass = np.zeros(SIZE)
    for one in learned:
        np.add.at(mass, one.states.best[:-1], np.exp(one.states.scores[:-1].astype(float)))
    least = np.sort(mass[ids])[ROUND]
    smaller = ids[mass[ids] > least]
    assert np.isin(said, smaller).mean() < COVERAGE, "64 fewer are too few"
    assert mass[np.setdiff1d(np.arange(SIZE), ids)].max() <= mass[ids].min()
    assert 400 < len(ids) < 700, "a token's half-life is 100 ids: 97 % are some 500"
    assert f"{len(ids):,} of 1,000 tokens, which are 97." in str(found)


def test_what_the_host_thinks_of_counts_and_prompts_do_not() -> None:
    """The prompt's tokens 900 to 999 are the host's best there, and no part of its answer."""
    said = [*range(900, 1000), *range(63)]
    found = draft_vocabulary([row(said, second=700, start=101)], [row([700] * 8)], SIZE)
    assert set(found.ids.tolist()) == {*range(63), 700}, "62, which nobody says, fills up"
    assert found.coverage == 1.0


def test_texts_that_say_something_else_take_what_they_need() -> None:
    found = draft_vocabulary([row(list(range(64)))], [row(list(range(500, 600)))], SIZE)
    assert len(found.ids) == 640
    assert found.ids.tolist() == list(range(640)), "tokens that were not seen come by their ids"
    whole = draft_vocabulary([row([1, 2, 3])], [row([999] * 4)], SIZE)
    assert len(whole.ids) == SIZE
    assert whole.coverage == pytest.approx(1.0)
