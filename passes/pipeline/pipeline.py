"""A pipeline: grafts in order, each held to its laws, as text `a{x=1} | b` and back."""

from __future__ import annotations

import dataclasses
import functools
import re
import time
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import onnx_ir as ir

from graftline.errors import PipelineSyntax, nearest
from graftline.evaluate import Feed
from graftline.law import LawRow
from graftline.passes.graph.names import separate_names
from graftline.passes.laws.common import Host, Memo, check, infer_shapes
from graftline.passes.pipeline.graft import MADE_BY, STAGES, Graft, Stage
from graftline.passes.pipeline.sample import SAMPLE


@dataclass(frozen=True)
class PassReport:
    """What one pass did: its text, time, node counts and the laws it was held to."""

    text: str
    why: str
    seconds: float
    nodes_before: int
    nodes_after: int
    added: dict[str, int]
    laws: list[LawRow]


Watch = Callable[[PassReport], None]


@dataclass(frozen=True)
class Pipeline:
    """Grafts applied in order. `str` and `parse` are inverses."""

    grafts: tuple[Graft, ...]

    def __str__(self) -> str:
        return " | ".join(str(g) for g in self.grafts)

    @classmethod
    def parse(cls, text: str, known: Mapping[str, type[Graft]]) -> Pipeline:
        """Read `a{x=1,y=true} | b`. Raises PipelineSyntax and names the nearest pass or option."""
        return cls(tuple(_graft(part.strip(), known) for part in text.split("|") if part.strip()))

    def __post_init__(self) -> None:
        for one, other in pairwise(self.grafts):
            if STAGES.index(one.stage) > STAGES.index(other.stage):
                raise PipelineSyntax(
                    f"{other.name()} ({other.stage}) comes after {one.name()} ({one.stage}); the "
                    f"order is {', '.join(STAGES)}"
                )

    def of(self, *stages: Stage) -> Pipeline:
        """The grafts of these stages."""
        return Pipeline(tuple(g for g in self.grafts if g.stage in stages))

    def within(self, blocks: int) -> Pipeline:
        """The same grafts for the first `blocks` blocks of their host."""
        return Pipeline(tuple(g.within(blocks) for g in self.grafts))

    def run(
        self,
        model: ir.Model,
        feed: Feed | None = None,
        watch: Watch | None = None,
    ) -> list[PassReport]:
        """Rewrite `model` in place. With a feed of the model as it is now the numeric laws run,
        without one those that need no weight."""
        reports: list[PassReport] = []
        memo = Memo()
        for graft in self.grafts:
            report, feed = applied(graft, model, feed, memo)
            reports.append(report)
            if watch is not None:
                watch(report)
        return reports


def applied(
    graft: Graft, model: ir.Model, feed: Feed | None, memo: Memo
) -> tuple[PassReport, Feed | None]:
    """Rewrite `model` in place by one graft and hold it to its laws; and the feed of what it is
    now. `memo` is of the run, whose last graft made the model as it is."""
    began = time.perf_counter()
    graft.requires(model)
    host, count = Host.of(graft, model), len(model.graph)
    before = model.clone() if feed is not None or graft.weight_free else None
    if before is not None:
        before.meta.update(model.meta)  # laws ask a pass for what it reads there
        memo.renamed(model, before)
    graft.apply(model)
    separate_names(model.graph, graft.name())
    infer_shapes(model, graft.name())
    if (sample := model.meta.get(SAMPLE)) is not None:
        model.meta[SAMPLE] = sample.after(graft, model)
    laws = check(graft, host, before, model, feed, memo)
    seconds, added = time.perf_counter() - began, _added(model, graft.name())
    report = PassReport(str(graft), _why(graft), seconds, count, len(model.graph), added, laws)
    return report, None if feed is None else graft.neutral(feed, model)


def _why(graft: Graft) -> str:
    """The first paragraph of a pass's docstring, on one line."""
    return " ".join((type(graft).__doc__ or "").strip().split("\n\n")[0].split())


def _added(model: ir.Model, name: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in model.graph:
        if node.metadata_props.get(MADE_BY) == name:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def _graft(text: str, known: Mapping[str, type[Graft]]) -> Graft:
    match = re.fullmatch(r"([a-z][a-z0-9-]*)\s*(?:\{(.*)\})?", text, flags=re.DOTALL)
    if match is None:
        raise PipelineSyntax(f"cannot read the pass '{text}'; write name{{option=value,...}}")
    name, options = match.group(1), match.group(2) or ""
    if name not in known:
        raise PipelineSyntax(f"unknown pass '{name}'{nearest(name, known)}")
    cls = known[name]
    fields = _options(cls)
    values: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in options.split(","))):
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals or key not in fields:
            raise PipelineSyntax(f"{name} has no option '{key}'{nearest(key, fields)}")
        values[key] = _value(name, key, value.strip(), fields[key])
    return cls(**values)


@functools.cache
def _options(cls: type[Graft]) -> dict[str, Any]:
    """The types of a pass's options."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _value(name: str, key: str, text: str, kind: Any) -> Any:
    if isinstance(kind, types.UnionType):
        if text == "none":
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if kind is bool and text in ("true", "false"):
        return text == "true"
    if kind in (int, float, str):
        try:
            return kind(text)
        except ValueError:
            pass
    words = {"bool": "true or false", "int": "a whole number", "float": "a number"}
    wanted = words.get(getattr(kind, "__name__", ""), str(kind))
    raise PipelineSyntax(f"{name}{{{key}={text}}}: '{key}' takes {wanted}")


def names(grafts: Sequence[type[Graft]]) -> dict[str, type[Graft]]:
    """A table of grafts by CLI name."""
    return {g.name(): g for g in grafts}
