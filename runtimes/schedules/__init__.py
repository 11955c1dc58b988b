"""Schedules by name: which of a bundle's graphs computes which token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftline.errors import GraftlineError, nearest
from graftline.recipe import Recipe
from graftline.runtimes.options import check_options
from graftline.runtimes.resources import Resources, missing
from graftline.runtimes.schedules.budgets import Budgets
from graftline.runtimes.schedules.course import Course
from graftline.runtimes.schedules.gated import Gated
from graftline.runtimes.schedules.refresh import Refresh
from graftline.runtimes.schedules.routed import Routed
from graftline.runtimes.schedules.schedule import Schedule
from graftline.runtimes.schedules.unified import Unified

SCHEDULES: dict[str, type[Any]] = {
    "budgets": Budgets, "gated": Gated, "refresh": Refresh, "routed": Routed, "unified": Unified,
}  # fmt: skip
"""Dataclasses that are `Schedule`s."""


def schedule_of(chosen: Recipe, options: Mapping[str, object] | None = None) -> Schedule:
    """The schedule of a recipe, with `options` in place of its own. Raises GraftlineError for an
    unknown schedule or option, and for a value that cannot be."""
    if chosen.schedule not in SCHEDULES:
        near = nearest(chosen.schedule, SCHEDULES)
        raise GraftlineError(f"recipe {chosen.name}: unknown schedule '{chosen.schedule}'{near}")
    given, kind = {**chosen.schedule_options, **(options or {})}, SCHEDULES[chosen.schedule]
    check_options(chosen.schedule, kind, given)
    made: Schedule = kind(**given)
    made.check()
    return made


def make_course(chosen: Recipe, resources: Resources) -> Course | None:
    """The course of a recipe's sequences; None for a recipe without a schedule. Raises
    GraftlineError where the bundle has not its routes."""
    if not chosen.schedule:
        return None
    schedule = schedule_of(chosen)
    graphs = None if resources.routes is None else resources.routes(schedule.name)
    if graphs is None:
        raise missing(f"the recipe {chosen.name}", "routes")
    return Course(schedule, graphs)
