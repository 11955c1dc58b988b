"""A draft head's reading of one sequence: its tokens, and the target's features before each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from graftline.runtimes.draft_engine import Read
from graftline.runtimes.draft_reader import Guess, Reader
from graftline.runtimes.draft_seats import Seat
from graftline.runtimes.feature_engine import FeatureEngine, FeatureRead, LevelRead
from graftline.runtimes.head_text import HeadText
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Floats, Ints, Scores, Tap
from graftline.runtimes.trees.dynamic import Growth
from graftline.tree import Tree


class FeatureReader(Reader):
    """As `Reader`, of a head whose slot i holds the token of position i + 1 and the feature of
    position i: the first token of a text is never read. What it drafted has its own states for
    features; what of that the target takes is read again, with the target's."""

    behind: ClassVar[int] = 1
    """How many tokens a slot's token is behind its feature."""

    def __init__(self, engine: FeatureEngine, vocabulary: int = 0) -> None:
        super().__init__(engine, vocabulary)
        self._engine = engine
        self._prompt: list[Floats] = []
        self._features = np.zeros((0, engine.head.width), np.float32)
        """Of the slots from `_first` on: the target's features of what is chosen."""
        self._first = 0
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
            self._prompt.clear()
        self._prompt.append(features.copy())

    def start(self, context: Sequence[int], seat: Seat | None = None) -> None:
        """Begin a sequence, all of whose prompt was seen; the last token's feature comes with the
        token that is chosen behind it."""
        super().start(context[self.behind :], seat)
        seen = np.concatenate(self._prompt) if self._prompt else self._features[:0]
        assert len(seen) == len(context), "a prompt is read whole"
        self._features, self._first, self._held = seen[:-1], 0, 0
        self._prompt, self._states = [], []

    def choose(self, fresh: Sequence[int], features: Floats) -> None:
        """The target chose `fresh`; the features [N, H] are of the positions before each."""
        self._held, self._ahead = min(self._held, self._known), []
        self.tokens += fresh
        kept = self._features[max(self._held - self._first, 0) :]
        self._first = self._known - len(fresh) - len(kept)
        self._features = np.concatenate([kept, features])
        self._states = []

    @property
    def text(self) -> HeadText:
        """All that the target has read and chosen; before anything was drafted behind it."""
        assert self._first == 0, "features are kept until they are read"
        return HeadText(self.tokens, self._features)

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

    def candidates(self, scores: Scores, count: int) -> tuple[Ints, Floats]:
        """Of every row its `count` likeliest tokens [N, count], best first, and the head's
        probabilities of them; 0 of ids that the target does not have."""
        assert scores.topk_ids is not None, "a head's graph names candidates"
        assert scores.topk_logits is not None
        ids, values = scores.topk_ids[0, :, :count], scores.topk_logits[0, :, :count]
        most = values[:, :1]
        total = np.exp(scores.logits[0] - most).sum(axis=-1, keepdims=True)
        probs = np.exp(values - most) / total
        if self._vocabulary:
            probs[ids >= self._vocabulary] = 0.0
        return ids, probs

    def level(self, tree: Tree, count: int, features: Floats) -> LevelRead:
        """To read the last `count` nodes of a tree behind the sequence, all of one depth, for the
        scores [1, count] of what comes after each. The root is the sequence's last token; the nodes
        before those were read, in this order. `features` [count, H]: the head's states of their
        parents."""
        base, first = len(self.tokens), len(tree) - count
        nodes = tree.token_list[first:]
        return LevelRead(
            self.engine, self.seat, base + first - 1, nodes, count, features=features,
            base=base, depth=int(tree.depth[first]), seen=tree.mask[first:, 1:],
        )  # fmt: skip
    def fill(self, mask: int, count: int) -> Read:
        """As `Reader.fill`; the features of what the target has not read are zeros."""
        read, width = super().fill(mask, count), self._engine.head.width
        features = np.zeros((len(read.tokens), width), np.float32)
        features[: self._known - read.start] = self._features[read.start - self._first :]
        return FeatureRead(
            self.engine, self.seat, read.start, read.tokens, count, features=features
        )

    def read(self, ahead: Sequence[int]) -> Read:
        read, base = super().read(ahead), len(self.tokens)
        start, count = read.start, len(read.tokens)
        known = self._features[start - self._first : base - self._first]
        drafted = self._states[max(start - base, 0) : start - base + count]
        features = np.concatenate([known, np.stack(drafted)]) if drafted else known
        assert len(features) == count, "every token that is read has a feature"
        return FeatureRead(self.engine, self.seat, start, read.tokens, features=features)


class Levels:
    """The nodes of a growing tree that a head has read behind its sequence, depth by depth."""

    def __init__(self, reader: FeatureReader, growth: Growth) -> None:
        self._reader, self._growth = reader, growth
        self._nodes: list[int] = []
        """In the order in which they were read: their slots, the root's first."""
        self._place: dict[int, int] = {}
        self._states: list[Floats] = []
        """What the head made of each."""

    def __len__(self) -> int:
        """Slots that it takes behind the sequence."""
        return max(len(self._nodes) - 1, 0)

    def read(self, nodes: Sequence[int]) -> Read:
        """To read `nodes`, all of one depth, whose parents were read; the root, with what the
        sequence lacks, before all others."""
        growth, above = self._growth, [self._growth.parents[node] for node in nodes]
        for node in nodes:
            self._place[node] = len(self._nodes)
            self._nodes.append(node)
        if above[0] < 0:
            return self._reader.read([])
        tokens = np.asarray([growth.tokens[node] for node in self._nodes], np.int64)
        parents = [growth.parents[node] for node in self._nodes[1:]]
        places = np.asarray([-1, *(self._place[parent] for parent in parents)], np.int64)
        states = [self._states[self._place[parent]] for parent in above]
        return self._reader.level(Tree(tokens, places), len(nodes), np.stack(states))

    def note(self, scores: Scores) -> None:
        """What came of the last read; valid until the next one."""
        self._states += list(scores.tap(self._reader.state)[0].copy())
class ContextReader(FeatureReader):
    """Of a head whose slot i holds the feature of position i, and behind which a block lies: the
    last token, whose feature is not known yet, and masks."""

    behind = 0
