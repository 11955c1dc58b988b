"""Decoding that is done to see how drafts go: what `graftline tune` learns from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

from graftline.errors import GraftlineError
from graftline.recipe import Recipe
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.control.speculation import Speculation
from graftline.runtimes.decoding import Decoding
from graftline.runtimes.drafter import Drafter, is_paid
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.drafters.draft_model import DraftModel
from graftline.runtimes.lane import Lane
from graftline.runtimes.lengths.acceptance_head import train_acceptance_head
from graftline.runtimes.lengths.length_class import CLASSES, train_length_class
from graftline.runtimes.lengths.recorded import Draft, Recorded
from graftline.runtimes.lengths.running import Running
from graftline.runtimes.options import check_options
from graftline.runtimes.resources import Resources
from graftline.runtimes.rules.greedy import Greedy
from graftline.runtimes.rules.judge import Judge
from graftline.runtimes.scheduler import Scheduler
from graftline.runtimes.session import Ints, Session
from graftline.runtimes.study.judging import ROWS, Judged, Judging, tune_judge
from graftline.runtimes.study.recorder import Recorder, Step, is_shaped
from graftline.runtimes.study.tuned import Prior
from graftline.runtimes.study.tuning import (
    Tuning,
    expected_length,
    recording_template,
    tune_priors,
    tune_template,
)
from graftline.runtimes.trees.template import Template
from graftline.runtimes.verdict import Rule

LONGEST = max(CLASSES)
"""Tokens of every draft that lengths learn from."""


class Rehearsal:
    """A target, its measured costs, and prompts that it answers greedily, up to `limit` tokens."""

    def __init__(
        self,
        session: Session,
        costs: Costs,
        resources: Resources,
        prompts: Sequence[Ints],
        limit: int,
    ) -> None:
        self._session, self._costs, self._limit = session, costs, limit
        self._resources, self._prompts = replace(resources, tuned=None), prompts

    def tune(self, recipe: Recipe, watch: Callable[[str], None]) -> Tuning:
        """Learn what pays for that recipe's drafter. Raises GraftlineError for one that has nothing
        to learn, and for a resource that is missing."""
        drafter = make_drafter(recipe.drafter, recipe.options, self._resources)
        if recipe.rule == "judge":
            return self._judge(recipe, drafter, watch)
        if isinstance(drafter, DraftModel):
            return self._lengths(recipe, watch)
        if is_paid(drafter) or drafter.rows < 2:
            raise GraftlineError(
                f"recipe {recipe.name}: its drafter has nothing to tune; tune token-recycling, "
                "suffix, prompt-lookup, draft-model or judge-decoding"
            )
        return self._store(recipe, drafter, watch)

    def _store(self, recipe: Recipe, drafter: Drafter, watch: Callable[[str], None]) -> Tuning:
        branching = drafter.branching and self._session.supports_trees
        wide = drafter
        if is_shaped(drafter) and not branching:
            raise GraftlineError(
                f"recipe {recipe.name} drafts trees, and this bundle scores none; rebuild it with "
                f'--passes "{recipe.passes}"'
            )
        if is_shaped(drafter):
            plan = recording_template(drafter.width)
            options = {**recipe.options, "rows": len(plan)}
            wide = make_drafter(recipe.drafter, options, self._resources)
            assert is_shaped(wide)
            wide.shape_by(plan)
        recorder = Recorder(wide, drafter.rows)
        # quicker to believe what it sees than in use
        quick = Speculation(recipe.name, self._costs, recorder.prior, weight=5.0)
        halves: tuple[list[Step], list[Step]] = ([], [])
        for number in self._answered(recipe, recorder, quick, watch):
            halves[number % 2].extend(recorder.steps)
            recorder.steps.clear()
        if not halves[0] or not halves[1]:
            raise GraftlineError(
                f"recipe {recipe.name}: {len(self._prompts)} prompts gave too little to learn; "
                "give at least 2 and let the answers be longer"
            )
        if is_shaped(drafter):
            width, current = drafter.width, drafter.plan

            def prior_of(plan: Template) -> Prior:
                other = make_drafter(recipe.drafter, recipe.options, self._resources)
                assert is_shaped(other)
                other.shape_by(plan)
                return other.prior

            return tune_template(recipe.name, halves, width, current, prior_of, self._costs)
        return tune_priors(recipe.name, halves, drafter.prior, self._costs, branching)

    def _lengths(self, recipe: Recipe, watch: Callable[[str], None]) -> Tuning:
        """Train the draft lengths on drafts that are as long as can be."""
        drafter = DraftModel(rows=LONGEST + 1)
        drafter.equip(self._resources)
        recorded = Recorded(Running(LONGEST, LONGEST, LONGEST))
        drafter.policy = recorded
        halves: tuple[list[Draft], list[Draft]] = ([], [])
        fixed = Speculation.fixed(recipe.name, LONGEST + 1)
        for number in self._answered(recipe, drafter, fixed, watch):
            halves[number % 2].extend(recorded.drafts)
            recorded.drafts.clear()

        def cost(tokens: int) -> float:
            return self._costs.of(tokens + 1) + drafter.price(tokens)

        every = [*halves[0], *halves[1]]
        watch(f"{recipe.name}: training on {len(every)} drafts")
        before, after = expected_length(halves, cost)
        trained = {
            "specdec++": train_acceptance_head(every).to_json(),
            "speckv": train_length_class(every, cost).to_json(),
        }
        return Tuning(recipe.name, len(every), before, after, {}, lengths=trained)

    def _judge(self, recipe: Recipe, drafter: Drafter, watch: Callable[[str], None]) -> Tuning:
        """Train a judge head on what the target says of the drafts."""
        judging = Judging()
        halves: tuple[list[Judged], list[Judged]] = ([], [])
        fixed = Speculation.fixed(recipe.name, ROWS)
        for number in self._answered(recipe, drafter, fixed, watch, judging):
            halves[number % 2].extend(judging.drafts)
            judging.drafts.clear()
        watch(f"{recipe.name}: training on {sum(map(len, halves))} drafts")
        check_options(recipe.rule, Judge, recipe.rule_options)
        threshold = Judge(**cast("dict[str, Any]", recipe.rule_options)).threshold
        return tune_judge(recipe.name, halves, self._costs, threshold)

    def _answered(
        self,
        recipe: Recipe,
        drafter: Drafter,
        control: Speculation,
        watch: Callable[[str], None],
        rule: Rule | None = None,
    ) -> Iterable[int]:
        """Answer the prompts in turn; the number of each once it is answered."""
        scheduler, lane = Scheduler(self._session), Lane(control)
        for number, prompt in enumerate(self._prompts):
            watch(f"{recipe.name}: {number + 1}/{len(self._prompts)}")
            one = Decoding(prompt, self._limit, self._resources.ends, drafter, rule or Greedy())
            scheduler.submit(one, lane)
            scheduler.finish([one])
            yield number

