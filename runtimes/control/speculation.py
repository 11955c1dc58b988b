"""What one recipe's proposals are expected to bring, learned from all of them, scored or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

from graftline.runtimes.chances.evidence import WEIGHT, Evidence, Walk
from graftline.runtimes.control.choose import Offer, Terms
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.control.paid import Paid
from graftline.tree import Tree

IDLE, BACKOFF = 48, 8
"""Steps in a row without a draft after which proposals are made in every so many only."""
TRIED = 1.4
"""Most that a step is believed to take, over a plain one, where it is not known what drafted steps
really take: a table that is wrong is found out by small steps."""


class Track:
    """Of one sequence, the proposal that is being followed."""

    walk: Walk | None = None


class Speculation:
    """One recipe's side of the choice, kept between requests. Without `costs` drafts are of a fixed
    number of `rows`.

    Exploring costs nothing: a proposal of each sequence at a time, scored or not, is followed along
    the tokens that come anyway, and whether each row would have been accepted is counted per class
    (`Drafter.signal`). `whole`: a proposal is scored as it is or not at all. `lossy`: the rule
    accepts more than would have come anyway, so that of a scored proposal the rows behind the
    scored ones say nothing. `paid`: drafts that cost time. `text`: of a drafter that says itself
    what its rows are worth (`WeighingDrafter`), the number of ids that are text; nothing is counted
    for it. `weight`: trials that a prior is worth.
    """

    def __init__(
        self, name: str, costs: Costs | None, prior: Callable[[int], Sequence[float]], *,
        weight: float = WEIGHT, whole: bool = False, lossy: bool = False, paid: Paid | None = None,
        rows: int = 8, text: int | None = None,
    ) -> None:  # fmt: skip
        self.name, self.costs, self.paid, self.rows, self.row = name, costs, paid, rows, 0.0
        self._prior, self._weight, self._text = prior, weight, text
        self._whole, self._lossy, self._idle = whole, lossy, 0
        self._evidence: dict[int, Evidence] = {}

    @classmethod
    def fixed(cls, name: str, rows: int = 8) -> Speculation:
        """Drafts of so many rows in every step, whether they pay or not."""
        return cls(name, None, lambda signal: (1.0,), rows=rows)

    @property
    def asking(self) -> bool:
        """Whether proposals are worth the host's time in this step."""
        return self.costs is None or self._idle < IDLE or self._idle % BACKOFF == 0

    def stepped(self, drafted: bool) -> None:
        """A step was chosen; a sequence that starts after a time without any counts as a draft."""
        self._idle = 0 if drafted else self._idle + 1

    def offer(self, sequence: int, signal: int, tree: Tree, terms: Terms) -> Offer:
        """What a proposal of more than one row is expected to bring."""
        assert self.costs is not None, "without costs nothing is chosen"
        known = self.name, "chain" if tree.is_chain else "tree", terms.batch
        pace, size, rows = self.costs.pace, 1, terms.room - 1
        gains = tree.reach[1:] if self._weighs(tree) else self._of(signal).reach()[1 : len(tree)]
        if self._whole:
            gains, size = [sum(gains)] if len(tree) <= terms.room else [], len(tree) - 1
        elif pace.unsure(*known):
            rows = min(rows, self._share(sequence, terms))
        gains = list(takewhile(lambda gain: gain >= terms.cut, gains[:rows]))
        bends = (row for row, parent in enumerate(tree.parent_list) if parent != row - 1)
        return Offer(sequence, gains, next(bends, len(tree)), pace.slower(*known), size)

    def chose(self, track: Track, signal: int, tree: Tree, rows: int) -> float:
        """Of a proposal `rows` are scored: follow it; the tokens expected of it in this step."""
        if self._weighs(tree):
            pairs = zip(tree.reach[1:rows], tree.token_list[1:rows], strict=True)
            return sum(gain for gain, token in pairs if token < (self._text or 0))
        if rows > 1 or (len(tree) > 1 and track.walk is None):
            track.walk = Walk(signal, tree, rows if self._lossy and rows > 1 else None)
        return sum(self._of(signal).reach()[1:rows])

    def learn(self, track: Track, fresh: Sequence[int]) -> None:
        """The sequence emitted `fresh`."""
        walk = track.walk
        if walk is not None and not self._of(walk.signal).follow(walk, fresh):
            track.walk = None

    def _share(self, sequence: int, terms: Terms) -> int:
        """Rows of one sequence in such a step, whatever seats its sequences have."""
        return (self._small(terms) - 1 - sequence % terms.batch) // terms.batch + 1

    def _small(self, terms: Terms) -> int:
        """Rows behind all roots together that a step may have which tries what drafts take."""
        assert self.costs is not None, "without costs nothing is chosen"
        batch, past, more = terms.batch, terms.past, 1
        most = TRIED * self.costs.of(batch, False, past, batch)
        while more < terms.room and self.costs.of(batch + more + 1, False, past, batch) <= most:
            more += 1
        return more

    def _weighs(self, tree: Tree) -> bool:
        return self._text is not None and tree.probs is not None

    def _of(self, signal: int) -> Evidence:
        if signal not in self._evidence:
            self._evidence[signal] = Evidence(self._prior(signal), self._weight)
        return self._evidence[signal]
