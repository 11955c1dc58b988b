"""What one recipe's proposals are expected to bring, learned from all of them, scored or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

from graftline.runtimes.control.choose import HURDLE, Offer, Terms
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.control.evidence import WEIGHT, Evidence, Walk
from graftline.runtimes.control.paid import Paid
from graftline.tree import Tree

IDLE, BACKOFF = 48, 8
"""Steps in a row without a draft after which proposals are made in every so many only."""
TRIED = 4
"""Most rows behind the roots where it is not known what drafted steps really take: a table that is
wrong is found out by small steps."""


class Track:
    """What is known of one sequence: the proposal that is being followed, and how many in a row
    had no token accepted."""

    def __init__(self) -> None:
        self.walk: Walk | None = None


class Speculation:
    """One recipe's side of the choice, kept between requests. Without `costs` drafts are of a fixed
    number of `rows`.

    Exploring costs nothing: a proposal of each sequence at a time, scored or not, is followed along
    the tokens that come anyway, and whether each row would have been accepted is counted per class
    (`Drafter.signal`). So a drafter that loses is left at once, and taken up again when its
    unscored proposals come true. `whole`: a proposal is scored as it is or not at all. `lossy`: the
    rule accepts more than would have come anyway, so that of a scored proposal the rows behind the
    scored ones say nothing. `paid`: drafts that cost time. `text`: of a drafter that says itself
    what its rows are worth (`WeighingDrafter`), the number of ids that are text; nothing is counted
    for it, and it tries again by itself.
    """

    def __init__(
        self,
        name: str,
        costs: Costs | None,
        prior: Callable[[int], Sequence[float]],
        *,
        hurdle: float = HURDLE,
        weight: float = WEIGHT,
        whole: bool = False,
        lossy: bool = False,
        paid: Paid | None = None,
        rows: int = 8,
        text: int | None = None,
    ) -> None:
        self.name, self.costs, self.paid, self.rows = name, costs, paid, rows
        self.row, self._text = 0.0, text
        self._prior, self._hurdle, self._weight = prior, hurdle, weight
        self._whole, self._lossy = whole, lossy
        self._evidence: dict[int, Evidence] = {}
        self._idle = 0

    @classmethod
    def fixed(cls, name: str, rows: int = 8) -> Speculation:
        """Drafts of so many rows in every step, whether they pay or not."""
        return cls(name, None, lambda signal: (1.0,), rows=rows)

    @property
    def asking(self) -> bool:
        """Whether proposals are worth the host's time in this step."""
        return self.costs is None or self._idle < IDLE or self._idle % BACKOFF == 0

    def stepped(self, drafted: bool) -> None:
        """A step was chosen; or a sequence starts after a time without any, as if one had drafted.
        """
        self._idle = 0 if drafted else self._idle + 1

    def offer(
        self, track: Track, sequence: int, signal: int, tree: Tree, terms: Terms
    ) -> Offer:
        """What a proposal of more than one row is expected to bring."""
        assert self.costs is not None, "without costs nothing is chosen"
        kind, size, rows = "chain" if tree.is_chain else "tree", 1, terms.room - 1
        pace, batch = self.costs.pace, terms.batch
        gains = tree.reach[1:] if self._weighs(tree) else self._of(signal).reach()[1 : len(tree)]
        if self._whole:
            gains, size = [sum(gains)] if len(tree) <= terms.room else [], len(tree) - 1
        elif pace.unsure(self.name, kind, batch):
            rows = min(rows, max(1, TRIED // batch))
        gains = list(takewhile(lambda gain: gain >= terms.cut, gains[:rows]))
        slower = pace.slower(self.name, kind, batch)
        bends = (row for row, parent in enumerate(tree.parent_list) if parent != row - 1)
        return Offer(sequence, gains, next(bends, len(tree)), self._hurdle, slower, size)

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

    def _weighs(self, tree: Tree) -> bool:
        return self._text is not None and tree.probs is not None

    def _of(self, signal: int) -> Evidence:
        if signal not in self._evidence:
            self._evidence[signal] = Evidence(self._prior(signal), self._weight)
        return self._evidence[signal]
