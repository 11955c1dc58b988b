"""Logits processors: what changes the target's logits before a token is chosen from them.

Each is a pure function of the path, the tokens before the one to choose: those of the prompt, those
chosen so far, and in a drafted tree those on the way to the row. So a row of a tree is shaped as
plain decoding would have shaped it there, and drafts change no token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np

from graftline.errors import RequestError
from graftline.runtimes.sampling import Ints, Logits

Processor = Callable[[Ints, Logits], Logits]
"""processor(path [n], logits [V]) -> logits [V]. It may write into the logits it is given, which
are its own; the path is not to be changed."""


@dataclass(frozen=True)
class Shaping:
    """The options of a request that shape logits, in the order in which they do; off by default."""

    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Ids and what is added to their logits."""
    logits_processors: tuple[Processor, ...] = ()
    no_repeat_ngram_size: int = 0
    min_tokens: int = 0

    def processors(self, prompt: int, ends: frozenset[int]) -> list[tuple[str, Processor]]:
        """Those that are asked for, by the names of their options: for a text behind `prompt`
        tokens that `ends` end. What bars tokens comes last: nothing after it can allow them."""
        made: list[tuple[str, Processor]] = []
        if self.repetition_penalty != 1.0:
            made.append(("repetition_penalty", Repetition(self.repetition_penalty)))
        if self.presence_penalty or self.frequency_penalty:
            penalty = Frequency(prompt, self.presence_penalty, self.frequency_penalty)
            made.append(("presence_penalty and frequency_penalty", penalty))
        if self.logit_bias:
            ids, biases = zip(*self.logit_bias, strict=True)
            made.append(("logit_bias", Bias(np.asarray(ids), np.asarray(biases, np.float32))))
        for place, processor in enumerate(self.logits_processors):
            name = f"logits_processors[{place}]"
            made.append((name, Checked(name, processor)))
        if self.no_repeat_ngram_size:
            made.append(("no_repeat_ngram_size", NoRepeat(self.no_repeat_ngram_size)))
        if self.min_tokens:
            barred = np.asarray(sorted(ends), np.int64)
            made.append(("min_tokens", Unended(prompt + self.min_tokens, barred)))
        return made


@dataclass(frozen=True)
class Repetition:
    """Makes every token of the path less likely (CTRL, arXiv 1909.05858)."""

    penalty: float

    def __call__(self, path: Ints, logits: Logits) -> Logits:
        values = logits[path]
        logits[path] = np.where(values > 0, values / self.penalty, values * self.penalty)
        return logits


@dataclass(frozen=True)
class Frequency:
    """OpenAI's penalties: a token that was generated c > 0 times loses presence + c * frequency."""

    prompt: int
    presence: float
    frequency: float

    def __call__(self, path: Ints, logits: Logits) -> Logits:
        ids, counts = np.unique(path[self.prompt :], return_counts=True)
        logits[ids] -= (self.presence + counts * self.frequency).astype(logits.dtype)
        return logits


@dataclass(frozen=True)
class Bias:
    """Adds to the logits of tokens; -inf bars them."""

    ids: Ints
    biases: Logits

    def __call__(self, path: Ints, logits: Logits) -> Logits:
        logits[self.ids] += self.biases
        return logits


@dataclass(frozen=True)
class NoRepeat:
    """Bars every token that would complete a second copy of `size` tokens in a row of the path."""

    size: int

    def __call__(self, path: Ints, logits: Logits) -> Logits:
        before = self.size - 1
        starts = len(path) - before  # of `before` tokens in a row that another one follows
        if starts < 1:
            return logits
        copies = np.ones(starts, np.bool_)
        for place in range(before):
            copies &= path[place : place + starts] == path[starts + place]
        follow = np.flatnonzero(copies) + before
        logits[path[follow]] = -np.inf
        return logits


@dataclass(frozen=True)
class Unended:
    """Bars the ends of a path that is shorter than `least`."""

    least: int
    ends: Ints

    def __call__(self, path: Ints, logits: Logits) -> Logits:
        if len(path) < self.least:
            logits[self.ends] = -np.inf
        return logits


@dataclass(frozen=True)
class Checked:
    """A user's processor. Raises RequestError for an answer that is no logits."""

    name: str
    processor: Processor

    def __call__(self, path: Ints, logits: Logits) -> Logits:
        shape = logits.shape
        changed = self.processor(path, logits)
        found = cast("object", changed)
        if not isinstance(found, np.ndarray) or changed.shape != shape:
            what = list(changed.shape) if isinstance(found, np.ndarray) else type(found).__name__
            raise RequestError(f"{self.name} returned {what}; return the logits, {list(shape)}")
        if not np.issubdtype(changed.dtype, np.floating) or not changed.max() < np.inf:
            raise RequestError(
                f"{self.name} returned logits that are not numbers or +inf; return finite ones, "
                "and -inf for what must not be chosen"
            )
        return changed
