"""What a bundle says of itself, as a text for people: it travels with a packed bundle."""

from __future__ import annotations

from collections.abc import Iterator

from graftline.bundle.manifest import Manifest
from graftline.facts import DecoderFacts, as_decoder
from graftline.law import summary
from graftline.ports import by_role, told
from graftline.recipe import claimed

PARTS = ("depth", "route", "exit", "rest")
"""Roles of stages that have some of the blocks of their owner's engine."""


def report(manifest: Manifest) -> str:
    """How a bundle was made, what was assumed, and what every law found when it was made."""
    return "\n".join(_lines(manifest)) + "\n"


def beside(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """The stages beside the target's engine, by name: what each is of, its precision, the passes
    that made it, and what was measured on it."""
    for name, stage in manifest.stages.items():
        if not stage.made_of or name == manifest.target:
            continue
        if stage.role == "form" and not isinstance(stage.facts, DecoderFacts):
            yield name, f"the same weights: {stage.facts.told()}"
            continue
        if stage.role == "form":
            packed = by_role(stage.ports, "counts", "in")
            form = f"the rows of {packed[0].shape[0]} sequences" if packed else "chains, no mask"
            yield name, f"the same step for {form}"
            continue
        whole = manifest.engine_of(name).facts.told()
        size = f"{as_decoder(stage.facts).layers} of {whole}" if stage.role in PARTS else whole
        found = [f"{what} {value:.4g}" for what, value in stage.quality.items()]
        if stage.exactness is not None:
            found.append(f"row-invariant: {'yes' if stage.exactness.row_invariant else 'no'}")
        measured = f" ({', '.join(found)})" if found else ""
        source = stage.facts.source or stage.made_of
        yield name, f"{size} of {source}, {stage.dtype}{measured}: {stage.pipeline}"


def _lines(manifest: Manifest) -> Iterator[str]:
    facts = manifest.facts
    yield f"{manifest.name}: {facts.source or facts.kind}, {facts.told()}"
    yield ""
    yield f"target      {manifest.target}, {manifest.dtype}"
    yield f"recipe      {claimed(manifest.recipe)}"
    yield f"pipeline    {manifest.main.pipeline}"
    for name, text in beside(manifest):
        yield f"stage {name}: {text}"
    yield f"made        {manifest.created or 'with this report'}"
    yield f"with        {', '.join(f'{tool} {v}' for tool, v in manifest.versions.items())}"
    yield f"rebuild     {manifest.rebuild}"
    if manifest.packed:
        yield f"packed from a bundle whose manifest.json has the sha256 {manifest.packed}"
    for name, value in manifest.quality.items():
        yield f"{name:<11} {value:.4g}"
    if manifest.exactness is not None:
        yield (
            f"exactness   row-invariant: {'yes' if manifest.exactness.row_invariant else 'no'} "
            f"(worst {manifest.exactness.worst:.2g})"
        )
    yield ""
    for line in told(manifest.assumptions):
        yield f"assumed: {line}"
    yield f"laws: {summary(manifest.laws)}"
    for row in manifest.laws:
        yield f"  {row.status:<8} {row.graft}, {row.law}: {row.text}"
