"""A tiny decoder twice: as a TensorRT session and as the ort-cpu session it is held against."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

sys.path.insert(0, str(Path(__file__).parent))

from stand_in_device import StandInDevice
from toy_session import FLAT

from graftline.build.tensorrt.builder import BuildOptions
from graftline.bundle.store import save_graph
from graftline.bundle.weight_file import WeightFile
from graftline.facts import decoder_facts
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.laws.common import infer_shapes
from graftline.ports import read_ports
from graftline.recipe import recipe
from graftline.roles import Roles
from graftline.runtimes.engine import Engine
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.session import FINAL
from graftline.runtimes.trt.plan import EnginePlan
from graftline.runtimes.trt.session import TrtSession
from graftline.tree import Tree
from tests.rounding import decoder_terms, sum_tolerance

GRAFTED = "anchors | kv-cache | tree-mask | select-rows | tap{layers=norm} | reduce-logits"
SLOTS = 96
WIDE = {"rows": (1, 64), "slots": 160}
"""Hosts whose attention depends on distance score a tree in one call."""
ROUNDING = sum_tolerance(decoder_terms(TinyDecoder(layers=3), seen=SLOTS))
"""Of fp32, relative to the largest value, for the deepest of the hosts used here."""


@dataclass
class Pair:
    trt: TrtSession
    ort: OrtSession
    device: Any

    @property
    def both(self) -> list[Any]:
        return [self.trt, self.ort]


def lowered(
    spec: TinyDecoder,
    text: str,
    folder: Path,
    change: Callable[[ir.Model], None] = lambda model: None,
    before: Callable[[ir.Model], None] = lambda model: None,
) -> tuple[Path, Any, Any]:
    model = spec.build()
    infer_shapes(model)
    before(model)
    Pipeline.parse(text, GRAFTS).run(model)
    change(model)
    folder.mkdir(parents=True)
    save_graph(model, folder / "g.onnx", WeightFile(folder, "g.weights", lambda size: None), {})
    return folder / "g.onnx", decoder_facts(model), read_ports(model)


def plan_of(ports: Any, tokens: str = "", **options: Any) -> EnginePlan:
    made = BuildOptions(**{"rows": (1, 8), "chunk": 16, "batch": 3, **options})
    shapes: Any = made.profiles(ports)
    return EnginePlan(
        "e.engine", "graph", "trt-rtx:sm89", "tensorrt-rtx-cu13 1.7.1", shapes, False, False, {},
        "graftline optimize X", tokens or Roles.of(ports).inputs["tokens"],
    )  # fmt: skip


def pair(
    folder: Path,
    spec: TinyDecoder | None = None,
    text: str = GRAFTED,
    dtype: str = "fp32",
    capacity: int | None = None,
    slots: int = SLOTS,
    change: Callable[[ir.Model], None] = lambda model: None,
    **options: Any,
) -> Pair:
    spec = spec or TinyDecoder()
    lower = f"{text} | lower-tensorrt{{dtype={dtype},capacity={slots}}}"
    graph, facts, ports = lowered(spec, lower, folder / "trt", change)
    plan = plan_of(ports, **options)
    device = StandInDevice(graph, ports, plan.profiles)
    session = TrtSession(device, plan, facts, ports, graph, capacity)
    other = lowered(spec, f"{text} | lower-ort", folder / "ort")
    return Pair(session, OrtSession(*other, capacity=session.capacity), device)


def same(
    found: Sequence[np.ndarray], near: float = ROUNDING, scale: np.ndarray | None = None
) -> None:
    """Equal but for rounding, relative to the largest of `scale`; None: of the values themselves"""
    assert found[0].shape == found[1].shape
    largest = np.abs(found[1] if scale is None else scale).max()
    assert np.abs(found[0] - found[1]).max() <= near * largest


def same_choices(scores: Sequence[Any], near: float = ROUNDING) -> None:
    """The best tokens are equal, or their logits equal but for rounding."""
    one, two = scores
    best = np.take_along_axis(two.logits, one.argmax[..., None], -1)[..., 0]
    same([best, two.logits.max(-1)], near)
    if one.topk_ids is not None:
        same([np.take_along_axis(two.logits, one.topk_ids, -1), two.topk_logits], near)


def ragged_trees(p: Pair, near: float = ROUNDING, choices: bool = True) -> None:
    """Three ragged sequences through trees of 1 to 20 rows, commits, a rollback, an admission.

    `choices`: precise enough that the best tokens are equal too, save ties."""
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, 61, n) for n in (33, 1, 1)]
    for session in p.both:
        session.reset(3)
    first = [s.prefill(prompts) for s in p.both]
    same([s.logits for s in first], near)
    same([s.taps.get(FINAL) for s in first], near)
    for step in range(7):
        count = (1, 5, 8, 13, 20, 2, 1)[step]
        parents = [int(rng.integers(0, n)) if n else -1 for n in range(count)]
        tokens = rng.integers(0, 61, (3, count))
        trees = [Tree(tokens[b], np.asarray(parents)) for b in range(3)]
        depth, mask = np.stack([t.depth for t in trees]), np.stack([t.mask for t in trees])
        scores = [s.score(tokens, depth, mask) for s in p.both]
        same([s.logits for s in scores], near)
        same([s.taps.get(FINAL) for s in scores], near)
        if choices:
            same_choices(scores, near)
        same([s.topk_logits for s in scores], near)
        same([s.top_gap for s in scores], near, scores[1].logits)
        paths = [trees[b].path_to(int(rng.integers(0, count))) for b in range(3)]
        paths[step % 3] = ()
        for session in p.both:
            session.commit(paths)
        assert p.trt.lengths.tolist() == p.ort.lengths.tolist()
    back = [int(n) - 1 for n in p.trt.lengths]
    for session in p.both:
        session.truncate(back)
    same([s.score(tokens[:, :1]).logits for s in p.both], near)
    for session in p.both:
        session.leave(1)  # the last one moves there
    same([s.read(s.seat(), prompts[0]).logits for s in p.both], near)
    same([s.score(tokens[:, :4]).logits for s in p.both], near)


def generated(p: Pair, name: str) -> list[list[list[int]]]:
    """What a recipe generates on both: prompts alone, as a batch, and sampled."""
    prompts = [[5, 9, 5, 9, 5, 9, 11], [1, 2, 3], [7] * 12]
    options: Any = {"raw": True, "max_new_tokens": 20}
    texts: list[list[list[int]]] = []
    for session in p.both:
        engine = Engine(session, None, {}, recipe(name), FLAT)
        alone = [engine.generate(ids, **options).tokens for ids in prompts]
        together = [r.tokens for r in engine.generate(prompts, batch=2, **options)]
        sampled = engine.generate(prompts[0], temperature=0.9, seed=7, **options).tokens
        texts.append([*alone, *together, sampled])
    return texts
