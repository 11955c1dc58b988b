"""A draft block beside a trt session, and within its fused step, over the device stand-in."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from stand_in_device import StandInDevice
from toy_session import FLAT
from trt_pair import lowered, plan_of

from graftline.bundle.store import save_graph
from graftline.bundle.weight_file import WeightFile
from graftline.errors import BackendError
from graftline.facts import DraftBlockFacts, read_facts
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.block_copy import BLOCK_GRAPH
from graftline.ports import read_ports
from graftline.recipe import recipe
from graftline.runtimes.engine import Engine
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import FINAL
from graftline.runtimes.trt.features import LentCaches, TrtFeatureSession, feature_engine
from graftline.runtimes.trt.fused import TrtFusedStep
from graftline.runtimes.trt.session import TrtSession
from tests.tiny_block import SPEC, block_graph

CAPACITY, DEPTH = 60, 4
SLOTS = CAPACITY + 8
FRONT = "anchors | kv-cache | tree-mask | select-rows | tap{layers=norm} | reduce-logits{topk=8}"
LOWER = f"lower-tensorrt{{dtype=fp32,capacity={SLOTS}}}"
EAGLE = replace(recipe("eagle"), options={"rows": 8, "depth": DEPTH})
TREES = replace(recipe("eagle-2"), options={"rows": 8, "width": 4, "depth": 2})
PROMPTS = [[5, 9, 5, 9, 5, 9, 11], [1, 2, 3], list(range(20)), [4]]


def session_of(block: ir.Model, folder: Path, fusing: str) -> TrtSession:
    def carry(model: ir.Model) -> None:
        model.meta[BLOCK_GRAPH] = block

    text = f"{FRONT}{fusing} | {LOWER}"
    graph, facts, ports = lowered(SPEC, text, folder, before=carry)
    plan = plan_of(ports, rows=(DEPTH + 1, 8), batch=3)
    device = StandInDevice(graph, ports, plan.profiles, 1 << 24)
    return TrtSession(device, plan, facts, ports, graph)


def head_of(block: ir.Model, folder: Path, beside: StandInDevice | None) -> TrtFeatureSession:
    """The engine of a block, whose graph stands in for it."""
    model = block.clone()
    Pipeline.parse(LOWER, GRAFTS).run(model)
    facts, ports = read_facts(model), read_ports(model)
    assert isinstance(facts, DraftBlockFacts)
    folder.mkdir()
    save_graph(model, folder / "g.onnx", WeightFile(folder, "g.weights", lambda size: None), {})
    plan = plan_of(ports, rows=(1, 4), batch=3)
    device = StandInDevice(folder / "g.onnx", ports, plan.profiles, 1 << 24, beside)
    return TrtFeatureSession(device, plan, facts, ports, folder / "g.onnx", CAPACITY)


@pytest.fixture(scope="module")
def block() -> ir.Model:
    return block_graph()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("host")
    graph = lowered(SPEC, f"{FRONT} | lower-ort", folder / "ort")
    return Engine(OrtSession(*graph, capacity=CAPACITY), None, {}, recipe("plain"), FLAT)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "seed": 7}])
def test_fused_steps_draft_by_a_block_and_give_plains_tokens(
    block: ir.Model, host: Engine, tmp_path: Path, options: dict[str, Any]
) -> None:
    fusing = f" | fuse-verify{{sample=true}} | fuse-block{{depth={DEPTH}}}"
    session = session_of(block, tmp_path / "g", fusing)
    device: Any = session._device
    head = head_of(block, tmp_path / "head", device)
    step = TrtFusedStep(session, LentCaches(head, session))
    assert (step.drafter, session.depth) == ("eagle", DEPTH)
    beside = feature_engine(head, FINAL)
    engine = Engine(
        session, None, {}, EAGLE, None, resources=Resources(head=lambda: beside),
        fused=lambda: step, step="fused",
    )  # fmt: skip
    asked: Any = {"raw": True, "max_new_tokens": 24, **options}
    steps = 0
    for prompt in PROMPTS:
        runs = device.runs
        found: Any = engine.generate(prompt, **asked)
        assert found.tokens == host.generate(prompt, **asked).tokens  # type: ignore[union-attr]
        chunks = -(-len(prompt) // 16)
        assert device.runs - runs == chunks + found.stats.steps, "of the target's engine"
        assert f"a tree of {DEPTH + 1} rows" in found.stats.controller
        steps += found.stats.steps
    assert options or steps < 4 * 20, "what a block drafts that knows the text is accepted"
    both: Any = [one.generate(PROMPTS, batch=3, **asked) for one in (engine, host)]
    assert [r.tokens for r in both[0]] == [r.tokens for r in both[1]]
    by_host: Any = engine.generate(PROMPTS[0], step="host", **asked)
    assert by_host.tokens == both[1][0].tokens or options, "the head's engine drafts by itself too"


@pytest.mark.parametrize("chosen", [EAGLE, TREES], ids=["chain", "trees"])
def test_the_host_drafts_by_the_heads_engine(
    block: ir.Model, host: Engine, tmp_path: Path, chosen: Any
) -> None:
    """Alone, and together in calls of all."""
    session = session_of(block, tmp_path / "g", "")
    head = head_of(block, tmp_path / "head", None)
    beside = feature_engine(head, FINAL)
    assert beside.step > 0.0
    assert (head.width, head.candidates) == (SPEC.hidden, 4)
    engine = Engine(session, None, {}, chosen, None, resources=Resources(head=lambda: beside))
    asked: Any = {"raw": True, "max_new_tokens": 24}
    for prompt in PROMPTS:
        found: Any = engine.generate(prompt, **asked)
        assert found.tokens == host.generate(prompt, **asked).tokens  # type: ignore[union-attr]
        assert found.stats.drafted > 20
        assert found.stats.steps < 20
    both: Any = [one.generate(PROMPTS, batch=3, **asked) for one in (engine, host)]
    assert [r.tokens for r in both[0]] == [r.tokens for r in both[1]]


def test_what_an_engine_of_a_block_does_not_do_is_refused(
    block: ir.Model, tmp_path: Path
) -> None:
    head = head_of(block, tmp_path / "head", None)
    rows = np.zeros((5, SPEC.hidden), np.float32)
    with pytest.raises(BackendError, match="scores one row of a call, or a level of a tree"):
        head.follow(0, 0, [1, 2], 2, rows[:2])
    with pytest.raises(BackendError, match="a level of 5 nodes is wider than any step; rebuild"):
        head.follow_level(0, 1, 1, [1] * 5, rows, 1, np.eye(5, dtype=np.bool_))
    target = session_of(block, tmp_path / "g", "")
    with pytest.raises(BackendError, match="have caches of other sizes; rebuild"):
        LentCaches(head, target)
