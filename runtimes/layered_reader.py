"""The reading of one sequence by a head of several layers, each of which drafts one token (MTP)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from graftline.runtimes.draft_engine import Read
from graftline.runtimes.draft_reader import Guess, common_prefix
from graftline.runtimes.draft_seats import Seat
from graftline.runtimes.feature_engine import FeatureEngine, FeatureRead
from graftline.runtimes.feature_reader import FeatureReader
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Floats, Scores, Tap


@dataclass(eq=False)
class _Layer:
    """One layer's side of a sequence: slot i of its cache has the token of position i + 1 + k, k
    being its number, and the state that the layer before it has made of slot i (of the first: the
    target's feature of position i)."""

    engine: FeatureEngine
    seat: Seat
    held: int = 0
    """Slots that hold what the text, and then the draft, says."""
    first: int = 0
    states: list[Floats] = field(default_factory=list[Floats])
    """What it made of the slots from `first` on."""

    def cut(self, slots: int) -> None:
        """Only so many slots are still true."""
        self.held = min(self.held, max(slots, 0))
        self.first = min(self.first, self.held)
        del self.states[self.held - self.first :]

    def forget(self, before: int) -> None:
        """States of slots before that are not asked for any more."""
        gone = max(min(before - self.first, len(self.states)), 0)
        del self.states[:gone]
        self.first += gone

    def of(self, start: int) -> Floats:
        """[N, H]: its states of the slots from `start` on."""
        return np.stack(self.states[start - self.first :])


class LayeredReader(FeatureReader):
    """As `FeatureReader`, of a head whose layer k drafts the k-th token behind a text
    (DeepSeek-V3, arXiv 2412.19437): over the whole text, each on a cache of its own, of the states
    of the layer before it and tokens one further on. What a layer read of drafted tokens is true
    where the target took them, and else is read again. Nothing is drafted behind the last layer's
    token.
    """

    def __init__(self, engine: FeatureEngine, vocabulary: int = 0) -> None:
        super().__init__(engine, vocabulary)
        engines = (engine, *engine.deeper)
        self._layers = [_Layer(one, Seat()) for one in engines]
        self._read = self._layers[0]
        """The layer that reads now."""
        self._asked = 0
        """The first slot of that reading."""

    @property
    def room(self) -> int:
        return min(super().room, len(self._layers))

    def start(self, context: Sequence[int], seat: Seat | None = None) -> None:
        seated = self._seated
        super().start(context, seat)
        for number, layer in enumerate(self._layers):
            if number == 0:
                layer.seat = self.seat
            elif not seated:
                layer.seat = layer.engine.seats.take(self)
            layer.held, layer.first, layer.states = 0, 0, []

    def choose(self, fresh: Sequence[int], features: Floats) -> None:
        self._true(common_prefix(self._ahead, fresh))
        super().choose(fresh, features)

    def read(self, ahead: Sequence[int]) -> Read:
        """To read what the layer that drafts behind `ahead` lacks of the text and of `ahead`."""
        known, number, text = len(self.tokens), len(ahead), [*self.tokens, *ahead]
        if (same := common_prefix(self._ahead, ahead)) < len(self._ahead):
            self._true(same)
        layer = self._read = self._layers[number]
        layer.cut(min(layer.held, known - 1))
        start = self._asked = layer.held
        if number:
            features = self._layers[number - 1].of(start)
        else:
            features = self._features.of(start)
            self._held = known
        tokens = text[start + number : known + number]
        assert len(features) == len(tokens), "every token that is read has a feature"
        layer.held, self._ahead = known, list(ahead)
        show = self._show if len(tokens) > 1 else None
        return FeatureRead(layer.engine, layer.seat, start, tokens, features=features, show=show)

    def guess(
        self, scores: Scores, place: int, sampling: Sampling, exact: bool = False
    ) -> Guess:
        layer = self._read
        if len(layer.states) < layer.held - layer.first:  # of a single row nothing was shown
            layer.states.append(scores.tap(self.state)[0, place].copy())
        assert len(layer.states) == layer.held - layer.first, "every slot has a state"
        self._forget()
        return super(FeatureReader, self).guess(scores, place, sampling, exact)

    def _show(self, states: Mapping[Tap, Floats]) -> None:
        self._read.states += list(states[self.state].copy())

    def _true(self, same: int) -> None:
        """Of what was read ahead only the first `same` tokens are true."""
        for number, layer in enumerate(self._layers):
            layer.cut(len(self.tokens) + same - number)
        self._ahead = self._ahead[:same]

    def _forget(self) -> None:
        """Let go of states that no layer will read: those before what the next one holds."""
        pairs = zip(self._layers, self._layers[1:], strict=False)
        for layer, behind in pairs:
            layer.forget(min(behind.held, layer.held - len(self._layers)))
        last = self._layers[-1]
        last.forget(last.held)
