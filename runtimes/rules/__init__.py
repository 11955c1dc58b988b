"""Acceptance rules by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import numpy as np

from graftline.errors import GraftlineError, nearest
from graftline.runtimes.options import check_options
from graftline.runtimes.resources import Resources
from graftline.runtimes.rules.block import Block, GreedyMultipathBlock
from graftline.runtimes.rules.clusters import Clusters
from graftline.runtimes.rules.greedy import Greedy
from graftline.runtimes.rules.judge import Judge
from graftline.runtimes.rules.k_sequential import KSequential
from graftline.runtimes.rules.neighbours import Neighbours
from graftline.runtimes.rules.point_mass import PointMass
from graftline.runtimes.rules.reflective import Reflective
from graftline.runtimes.rules.rejection import Rejection
from graftline.runtimes.rules.relaxed import Relaxed
from graftline.runtimes.rules.step_score import StepScore
from graftline.runtimes.rules.threshold import Threshold
from graftline.runtimes.rules.typical import Typical
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.verdict import Rule

RULES: dict[str, type[Any]] = {
    "greedy": Greedy,
    "point-mass": PointMass,
    "rejection": Rejection,
    "k-sequential": KSequential,
    "block": Block,
    "greedy-multipath-block": GreedyMultipathBlock,
    "typical": Typical,
    "threshold": Threshold,
    "relaxed": Relaxed,
    "neighbours": Neighbours,
    "clusters": Clusters,
    "judge": Judge,
    "reflective": Reflective,
    "step-score": StepScore,
}
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
        raise GraftlineError(f"unknown rule '{name}'{nearest(name, RULES)}")
    kind = RULES[name]
    if is_dataclass(kind):
        check_options(name, kind, options or {})
        return kind(**(options or {})).of(sampling, generator, resources or Resources())
    if options:
        raise GraftlineError(f"the rule {name} has no options; remove rule_options from the recipe")
    return kind.of(sampling, generator)
