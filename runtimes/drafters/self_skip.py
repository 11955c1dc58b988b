"""A model that drafts for itself, by a route that skips some of its blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graftline.route import ROUTE
from graftline.runtimes.draft_engine import DraftEngine
from graftline.runtimes.drafters.draft_model import DraftModel
from graftline.runtimes.resources import Resources, missing


@dataclass
class SelfSkip(DraftModel):
    """Self-speculative decoding (Draft & Verify, arXiv 2309.08168): the target without the blocks
    that the bundle's route skips writes ahead, and the whole target verifies.

    The route works on the target's own caches: it reads what the target computed, and what it
    writes for drafted tokens lies where verification writes, which fills the caches of the skipped
    blocks too. Where the paper stops drafting below a threshold of confidence that adapts, here the
    bid decides, as for every draft model; `length` `confidence{...}` is a fixed threshold.
    """

    name: ClassVar[str] = "self-skip"

    def _engine(self, resources: Resources) -> DraftEngine:
        if resources.route is None:
            raise missing(self.name, ROUTE)
        return resources.route()
