"""From recorded steps to the trees and first beliefs that pay most on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from graftline.runtimes.control.choose import MARGIN
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.lengths.length_class import CLASSES, train_length_class
from graftline.runtimes.lengths.recorded import Draft
from graftline.runtimes.study.recorder import Step
from graftline.runtimes.study.tuned import Prior
from graftline.runtimes.trees.learned import by_paths, by_rank, measured_accuracies
from graftline.runtimes.trees.template import Template

WEIGHT = 10.0
"""Steps that a belief is worth against what was measured."""
DEEPEST = 12
"""Depth up to which acceptance is told apart; deeper nodes count as that depth's."""
_FLAT = (0.7, 0.12, 0.08, 0.06, 0.05, 0.04, 0.03, 0.02)

Reach = tuple[float, ...]
"""For every row of a proposal the chance that it is accepted; the root's is 1."""


def recording_template(width: int, rows: int = 512) -> Template:
    """A tree so deep and wide that hardly any path that comes true is outside it."""
    return by_rank([_FLAT[:width]], rows)


def beliefs(steps: Sequence[Step], prior: Prior) -> dict[int, Reach]:
    """By signal, the measured chances of the rows, where `prior` counts as a few steps; never
    rising."""
    by_signal: dict[int, list[Step]] = {}
    for step in steps:
        if step.size > 1:
            by_signal.setdefault(step.signal, []).append(step)
    return {signal: _belief(seen, prior(signal)) for signal, seen in sorted(by_signal.items())}


def _belief(steps: Sequence[Step], prior: Sequence[float]) -> Reach:
    hits, trials = _counted(steps, len(prior))
    seen = zip(hits[1:], trials[1:], prior[1:], strict=True)
    return (1.0, *_falling([(hit + WEIGHT * p) / (trial + WEIGHT) for hit, trial, p in seen]))


