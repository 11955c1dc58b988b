"""Draft heads read hidden states of their target: those of all sequences of a batch in one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol
from weakref import WeakSet

import numpy as np

from graftline.runtimes.session import Floats, Ints, Scores, of_heads


class Heads(Protocol):
    """Opened draft heads. Without `sequential` they read a state alone: head i says what stands
    i + 2 places behind a row. Else head i also reads the i + 1 tokens before the one it says."""

    heads: int
    width: int
    """Candidates of each."""
    hidden: int
    sequential: bool
    reads_last: bool
    """Whether all heads are told the token behind the state too (bigrams)."""
    milliseconds: float
    """Of a call for one row, on the scale of the target's costs."""

    def answer(
        self, hidden: Floats, head: int = 0, tokens: Ints | None = None
    ) -> tuple[Ints, Floats]:
        """Ids and logits, best first, for states [N, H]: of all heads [N, heads, width]; or of one
        `head` that reads `tokens` [N, head + 1] too, [N, 1, width]. With bigrams all heads are told
        the tokens [N, 1] behind the states."""
        ...


@dataclass(eq=False)
class Reading:
    """One sequence's side: the state behind which it drafts next, and what the heads say of it."""

    hidden: Floats | None = None
    last: int = 0
    """The token that the target chose behind it."""
    ids: list[list[int]] | None = None
    """Of each head its candidates, best first; None until the heads were asked."""
    shares: list[list[float]] | None = None
    """Their probabilities, among the candidates of their head."""

    def forget(self) -> None:
        """Another sequence begins."""
        self.hidden = self.ids = self.shares = None

    def note(self, scores: Scores, row: int, node: int, last: int) -> None:
        """The target chose the token `last` behind that row. Raises GraftlineError where the target
        does not bring out the state that the heads read."""
        self.hidden = scores.tap(of_heads(scores.taps))[row, node].copy()
        self.ids, self.shares, self.last = None, None, last


class HeadReader:
    """Asks heads that read a state alone. One call answers for all sequences that wait for one:
    their weights are what it costs to read, and not the rows."""

    def __init__(self, heads: Heads) -> None:
        self.heads = heads
        self._readings: WeakSet[Reading] = WeakSet()

    def join(self) -> Reading:
        """Of one more sequence, as long as somebody holds it."""
        reading = Reading()
        self._readings.add(reading)
        return reading

    def ask(self, reading: Reading) -> bool:
        """Have the heads' answer; whether that took a call."""
        if reading.ids is not None or reading.hidden is None:
            return False
        waiting = [one for one in self._readings if one.ids is None and one.hidden is not None]
        states = [one.hidden for one in waiting if one.hidden is not None]
        tokens = np.asarray([[one.last] for one in waiting]) if self.heads.reads_last else None
        ids, logits = self.heads.answer(np.stack(states), 0, tokens)
        rows = zip(waiting, ids.tolist(), shares_of(logits).tolist(), strict=True)
        for one, known, given in rows:
            one.ids, one.shares = known, given
        return True


def shares_of(logits: Floats) -> Floats:
    """Probabilities [..., k] among the candidates of these logits, best first."""
    weights = np.exp(logits - logits[..., :1])
    return weights / weights.sum(axis=-1, keepdims=True)
