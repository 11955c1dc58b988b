"""Several continuations of one prompt inside one sequence, a token of each per target pass.

Parallel decoding within one sequence (Yu et al., arXiv 2503.20533): where a text splits into
branches that do not read each other, every pass scores one row per branch. All share the cache of
the prompt; the mask hides the other branches, and positions run on from the prompt in each, so a
branch is decoded as if it alone followed the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from graftline.errors import RequestError
from graftline.runtimes.decoding import Decoding
from graftline.runtimes.session import Ints, Scores, Session, room
from graftline.tree import Tree

MOST = 32
"""Rows of one engine call."""
_SHARED, _PADDING = -1, -2


class Row(NamedTuple):
    """A token to score: the branch it belongs to, and its position."""

    branch: int
    token: int
    position: int


class BranchCache:
    """One sequence whose slots belong to its branches, in the order in which they were filled."""

    def __init__(self, session: Session, shared: Ints) -> None:
        session.reset(1)
        session.prefill([shared])
        self._session = session
        slots = session.capacity + MOST
        self._owner = np.full(slots, _SHARED)
        self._position = np.arange(slots)

    def score(self, rows: Sequence[Row], least: int) -> Scores:
        """Score rows, uncommitted: each sees the prompt and its branch up to itself.

        The answer has the rows as sequences (B = rows, N = 1). Padding up to `least` rows is a
        branch of its own.
        """
        padding = [Row(_PADDING, *rows[0][1:])] * (least - len(rows))
        branch, tokens, positions = np.asarray([*rows, *padding], np.int64).T
        start = int(self._session.lengths[0])
        end = start + len(branch)
        self._owner[start:end], self._position[start:end] = branch, positions
        owner = self._owner[:end]
        own = (owner == branch[:, None]) & (self._position[:end] <= positions[:, None])
        mask = (owner == _SHARED) | own
        scores = self._session.score_slots(tokens[None], positions[None], mask[None])
        return Scores(scores.argmax[0][:, None], scores.logits[0][:, None])

    def commit(self, count: int) -> None:
        """Keep the first `count` rows of the last call."""
        self._session.commit([range(count)])


def check_branches(
    session: Session, shared: int, branches: Sequence[Ints], most: int | None
) -> None:
    """Raises RequestError where branches, with `most` new tokens each, do not fit into one sequence
    behind so many shared ones."""
    if not branches:
        raise RequestError("branches takes at least one branch, and there is none")
    if most is None:
        raise RequestError("branches share the capacity; say max_new_tokens")
    wanted = shared + sum(len(one) + most for one in branches)
    if wanted > session.capacity:
        raise RequestError(
            f"{len(branches)} branches need {wanted} positions together, but "
            f"{room(session, 'give fewer branches', 'lower max_new_tokens')}"
        )


def decode_branches(
    session: Session, shared: Ints, branches: Sequence[Decoding], least: int = 1
) -> Iterator[None]:
    """Decode all branches until each has finished; yields after every token of each.

    The prompt of every branch begins with `shared`, and goes on.
    """
    cache = BranchCache(session, shared)
    for one in branches:
        one.seated(0)
    rows = [
        Row(number, token, position)
        for number, one in enumerate(branches)
        for position, token in enumerate(one.prompt.tolist())
        if position >= len(shared)
    ]
    while rows:
        for first in range(0, len(rows), MOST):
            part = rows[first : first + MOST]
            scores = cache.score(part, least)
            for place, row in enumerate(part):
                _read(branches[row.branch], row, scores, place)
            cache.commit(len(part))
        yield
        rows = [
            Row(number, one.tokens[-1], len(one.prompt) + len(one.tokens) - 1)
            for number, one in enumerate(branches)
            if not one.done
        ]


def _read(one: Decoding, row: Row, scores: Scores, place: int) -> None:
    """Choose the branch's next token, where `row` is the last of what it has."""
    if one.tokens:
        one.judge(Tree.chain((row.token,)), scores, place)
    elif row.position == len(one.prompt) - 1:
        one.begin(scores, place)
