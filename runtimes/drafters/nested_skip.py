"""A route of a draft answers first, and the whole draft where the route is unsure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from graftline.route import ROUTE
from graftline.runtimes.draft_engine import DraftEngine
from graftline.runtimes.drafters.sorted_draft import SortedDraft
from graftline.runtimes.resources import Resources, missing


@dataclass
class NestedSkip(SortedDraft):
    """Route and precision together: the draft, which is the target in few bits, without the blocks
    that the bundle's route skips (Draft & Verify, arXiv 2309.08168), nested in the whole draft as
    S2D (arXiv 2407.01955) nests sub-models.

    Both work on the target's own caches. What the whole draft reads is there for the route too;
    what the route reads, the whole draft reads again when it is asked.
    """

    name: ClassVar[str] = "nested-skip"

    def _engines(self, resources: Resources) -> Sequence[DraftEngine]:
        if resources.draft is None:
            raise missing(self.name, "draft")
        if resources.route is None:
            raise missing(self.name, ROUTE)
        whole, route = resources.draft(), resources.route()
        costs = route.step, route.agreement, route.rows_cost
        return DraftEngine(route.session, whole.seats, *costs), whole
