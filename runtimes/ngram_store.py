"""What the target said after each n-gram: its candidates and their averaged probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import exp

from graftline.errors import GraftlineError
from graftline.runtimes.session import Scores

PEAK_CLASSES = 4
_BELIEVED = 0.6
"""Share of its stored probability with which a candidate is first believed to be accepted."""


@dataclass(slots=True)
class Candidates:
    """Tokens, best first, with their probabilities, and how many answers went into the mean."""

    tokens: list[int]
    probs: list[float]
    seen: int = 1


class NgramStore:
    """From n-grams (tuples of tokens) to what follows; the oldest half is forgotten at `most`.

    Every answer moves the mean by 1 / min(answers so far, `horizon`): an average at first, then
    exponential forgetting. `width` candidates are kept.
    """

    def __init__(self, width: int, horizon: int, most: int = 1 << 18) -> None:
        self._width, self._horizon, self._most = width, horizon, most
        self._entries: dict[tuple[int, ...], Candidates] = {}
        self.find = self._entries.get
        """The candidates after an n-gram, or None."""

    def learn(self, ngram: tuple[int, ...], tokens: list[int], probs: list[float]) -> None:
        """Average in one answer of the target: tokens, best first, and their probabilities."""
        known = self._entries.get(ngram)
        if known is None:
            if len(self._entries) >= self._most:
                for oldest in list(islice(self._entries, self._most // 2)):
                    del self._entries[oldest]
            self._entries[ngram] = Candidates(tokens, probs)
            return
        known.seen += 1
        rate = 1.0 / min(known.seen, self._horizon)
        keep = 1.0 - rate
        mean = dict(zip(known.tokens, [prob * keep for prob in known.probs], strict=True))
        for token, prob in zip(tokens, probs, strict=True):
            mean[token] = mean.get(token, 0.0) + rate * prob
        best = sorted(mean, key=mean.__getitem__, reverse=True)[: self._width]
        known.tokens, known.probs = best, [mean[token] for token in best]


def answers(
    who: str, scores: Scores, row: int, rows: Sequence[int], width: int
) -> tuple[list[list[int]], list[list[float]]]:
    """For each of `rows` of sequence `row`: the `width` best tokens and their share of the softmax
    over the candidates that the graph returns.

    Raises GraftlineError when it returns none.
    """
    if scores.topk_ids is None or scores.topk_logits is None:
        raise GraftlineError(
            f"{who} reads topk_ids and topk_logits, which this graph does not return; rebuild the "
            f"bundle with the pass reduce-logits{{topk={width}}}"
        )
    kept: list[list[float]] = scores.topk_logits[row, rows, :width].tolist()
    shares: list[list[float]] = []
    for logits in kept:  # plain numbers: between steps, arrays of a few cost more
        odds = [exp(logit - logits[0]) for logit in logits]
        total = sum(odds)
        shares.append([o / total for o in odds])
    return scores.topk_ids[row, rows, :width].tolist(), shares


def peak_class(candidates: Candidates) -> int:
    """The signal of a proposal that starts with these: how sure, and whether seen repeatedly."""
    peak = min(int(candidates.probs[0] * PEAK_CLASSES), PEAK_CLASSES - 1)
    return 1 + peak + PEAK_CLASSES * (candidates.seen > 1)


def peak_prior(signal: int, rows: int) -> tuple[float, ...]:
    """First beliefs for a class of `peak_class`, falling geometrically from row to row."""
    if signal == 0:
        return (1.0, *[0.0] * (rows - 1))
    chance = _BELIEVED * ((signal - 1) % PEAK_CLASSES + 0.5) / PEAK_CLASSES
    return (1.0, *(chance * _BELIEVED**row for row in range(rows - 1)))
