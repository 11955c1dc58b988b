"""Log-probabilities of chosen tokens and of a prompt's, by the model's own distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from graftline.runtimes.sampling import Logits
from graftline.runtimes.scores import one_row
from graftline.runtimes.session import Ints, Scores, Session, Show

ROWS = 32
"""Prompt tokens that one engine call scores: their logits are in memory together."""


@dataclass(frozen=True)
class TokenLogprob:
    """`logprob`: natural logarithm of the probability that the model gives `token` in its place,
    at temperature 1 and before anything shapes its logits. `top`: the likeliest ids there and
    theirs, best first; the token need not be among them."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, logits: Logits, token: int, count: int) -> TokenLogprob:
        """From the target's own logits [V]; `count` of the likeliest."""
        wide = logits.astype(np.float64)
        peak = wide.max()
        wide -= peak + np.log(np.exp(wide - peak).sum())
        best = np.argpartition(-wide, count - 1)[:count] if 0 < count < len(wide) else ()
        if count >= len(wide):
            best = np.arange(len(wide))
        ranked = sorted(((int(i), float(wide[i])) for i in best), key=lambda pair: -pair[1])
        return cls(token, float(wide[token]), tuple(ranked))


@dataclass
class Logprobs:
    """Those of one sequence. `chosen` and `prompted` say how many of the likeliest tokens are
    listed; None: nothing is."""

    chosen: int | None
    prompted: int | None
    tokens: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    """Of the tokens chosen so far."""
    prompt: list[TokenLogprob | None] = field(default_factory=lambda: [None])
    """Of the prompt's tokens; nothing says how likely its first one is."""

    def choose(self, scores: Scores, row: int, path: Sequence[int], fresh: Sequence[int]) -> None:
        """`fresh` were chosen, each behind a node of the path."""
        if self.chosen is not None:
            for node, token in zip(path, fresh, strict=False):  # the path may go past an end
                self.tokens.append(TokenLogprob.of(scores.logits[row, node], token, self.chosen))

    def read(self, scores: Scores, row: int, following: Ints) -> None:
        """These tokens of the prompt follow the rows, one behind each."""
        assert self.prompted is not None, "asked for where a prompt is scored"
        for node, token in enumerate(following.tolist()):
            logits = scores.logits[row, node]
            self.prompt.append(TokenLogprob.of(logits, token, self.prompted))


def read_scored(
    session: Session,
    seat: int,
    prompt: Ints,
    span: range,
    least: int,
    into: Logprobs,
    show: Show | None = None,
) -> Scores:
    """Commit prompt[span] and note its log-probabilities; the scores of its last row (B = N = 1).

    As `Session.read`, which tells the last row alone: here all rows are scored, ROWS at a time and
    never fewer than `least`. The other sequences stay as they are.
    """
    batch, last = len(session.lengths), None
    start = span.start
    while start < span.stop:
        room = session.capacity - int(session.lengths.max())
        count = min(ROWS, span.stop - start, room)
        width = max(count, least)
        tokens = np.full((batch, width), prompt[start])
        tokens[seat, :count] = prompt[start : start + count]
        counts = [least] * batch
        counts[seat] = width
        scores = session.score(tokens, None, None, counts if batch > 1 else None)
        into.read(scores, seat, prompt[start + 1 : start + count + 1])
        last = one_row(scores, seat, count - 1)
        if show is not None:
            show({tap: states[seat, :count] for tap, states in scores.taps.items()})
        paths: list[Sequence[int]] = [()] * batch
        paths[seat] = range(count)
        session.commit(paths)
        start += count
    assert last is not None, "a part of a prompt has tokens"
    return last
