"""What a schedule owes: caches that hold what the method says, and holes that nobody reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from graftline.errors import LawBroken
from graftline.evaluate import Array
from graftline.kinds.decoder.proof import canonical_of, facts_of
from graftline.kinds.kind import Parts, Watch
from graftline.law import Evidence, LawRow
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.anchors import block_outputs
from graftline.passes.grafts.layer_skip import LayerSkip
from graftline.passes.grafts.skip_substitute import SkipSubstitute
from graftline.ports import HELD
from graftline.recipe import Recipe
from graftline.route import route_stage
from graftline.targets import CPU

if TYPE_CHECKING:
    from graftline.runtimes.schedules.course import Course

LAW = "schedule"
POISONS, SAME = (3.0, -2.0), 1e-4
"""What lies in slots that nobody has written, in one run and in another; and how far logits of the
two may be apart, relative to the largest: sums may be added up in another order."""
PROMPT, TURNS, STEPS = 5, 32, 8192
"""Tokens of the prompt; most changes of route that are run; steps among which they are looked for.
"""


def routes_of(parts: Parts, chosen: Recipe) -> list[str]:
    """The stages of a recipe's schedule, in order."""
    from graftline.runtimes.schedules import schedule_of

    name = schedule_of(chosen).name
    names = (route_stage(name, number) for number in range(1, len(parts.stages) + 1))
    return [stage for stage in names if stage in parts.stages]


def prove_schedule(parts: Parts, chosen: Recipe, say: Watch) -> LawRow:
    """Law `schedule`, on the engine and its routes: the prompt and the steps around every change of
    route leave in each block's cache the positions that its route computes there, and nothing at
    any other; and no step reads a slot that holds nothing. Raises LawBroken."""
    from graftline.runtimes.ort.session import OrtSession
    from graftline.runtimes.schedules import schedule_of
    from graftline.runtimes.schedules.course import Course

    schedule, names, facts = schedule_of(chosen), routes_of(parts, chosen), facts_of(parts)
    if parts.target != CPU:
        return LawRow(names[-1], LAW, "not_run", f"caches are looked into on {CPU} only")
    say(f"proof: what the schedule {schedule.name} leaves in the caches, with the real weights")
    whole, *routes = (
        OrtSession(parts.graph(n), facts, parts.ports(n), capacity=PROMPT + 2 * TURNS + 2)
        for n in (parts.engine, *names)
    )
    course = Course(schedule, [whole, *(route.sibling(whole) for route in routes)])
    kept, count = _kept(parts, names), 0
    for way in course.each():
        count += _prove_course(way, kept, facts.vocabulary, names[-1])
    what = f"{PROMPT} positions of a prompt and {count} steps on {len(names) + 1} graphs leave"
    what += " what the schedule declares in every cache, and none reads an empty slot"
    return LawRow.of(names[-1], LAW, Evidence(what))


def _prove_course(
    course: Course, kept: Sequence[frozenset[int]], vocabulary: int, stage: str
) -> int:
    """One course that a sequence may take: how many steps were made. `kept`: the blocks whose
    attention each graph computes."""
    whole, steps = course.graphs[0], list(islice(_around_changes(course), 2 * TURNS))
    taken = [course.schedule.prompt] * PROMPT + [course.route(step) for step in steps]
    answers = list[Array]()
    for poison in POISONS:
        whole.reset(1)
        for cache in whole.caches(0).values():
            cache[...] = poison
        answers.append(_run(course, steps, vocabulary, stage))
        _compare(course, taken, kept, stage, poison)
    gaps = np.abs(answers[1] - answers[0]).max(axis=-1)
    if (wrong := np.flatnonzero(~(gaps <= SAME * np.abs(answers[0]).max()))).size:
        by = "reads a slot that its block has not computed: what lies there changes its logits"
        raise LawBroken(stage, LAW, f"step {steps[int(wrong[0])]}", by)
    return len(steps)


def _around_changes(course: Course) -> Iterator[int]:
    """The first steps of all, and the last before and the first two behind each change of route."""
    graphs = [course.graph(step) for step in range(STEPS)]
    changes = [n for n in range(1, STEPS) if graphs[n] is not graphs[n - 1]]
    near = {0, 1} | {step for n in changes for step in (n - 1, n, n + 1)}
    yield from sorted(step for step in near if step < STEPS)


def _run(course: Course, steps: Sequence[int], vocabulary: int, stage: str) -> Array:
    """Read a prompt and make these steps; the logits [steps, V]. What a running state holds changes
    with the steps of the whole model, and with no other."""
    whole = course.graphs[0]
    random = np.random.default_rng(11)
    prompt, *tokens = np.split(random.integers(0, vocabulary, PROMPT + len(steps)),
                               range(PROMPT, PROMPT + len(steps)))  # fmt: skip
    course.read(0, prompt)
    states = [p.mirror or "" for p in whole.ports if p.state == "running" and p.mirror]
    found = list[Array]()
    for step, token in zip(steps, tokens, strict=True):
        graph, before = course.graph(step), [whole.caches(0)[name].copy() for name in states]
        logits = graph.follow(0, int(whole.lengths[0]), token.tolist()).logits[0, 0]
        if not np.isfinite(logits).all():
            by = "reads a slot that its block has not computed: its logits are not numbers"
            raise LawBroken(stage, LAW, f"step {step}", by)
        for name, old in zip(states, before, strict=True):
            if np.array_equal(whole.caches(0)[name], old) == (graph is whole):
                by = "is not that of" if graph is whole else "is changed by a route at"
                raise LawBroken(stage, LAW, f"'{name}'", f"{by} step {step}")
        found.append(logits.copy())
        whole.advance(0, 1)
    return np.stack(found)


def _kept(parts: Parts, names: Sequence[str]) -> list[frozenset[int]]:
    """The blocks whose attention each graph computes, of the whole model first."""
    canonical = canonical_of(parts)
    every = frozenset(range(len(block_outputs(canonical.graph))))
    found = [every]
    for name in names:
        grafts = Pipeline.parse(parts.stages[name].pipeline, GRAFTS).grafts
        routes = [g for g in grafts if isinstance(g, LayerSkip | SkipSubstitute)]
        skips = [graft.route(canonical).attention for graft in routes]
        found.append(every.difference(*skips))
    return found


def _compare(
    course: Course,
    taken: Sequence[int],
    kept: Sequence[frozenset[int]],
    stage: str,
    poison: float,
) -> None:
    """Every cache holds the positions whose graph computes its block, and the flags say of each
    whether its graph computes all."""
    whole = course.graphs[0]
    caches = whole.caches(0)
    for port in (p for p in whole.ports if p.mirror in caches and p.direction == "out"):
        cache = caches[port.mirror or ""][0]
        if port.state == "running":
            continue
        if port.role == HELD:
            held = cache[0, : len(taken), 0] == 1
            due = np.asarray([kept[graph] == kept[0] for graph in taken])
        else:
            held = (cache != poison).all(axis=(0, 2))
            due = np.zeros(len(held), np.bool_)
            due[: len(taken)] = [port.layer in kept[graph] for graph in taken]
        if (wrong := np.flatnonzero(held != due)).size:
            slot = int(wrong[0])
            by = f"{'holds' if held[slot] else 'lacks'} position {slot}"
            raise LawBroken(stage, LAW, f"'{port.mirror}'", by)
