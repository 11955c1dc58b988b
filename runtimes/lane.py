"""The sequences of one recipe: its controller chooses, step by step, what all of them score."""

from __future__ import annotations

from graftline.runtimes.control.account import Account
from graftline.runtimes.control.host_time import working
from graftline.runtimes.decoding import Decoding
from graftline.runtimes.trees.packing import trim
from graftline.tree import Tree


class Lane:
    """The sequences that one controller serves: those of one recipe, whatever requests they are of.

    `members` are in the order in which the controller knows them.
    """

    def __init__(self, account: Account) -> None:
        self.account = account
        self.members: list[Decoding] = []
        self._proposing: float | None = None
        """Milliseconds that making the coming step's proposals took, if they were asked for."""

    def join(self, one: Decoding) -> None:
        """One more sequence; the first begins a new account of what its controller sees."""
        if not self.members:
            self.account.begin(0)
        self.account.join()
        self.members.append(one)
        one.before = self.account.marks

    def leave(self, one: Decoding) -> None:
        """Forget a sequence."""
        place = self.members.index(one)
        self.account.leave(place)
        del self.members[place]

    def plan(self, trees: list[Tree], room: int, past: int, branches: bool) -> None:
        """Choose the tree that each member scores, of at most `room` rows, behind at most `past`
        committed positions; `trees` are by seat."""
        account, members = self.account, self.members
        asking, work = account.asking, working()
        proposals = [one.proposal(branches) if asking else one.root() for one in members]
        self._proposing = 1e3 * (working() - work) if asking else None
        rows = account.choose(proposals, room, past)
        drafters = [one.drafter for one in members]
        if (bid := account.bid(drafters, room)) is not None:
            proposals = [one.proposal(branches, bid) for one in members]
            rows = account.bought(proposals, drafters)
        for one, (_, tree) in zip(members, proposals, strict=True):
            trees[one.seat] = trim(tree, rows)

    def took(self, step: float, host: float) -> None:
        """Milliseconds of the step, and those that the host worked outside the engine."""
        self.account.took(step, host, self._proposing)

    def settle(self) -> None:
        """What the step has cost the members that it ended."""
        for one in self.members:
            if one.done and one.before is not None:
                one.spent = self.account.since(one.before)
