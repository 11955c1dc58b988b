"""What the loop asks of a drafter, and the confidence that the length of a match gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, TypeGuard

from graftline.runtimes.drafting import Draft
from graftline.runtimes.session import Floats, Scores, Tap
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree


class Drafter(Protocol):
    """Guesses continuations. One drafter serves one sequence at a time.

    Proposals are nested: a smaller budget gives the first rows of the larger proposal, the most
    promising first, so whoever chooses the size may cut a proposal after any row; a drafter whose
    class says `whole = True` makes proposals that are taken as they are or not at all.
    """

    branching: ClassVar[bool]
    """True when proposals may branch, so scoring them takes a tree mask."""
    rows: int
    """Most rows of a proposal, the root included."""
    signal: int
    """The class of the last proposal: proposals of one class are about equally good. 0: none."""

    def fork(self) -> Drafter:
        """A drafter with the same options for another sequence; long-lived stores are shared."""
        ...

    def start(self, context: Sequence[int]) -> None:
        """Forget the last sequence and begin one whose prompt is `context`."""
        ...

    def propose(self, budget: int) -> Tree:
        """A tree of at most `budget` rows, rooted at the last committed token; sets `signal`."""
        ...

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        """Learn from a judged tree; `scores` of sequence `row` are valid during the call only."""
        ...

    def prior(self, signal: int) -> Sequence[float]:
        """For every row of a proposal of that class, the chance that it is accepted, as first
        believed; the root's is 1. Never rising."""
        ...


@dataclass(frozen=True)
class Bid:
    """What may be spent on drafts that cost time: at most `rows` rows a sequence, and by the depth
    of a row the least chance of acceptance at which it is worth drafting, and worth scoring once it
    is drafted. Index 0 is the root's. `row` is the sequence's place in the target's batch; `share`
    is what a call of one row costs it, over one that is made for it alone. `branches`: whether the
    target scores more than one path; without, of a tree its first path is scored. `whole`: whether
    all blocks of a row are to be computed in one call, with others."""

    rows: int
    draft: Sequence[float]
    keep: Sequence[float]
    row: int = 0
    share: float = 1.0
    branches: bool = True
    whole: bool = False

    def call(self, depth: int) -> float:
        """Tokens that one call of the model has to bring in, made for a row of that depth."""
        return self.draft[depth] - self.keep[depth]

    def shared(self, share: float) -> Bid:
        """The same where a call of one row costs that share of one that is made alone."""
        calls = [keep + share * self.call(depth) for depth, keep in enumerate(self.keep)]
        return replace(self, draft=calls, share=share)

    @classmethod
    def free(cls, rows: int, row: int = 0) -> Bid:
        """As many rows as that, whatever they are worth."""
        return cls(rows, (0.0,) * rows, (0.0,) * rows, row)


class PaidDrafter(Drafter, Protocol):
    """A drafter that computes its drafts with a model. `propose` gives what costs nothing (the root
    alone, or a store's proposal); `draft` spends time, on calls that others share in (`drafting`).

    With drawn drafts the lossless rules need that nothing is cut afterwards, and that whether one
    goes on is decided before the next token is drawn. `reads` are the model's calls of the last
    draft, one for each token; a cheaper call, of a part of the model or with others who pay theirs,
    counts as that part of one.
    Where one call makes all tokens, they are its rows, and `price` knows what so many cost.
    """

    reads: float

    def draft(self, bid: Bid) -> Draft:
        """For a tree of at most `bid.rows` rows; ends where another row is not worth its price."""
        ...

    def hope(self, foresight: int) -> Sequence[float]:
        """As `prior`, for the model's drafts of that class."""
        ...

    def price(self, reads: float) -> float:
        """Milliseconds of that many calls of the model."""
        ...

    def share(self, sequences: int) -> float:
        """What a call costs each of so many sequences that draft together, over what it costs one
        that drafts alone."""
        ...

    def debt(self) -> float:
        """Milliseconds to catch up with the sequence first."""
        ...

    def foresight(self) -> int:
        """The class of the draft to come, by what is known before it."""
        ...


class Resumed(PaidDrafter, Protocol):
    """A drafter whose drafts are a part of the target's own step: the target computes what is left.
    """

    def reads_for(self, rows: int) -> float:
        """Calls of a draft of so many rows behind the root."""
        ...

    def rest_cost(self, rows: int, past: float, batch: int) -> float:
        """Milliseconds of what is left of a step of so many rows in all, of `batch` sequences
        behind `past` positions each."""
        ...


def is_resumed(drafter: PaidDrafter) -> TypeGuard[Resumed]:
    """True where the target's step goes on from the draft's."""
    return hasattr(drafter, "rest_cost")


def is_paid(drafter: Drafter | None) -> TypeGuard[PaidDrafter]:
    """True for a drafter that computes drafts with a model."""
    return hasattr(drafter, "draft")


class WeighingDrafter(Drafter, Protocol):
    """A drafter that knows itself what each row of a proposal is worth, rows among them that are
    never accepted and bring something later: the `probs` of its trees say so, learned by it, and
    rows come by what they are worth."""

    row: float
    """What one more row of a step costs, in tokens, as the last step had it; told before each
    proposal. Whoever counts on rows of later steps has to take their cost off."""


def weighs(drafter: Drafter | None) -> TypeGuard[WeighingDrafter]:
    """True for a drafter that says what its rows are worth."""
    return hasattr(drafter, "row")


class Seeing(Protocol):
    """A drafter that reads the target's hidden states, those of a prompt too."""

    def see(self, start: int, states: Mapping[Tap, Floats]) -> None:
        """The target has read tokens of the prompt of its sequence from `start` on: its hidden
        states, each [N, H]. Before `start`."""
        ...


def sees(drafter: object) -> TypeGuard[Seeing]:
    """True for a drafter that must be shown every row of a prompt."""
    return hasattr(drafter, "see")


MATCH_CLASSES = (0, 1, 2, 3, 4, 4, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 6, 7)
"""The signal of a match of n tokens; longer ones have that of the last."""
_NEXT_IS_COPIED = (0.0, 0.22, 0.34, 0.45, 0.58, 0.72, 0.84, 0.93)
_SHORTEST = (0, 1, 2, 3, 4, 6, 9, 17)


def match_class(length: int) -> int:
    """The signal of a match of `length` tokens."""
    return MATCH_CLASSES[min(length, len(MATCH_CLASSES) - 1)]


def match_prior(signal: int, rows: int) -> tuple[float, ...]:
    """Chances of the rows of a copied chain: each accepted token lengthens the match by one."""
    chances = [1.0]
    length = _SHORTEST[signal]
    for depth in range(rows - 1):
        chances.append(chances[-1] * _NEXT_IS_COPIED[match_class(length + depth) if length else 0])
    return tuple(chances)
