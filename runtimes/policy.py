"""How an engine decodes a recipe's requests: its drafter and its controller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from graftline.recipe import ANSWER_PREFIX, Recipe
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.control.paid import Paid
from graftline.runtimes.control.speculation import Speculation
from graftline.runtimes.drafter import Drafter, is_paid, weighs
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.grammar import FORCED, forced_prior
from graftline.runtimes.lane import Lane
from graftline.runtimes.resources import Resources, missing
from graftline.runtimes.rules import make_rule
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.schedules import make_course
from graftline.runtimes.schedules.course import Course
from graftline.runtimes.session import Session
from graftline.runtimes.study.records import Records
from graftline.runtimes.study.tuned import tuned_prior


@dataclass(frozen=True)
class Policy:
    """A recipe's runtime part, kept between requests: what it learned stays."""

    recipe: Recipe
    drafter: Drafter
    control: Speculation
    records: Records | None = None
    """Where acceptance is recorded."""

    course: Course | None = None
    """What computes its tokens, where that is not always the whole model."""

    lane: Lane = field(init=False)
    """The sequences that this recipe decodes now, of all requests."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "lane", Lane(self.control))


def make_policy(
    chosen: Recipe, session: Session, resources: Resources, costs: Costs | None
) -> Policy:
    """The policy of a recipe; without `costs` its drafts are of a fixed size. Raises GraftlineError
    for an unknown drafter, rule or option, and for a resource that is missing."""
    if ANSWER_PREFIX in chosen.needs and not resources.answer_prefix:
        raise missing(f"the recipe {chosen.name}", ANSWER_PREFIX)
    drafter = make_drafter(chosen.drafter, chosen.options, resources)
    random = np.random.default_rng(0)
    make_rule(chosen.rule, Sampling(), random, chosen.rule_options, resources)
    known = tuned_prior(resources.tuned, chosen.name, drafter.prior)
    forced = forced_prior(drafter.rows)

    def prior(signal: int) -> Sequence[float]:
        return forced if signal == FORCED else known(signal)

    paid = Paid(chosen.name, costs) if costs is not None and is_paid(drafter) else None
    whole = getattr(drafter, "whole", False)
    text = session.facts.vocabulary if weighs(drafter) else None
    control = Speculation(
        chosen.name, costs, prior, whole=whole, lossy=not chosen.lossless, paid=paid, text=text
    )
    return Policy(chosen, drafter, control, course=make_course(chosen, resources))
