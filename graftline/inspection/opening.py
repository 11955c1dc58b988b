"""Opening graphs and bundles to look at them: nothing is verified, built or run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from graftline.bundle.reader import Bundle
from graftline.errors import CheckpointError, GraftlineError
from graftline.inspection.diff import Diff, compare


@dataclass(frozen=True)
class GraphPair:
    """Two graphs to be compared."""

    before: Path
    after: Path

    def diff(self) -> Diff:
        """What differs. Raises CheckpointError for a file that cannot be read."""
        return compare(read_graph(self.before), read_graph(self.after))


@dataclass(frozen=True)
class GraphPairs:
    """The graphs to be compared, by the name they are shown under, and stages that only one of two
    bundles has, each with which."""

    shared: Mapping[str, GraphPair]
    alone: dict[str, str]


def is_graph(path: Path) -> bool:
    """Whether a path is meant as a single graph. Raises GraftlineError where it is not there."""
    if path.suffix != ".onnx" or path.is_dir():
        return False
    if not path.is_file():
        raise GraftlineError(f"{path}: no such file")
    return True


def read_graph(path: Path) -> ir.Model:
    """The graph in a file, its weights left where they are. Raises CheckpointError for a file that
    is not an ONNX graph."""
    try:
        return ir.load(path)
    except Exception as error:  # onnx_ir hands on protobuf's and the reader's own errors
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(f"{path}: not an ONNX graph that can be read ({reason})") from error


def graph_pairs(before: Path, after: Path, stage: str | None) -> GraphPairs:
    """What is to be compared of two paths. Raises GraftlineError for a graph beside a bundle, and
    for a stage that one of the bundles lacks."""
    graphs = is_graph(before), is_graph(after)
    if all(graphs):
        if stage is not None:
            raise GraftlineError("--stage is for bundles, and these are graphs; leave it out")
        return GraphPairs({f"{before.name} → {after.name}": GraphPair(before, after)}, {})
    one, other = (
        None if single else Bundle.open(path, verify=False)
        for single, path in zip(graphs, (before, after), strict=True)
    )
    if one is None or other is None:
        graph, folder = (before, after) if one is None else (after, before)
        raise GraftlineError(
            f"{graph} is a graph and {folder} a bundle; give two of a kind, as "
            f"{folder / 'canonical.onnx'}"
        )
    if stage is not None:
        return GraphPairs({stage: GraphPair(one.graph(stage), other.graph(stage))}, {})
    names = [set(b.manifest.stages) for b in (one, other)]
    shared = [name for name in one.manifest.stages if name in names[1]]
    alone = {n: f"a stage of {before} alone" for n in sorted(names[0] - names[1])}
    alone |= {n: f"a stage of {after} alone" for n in sorted(names[1] - names[0])}
    return GraphPairs({n: GraphPair(one.graph(n), other.graph(n)) for n in shared}, alone)
