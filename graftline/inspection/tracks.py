"""The way to each stage of a bundle, graph by graph and pass by pass: what the page's slider shows.

Some graphs are kept in the bundle, and compared exactly; of a pass between two of them the nodes
say that it made them (`made_by`), and the manifest how many there were before and after.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from graftline.bundle.manifest import CANONICAL, Manifest, PassRow, Stage, stage_name
from graftline.bundle.reader import Bundle
from graftline.bundle.writer import Watch
from graftline.inspection.diff import Diff, alone, compare
from graftline.inspection.opening import read_graph
from graftline.inspection.scene import Json, Scene
from graftline.inspection.weight_table import WeightTable
from graftline.passes import GRAFTS

FRONT = ("front", "graft")
"""Stages of passes that come before the canonical graph."""


@dataclass
class Tracks:
    """Frames by stage, and the scenes that they draw, each once."""

    weights: WeightTable
    tracks: list[Json] = field(default_factory=list[Json])
    scenes: list[Json] = field(default_factory=list[Json])
    _numbers: dict[tuple[str, str], int] = field(default_factory=dict[Any, int])

    def scene(self, key: tuple[str, str], diff: Diff) -> int:
        """The number of a scene, which is drawn where it is new."""
        if key not in self._numbers:
            self._numbers[key] = len(self.scenes)
            self.scenes.append(Scene(diff, self.weights).data())
        return self._numbers[key]


class BundleTracks:
    """Reads the graphs of a bundle, each once, and compares those that follow one another."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, self._manifest = bundle, bundle.manifest
        self._graphs: dict[str, ir.Model] = {}
        self._diffs: dict[tuple[str, str], Diff] = {}
        self.found = Tracks(WeightTable(bundle.path.absolute()))

    def all(self, stages: list[str], watch: Watch) -> Tracks:
        """The tracks of these stages; `watch` is told of each."""
        for name in stages:
            watch(f"drawing the way to {name}")
            frames = list(self._frames(name, self._manifest.stages[name]))
            self.found.tracks.append({"name": name, "frames": frames})
        return self.found

    def _frames(self, name: str, stage: Stage) -> Iterator[Json]:
        kept = [one for one in way(self._manifest, name, stage) if one in self._manifest.stages]
        passes = _passes(self._manifest, stage)
        done: list[PassRow] = []
        for before, after in zip([None, *kept], kept, strict=False):
            own = _between(self._manifest, before, after, passes, done)
            scene = self._scene(before, after)
            for number, row in enumerate(own):
                later = [one.name for one in own[number + 1 :]]
                yield _pass_frame(scene, row, later, after)
            done += own
            diff = self._diff(before, after)
            role = self._manifest.stages[after].role
            what = "as it was exported" if before is None else f"compared with {before}"
            yield {
                "kind": "graph", "label": after, "scene": scene, "role": role,
                "told": f"{what}: {diff.told}" if before is not None else what,
                "nodes": [len(diff.after.graph)],
            }  # fmt: skip

    def _scene(self, before: str | None, after: str) -> int:
        return self.found.scene((before or "", after), self._diff(before, after))

    def _diff(self, before: str | None, after: str) -> Diff:
        key = before or "", after
        if key not in self._diffs:
            graph = self._graph(after)
            self._diffs[key] = (
                alone(graph) if before is None else compare(self._graph(before), graph)
            )
        return self._diffs[key]

    def _graph(self, name: str) -> ir.Model:
        if name not in self._graphs:
            self._graphs[name] = read_graph(self._bundle.graph(name))
        return self._graphs[name]


def shown_stages(manifest: Manifest) -> list[str]:
    """The stages that have a track: those that a runtime opens, the target's own first."""
    names = [name for name, stage in manifest.stages.items() if stage.made_of or stage.pipeline]
    return sorted(names or [manifest.target], key=lambda name: name != manifest.target)


def way(manifest: Manifest, name: str, stage: Stage) -> list[str]:
    """The stages that lead to one: its export, the canonical graph, and, for what is made beside an
    engine, that engine."""
    canonical = stage_name(stage.owner, CANONICAL)
    source = stage.made_of or "export"
    if stage.role == "engine":
        return [source, canonical, name]
    return [source, canonical, manifest.engines()[stage.owner], name]


def _passes(manifest: Manifest, stage: Stage) -> list[PassRow]:
    """The rows of a stage's passes, in order; what ran once for several stages has one row."""
    known: dict[tuple[str, str], PassRow] = {}
    for row in manifest.passes:
        known.setdefault((row.owner, row.text), row)
    texts = [text.strip() for text in stage.pipeline.split(" | ") if text.strip()]
    blank = (PassRow(text.partition("{")[0], text, 0.0, 0, 0) for text in texts)
    return [known.get((stage.owner, row.text), row) for row in blank]


def _between(
    manifest: Manifest,
    before: str | None,
    after: str,
    passes: list[PassRow],
    done: list[PassRow],
) -> list[PassRow]:
    """The passes of a pipeline that lie between two kept graphs."""
    stage = manifest.stages[after]
    if before is None:
        return []
    if stage.role in ("canonical", "engine"):
        own = _passes(manifest, manifest.engine_of(after))
        return [r for r in own if r not in done and (stage.role == "engine" or _is_front(r.name))]
    texts = {row.text for row in _passes(manifest, manifest.stages[before])}
    return [row for row in passes if row.text not in texts]


def _is_front(name: str) -> bool:
    return name in GRAFTS and GRAFTS[name].stage in FRONT


def _pass_frame(scene: int, row: PassRow, later: list[str], graph: str) -> Json:
    return {
        "kind": "pass", "label": row.name, "scene": scene, "by": row.name, "later": later,
        "text": row.text, "why": row.why, "seconds": row.seconds, "in": graph,
        "nodes": [row.nodes_before, row.nodes_after], "added": list(row.added),
    }  # fmt: skip


def graph_tracks(diffs: Mapping[str, tuple[str, str, Diff]], weights: WeightTable) -> Tracks:
    """Tracks of graphs outside a bundle: (before, after, what differs) by name."""
    found = Tracks(weights)
    for name, (before, after, diff) in diffs.items():
        first = found.scene((name, before), alone(diff.before))
        frames = [_kept(first, before, "as it is", diff.before)]
        if diff.before is not diff.after:
            told = f"compared with {before}: {diff.told}"
            frames.append(_kept(found.scene((name, after), diff), after, told, diff.after))
        found.tracks.append({"name": name, "frames": frames})
    return found


def _kept(scene: int, label: str, told: str, model: ir.Model) -> Json:
    return {
        "kind": "graph", "label": label, "scene": scene, "told": told, "nodes": [len(model.graph)],
    }  # fmt: skip
