"""Sub-models of one draft: the shallowest that is sure enough writes the next token."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import ClassVar, Self

from graftline.errors import GraftlineError
from graftline.runtimes.chances.budget import Budget
from graftline.runtimes.chances.calibration import Calibration
from graftline.runtimes.control.paid import DEBT_STEPS
from graftline.runtimes.draft_engine import MANY_ROWS, DraftEngine, Read
from graftline.runtimes.draft_reader import Guess
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters.draft_model import DraftModel
from graftline.runtimes.drafting import Draft
from graftline.runtimes.nested_reader import NestedReader
from graftline.runtimes.resources import Resources, missing
from graftline.runtimes.session import Scores

_EXPLORE = 0.01
"""Share of the time spent on drafts that pays for asking sub-models that are left aside."""


@dataclass
class SortedDraft(DraftModel):
    """Sorted speculative decoding (S2D, arXiv 2407.01955): at every position the shallowest
    sub-model of the draft answers first, and the next deeper one after it where the answer's chance
    is too small.

    The paper has one confidence threshold for each sub-model. Here a deeper one is asked where it
    raises the chance of acceptance by more than its call must bring in at the bid's price; the
    answer with the greatest chance stands. Which sub-models are asked at all is settled before
    every draft, by what confidences each has shown and what came of them; those left aside are
    tried again from a budget. All of that is known before a token is drawn.
    """

    name: ClassVar[str] = "sorted-draft"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length:
            raise GraftlineError(
                f"{self.name}: the offer decides how far to draft; leave out `length`"
            )

    def equip(self, resources: Resources) -> None:
        """Open the sub-models. Raises GraftlineError for a bundle without them."""
        self._resources = resources
        engines = self._engines(resources)
        self._nest = self._reader = self._reading(engines)
        self._calibrations = [Calibration(engine.agreement) for engine in engines]
        self.calibration, self._agreement = self._calibrations[-1], engines[-1].agreement
        self._all = range(len(engines))
        self._asked, self._tried = list(self._all), -1
        """The sub-models that answer in the draft under way, and the one that is only tried."""
        self._budget, self._turns = Budget(), count()
        self._answers: list[list[tuple[int, Guess, bool]]] = []
        """By position: who answered, what, and whether that answer stood."""

    def _engines(self, resources: Resources) -> Sequence[DraftEngine]:
        """The sub-models on one set of caches, that of least cost first, the whole draft last."""
        if resources.draft is None:
            raise missing(self.name, "draft")
        if resources.depths is None:
            raise missing(self.name, "depths")
        return resources.depths()

    def _reading(self, engines: Sequence[DraftEngine]) -> NestedReader:
        return NestedReader.of(engines, self._resources.vocabulary)

    def fork(self) -> Self:
        other = super().fork()
        other._calibrations = self._calibrations
        other._budget, other._turns = self._budget, self._turns
        return other

    def start(self, context: Sequence[int]) -> None:
        super().start(context)
        self._answers = []

    def draft(self, bid: Bid) -> Draft:
        self._answers = []
        self._asked = self._worth_asking(bid) if bid.rows > 1 else list(self._all)
        self._tried = self._to_try()
        tree = yield from super().draft(bid)
        dearest = max(reader.milliseconds for reader in self._nest.depths)
        self._budget.save(_EXPLORE * self.price(self.reads), most=dearest)
        return tree

    def debt(self) -> float:
        return sum(self._nest.depths[place].debt for place in self._asked)

    def _promises(self, chance: float, bid: Bid, depth: int) -> bool:
        return self._best(chance, bid, depth)[0] >= bid.keep[depth]

    def _answer(
        self, ahead: Sequence[int], chance: float, bid: Bid
    ) -> Generator[Read, Scores, tuple[Guess, float]]:
        depth = len(ahead) + 1
        call = bid.call(depth)
        token = chance + self._rest(chance, bid, depth)
        tried = self._tried if depth == 1 else -1
        found: list[tuple[int, Guess, float]] = []
        most = 0.0
        for place in sorted({*self._asked, tried} - {-1}):
            gain, part = (self._calibrations[place].usual - most) * token, self._part(place, ahead)
            if found and place != tried and gain < call * part:
                continue
            read = self._nest.ask(place, ahead)
            scores = yield read
            self.reads += part * read.share
            guess = self._nest.guess(scores, 0, self._sampling)
            odds = self._calibrations[place].of(guess.confidence) if guess.known else 0.0
            found.append((place, guess, odds))
            most = max(most, odds)
        _, best, odds = max(found, key=lambda answer: answer[2])
        self._answers.append([(place, guess, guess is best) for place, guess, _ in found])
        return best, odds

    def _learn(self, fresh: Sequence[int]) -> int:
        """An answer that did not stand is judged too, by its best token; not where tokens are
        drawn, for nothing was drawn from it."""
        accepted = 0
        for place, (answers, chosen) in enumerate(zip(self._answers, fresh, strict=False)):
            drafted = self._drafted[place][0] if place < len(self._drafted) else None
            for which, guess, stood in answers:
                if stood and drafted is not None:
                    self._calibrations[which].record(guess.confidence, drafted == chosen)
                elif guess.probs is None:
                    self._calibrations[which].record(guess.confidence, guess.best == chosen)
            if drafted != chosen:
                break
            accepted += 1
        return accepted

    def _worth_asking(self, bid: Bid) -> list[int]:
        """The sub-models whose answers are worth their price, from the deepest up: an answer is
        taken, dropped, or left to those deeper, whichever promises most tokens."""
        token = 1.0 + self._rest(1.0, bid, 1)
        least, call = bid.keep[1], bid.call(1)
        value, asked = 0.0, list[int]()
        worth: dict[int, float] = {}
        for place in reversed(self._all):
            outcomes = self._calibrations[place].outcomes()
            promised = sum(share * max(odds * token - least, value) for share, odds in outcomes)
            worth[place] = promised - call * self._part(place)
            if worth[place] > value:
                value = worth[place]
                asked.insert(0, place)
        return asked or [max(worth, key=worth.__getitem__)]

    def _to_try(self) -> int:
        """A sub-model left aside that the budget pays for, each in its turn; -1: none."""
        left = [place for place in self._all if place not in self._asked]
        if not left:
            return -1
        dearest = max(self._nest.depths[place].milliseconds for place in left)
        return left[next(self._turns) % len(left)] if self._budget.pays(dearest) else -1

    def _rest(self, chance: float, bid: Bid, depth: int) -> float:
        """Tokens, less what they cost, that the rest of the draft promises behind a token at
        `depth` of that chance."""
        total = 0.0
        for row in range(depth + 1, min(bid.rows, self.rows)):
            gain, chance = self._best(chance, bid, row)
            if gain <= bid.keep[row]:
                break
            total += gain - bid.keep[row]
        return total

    def _best(self, chance: float, bid: Bid, depth: int) -> tuple[float, float]:
        """The most that one sub-model's usual answer behind a chain of that chance promises, less
        its call; and the chance of the chain with it."""
        call = bid.call(depth)
        usual = (chance * calibration.usual for calibration in self._calibrations)
        return max((odds - call * self._part(place), odds) for place, odds in enumerate(usual))

    def _part(self, place: int, ahead: Sequence[int] = ()) -> float:
        """What asking a sub-model costs, in calls of the whole draft; `ahead` may hold tokens that
        it has to read first, and catching up with the sequence is written off over some steps."""
        reader, whole = self._nest.depths[place], self._nest.milliseconds
        part = reader.milliseconds / whole if whole else 1.0
        first = reader.unread / DEBT_STEPS + reader.rows(ahead) - 1
        return part * (1.0 + MANY_ROWS * first)
