"""A draft head's reading of one sequence: its tokens, and the target's features before each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from graftline.runtimes.draft_engine import Read
from graftline.runtimes.draft_reader import Guess, Reader
from graftline.runtimes.draft_seats import Seat
from graftline.runtimes.feature_engine import FeatureEngine, FeatureRead
from graftline.runtimes.feature_rows import FeatureRows
from graftline.runtimes.head_text import HeadText
from graftline.runtimes.levels import Levels
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Floats, Scores, Tap
from graftline.runtimes.trees.dynamic import Growth


class FeatureReader(Reader):
    """As `Reader`, of a head whose slot i holds the token of position i + 1 and the feature of
    position i: the first token of a text is never read. What it drafted has its own states for
    features; what of that the target takes is read again, with the target's."""

    behind: ClassVar[int] = 1
    """How many tokens a slot's token is behind its feature."""

    def __init__(self, engine: FeatureEngine, vocabulary: int = 0) -> None:
        super().__init__(engine, vocabulary)
        self._engine = engine
        self._features = FeatureRows(engine.head.width)
        """The target's, of what it has read; those that the head has read are forgotten."""
        self._states: list[Floats] = []
        """Of the drafted slots, what the head itself made of the slot before."""

    @property
    def reads(self) -> Tap:
        """Which hidden state of the target."""
        return self._engine.reads

    @property
    def state(self) -> Tap:
        """Which hidden state of the head stands for the next feature."""
        return self._engine.head.state

    def see(self, start: int, features: Floats) -> None:
        """The target has read prompt tokens from position `start` on: their features [N, H]."""
        if start == 0:
            self._features.restart()
        self._features.add(features)

    def start(self, context: Sequence[int], seat: Seat | None = None) -> None:
        """Begin a sequence, all of whose prompt was seen; the last token's feature comes with the
        token that is chosen behind it."""
        super().start(context[self.behind :], seat)
        assert self._features.stop == len(context), "a prompt is read whole"
        self._features.cut(len(context) - 1)
        self._held, self._states = 0, []

    def choose(self, fresh: Sequence[int], features: Floats) -> None:
        """The target chose `fresh`; the features [N, H] are of the positions before each."""
        self._held, self._ahead = min(self._held, self._known), []
        self.tokens += fresh
        self._features.forget(self._held)
        self._features.add(features)
        assert self._features.stop == self._known, "every token has a feature before it"
        self._states = []

    @property
    def text(self) -> HeadText:
        """All that the target has read and chosen; before anything was drafted behind it."""
        assert self._features.first == 0, "features are kept until they are read"
        return HeadText(self.tokens, self._features.of(0))

    @property
    def _known(self) -> int:
        """Slots whose features the target has given."""
        return len(self.tokens) - 1 + self.behind

    @property
    def debt(self) -> float:
        """Milliseconds that reading what is `unread` adds to the next call."""
        return self.unread * self._engine.reading

    def guess(
        self, scores: Scores, place: int, sampling: Sampling, exact: bool = False
    ) -> Guess:
        self._states.append(scores.tap(self.state)[0, place].copy())
        return super().guess(scores, place, sampling, exact)

    def fill(self, mask: int, count: int) -> Read:
        """As `Reader.fill`; the features of what the target has not read are zeros."""
        read, width = super().fill(mask, count), self._engine.head.width
        features = np.zeros((len(read.tokens), width), np.float32)
        features[: self._known - read.start] = self._features.of(read.start)
        return FeatureRead(
            self.engine, self.seat, read.start, read.tokens, count, features=features
        )

    def read(self, ahead: Sequence[int]) -> Read:
        read, base = super().read(ahead), len(self.tokens)
        start, count = read.start, len(read.tokens)
        known = self._features.of(start, base)
        drafted = self._states[max(start - base, 0) : start - base + count]
        features = np.concatenate([known, np.stack(drafted)]) if drafted else known
        assert len(features) == count, "every token that is read has a feature"
        return FeatureRead(self.engine, self.seat, start, read.tokens, features=features)


class FeatureLevels(Levels):
    """As `Levels`, of a head whose nodes have its own states of their parents for features."""

    def __init__(self, reader: FeatureReader, growth: Growth) -> None:
        super().__init__(reader, growth)
        self._tap = reader.state
        self._states: list[Floats] = []
        """What the head made of each."""

    def note(self, scores: Scores) -> None:
        """What came of the last read; valid until the next one."""
        self._states += list(scores.tap(self._tap)[0].copy())

    def features(self, parents: Sequence[int]) -> Floats:
        return np.stack([self._states[parent] for parent in parents])


class ContextReader(FeatureReader):
    """Of a head whose slot i holds the feature of position i, and behind which a block lies: the
    last token, whose feature is not known yet, and masks."""

    behind = 0
