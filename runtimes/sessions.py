"""Sessions of a bundle's graphs on ONNX Runtime, over one copy of its weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from graftline.bundle.manifest import Stage, StageRole
from graftline.bundle.reader import Bundle
from graftline.errors import BackendError
from graftline.facts import as_decoder
from graftline.owners import TARGET
from graftline.ports import STREAM, by_role
from graftline.recipe import FUSED
from graftline.runtimes.feature_engine import FeatureEngine
from graftline.runtimes.fused import FusedStep
from graftline.runtimes.fused_block import block_depth
from graftline.runtimes.machine import machine
from graftline.runtimes.ort.cuda import SESSIONS
from graftline.runtimes.ort.features import FeatureSession
from graftline.runtimes.ort.forms import NO_FORMS, Form, Forms
from graftline.runtimes.ort.fused import OrtFusedStep
from graftline.runtimes.ort.rest import RestSession
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.ort.weights import shared_graphs
from graftline.targets import CPU

ON_CACHES: tuple[StageRole, ...] = ("route", "exit", "rest")
"""Roles of stages that work on the target's caches, and of the target's share its weights."""
DEFAULT_CAPACITY = 4096
"""Cache slots unless the host has fewer positions or the caller asks for another number."""


def open_session(
    bundle: Bundle,
    *,
    threads: int | None = None,
    capacity: int | None = None,
    stage: str = "",
    watch: Callable[[str], None] | None = None,
) -> OrtSession:
    """The session of a bundle's own target, and the other forms of its step. `stage` names another
    of its graphs, lowered for that target, which has none.

    Raises BackendError for a target not runnable here.
    """
    manifest = bundle.manifest
    kind = SESSIONS.get(manifest.target)
    if kind is None:
        raise BackendError(
            f"{bundle.path}: built for {manifest.target}, which this version cannot run; "
            "rebuild with --target ort-cpu"
        )
    name = stage or manifest.target
    opened, graph, forms = manifest.stages[name], bundle.graph(name), NO_FORMS
    if not stage:
        graph, forms = open_forms(bundle, threads, watch)
    elif opened.role in ON_CACHES and opened.owner == TARGET:
        graphs = one_copy(bundle, watch)
        graph = graphs.get(name, graph)
        if opened.role == "rest":
            packed = _packed(bundle, graphs, name)
            kind, forms = RestSession, Forms(None, packed, threads or os.cpu_count() or 1)
    session = kind(
        graph,
        as_decoder(opened.facts),
        opened.ports,
        capacity=capacity or DEFAULT_CAPACITY,
        threads=threads,
        forms=forms,
    )
    exactness = manifest.engine_of(name).exactness
    if exactness is not None:
        session.row_invariant = exactness.row_invariant
        session.exact_rows = 1 if exactness.row_invariant else exactness.min_rows
        session.same_rows = exactness.same_rows
    return session


def open_forms(
    bundle: Bundle, threads: int | None, watch: Callable[[str], None] | None
) -> tuple[Path, Forms]:
    """The graph of a bundle's target, and the other forms of its step that were proven, over one
    copy of the weights. Where that cannot be made, the target's own graph does every step."""
    manifest, stages = bundle.manifest, _proven_forms(bundle)
    graphs = one_copy(bundle, watch)
    if not graphs:
        return bundle.graph(manifest.target), NO_FORMS
    packed = _packed(bundle, graphs, manifest.target)
    chains = [name for name, s in stages.items() if not by_role(s.ports, "counts", "in")]
    chain = Form(graphs[chains[0]], stages[chains[0]].ports) if chains else None
    return graphs[manifest.target], Forms(chain, packed, threads or os.cpu_count() or 1)


def _packed(bundle: Bundle, graphs: Mapping[str, Path], stage: str) -> dict[int, Form]:
    """The proven forms of a stage for several sequences, by their number: those that read what it
    reads."""
    stages, forms = bundle.manifest.stages, _proven_forms(bundle)
    read = _begins(stages[stage])
    return {
        int(counts[0].shape[0]): Form(graphs[name], form.ports)
        for name, form in forms.items()
        if name in graphs and (counts := by_role(form.ports, "counts", "in"))
        and _begins(form) == read
    }  # fmt: skip


def _begins(stage: Stage) -> int | None:
    """Behind which block a graph begins; None: at the tokens."""
    ports = by_role(stage.ports, STREAM, "in")
    return ports[0].layer if ports else None


def one_copy(bundle: Bundle, watch: Callable[[str], None] | None) -> dict[str, Path]:
    """The graphs of a bundle's target, of its proven forms, its route and its exits, by stage, over
    one copy of the weights. None where there is only the target's, and where that cannot be made:
    then `watch` is told why."""
    manifest = bundle.manifest
    beside = _proven_forms(bundle)
    for role in ON_CACHES:
        beside |= manifest.of_role(role, TARGET)
    if not beside or manifest.target != CPU:
        return {}
    # absolute: graphs are opened when they are needed, wherever the process is by then
    own = {name: bundle.graph(name).absolute() for name in (manifest.target, *beside)}
    try:
        identity = f"{bundle.digest}\n{machine()}"  # the manifest has the hashes of all weights
        return shared_graphs(bundle.path.absolute(), own, identity, watch)
    except BackendError as error:
        if watch is not None:
            watch(f"{error}; every step uses one graph, drafts of several requests one call each")
        return {}


def _proven_forms(bundle: Bundle) -> dict[str, Stage]:
    laws = bundle.manifest.laws
    proven = {row.graft for row in laws if (row.law, row.status) == ("form", "held")}
    return {name: s for name, s in bundle.manifest.of_role("form").items() if name in proven}


def open_fused(
    bundle: Bundle, session: OrtSession, head: Callable[[], object] | None = None
) -> FusedStep:
    """The fused step of a bundle, over the caches of its session. `head` opens its draft head, on
    whose own stage a step that drafts by a block goes on, with caches apart from the host's."""
    graph, ports, block = bundle.graph(FUSED), bundle.manifest.stages[FUSED].ports, None
    if block_depth(ports):
        opened = None if head is None else head()
        if not isinstance(opened, FeatureEngine) or not isinstance(opened.head, FeatureSession):
            raise BackendError(f"{bundle.path}: its fused step drafts by a head that it lacks")
        block = opened.head.sibling(capacity=session.capacity)
    return OrtFusedStep(graph, ports, session, block)