def _falling(values: Sequence[float]) -> list[float]:
    """The nearest values that never rise: neighbours that do are replaced by their mean (pooling
    of adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        total, count = value, 1
        while pools and pools[-1][0] / pools[-1][1] < total / count:
            above, size = pools.pop()
            total, count = total + above, count + size
        pools.append((total, count))
    return [total / count for total, count in pools for _ in range(count)]


def _counted(steps: Sequence[Step], rows: int) -> tuple[list[int], list[int]]:
    """For every row the steps in which it came true, and those that had it."""
    hits, trials = [0] * rows, [0] * rows
    for step in steps:
        for row in range(min(step.size, rows)):
            trials[row] += 1
        for row in step.nodes:
            if row < rows:
                hits[row] += 1
    return hits, trials


def expected_rate(steps: Sequence[Step], belief: Prior, costs: Costs, branching: bool) -> float:
    """Tokens per second if every step of these were as large as `belief` and the costs say, and
    then accepted what it is recorded to accept."""
    rows = {signal: _rows(belief(signal), costs, branching) for signal in {s.signal for s in steps}}
    tokens = milliseconds = 0.0
    for step in steps:
        scored = min(rows[step.signal], step.size)
        tokens += 1 + sum(node < scored for node in step.nodes)
        milliseconds += costs.of(scored, branching and scored > 1)
    return 1e3 * tokens / milliseconds


def _rows(reach: Sequence[float], costs: Costs, branching: bool) -> int:
    """Rows with the most expected tokens per millisecond, one where speculation does not pay."""
    best, most = 1, (1.0 + MARGIN) / costs.of(1)
    for rows, expected in enumerate(accumulate(reach), 1):
        rate = expected / costs.of(rows, branching)
        if rows > 1 and rate > most:
            best, most = rows, rate
    return best


def shaped(template: Template, steps: Sequence[Step]) -> list[Step]:
    """The steps as they would have gone with trees of `template`."""
    row_of = {path: row for row, path in enumerate(template.paths)}
    made: list[Step] = []
    for step in steps:
        prefixes = (step.ranks[:depth] for depth in range(1, len(step.ranks) + 1))
        nodes = tuple(row_of[path] for path in prefixes if path in row_of)
        size = len(template) if step.size > 1 else 1
        made.append(Step(step.signal, size, nodes, step.ranks[: len(nodes)]))
    return made


def learned_template(steps: Sequence[Step], current: Template, width: int) -> Template:
    """The tree that these steps would have accepted most of, of as many rows as `current`, whose
    chances are what is believed at first."""
    paths = [step.ranks for step in steps if step.size > 1]
    believed = dict(zip(current.paths, current.chances, strict=True))
    first = [believed.get((rank,), 0.0) for rank in range(width)]
    accuracies = measured_accuracies(paths, first, DEEPEST, WEIGHT)
    return by_paths(paths, accuracies, len(current), WEIGHT)


@dataclass(frozen=True)
class Tuning:
    """What tuning one recipe found. `before` and `after`: expected tokens per second, each half of
    the questions judged by what was learned from the other; `table`: what is stored for the recipe,
    nothing where that was no better; `tree`: the parents of the learned tree, if any; `lengths`:
    the trained draft lengths, if any; `judge`: the trained judge head, if any."""

    recipe: str
    steps: int
    before: float
    after: float
    table: Mapping[str, Any]
    tree: tuple[int, ...] = ()
    lengths: Mapping[str, Any] = field(default_factory=dict[str, Any])
    judge: Mapping[str, Any] = field(default_factory=dict[str, Any])


def tune_priors(
    recipe: str, halves: Sequence[Sequence[Step]], prior: Prior, costs: Costs, branching: bool
) -> Tuning:
    """First beliefs of a drafter whose proposals are given."""
    before = after = 0.0
    for seen, held in (halves, halves[::-1]):
        learned = beliefs(seen, prior)
        before += expected_rate(held, prior, costs, branching) / 2
        after += expected_rate(held, _over(learned, prior), costs, branching) / 2
    every = [*halves[0], *halves[1]]
    better = after > before
    table = {"priors": _stored(beliefs(every, prior))} if better else {}
    return Tuning(recipe, len(every), before, after if better else before, table)


def tune_template(
    recipe: str,
    halves: Sequence[Sequence[Step]],
    width: int,
    current: Template,
    prior_of: Callable[[Template], Prior],
    costs: Costs,
) -> Tuning:
    """Tree and first beliefs of a drafter that takes a template; `prior_of` says what it believes
    of one by itself."""
    before = after = 0.0
    for seen, held in (halves, halves[::-1]):
        plan = learned_template(seen, current, width)
        belief = _over(beliefs(shaped(plan, seen), prior_of(plan)), prior_of(plan))
        before += expected_rate(shaped(current, held), prior_of(current), costs, True) / 2
        after += expected_rate(shaped(plan, held), belief, costs, True) / 2
    every = [*halves[0], *halves[1]]
    if after <= before:
        return Tuning(recipe, len(every), before, before, {})
    plan = learned_template(every, current, width)
    known = beliefs(shaped(plan, every), prior_of(plan))
    table = {"template": plan.to_json(), "priors": _stored(known)}
    return Tuning(recipe, len(every), before, after, table, tuple(plan.shape.parents.tolist()))


def expected_length(
    halves: Sequence[Sequence[Draft]], cost: Callable[[int], float]
) -> tuple[float, float]:
    """Tokens per second of the best fixed length and of the trained network's, when `cost(n)` is
    the milliseconds of a step whose draft has n tokens; each half judged by the other."""
    fixed = chosen = 0.0
    for seen, held in (halves, halves[::-1]):
        alike = max(CLASSES, key=lambda n: _rate([n] * len(seen), seen, cost))
        fixed += _rate([alike] * len(held), held, cost) / 2
        network = train_length_class(seen, cost)
        first = np.asarray([draft.steps[0] for draft in held], np.float64)
        lengths = [CLASSES[k] for k in network(first).argmax(axis=1).tolist()]
        chosen += _rate(lengths, held, cost) / 2
    return fixed, chosen


def _rate(lengths: Sequence[int], drafts: Sequence[Draft], cost: Callable[[int], float]) -> float:
    """Tokens per second if each draft had had that length."""
    pairs = zip(lengths, drafts, strict=True)
    tokens = sum(min(length, draft.accepted) + 1 for length, draft in pairs)
    return 1e3 * tokens / sum(map(cost, lengths))


def _over(known: Mapping[int, Reach], prior: Prior) -> Prior:
    return lambda signal: known[signal] if signal in known else prior(signal)


def _stored(known: Mapping[int, Reach]) -> dict[str, list[float]]:
    return {str(signal): list(reach) for signal, reach in known.items()}
