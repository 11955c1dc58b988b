"""What one recipe's proposals are expected to bring, learned from all of them, scored or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graftline.runtimes.control.choose import GAIN, IDLE, NAP, Offer, Terms
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.control.evidence import Evidence, Walk
from graftline.runtimes.control.paid import Paid
from graftline.tree import Tree

LONG = 256
"""Steps in a row without a draft, of any text, after which all proposals are asked for seldom."""
MODEST = 0.01
"""Share of a plain step that proposals may take without that."""
KEEP = 0.97
"""What every further proposal leaves of a text's record."""
MISS = 0.97
"""What each proposal in a row without an accepted token leaves of the next ones: a copied stretch
has ended. Of 1.0, 0.97, 0.95, 0.9 and 0.8 the one that lost least in any group of the replayed
answers."""


class TextFit:
    """Accepted over expected tokens in one text. A belief about a class of proposals is a mean over
    texts: in one that copies, all classes do better. `trust`: expected tokens before the record
    counts as much as the belief; `most`: best that a text is believed to be: what looks best of
    many is less good than it looks."""

    def __init__(self, trust: float = 10.0, most: float = 1.5) -> None:
        self._trust, self._most = trust, most
        self._accepted, self._expected, self._misses = 0.0, 0.0, 0

    def record(self, accepted: float, expected: float) -> None:
        """A proposal, scored or not, of which `expected` tokens were expected had `accepted`."""
        self._misses = 0 if accepted else self._misses + 1
        self._accepted = self._accepted * KEEP + accepted
        self._expected = self._expected * KEEP + expected

    def factor(self, most: float | None = None) -> float:
        """What expected tokens are to be multiplied by, at most `most`."""
        ratio = (self._trust + self._accepted) / (self._trust + self._expected)
        return min(ratio, self._most if most is None else most) * MISS**self._misses


class Track:
    """What is known of one sequence: its text, and the proposals that are being followed."""

    def __init__(self, fit: TextFit) -> None:
        self.fit, self.walks = fit, list[Walk]()
        self.proposal: tuple[int, Tree, int] | None = None
        """Of this step: its class, the tree, and the rows of it that are worth following."""
        self.promise = 0.0
        """Tokens that this step's paid draft is to bring by its own account."""


class Speculation:
    """One recipe's side of the choice, kept between requests. Without `costs` drafts are of a fixed
    number of `rows`.

    Exploring costs nothing: every proposal, scored or not, is followed along the tokens that come
    anyway, and whether each row would have been accepted is counted per class (`Drafter.signal`).
    So a drafter that loses is left at once, and taken up again when its unscored proposals come
    true. `whole`: a proposal is scored as it is or not at all; those are expensive, so a text never
    makes them look better. `lossy`: the rule accepts more than would have come anyway, so that of a
    scored proposal the rows behind the scored ones say nothing. `paid`: drafts that cost time.
    """

    def __init__(
        self,
        name: str,
        costs: Costs | None,
        prior: Callable[[int], Sequence[float]],
        *,
        gain: float = GAIN,
        weight: float = 20.0,
        whole: bool = False,
        lossy: bool = False,
        paid: Paid | None = None,
        rows: int = 8,
    ) -> None:
        self.name, self.costs, self.paid, self.rows = name, costs, paid, rows
        self._prior, self._gain, self._weight = prior, gain, weight
        self._whole, self._lossy = whole, lossy
        self._evidence: dict[int, Evidence] = {}
        self._calm, self._idle, self._proposing = 0, 0, 0.0

    @classmethod
    def fixed(cls, name: str, rows: int = 8) -> Speculation:
        """Drafts of so many rows in every step, whether they pay or not."""
        return cls(name, None, lambda signal: (1.0,), rows=rows)

    @property
    def asking(self) -> bool:
        """False in three of four steps while nothing is drafted, if proposals take the host long;
        in seven of eight where nothing was drafted for long, in this text and those before it."""
        if self.costs is None:
            return True
        if self._idle >= LONG and self._calm >= NAP:
            return (self._calm + 1) % (2 * NAP) == 0
        slow = self._proposing > MODEST * self.costs.of(1)
        return not slow or self._calm < IDLE or (self._calm + 1) % NAP == 0

    def begin(self) -> None:
        """Sequences start after a time without any."""
        for evidence in self._evidence.values():
            evidence.rest()
        self._calm = 0
        if self.paid is not None:
            self.paid.begin()

    def track(self) -> Track:
        """Of one more sequence."""
        if self._whole:
            return Track(TextFit(6.0, 1.0))
        return Track(TextFit() if self.paid is None else TextFit(6.0))

    def offer(
        self, track: Track, sequence: int, signal: int, tree: Tree, terms: Terms
    ) -> Offer:
        """What a proposal of more than one row is expected to bring."""
        assert self.costs is not None, "without costs nothing is chosen"
        evidence, factor, chain = self._of(signal), track.fit.factor(), tree.is_chain
        size = min(len(tree), len(evidence), terms.room)
        straight = size if chain else _straight(tree)
        slower = self.costs.pace.slower(self.name, "chain" if chain else "tree", terms.batch)
        hurdle = self._gain - 1.0
        if self._whole:
            track.proposal = (signal, tree, len(tree))
            gains = [factor * evidence.expected(len(tree))] if len(tree) <= terms.room else []
            return Offer(sequence, gains, straight, hurdle, slower, len(tree) - 1)
        gains = [factor * chance for chance in evidence.above(terms.cut / factor, size)]
        track.proposal = (signal, tree, min(len(gains) + 2, size))  # or it would never recover
        return Offer(sequence, gains, straight, hurdle, slower)

    def chose(self, track: Track, rows: int) -> float:
        """Of the offer `rows` are scored: follow it; the tokens expected of it."""
        if track.proposal is None:
            return track.fit.factor(3.0) * track.promise
        signal, tree, followed = track.proposal
        track.proposal, evidence = None, self._of(signal)
        if self._lossy and rows > 1:
            followed = rows
        if len(track.walks) < (1 if self._whole else 4):
            track.walks.append(Walk(signal, tree, evidence.expected(followed), followed))
        return track.fit.factor(1.0 if self._whole else 2.0) * evidence.expected(rows)

    def stepped(self, drafted: bool, proposing: float | None) -> None:
        """A step was chosen; making the proposals took the host so many milliseconds, if they were
        asked for."""
        self._calm, self._idle = (0, 0) if drafted else (self._calm + 1, self._idle + 1)
        if proposing is not None:  # one interruption must not look like a slow drafter
            known = self._proposing
            self._proposing += 0.1 * (min(proposing, 2.0 * known + 0.02) - known)

    def learn(self, track: Track, fresh: Sequence[int]) -> None:
        """The sequence emitted `fresh`."""
        if track.promise and fresh:
            track.fit.record(len(fresh) - 1, track.promise)
        track.promise = 0.0
        if track.walks:
            going: list[Walk] = []
            for walk in track.walks:
                if self._of(walk.signal).follow(walk, fresh):
                    going.append(walk)
                else:
                    track.fit.record(walk.accepted, walk.expected)
            track.walks = going

    def _of(self, signal: int) -> Evidence:
        if signal not in self._evidence:
            self._evidence[signal] = Evidence(self._prior(signal), 48.0, self._weight)
        return self._evidence[signal]


def _straight(tree: Tree) -> int:
    """Rows up to the first whose parent is not the row before it."""
    parents = tree.parent_list
    return next(row for row in range(1, len(parents)) if parents[row] != row - 1)
