"""How fast a bundle is here, by what was measured of its steps, and what the controller expects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from graftline.bundle.reader import COSTS, Bundle
from graftline.errors import GraftlineError
from graftline.recipe import Recipe, recipe
from graftline.runtimes.control.choose import Choice, Offer, choose
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.drafter import Drafter, is_paid
from graftline.runtimes.drafters import configured
from graftline.runtimes.machine import machine
from graftline.runtimes.trees.template import Template
from graftline.tree import Tree

CLASSES = 8
"""Classes of proposals that are looked at: a copied text's are by the length of the match."""


@dataclass(frozen=True)
class Measured:
    """Step costs of the target's engine: on which machine, and whether that is this one."""

    key: str
    here: bool
    costs: Costs

    @property
    def plain(self) -> float:
        """Tokens per second without drafts."""
        return 1e3 / self.costs.of(1)


@dataclass(frozen=True)
class Expected:
    """What the controller expects of proposals of one class, before it has seen any: for so many
    rows the tokens and the milliseconds of a step, and the rows that it chooses."""

    signal: int
    rows: tuple[tuple[int, float, float], ...]
    chosen: Choice

    @property
    def size(self) -> int:
        """Rows of the chosen step, the root included."""
        return self.chosen.rows.get(0, 1)

    @property
    def speedup(self) -> float:
        """Of the chosen rows, over steps without drafts."""
        one = next(ms for rows, _, ms in self.rows if rows == 1)
        return self.chosen.tokens / self.chosen.milliseconds * one


@dataclass(frozen=True)
class Speed:
    """What can be said of a bundle's speed without opening it."""

    bundle: Bundle

    @cached_property
    def measured(self) -> list[Measured]:
        """The step costs of the target's engine that lie in the bundle, this machine's first."""
        found = list(self._tables())
        return sorted(found, key=lambda one: not one.here)

    @property
    def here(self) -> Measured | None:
        """Those of this machine."""
        return next((one for one in self.measured if one.here), None)

    @property
    def told(self) -> str:
        """In one line: plain decoding, and the most that is expected of drafts."""
        here = self.here
        if here is None:
            return "not measured; `graftline run` measures step costs once and keeps them"
        told = f"{here.plain:.1f} tokens/s without drafts, {here.costs.of(1):.1f} ms a step"
        best = max(self.expected(here.costs), key=lambda one: one.speedup, default=None)
        if best is None or best.size < 2:
            return told
        return (
            f"{told}; up to {best.speedup:.1f} times that with drafts, in steps of {best.size} rows"
        )

    def _tables(self) -> Iterator[Measured]:
        for file in sorted((self.bundle.path / COSTS).glob("*.json")):
            try:
                key = str(json.loads(file.read_text(encoding="utf-8"))["key"])
            except (OSError, ValueError, KeyError, TypeError):
                continue  # a cache: what is damaged is measured again
            rows = self.bundle.read_costs(key)
            other = key.rpartition(", ")[2] in self.bundle.manifest.stages
            if rows is not None and "chain" in rows and not other:
                yield Measured(key, key.startswith(machine()), Costs.from_json(rows))

    @cached_property
    def recipe(self) -> Recipe | None:
        """The bundle's own recipe; None where it has none that is known, or one that drafts
        nothing, of a host that runs once."""
        try:
            found = recipe(self.bundle.manifest.recipe)
        except GraftlineError:
            return None
        return found if found.drafter else None

    @cached_property
    def drafter(self) -> Drafter | None:
        """The recipe's drafter, without what it needs to draft; None where there is none."""
        chosen = self.recipe
        return None if chosen is None else configured(chosen.drafter, chosen.options)

    @property
    def template(self) -> Template | None:
        """The tree that the drafter puts its candidates into, where it has one of its own."""
        found = getattr(self.drafter, "plan", None)
        return found if isinstance(found, Template) else None

    def priors(self) -> dict[int, Sequence[float]]:
        """For each class of proposals the chance of each row, as first believed; none for drafts
        that an engine makes, whose price hangs on it."""
        drafter = self.drafter
        found: dict[int, Sequence[float]] = {}
        if drafter is None or is_paid(drafter) or drafter.rows < 2:
            return found
        for signal in range(CLASSES):
            try:
                chances = tuple(drafter.prior(signal))
            except (IndexError, KeyError):
                break
            if chances not in found.values():
                found[signal] = chances
        return found

    def expected(self, costs: Costs) -> list[Expected]:
        """What the controller expects of each class of proposals."""
        template = self.template
        shape = None if template is None else template.shape
        return [_expected(s, chances, shape, costs) for s, chances in self.priors().items()]


def _expected(signal: int, chances: Sequence[float], shape: Tree | None, costs: Costs) -> Expected:
    straight = 1 << 30
    if shape is not None:
        bends = (row for row, parent in enumerate(shape.parent_list) if parent != row - 1)
        straight = next(bends, len(shape))
    offer = Offer(0, chances[1:], straight)
    chosen = choose([offer], 1, costs.of, 1)
    rows = tuple(
        (count, sum(chances[:count]), costs.of(count, count > straight))
        for count in range(1, len(chances) + 1)
    )
    return Expected(signal, rows, chosen)
