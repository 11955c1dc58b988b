"""What was done and checked for the stages of a bundle, and proven of them: everything once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from graftline.build.compiled import Canonical, Compiled
from graftline.bundle.manifest import Stage
from graftline.kinds import kind_of
from graftline.kinds.kind import Parts, Proof
from graftline.law import LawRow
from graftline.models.reference import Original
from graftline.passes.pipeline.pipeline import PassReport
from graftline.recipe import Recipe

Watch = Callable[[str], None]


@dataclass
class Ledger:
    """Takes stages one after another, an owner's engine before what is beside it. A front that
    several stages begin with, what a stage has in common with its owner's engine, and an export
    beside the checkpoint that it is of, are entered once."""

    stages: Mapping[str, Stage]
    folder: Path
    target: str
    recipe: Recipe | None
    say: Watch
    _fronts: list[Canonical] = field(default_factory=list[Canonical])
    _engines: dict[str, Compiled] = field(default_factory=dict[str, Compiled])
    _compared: set[str] = field(default_factory=set[str])

    def enter(self, name: str, made: Compiled) -> tuple[list[PassReport], list[LawRow]]:
        """The reports and laws of a stage's passes that were not entered before."""
        owner = self.stages[name].owner
        engine = self._engines.setdefault(owner, made)
        own = made if engine is made else made.beyond(engine)
        reports, laws = list(own.reports), own.laws
        if all(made.start is not front for front in self._fronts):
            self._fronts.append(made.start)
            reports, laws = made.start.reports + reports, made.start.laws + laws
        return reports, [replace(row, owner=owner) for row in laws]

    def prove(self, name: str, own: Original | None, gone: str) -> Proof:
        """Prove a stage with the real weights: an engine against its export, and that against the
        checkpoint's own model (`gone` says why there is none); another stage against its engine."""
        stage = self.stages[name]
        kind, parts = kind_of(stage.facts), self._parts(stage.owner)
        if stage.role == "engine":
            if stage.made_of in self._compared:
                own, gone = None, ""
            self._compared.add(stage.made_of)
            proof = kind.prove(parts, own, gone, self.say)
        elif stage.role == "form":  # all of them together
            first = next(n for n, s in self.stages.items() if s.role == "form")
            proof = Proof(kind.prove_forms(parts, self.say) if name == first else [])
        else:
            assert self.recipe is not None, "only decoders have stages beside an engine"
            proof = Proof(kind.prove_stage(parts, name, self.recipe, self.say))
        return replace(proof, laws=[replace(row, owner=stage.owner) for row in proof.laws])

    def _parts(self, owner: str) -> Parts:
        rows = self.stages.items()
        engine = next(n for n, s in rows if (s.owner, s.role) == (owner, "engine"))
        return Parts(self.folder, self.stages, self.target, engine)
