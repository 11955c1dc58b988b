"""How an engine decodes each of its recipes, kept between requests: what one learned stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from graftline.recipe import Recipe, recipe
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.control.speculation import Speculation
from graftline.runtimes.policy import Policy, make_policy
from graftline.runtimes.resources import Resources
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.scheduler import Scheduler
from graftline.runtimes.session import Session
from graftline.runtimes.study.forced import ForcedDrafter, Forcing, forced_resources
from graftline.runtimes.study.records import Records


class Policies:
    """Policies by recipe, each made when it is first asked for. `usual` is the recipe of requests
    that name none; without `costs` drafts are of a fixed size. Threads may share it."""

    def __init__(
        self,
        usual: Recipe,
        session: Session,
        resources: Resources,
        costs: Costs | None,
        scheduler: Scheduler,
    ) -> None:
        self.usual, self.costs = usual, costs
        self._session, self._resources, self._scheduler = session, resources, scheduler
        self._made: dict[str, Policy] = {}

    def of(self, wanted: str | Recipe | None) -> Policy:
        """The policy of a recipe; None: the usual one's. Raises GraftlineError for an unknown
        recipe, drafter, rule or option, and for a resource that is missing."""
        chosen = self.usual if wanted is None else wanted
        if isinstance(chosen, str):
            chosen = self.usual if chosen == self.usual.name else recipe(chosen)
        known = self._made.get(chosen.name)
        if known is None or known.recipe != chosen:
            scheduler = self._scheduler
            resources = self._resources  # a draft engine, or heads, are measured when they open
            measures = resources.draft is not None or resources.head is not None
            run = scheduler.idle if measures else scheduler.between
            known = run(lambda: self._make(chosen))
        return known

    def _make(self, chosen: Recipe) -> Policy:
        """The policy of a recipe that is used for the first time: it may open and measure a draft
        engine, so nothing else runs meanwhile."""
        known = self._made.get(chosen.name)
        if known is None or known.recipe != chosen:  # two threads may have asked
            known = make_policy(chosen, self._session, self._resources, self.costs)
            self._made[chosen.name] = known
        return known

    def record(self, wanted: str | Recipe, sampling: Sampling, most: int) -> Records:
        """See `Engine.record`."""
        policy = self.of(wanted)
        records = Records(policy.recipe.rule, sampling, most)
        fixed = Speculation.fixed(policy.recipe.name)
        self._made[policy.recipe.name] = replace(policy, control=fixed, records=records)
        return records

    def force(self, wanted: str | Recipe, forcing: Forcing) -> None:
        """See `Engine.force`."""
        known = self.of(wanted).recipe
        resources = forced_resources(self._resources, forcing)
        made = make_policy(known, self._session, resources, self.costs)
        drafter: Any = ForcedDrafter(made.drafter, forcing)
        self._made[known.name] = replace(made, drafter=drafter)
