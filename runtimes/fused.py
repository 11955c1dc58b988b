"""Decoding by fused steps: one engine call scores a tree, verifies it, commits the caches, and
drafts the next tree; the host reads which tokens came of it, and how many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol, TypeGuard

import numpy as np

from graftline.errors import BackendError, GraftlineError, RequestError
from graftline.plugins.draft_tree import reference as draft_tree
from graftline.recipe import Recipe, check_fusable
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.decoding import Decoding
from graftline.runtimes.drafter import Drafter
from graftline.runtimes.drafters.none import NoDrafts
from graftline.runtimes.head_text import HeadText, reads_text
from graftline.runtimes.policy import Policy
from graftline.runtimes.prompt_reader import PromptReader
from graftline.runtimes.request import Request
from graftline.runtimes.rules.point_mass import PointMass
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Ints, Session
from graftline.runtimes.trees.template import Template

HOST_ONLY: dict[str, object] = {
    "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "no_repeat_ngram_size": 0, "logit_bias": None,
    "logits_processors": (), "min_tokens": 0, "json_schema": None, "regex": None, "grammar": None,
    "logprobs": None, "prompt_logprobs": None,
}  # fmt: skip
"""Options that no fused step honours, and what each is when it is off."""


@dataclass(frozen=True)
class Start:
    """Where fused steps take a sequence over from the host: at `root`, its last chosen token, which
    is not in the cache yet. `ordinal`: tokens chosen so far. `seed`: of its random numbers. `text`:
    what a draft block reads of it, where the step drafts by one."""

    root: int
    ordinal: int
    seed: int
    sampling: Sampling
    text: HeadText | None = None

    @classmethod
    def of(cls, one: Decoding) -> Start:
        """A sequence whose first token the host has chosen."""
        rule, drafter = one.rule, one.drafter
        text = drafter.head_text if reads_text(drafter) else None
        seed, sampling = 0, Sampling()
        if isinstance(rule, PointMass):
            seed, sampling = rule.uniforms.seed, rule.sampling
        return cls(one.tokens[-1], len(one.tokens), seed, sampling, text)


class FusedStep(Protocol):
    """A fused graph, opened over the caches of a session. What its table has learned stays."""

    sizes: Sequence[int] | None
    """Rows that a step can have; None: any number."""
    drafter: str
    """The drafter whose place it takes."""

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
    prompts: PromptReader,
    fused: FusedStep,
    sequences: Sequence[Decoding],
    plan: Template,
    most: int | None = None,
) -> Iterator[None]:
    """Decode sequences by fused steps, `most` of them at a time; yields after every round.

    The host chooses the first token of each from its prompt's last row. What a step commits beyond
    a limit or an end is never read: such a sequence has finished, and gives its place to the next.
    """
    batch, queue = list(sequences[:most]), iter(sequences[len(sequences[:most]) :])
    session.reset(len(batch))
    fused.reset(plan)
    for row, one in enumerate(batch):
        _begin(prompts, fused, one, row)
    yield
    while True:
        for row, one in enumerate(batch):
            while one.done and (following := next(queue, None)) is not None:
                one = batch[row] = following
                lengths = session.lengths.copy()
                lengths[row] = 0
                session.truncate(lengths.tolist())
                _begin(prompts, fused, one, row)
        going = [(row, one) for row, one in enumerate(batch) if not one.done]
        if not going:
            return
        for row, one in going:
            one.take(fused.step(row, session.capacity - one.length), plan.shape)
            if one.done:
                prompts.leave(one)
        yield


def _begin(prompts: PromptReader, fused: FusedStep, one: Decoding, row: int) -> None:
    """Read a prompt, choose the first token, and hand the sequence over to the fused steps."""
    one.seated(row)
    one.begin(prompts.read_all(one), 0)
    fused.seat(row, Start.of(one))
    one.drafter = NoDrafts()  # the step drafts from here on, and a head's place is another's


def check_fused(chosen: Recipe, request: Request) -> None:
    """Raises GraftlineError for a recipe that cannot be fused, RequestError for a sampling that no
    fused step does."""
    check_fusable(chosen)
    for name, off in HOST_ONLY.items():
        if (value := getattr(request, name)) != off:
            told = f"{name}={value}" if isinstance(value, (int, float)) else name
            raise RequestError(
                f"{told}: a fused step takes temperature and min_p, and no other option that "
                "shapes or explains tokens; use --step host"
            )


def check_drafter(chosen: Recipe, step: FusedStep) -> None:
    """Raise GraftlineError for a recipe that drafts by something else than the bundle's step."""
    if chosen.drafter != step.drafter:
        raise GraftlineError(
            f"recipe {chosen.name}: the fused step of this bundle drafts by {step.drafter}, not by "
            f"{chosen.drafter}; use --step host, or build one with --recipe {chosen.name}"
        )


class PlannedDrafter(Drafter, Protocol):
    """A drafter whose trees can be of one shape."""

    @property
    def plan(self) -> Template:
        """That shape."""
        ...


def is_planned(drafter: Drafter) -> TypeGuard[PlannedDrafter]:
    """True for a drafter that a fused step can stand for."""
    return hasattr(drafter, "plan")


def plan_for(
    drafter: Drafter, step: FusedStep, costs: Costs | None, least: int, branches: bool
) -> Template:
    """The shape of all trees: the best part of the drafter's own; a chain of at least `least` rows
    where branches round differently."""
    assert is_planned(drafter), "the recipe has been checked"
    if not branches:
        return chain(max(least, len(drafter.plan.levels) + 1))
    return best_part(drafter.plan, costs, step.sizes)


def story(policy: Policy, plan: Template, one: Decoding) -> str:
    """How fused steps decoded."""
    name, rows = policy.recipe.drafter, len(plan)
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

def first_tree(table: Any, root: int, plan: Template) -> tuple[Ints, Ints]:
    """Tokens and parents [1, M] of a sequence's first tree, by a table of candidates [V, W].
    Without one a root alone: heads draft behind a step, so that the first one tries nothing."""
    if table is not None:
        shape = plan.shape.parents, plan.ranks
        tokens, parents = draft_tree(table, np.asarray([root]), *shape, levels=len(plan.levels))
        return tokens, parents
    tokens, parents = np.zeros((1, len(plan)), np.int64), np.full((1, len(plan)), -1, np.int64)
    tokens[0, 0] = root
    return tokens, parents


def check_ranks(plan: Template, width: int, what: str) -> None:
    """Raise BackendError for a tree that takes candidates which are not kept of every `what`."""
    if plan.ranks.max() >= width:
        raise BackendError(
            f"a tree with candidate {plan.ranks.max()} of a {what}; this step keeps {width}, "
            "counted from 0"
        )
