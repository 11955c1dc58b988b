"""Acceptance rules by name."""

from __future__ import annotations

import numpy as np

from graftline.errors import GraftlineError, nearest
from graftline.runtimes.rules.greedy import Greedy
from graftline.runtimes.rules.point_mass import PointMass
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.verdict import Rule

RULES: dict[str, type[Greedy] | type[PointMass]] = {"greedy": Greedy, "point-mass": PointMass}


def make_rule(name: str, sampling: Sampling, generator: np.random.Generator) -> Rule:
    """The named rule for one sequence. Raises GraftlineError for an unknown name."""
    if name not in RULES:
        raise GraftlineError(f"no rule is called '{name}'{nearest(name, RULES)}")
    return RULES[name].of(sampling, generator)
