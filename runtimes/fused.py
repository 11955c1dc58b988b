"""Decoding by fused steps: one engine call scores a tree, verifies it, commits the caches, and
drafts the next tree; the host reads which tokens came of it, and how many."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Protocol

from graftline.runtimes.control.costs import Costs
from graftline.runtimes.decoding import Decoding
from graftline.runtimes.job import Job
from graftline.runtimes.loop import admit
from graftline.runtimes.rules.point_mass import PointMass
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Session
from graftline.runtimes.study.recorder import is_shaped
from graftline.runtimes.trees.template import Template


@dataclass(frozen=True)
class Start:
    """Where fused steps take a sequence over from the host: at `root`, its last chosen token, which
    is not in the cache yet. `ordinal`: tokens chosen so far. `seed`: of its random numbers."""

    root: int
    ordinal: int
    seed: int
    sampling: Sampling

    @classmethod
    def of(cls, one: Decoding) -> Start:
        """A sequence whose first token the host has chosen."""
        rule = one.rule
        if isinstance(rule, PointMass):
            return cls(one.tokens[-1], len(one.tokens), rule.uniforms.seed, rule.sampling)
        return cls(one.tokens[-1], len(one.tokens), 0, Sampling())


class FusedStep(Protocol):
    """A fused graph, opened over the caches of a session. What its table has learned stays."""

    sizes: Sequence[int] | None
    """Rows that a step can have; None: any number."""

    def reset(self, plan: Template) -> None:
        """Forget all sequences; trees are of this shape from now on: fixed, no controller."""
        ...

    def seat(self, row: int, start: Start) -> None:
        """Begin sequence `row`, whose prompt the session has committed."""
        ...

    def step(self, row: int, room: int) -> list[int]:
        """The tokens that one step adds to sequence `row`, of whose tree at most the first `room`
        rows are scored: so many slots are free."""
        ...


def decode_fused(
    session: Session,
    fused: FusedStep,
    batch: Sequence[Decoding],
    plan: Template,
    waiting: Iterable[Decoding] = (),
) -> Iterator[None]:
    """Decode a batch of sequences as `loop.decode` does, by fused steps; yields after every round.

    The host chooses the first token of each from its prompt's last row. What a step commits beyond
    a limit or an end is never read: such a sequence has finished.
    """
    session.reset(len(batch))
    fused.reset(plan)
    scores = session.prefill([one.prompt for one in batch])
    for row, one in enumerate(batch):
        one.seat = row
        one.begin(scores, row)
        fused.seat(row, Start.of(one))
    yield
    batch, queue = list(batch), iter(waiting)
    while True:
        while begun := admit(session, batch, queue):
            for row in begun:
                fused.seat(row, Start.of(batch[row]))
            yield
        going = [(row, one) for row, one in enumerate(batch) if one.finish is None]
        if not going:
            return
        for row, one in going:
            one.take(fused.step(row, session.capacity - one.length), plan.shape)
        yield


class FusedJob(Job):
    """Decodes one batch of prompts by fused steps. `open` gives the step, when it is needed;
    `costs` are those of a step by rows, or None."""

    open: Callable[[], FusedStep]
    costs: Costs | None
    plan: Template

    def _passes(self, sequences: Iterator[Decoding], least: int) -> Iterator[None]:
        drafter = self._policy.drafter
        assert is_shaped(drafter), "the recipe has been checked"
        step = self.open()
        self.plan = best_part(drafter.plan, self.costs, step.sizes)
        if self._exact and not self._session.row_invariant:
            # a branch adds up over other slots than a chain (see `Job._passes`)
            self.plan = chain(max(least, len(drafter.plan.levels) + 1))
        first = list(islice(sequences, self._request.batch))
        return decode_fused(self._session, step, first, self.plan, sequences)

    def _story(self, one: Decoding) -> str:
        name, rows = self._policy.recipe.drafter, len(self.plan)
        return f"fused: {name}, a tree of {rows} rows in each of {one.steps} steps, no controller"


def best_part(plan: Template, costs: Costs | None, sizes: Sequence[int] | None) -> Template:
    """The first rows of a tree that give the most tokens per millisecond, if its chances are right.

    All of it where costs are unknown. Chosen once: a fused step asks nobody.
    """
    if costs is None:
        return plan
    tokens = list(accumulate(plan.chances))
    known = range(1, len(plan) + 1)
    fit = [rows for rows in sizes or known if rows in known] or [len(plan)]
    return plan.first(max(fit, key=lambda rows: tokens[rows - 1] / costs.of(rows, branching=True)))


def chain(rows: int) -> Template:
    """The template of best candidates in a row."""
    return Template.of({(0,) * depth: 0.5**depth for depth in range(1, rows)})
