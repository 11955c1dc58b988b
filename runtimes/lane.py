"""The sequences of one recipe, and the one choice that all lanes make together for a step."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from time import perf_counter

from graftline.runtimes.control.choose import Offer, Terms
from graftline.runtimes.control.speculation import Speculation, Track
from graftline.runtimes.decoding import Decoding
from graftline.runtimes.drafter import Bid, PaidDrafter, is_paid, weighs
from graftline.runtimes.drafting import Draft, draft_together
from graftline.runtimes.marks import Marks
from graftline.tree import Tree


class Lane:
    """The sequences of one recipe, whatever requests they are of, and what is known of its drafts.

    `members` are in the order in which they joined.
    """

    def __init__(self, control: Speculation) -> None:
        self.control, self.marks = control, Marks()
        self.members: list[Decoding] = []
        self.proposals: list[tuple[int, Tree]] = []
        """Of the coming step, by member."""
        self.bought: dict[int, int] = {}
        """By seat, the rows of this step's drafts that cost time."""
        self.drafted = False
        """Whether any member drafts in this step."""
        self._tracks: dict[Decoding, tuple[Track, Marks]] = {}

    def join(self, one: Decoding) -> None:
        """One more sequence."""
        if not self.members:
            self.control.stepped(drafted=True)
        self.members.append(one)
        self._tracks[one] = Track(), self.marks

    def leave(self, one: Decoding) -> None:
        """Forget a sequence; what steps have shown of their costs is settled after the last."""
        self.members.remove(one)
        del self._tracks[one]
        if not self.members and self.control.costs is not None:
            self.control.costs.settle()

    def clear(self) -> None:
        """Forget all of them."""
        self.members.clear()
        self._tracks.clear()

    def propose(self, branches: bool) -> None:
        """What each member could score that costs nothing but the host's time."""
        self.bought, asking = {}, self.control.asking
        for one in self.members:
            if weighs(one.drafter):
                one.drafter.row = self.control.row
        self.proposals = [one.proposal(branches) if asking else one.root() for one in self.members]

    def offers(self, terms: Terms) -> list[Offer]:
        """What those are expected to bring."""
        self.control.row = terms.cut
        costs = self.control.costs
        if costs is None or costs.pace.waits(self.control.name):
            return []
        return [
            self.control.offer(one.seat, signal, tree, terms)
            for one, (signal, tree) in zip(self.members, self.proposals, strict=True)
            if len(tree) > 1
        ]

    def promises(self, terms: Terms) -> list[Offer]:
        """What drafts that cost time are expected to bring."""
        paid, payers = self.control.paid, self._payers()
        return [] if paid is None or not payers else paid.offers(payers, terms)

    def buy(self, bought: Container[int], terms: Terms, rate: float, branches: bool) -> float:
        """Draft for the members whose seats are among those `bought`; the milliseconds of it."""
        paid = self.control.paid
        chosen = [pair for pair in self._payers() if pair[0] in bought]
        if paid is None or not chosen:
            return 0.0
        debts, bids = dict[int, float](), dict[int, Bid]()
        for seat, drafter in chosen:
            bid, debts[seat] = paid.bid(drafter, terms, rate), drafter.debt()
            bids[seat] = bid.shared(drafter.share(len(chosen))) if len(chosen) > 1 else bid
        began = perf_counter()
        begun = self._draft(bids, branches)
        milliseconds = 1e3 * (perf_counter() - began)
        made = [pair for pair in chosen if pair[0] in begun]
        debt = sum([debts[seat] for seat, _ in made])
        paid.compare([drafter for _, drafter in made], debt, milliseconds, terms)
        return debt + sum([self._bought(seat, one, terms, len(made)) for seat, one in made])

    def draft_freely(self, rows: int, branches: bool) -> None:
        """Draft as much as that for all members, whatever it costs."""
        payers, bid = self._payers(), Bid.free(rows)
        if len(payers) > 1:
            bid = bid.shared(payers[0][1].share(len(payers)))
        self._draft({seat: bid for seat, _ in payers}, branches)

    def _payers(self) -> list[tuple[int, PaidDrafter]]:
        pairs = [(one.seat, one.drafter) for one in self.members if not one.done]
        return [(seat, drafter) for seat, drafter in pairs if is_paid(drafter)]

    def _draft(self, bids: Mapping[int, Bid], branches: bool) -> set[int]:
        """Let the members of these seats draft, all together; the seats of those for whom a draft
        could help."""
        begun: list[tuple[int, Bid]] = []
        drafts: list[Draft] = []
        for place, one in enumerate(self.members):
            if one.seat in bids:
                bid, drafter = one.affordable(bids[one.seat], branches), one.drafter
                self.proposals[place] = one.root()
                if bid is not None and is_paid(drafter):
                    begun.append((place, bid))
                    drafts.append(drafter.draft(bid))
        for (place, bid), outcome in zip(begun, draft_together(drafts), strict=True):
            self.proposals[place] = self.members[place].bought(bid, outcome, branches)
        return {bid.row for _, bid in begun}

    def _bought(self, seat: int, drafter: PaidDrafter, terms: Terms, together: int) -> float:
        """All that was drafted is scored, because drawn drafts may not be cut; what it took."""
        paid = self.control.paid
        assert paid is not None
        place = next(place for place, one in enumerate(self.members) if one.seat == seat)
        self.bought[seat] = len(self.proposals[place][1])
        return paid.drafted(seat, drafter, self.bought[seat] - 1, terms, together)

    def place(self, trees: list[Tree], rows: dict[int, int]) -> float:
        """Put every member's tree, of so many rows by seat, among those of the step; the tokens
        expected behind the roots."""
        tokens, self.drafted, paid = 0.0, False, self.control.paid
        for one, (signal, tree) in zip(self.members, self.proposals, strict=True):
            count = min(rows.get(one.seat, 1), len(tree))
            if paid is not None and one.seat in self.bought:
                expected = paid.expected(one.seat)
            else:
                expected = self.control.chose(self._tracks[one][0], signal, tree, count)
            tokens += expected
            trees[one.seat] = one.cut(tree, count)
            self.drafted |= count > 1
        self.control.stepped(self.drafted)
        return tokens

    def learn(self, one: Decoding, fresh: Sequence[int]) -> None:
        """A member emitted `fresh`."""
        self.control.learn(self._tracks[one][0], fresh)
        if self.control.paid is not None and fresh:
            self.control.paid.learn(one.seat, len(fresh) - 1)

    def settle(self) -> None:
        """What steps were expected to bring, for the members that the last one ended."""
        for one in self.members:
            if one.done:
                one.spent = self.marks.plus(self._tracks[one][1], -1)
