"""What the compiler asks of a kind of host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import onnx_ir as ir

from graftline.bundle.manifest import CANONICAL, Exactness, Stage, stage_name
from graftline.evaluate import Feed
from graftline.facts import Facts
from graftline.law import LawRow, Status
from graftline.ports import Port

if TYPE_CHECKING:
    from graftline.bundle.reader import Bundle
    from graftline.models.reference import Original
    from graftline.passes.pipeline.sample import Sample
    from graftline.recipe import Recipe

Watch = Callable[[str], None]
NO_BF16 = "ONNX Runtime's CPU has no bf16"
"""Why what an engine computes is not compared here."""


@dataclass(frozen=True)
class Small:
    """A host of the same structure that any machine can evaluate, a feed of it, how many of the
    host's blocks it has (0: it has none), and what it is, in words."""

    model: ir.Model
    feed: Feed
    blocks: int
    size: int
    """Bytes of its weights."""
    told: str


@dataclass
class Proof:
    """What was measured on the finished engine, with the real weights."""

    laws: list[LawRow]
    exactness: Exactness | None = None
    """None where it cannot be measured here: on the GPU of an engine."""
    quality: dict[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Parts:
    """The graphs of one owner that are compared, and what is known of them; `engine` names its
    engine, and `target` is what that was lowered for."""

    folder: Path
    stages: Mapping[str, Stage]
    target: str
    engine: str

    @property
    def export(self) -> str:
        """The stage that the engine was made of."""
        return self.stages[self.engine].made_of

    @property
    def canonical(self) -> str:
        """The owner's canonical stage."""
        return stage_name(self.stages[self.engine].owner, CANONICAL)

    @property
    def dtype(self) -> str:
        """Of the engine."""
        return self.stages[self.engine].dtype

    @property
    def facts(self) -> Facts:
        """Of the engine."""
        return self.stages[self.engine].facts

    def graph(self, stage: str) -> Path:
        """The file of a stage."""
        return self.folder / self.stages[stage].file

    def ports(self, stage: str) -> tuple[Port, ...]:
        """The ports of a stage."""
        return self.stages[stage].ports


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: what, what was found, and whether it is as it should be."""

    what: str
    found: str
    holds: bool
    status: Status = "held"
    """Of what does not differ: whether a limit held, or there was none, or it was not run."""


class Kind(Protocol):
    """One kind of host: how it becomes canonical, what it is fed, and what its engines owe."""

    @property
    def name(self) -> str:
        """As facts say it."""
        ...

    @property
    def front(self) -> str:
        """The passes that bring an export of this kind to its canonical form."""
        ...

    @property
    def recipe(self) -> str | None:
        """The recipe of a bundle for which none is chosen; None: this kind has none."""
        ...

    def front_law(self, raw: ir.Model, canonical: ir.Model) -> LawRow:
        """The canonical host computes what the raw graph computes. Raises LawBroken."""
        ...

    def small(self, canonical: ir.Model, limit: int) -> Small | str:
        """What the numeric laws run on, of at most `limit` bytes of weights; or why there is none.
        """
        ...

    def sample(self, canonical: ir.Model, say: Watch) -> Sample:
        """Feeds that show typical activations."""
        ...

    def engine_of(self, lowered: ir.Model, target: str) -> None:
        """Raise GraftlineError where a lowered graph lacks what its runtime needs."""
        ...

    def prove(self, parts: Parts, own: Original | None, gone: str, say: Watch) -> Proof:
        """Compare the checkpoint's own model with the export, and the export with the engine, with
        the real weights. `gone` says why there is no checkpoint to compare with; "" where that was
        compared already, for another engine of the same export."""
        ...

    def prove_forms(self, parts: Parts, say: Watch) -> list[LawRow]:
        """The other forms of the target's step are that step."""
        ...

    def prove_stage(self, parts: Parts, stage: str, recipe: Recipe, say: Watch) -> list[LawRow]:
        """What a stage beside its owner's engine owes."""
        ...

    def answers(self, bundle: Bundle) -> list[Finding]:
        """What the finished bundle answers, beside its unmodified export."""
        ...

    def alone(self, bundle: Bundle, engine: str, say: Watch) -> list[LawRow]:
        """Laws that ask an engine alone, for a bundle without its export."""
        ...
