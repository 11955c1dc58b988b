"""What the page says of a bundle: everything but the pictures of its graphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from graftline.bundle.manifest import Manifest
from graftline.bundle.reader import Bundle
from graftline.bundle.report import beside
from graftline.bundle.writer import Watch
from graftline.facts import DecoderFacts
from graftline.files import told_size
from graftline.inspection.scene import Json
from graftline.inspection.speed import Expected, Measured, Speed
from graftline.inspection.tracks import BundleTracks, shown_stages
from graftline.law import summary
from graftline.owners import TARGET
from graftline.ports import told
from graftline.recipe import claimed


def bundle_page(bundle: Bundle, stage: str | None, watch: Watch) -> Json:
    """All of the page, as JSON; of the graphs the way to `stage`, or to every stage. `watch` is
    told each step in words."""
    manifest, speed = bundle.manifest, Speed(bundle)
    tracks = BundleTracks(bundle).all([stage] if stage else shown_stages(manifest), watch)
    return {
        "title": manifest.name,
        "subtitle": f"{manifest.facts.source or manifest.facts.kind}, {manifest.facts.told()}",
        "chips": [*_chips(bundle, speed)],
        "overview": [*_overview(bundle)],
        "tracks": tracks.tracks,
        "scenes": tracks.scenes,
        "weights": tracks.weights.rows,
        "passes": [
            [p.owner, p.text, p.nodes_before, p.nodes_after, p.seconds, ", ".join(p.added), p.why]
            for p in manifest.passes
        ],
        "laws": [
            [w.owner, w.graft, w.law, w.status, w.what, w.value, w.limit] for w in manifest.laws
        ],
        "laws_told": summary(manifest.laws),
        "assumptions": told(manifest.assumptions),
        "ports": [*_ports(manifest)],
        "exactness": [*_exactness(manifest)],
        "files": [[rel, f.size, f.sha256] for rel, f in manifest.files.items()],
        **(_steps(speed) if isinstance(manifest.facts, DecoderFacts) else {}),
    }


def _steps(speed: Speed) -> Json:
    """What only a host that decodes step by step has."""
    return {"tree": _tree(speed), "costs": [_costs(speed, one) for one in speed.measured]}


def _chips(bundle: Bundle, speed: Speed) -> Iterator[Json]:
    """What the first line answers: exact, proven, fast, large."""
    manifest = bundle.manifest
    yield {"what": "runs on", "told": f"{manifest.target}, {manifest.dtype}", "good": None}
    of_text, exact = isinstance(manifest.facts, DecoderFacts), manifest.exactness
    if of_text and exact is None:
        yield {"what": "exact", "told": "not measured", "good": None}
    elif exact is not None:
        rows = "every row by itself" if exact.row_invariant else "rows depend on one another"
        yield {
            "what": "exact", "told": f"{rows} (worst {exact.worst:.2g})",
            "good": exact.row_invariant,
        }  # fmt: skip
    missing = sum(w.status == "not_run" for w in manifest.laws)
    held = sum(w.status == "held" for w in manifest.laws)
    more = f", {missing} not run" if missing else ""
    yield {"what": "laws", "told": f"{held} held{more}", "good": not missing}
    here = speed.here
    fast = "not measured; graftline run measures" if here is None else f"{here.plain:.1f} tokens/s"
    if of_text:
        yield {"what": "plain, here", "told": fast, "good": None}
    own, shared = bundle.sizes()
    more = f", {told_size(shared)} of it shared with other files" if shared else ""
    yield {"what": "size", "told": told_size(own + shared) + more, "good": None}


def _overview(bundle: Bundle) -> Iterator[tuple[str, str]]:
    manifest = bundle.manifest
    yield "recipe", claimed(manifest.recipe) if manifest.recipe else "none"
    yield "pipeline", manifest.main.pipeline
    for name, words in beside(manifest):
        yield f"stage {name}", words
    for name, value in manifest.quality.items():
        yield name, f"{value:.4g}"
    yield "created", manifest.created
    yield "versions", ", ".join(f"{tool} {v}" for tool, v in manifest.versions.items())
    yield "rebuild", manifest.rebuild
    if manifest.packed:
        yield "packed", "for an app: without the export and the source"


def _exactness(manifest: Manifest) -> Iterator[list[Any]]:
    """By stage: whether rows stand alone, and the largest difference by number of rows."""
    for name, stage in manifest.stages.items():
        found = stage.exactness
        if found is not None:
            rows = [[int(rows), worst] for rows, worst in found.per_rows.items()]
            yield [name, found.row_invariant, found.worst, found.min_rows, found.same_rows, rows]


def _ports(manifest: Manifest) -> Iterator[list[str]]:
    """Stage, direction, role, shape, whose, and names; those that differ in their layer alone are
    one row."""
    for name, stage in manifest.stages.items():
        rows: dict[tuple[str, ...], list[str]] = {}
        for port in stage.ports:
            shape = f"{port.dtype} [{', '.join(map(str, port.shape))}]"
            role = port.role + (f" ({port.tap})" if port.tap else "")
            owner = "" if port.owner == TARGET else port.owner
            keep = {"slots": "slots, by position", "running": "running state", "": ""}[port.state]
            layer = port.layer if port.role == "hidden" else None
            row = (port.direction, role, shape, owner, keep, "" if layer is None else str(layer))
            rows.setdefault(row, []).append(port.name)
        for row, names in rows.items():
            many = f"{names[0]} … {names[-1]} ({len(names)})"
            yield [name, *row, many if len(names) > 2 else ", ".join(names)]


def _tree(speed: Speed) -> Json | None:
    """The drafter's own tree; of one that proposes chains the one that is chosen here for its best
    class; None where neither is known."""
    if speed.recipe is None:
        return None
    if (template := speed.template) is not None:
        told, parents, chances = "its own tree", template.shape.parent_list, template.chances
    elif speed.here is None or not (known := speed.expected(speed.here.costs)):
        return None
    else:
        best = max(known, key=lambda one: one.speedup)
        chances = speed.priors()[best.signal][: best.size]
        told = f"the chain that is chosen here of proposals of class {best.signal}"
        parents = list(range(-1, len(chances) - 1))
    return {
        "told": f"{speed.recipe.drafter}, {told}",
        "parents": parents,
        "chances": [round(chance, 4) for chance in chances],
    }


def _costs(speed: Speed, one: Measured) -> Json:
    tables = {"chain": one.costs.chain, "tree": one.costs.tree, "far": one.costs.far}
    tables |= {f"{n} sequences": table for n, table in one.costs.batches.items()}
    return {
        "key": one.key,
        "here": one.here,
        "tables": {name: sorted(table.items()) for name, table in tables.items() if table},
        "expected": [_expected(e) for e in speed.expected(one.costs)],
    }


def _expected(one: Expected) -> Json:
    return {
        "signal": one.signal,
        "rows": [[n, round(tokens, 4), round(ms, 4)] for n, tokens, ms in one.rows],
        "chosen": one.size,
        "tokens": one.chosen.tokens,
        "speedup": one.speedup,
    }
