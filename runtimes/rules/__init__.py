"""Acceptance rules by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import numpy as np

from graftline.errors import GraftlineError, nearest
from graftline.runtimes.options import check_options
from graftline.runtimes.resources import Resources
from graftline.runtimes.rules.greedy import Greedy
from graftline.runtimes.rules.point_mass import PointMass
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.verdict import Rule

RULES: dict[str, type[Any]] = {"greedy": Greedy, "point-mass": PointMass}
"""Classes with `of(sampling, generator) -> Rule`. A rule that has options is a dataclass of them
whose method `of(sampling, generator, resources)` makes the rule of one sequence."""


def make_rule(
    name: str,
    sampling: Sampling,
    generator: np.random.Generator,
    options: Mapping[str, object] | None = None,
    resources: Resources | None = None,
) -> Rule:
    """The named rule for one sequence. Raises GraftlineError for an unknown name or option."""
    if name not in RULES:
        raise GraftlineError(f"no rule is called '{name}'{nearest(name, RULES)}")
    kind = RULES[name]
    if is_dataclass(kind):
        check_options(name, kind, options or {})
        return kind(**(options or {})).of(sampling, generator, resources or Resources())
    if options:
        raise GraftlineError(f"the rule {name} has no options; remove rule_options from the recipe")
    return kind.of(sampling, generator)
