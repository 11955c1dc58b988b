"""What one recipe's proposals are expected to bring, learned from all of them, scored or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

from graftline.runtimes.control.choose import GAIN, Offer, Terms
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.control.evidence import HORIZON, Evidence, Walk
from graftline.runtimes.control.paid import Paid
from graftline.tree import Tree

IDLE, BACKOFF = 48, 8
"""Steps in a row without a draft after which proposals are made in every so many only."""
MISS = 0.92
"""What each proposal in a row without an accepted token leaves of the next ones: a copied stretch
has ended, or the text is one that does not copy."""
TRUST = 0.1
"""Expected tokens a step at which a forecast is put right half by what came of those before it."""
FOLLOWED = 4
"""Proposals of a sequence that are followed at a time; of those taken whole, which are expensive,
one: a copied stretch must not count as often as it was proposed."""


class Track:
    """What is known of one sequence: the proposals that are being followed, and how many in a row
    had no token accepted."""

    def __init__(self) -> None:
        self.walks, self.misses = list[Walk](), 0


class Speculation:
    """One recipe's side of the choice, kept between requests. Without `costs` drafts are of a fixed
    number of `rows`.

    Exploring costs nothing: every proposal, scored or not, is followed along the tokens that come
    anyway, and whether each row would have been accepted is counted per class (`Drafter.signal`).
    So a drafter that loses is left at once, and taken up again when its unscored proposals come
    true. `whole`: a proposal is scored as it is or not at all. `lossy`: the rule accepts more than
    would have come anyway, so that of a scored proposal the rows behind the scored ones say
    nothing. `paid`: drafts that cost time.
    """

    def __init__(
        self,
        name: str,
        costs: Costs | None,
        prior: Callable[[int], Sequence[float]],
        *,
        gain: float = GAIN,
        weight: float = 8.0,
        whole: bool = False,
        lossy: bool = False,
        paid: Paid | None = None,
        rows: int = 8,
    ) -> None:
        self.name, self.costs, self.paid, self.rows = name, costs, paid, rows
        self._prior, self._gain, self._weight = prior, gain, weight
        self._whole, self._lossy = whole, lossy
        self._evidence: dict[int, Evidence] = {}
        self._idle, self._expected, self._accepted = 0, 0.0, 0.0

    @classmethod
    def fixed(cls, name: str, rows: int = 8) -> Speculation:
        """Drafts of so many rows in every step, whether they pay or not."""
        return cls(name, None, lambda signal: (1.0,), rows=rows)

    @property
    def asking(self) -> bool:
        """Whether proposals are worth the host's time in this step."""
        return self.costs is None or self._idle < IDLE or self._idle % BACKOFF == 0

    def begin(self) -> None:
        """Sequences start after a time without any."""
        self._idle = 0

    def offer(
        self, track: Track, sequence: int, signal: int, tree: Tree, terms: Terms
    ) -> Offer:
        """What a proposal of more than one row is expected to bring."""
        assert self.costs is not None, "without costs nothing is chosen"
        kind, discount, size = "chain" if tree.is_chain else "tree", MISS**track.misses, 1
        gains = [discount * chance for chance in self._of(signal).reach()[1 : len(tree)]]
        if self._whole:
            gains, size = [sum(gains)] if len(tree) <= terms.room else [], len(tree) - 1
        gains = list(takewhile(lambda gain: gain >= terms.cut, gains[: terms.room - 1]))
        slower = self.costs.pace.slower(self.name, kind, terms.batch)
        bends = (row for row, parent in enumerate(tree.parent_list) if parent != row - 1)
        straight = next(bends, len(tree))
        return Offer(sequence, gains, straight, self._gain - 1.0, slower, size)

    def chose(self, track: Track, signal: int, tree: Tree, rows: int) -> float:
        """Of a proposal `rows` are scored: follow it; the tokens expected of it."""
        if len(tree) > 1 and len(track.walks) < (1 if self._whole else FOLLOWED):
            track.walks.append(Walk(signal, tree, rows if self._lossy and rows > 1 else None))
        return sum(self._of(signal).reach()[1:rows])

    def forecast(self, tokens: float) -> float:
        """So many expected tokens, put right by how many of those expected lately were accepted."""
        self._expected += (tokens - self._expected) / HORIZON
        return tokens * (TRUST + self._accepted) / (TRUST + self._expected)

    def stepped(self, drafted: bool) -> None:
        """A step was chosen."""
        self._idle = 0 if drafted else self._idle + 1

    def learn(self, track: Track, fresh: Sequence[int]) -> None:
        """The sequence emitted `fresh`."""
        if fresh:
            self._accepted += (len(fresh) - 1 - self._accepted) / HORIZON
        walks, track.walks = track.walks, []
        for walk in walks:
            if self._of(walk.signal).follow(walk, fresh):
                track.walks.append(walk)
            else:
                track.misses = 0 if walk.node else track.misses + 1

    def _of(self, signal: int) -> Evidence:
        if signal not in self._evidence:
            self._evidence[signal] = Evidence(self._prior(signal), self._weight)
        return self._evidence[signal]
