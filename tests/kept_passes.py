"""What faults on purpose cannot reach of a run of passes is done once, for all faults of a host.

A run begins where one before it, of the same passes on an equal graph with an equal feed, has
already been: a copy of that graph, the laws' results and the feed are taken from there. What makes
a run what it is: the graph with all its metadata, the bytes of its weights or their place in a
file, the feed, and the passes with their options. Copies differ from what they are of in the names
that values without one get when they are written, so that a bundle is not made so.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graftline.bare import bare, describe_values
from graftline.evaluate import Feed
from graftline.passes.anchors.reduce import weight_bytes
from graftline.passes.laws.common import Memo
from graftline.passes.pipeline import pipeline
from graftline.passes.pipeline.graft import Graft
from graftline.passes.pipeline.pipeline import PassReport, Pipeline, Watch
from graftline.tensors import Stacked, Widened, file_of

MOST_NODES, MOST_BYTES = 600, 8 << 20
"""Nodes, and bytes of weights, of a graph that is kept: larger ones take too much memory."""
MOST_RUNS = 400
"""Graphs that are kept, the last used ones."""


class Unknown(Exception):
    """Something that cannot be told by its content."""


Call = tuple[Any, str]
"""A function by its module or class, and its name there."""


@dataclass(frozen=True)
class Kept:
    """After a pass: the graph and what its meta holds, the feed, what was reported so far, and
    which of the watched functions were called so far."""

    model: ir.Model
    feed: Feed | None
    reports: tuple[PassReport, ...]
    calls: frozenset[Call]


@dataclass(frozen=True)
class Fault:
    """Code that a test replaces on purpose, and so what it can reach: passes of the class `graft`
    and all behind them, or whatever calls one of the functions `calls`."""

    graft: type[Graft] | None = None
    calls: frozenset[Call] = frozenset()


@dataclass
class KeptPasses:
    """The last results of passes by what made them."""

    kept: OrderedDict[Hashable, Kept] = field(default_factory=OrderedDict[Hashable, Kept])
    fault: Fault = Fault()
    """The code that is replaced now."""
    called: set[Call] = field(default_factory=set[Call])
    """The watched functions that the present run has called."""

    def keep(self, patch: pytest.MonkeyPatch) -> None:
        """While `patch` holds, pipelines run so."""
        real = Pipeline.run

        def run(
            passes: Pipeline, model: ir.Model, feed: Feed | None = None, watch: Watch | None = None
        ) -> list[PassReport]:
            try:
                start = self._start(model, feed)
            except Unknown:
                return real(passes, model, feed, watch)
            around, self.called = self.called, set()
            try:
                return self._run(start, passes, model, feed, watch)
            finally:
                self.called |= around

        patch.setattr(Pipeline, "run", run)

    def watch(self, patch: pytest.MonkeyPatch, call: Call) -> None:
        """While `patch` holds, runs note that they have called a function."""
        owner, name = call
        real = getattr(owner, name)

        @wraps(real)
        def noted(*args: Any, **named: Any) -> Any:
            self.called.add(call)
            return real(*args, **named)

        patch.setattr(owner, name, noted)

    def _start(self, model: ir.Model, feed: Feed | None) -> Hashable:
        if len(model.graph) > MOST_NODES or weight_bytes(model) > MOST_BYTES:
            raise Unknown
        return _content(model), _fed(feed)

    def _run(
        self,
        start: Hashable,
        passes: Pipeline,
        model: ir.Model,
        feed: Feed | None,
        watch: Watch | None,
    ) -> list[PassReport]:
        fault = self.fault
        keys = _keys(start, passes.grafts, fault)
        there = next((n for n in range(len(keys), 0, -1) if self._is_kept(keys[n - 1], fault)), 0)
        reports: list[PassReport] = []
        if there:
            last = self.kept[keys[there - 1]]
            self.kept.move_to_end(keys[there - 1])
            _become(model, last.model)
            feed = None if last.feed is None else dict(last.feed)
            reports += last.reports
            self.called |= last.calls
        for report in reports if watch else ():
            watch(report)
        memo = Memo()
        for place, graft in enumerate(passes.grafts[there:], there):
            report, feed = pipeline.applied(graft, model, feed, memo)
            reports.append(report)
            if place < len(keys) and not fault.calls and len(model.graph) <= MOST_NODES:
                self._put(keys[place], model, feed, reports)
            if watch is not None:
                watch(report)
        return reports

    def _is_kept(self, key: Hashable, fault: Fault) -> bool:
        return key in self.kept and not self.kept[key].calls & fault.calls

    def _put(
        self, key: Hashable, model: ir.Model, feed: Feed | None, reports: list[PassReport]
    ) -> None:
        fed = None if feed is None else dict(feed)
        self.kept[key] = Kept(_copy(model), fed, tuple(reports), frozenset(self.called))
        if len(self.kept) > MOST_RUNS:
            self.kept.popitem(last=False)


def _keys(start: Hashable, grafts: Iterable[Graft], fault: Fault) -> list[Hashable]:
    """Of what each pass makes, up to the first that the fault is in."""
    keys: list[Hashable] = []
    for graft in grafts:
        if fault.graft is not None and isinstance(graft, fault.graft):
            break
        start = start, graft
        keys.append(start)
    return keys


def _copy(model: ir.Model) -> ir.Model:
    copy = model.clone()
    copy.meta.update(model.meta)
    return copy


def _become(model: ir.Model, other: ir.Model) -> None:
    """Let `model` hold a copy of what `other` holds."""
    copy = _copy(other)
    model.graph, model.ir_version = copy.graph, copy.ir_version
    model.functions.clear()
    model.functions.update(copy.functions)
    model.metadata_props.clear()
    model.metadata_props.update(copy.metadata_props)
    model.meta.clear()
    model.meta.update(copy.meta)


def _content(model: ir.Model) -> str:
    """All that tells a model from another. Raises Unknown for a meta that holds something else than
    graphs and arrays."""
    digest = hashlib.sha256()
    proto = bare(model)
    describe_values(model.graph, proto.graph)
    digest.update(proto.SerializeToString(deterministic=True))
    for held in (model, model.graph, *model.graph.inputs, *model.graph.initializers.values()):
        digest.update(repr(held.metadata_props).encode())
    for node in model.graph:
        digest.update(repr(node.metadata_props).encode())
        for value in node.outputs:
            if value.metadata_props:
                digest.update(repr(value.metadata_props).encode())
    for name, value in model.graph.initializers.items():
        digest.update(f"{name} {_place(value.const_value)}".encode())
    for key, held in model.meta.items():
        digest.update(f"{key} {_told(held)}".encode())
    return digest.hexdigest()


def _told(held: Any) -> str:
    if isinstance(held, ir.Model):
        return _content(held)
    if isinstance(held, np.ndarray):
        return _bytes(held)
    if isinstance(held, str | int | float | Path):
        return repr(held)
    raise Unknown


def _place(tensor: Any) -> str:
    """Where a tensor lies in which file, as it is now; or its bytes."""
    if isinstance(tensor, ir.ExternalTensor):
        file = file_of(tensor)
        state = file.stat()
        return f"{file} {state.st_ino} {state.st_mtime_ns} {tensor.offset} {tensor.nbytes}"
    if isinstance(tensor, Widened):
        return f"{tensor.dtype} {_place(tensor.narrow)}"
    if isinstance(tensor, Stacked):
        return " ".join(map(_place, tensor.parts))
    return _bytes(tensor.numpy())


def _bytes(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


def _fed(feed: Feed | None) -> Hashable:
    return None if feed is None else tuple((name, _bytes(held)) for name, held in feed.items())
