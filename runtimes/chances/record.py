"""How good the proposals of one source of several are, by following all of them."""

from __future__ import annotations

from collections.abc import Sequence

from graftline.runtimes.chances.evidence import Evidence, Walk
from graftline.runtimes.drafter import Drafter
from graftline.tree import Tree

WEIGHT, OPEN_WALKS = 5.0, 4
"""Trials that a source's own prior is worth, and proposals that are followed at a time."""


class Record:
    """One source's proposals, and how often each of their rows came true, per class of proposal.

    As the controller does for the whole, every proposal is followed along what was then emitted,
    scored or not. What was learned is shared by the sequences of a batch, the open walks are not.
    """

    def __init__(self, evidence: dict[int, Evidence] | None = None) -> None:
        self.evidence: dict[int, Evidence] = {} if evidence is None else evidence
        self._walks: list[tuple[Evidence, Walk]] = []

    def begin(self) -> None:
        """Forget the open proposals: another sequence starts."""
        self._walks = []

    def chances(self, source: Drafter, tree: Tree) -> list[float]:
        """For every row of the source's last proposal the chance that it is accepted."""
        signal = source.signal
        if signal not in self.evidence:
            self.evidence[signal] = Evidence(source.prior(signal), WEIGHT)
        evidence = self.evidence[signal]
        if len(tree) > 1 and len(self._walks) < OPEN_WALKS:
            self._walks.append((evidence, Walk(signal, tree)))
        known = evidence.reach()[: len(tree)]
        return known + [0.0] * (len(tree) - len(known))

    def learn(self, fresh: Sequence[int]) -> None:
        """The sequence emitted `fresh`."""
        if self._walks:
            self._walks = [(e, walk) for e, walk in self._walks if e.follow(walk, fresh)]
