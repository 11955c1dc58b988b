"""EAGLE: a head of the target's own hidden states writes ahead, one token at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graftline.errors import GraftlineError
from graftline.runtimes.chances.calibration import Calibration
from graftline.runtimes.chances.certainty import certainty
from graftline.runtimes.drafters.draft_model import DraftModel
from graftline.runtimes.feature_engine import FeatureEngine
from graftline.runtimes.feature_reader import FeatureReader
from graftline.runtimes.lengths import make_length
from graftline.runtimes.resources import Resources, missing
from graftline.runtimes.session import NO_STATES, Floats, Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree


@dataclass
class Eagle(DraftModel):
    """EAGLE (arXiv 2401.15077): as a draft model, but what it reads is every token with the hidden
    state that the target has before it. Behind what is chosen it goes on with states of its own.

    How far to draft is the bid's, or a `length` policy's; `sampled` drafts are drawn.
    """

    name: ClassVar[str] = "eagle"
    reads_as: ClassVar[type[FeatureReader]] = FeatureReader

    def equip(self, resources: Resources) -> None:
        """Open the head. Raises GraftlineError for a bundle without one."""
        head = None if resources.head is None else resources.head()
        if not isinstance(head, FeatureEngine):
            raise missing(self.name, "head")
        self._resources = resources
        self._reader = self._features = self.reads_as(head, resources.vocabulary)
        self.calibration, self._agreement = Calibration(head.agreement), head.agreement
        if self.length:
            self.policy = make_length(self.length, resources.tuned)

    def see(self, start: int, features: Floats) -> None:
        """The target has read prompt tokens from `start` on: their hidden states [N, H]."""
        self._features.see(start, features)

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        if scores.hidden is None:
            raise GraftlineError(NO_STATES)
        fresh = verdict.tokens(tree)
        accepted = self._learn(fresh)
        if self.policy is not None and self._drafted:
            self.policy.observe(accepted, len(self._drafted))
        self._drafted = []
        self._features.choose(fresh, scores.hidden[row, list(verdict.path)])
        self._class = certainty(scores, row, verdict.path[-1])

