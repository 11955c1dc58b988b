"""What the page says of graphs outside a bundle, and of what differs between two."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from graftline.errors import GraftlineError
from graftline.inspection.blocks import recognised
from graftline.inspection.diff import Diff, alone, compare
from graftline.inspection.opening import read_graph
from graftline.inspection.scene import Json
from graftline.inspection.tracks import graph_tracks
from graftline.inspection.weight_table import WeightTable
from graftline.passes.pipeline.graft import BLOCK


def graph_page(path: Path) -> Json:
    """The page of one graph: as it is, and where a host is recognised in it, brought to canonical
    form; else it says why none is."""
    model = read_graph(path)
    found, told = _recognised(path, model)
    diff = alone(model) if found is None else compare(model, found)
    after = path.name if found is None else "canonical"
    return {
        "title": path.name,
        "subtitle": f"{len(model.graph)} nodes; {told}",
        **_pictures({path.name: (path.name, after, diff)}, path.parent),
    }


def _recognised(path: Path, model: ir.Model) -> tuple[ir.Model | None, str]:
    if any(BLOCK in node.metadata_props for node in model.graph):
        return None, "its blocks are stamped in it"
    try:
        found, origin = recognised(path)
    except GraftlineError as error:
        return None, f"no host that graftline knows ({error})"
    return found, f"its blocks were {origin}"


def diff_page(
    before: Path, after: Path, diffs: Mapping[str, Diff], lone: Mapping[str, str]
) -> Json:
    """The page of what differs between two graphs, or between the stages of two bundles."""
    names = {name: (f"{before.name}", f"{after.name}", diff) for name, diff in diffs.items()}
    told = [f"{name}: {diff.told}" for name, diff in diffs.items()]
    return {
        "title": f"{before.name} → {after.name}",
        "subtitle": "; ".join([*told, *(f"{name}: {what}" for name, what in lone.items())]),
        **_pictures(names, before.parent),
    }


def _pictures(named: Mapping[str, tuple[str, str, Diff]], folder: Path) -> Json:
    tracks = graph_tracks(named, WeightTable(folder.absolute()))
    return {"tracks": tracks.tracks, "scenes": tracks.scenes, "weights": tracks.weights.rows}
