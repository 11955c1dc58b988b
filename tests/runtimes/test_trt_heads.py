"""Draft heads beside a trt session, and within its fused step, over the device stand-in."""

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

from graftline.build.head_graph import head_graphs
from graftline.bundle.store import save_graph
from graftline.bundle.weight_file import WeightFile
from graftline.errors import BackendError
from graftline.models.decoder import TinyDecoder
from graftline.models.heads.files import read_files
from graftline.models.heads.medusa import open_medusa
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.head_parts import HEADS
from graftline.passes.laws.common import infer_shapes
from graftline.ports import read_ports, step_port
from graftline.recipe import recipe
from graftline.runtimes.engine import Engine
from graftline.runtimes.ort.heads import OrtHeads
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.resources import Resources
from graftline.runtimes.trt.fused import TrtFusedStep
from graftline.runtimes.trt.heads import TrtHead, TrtHeads
from graftline.runtimes.trt.session import TrtSession
from tests.medusa_files import seeded, write_safe

HIDDEN, VOCABULARY, CAPACITY, ROWS = 32, 61, 60, 12
FRONT = "anchors | kv-cache | tree-mask | select-rows | tap{layers=norm} | reduce-logits{topk=8}"
MEDUSA = replace(recipe("medusa"), options={"rows": ROWS})
PROMPTS = [[5, 9, 5, 9, 5, 9, 11], [1, 2, 3], [7] * 12, [4]]


def published(folder: Path) -> ir.Model:
    target = TinyDecoder().build()
    infer_shapes(target)
    Pipeline.parse("anchors", GRAFTS).run(target)
    head = read_files(write_safe(folder / "head", seeded(HIDDEN, VOCABULARY, 3)))
    return head_graphs(open_medusa(head), target)[0]


def saved(model: ir.Model, folder: Path) -> Path:
    folder.mkdir()
    save_graph(model, folder / "g.onnx", WeightFile(folder, "g.weights", lambda size: None), {})
    return folder / "g.onnx"


def opened(model: ir.Model, folder: Path, batch: int = 2) -> TrtHead:
    """An engine of heads, whose graph stands in for it."""
    ports, graph = read_ports(model), saved(model, folder)
    tokens = step_port(ports, ports[0].owner)
    assert tokens is not None
    plan = plan_of(ports, rows=(1,), chunk=1, batch=batch, tokens=tokens.name)
    return TrtHead(StandInDevice(graph, ports, plan.profiles), plan, ports)


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    return published(tmp_path_factory.mktemp("published"))


def test_heads_answer_as_on_the_cpu_in_calls_of_the_engines_batch(
    heads: ir.Model, tmp_path: Path
) -> None:
    found: list[Any] = []
    for name, back in (("ort", "lower-ort"), ("trt", "lower-tensorrt{dtype=fp32}")):
        model = heads.clone()
        Pipeline.parse(f"draft-heads{{topk=6}} | {back}", GRAFTS).run(model)
        if name == "ort":
            found.append(OrtHeads([(saved(model, tmp_path / name), read_ports(model))], 1))
        else:
            found.append(TrtHeads([opened(model, tmp_path / name)]))
    cpu, gpu = found
    assert (gpu.heads, gpu.width, gpu.hidden, gpu.sequential) == (3, 6, HIDDEN, False)
    assert gpu.milliseconds > 0.0
    for count in (1, 2, 5):
        states = np.random.default_rng(count).standard_normal((count, HIDDEN)).astype(np.float32)
        (ids, logits), (expected, values) = (one.answer(states) for one in (gpu, cpu))
        assert ids.shape == (count, 3, 6)
        np.testing.assert_array_equal(ids, expected)
        np.testing.assert_allclose(logits, values, rtol=0, atol=1e-5)


def trt_session(heads: ir.Model, folder: Path, fusing: str) -> TrtSession:
    def carry(model: ir.Model) -> None:
        model.meta[HEADS] = heads

    text = f"{FRONT}{fusing} | lower-tensorrt{{dtype=fp32,capacity={CAPACITY + ROWS}}}"
    graph, facts, ports = lowered(TinyDecoder(), text, folder, before=carry)
    plan = plan_of(ports, rows=(1, ROWS), batch=3)
    device = StandInDevice(graph, ports, plan.profiles, 1 << 24)
    return TrtSession(device, plan, facts, ports, graph)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = tmp_path_factory.mktemp("host")
    graph = lowered(TinyDecoder(), f"{FRONT} | lower-ort", folder / "ort")
    return Engine(OrtSession(*graph, capacity=CAPACITY), None, {}, recipe("plain"), FLAT)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "seed": 7}])
def test_fused_steps_draft_by_heads_and_give_plains_tokens(
    heads: ir.Model, host: Engine, tmp_path: Path, options: dict[str, Any]
) -> None:
    session = trt_session(heads, tmp_path / "g", " | fuse-verify{sample=true} | fuse-heads{topk=6}")
    assert session.table is None
    assert session.heads is not None
    step = TrtFusedStep(session)
    assert step.drafter == "medusa"
    engine = Engine(
        session, None, {}, MEDUSA, None, resources=Resources(head=lambda: session.heads),  # type: ignore[arg-type, return-value]
        fused=lambda: step, step="fused",
    )  # fmt: skip
    device: Any = session._device
    asked: Any = {"raw": True, "max_new_tokens": 24, **options}
    for prompt in PROMPTS:
        runs = device.runs
        found = engine.generate(prompt, **asked)
        assert found.tokens == host.generate(prompt, **asked).tokens  # type: ignore[union-attr]
        assert device.runs - runs == 1 + found.stats.steps, "one for the prompt, one for each step"
        assert f"a tree of {ROWS} rows" in found.stats.controller
    both: Any = [one.generate(PROMPTS, batch=3, **asked) for one in (engine, host)]
    assert [r.tokens for r in both[0]] == [r.tokens for r in both[1]]
    with pytest.raises(BackendError, match="draft within its steps; use --step fused"):
        engine.generate(PROMPTS[0], step="host", **asked)


def test_the_host_drafts_by_heads_engines(heads: ir.Model, host: Engine, tmp_path: Path) -> None:
    session = trt_session(heads, tmp_path / "g", "")
    model = heads.clone()
    Pipeline.parse("draft-heads{topk=6} | lower-tensorrt{dtype=fp32}", GRAFTS).run(model)
    beside = TrtHeads([opened(model, tmp_path / "heads")])
    engine = Engine(session, None, {}, MEDUSA, None, resources=Resources(head=lambda: beside))
    asked: Any = {"raw": True, "max_new_tokens": 24}
    for prompt in PROMPTS:
        found: Any = engine.generate(prompt, **asked)
        assert found.tokens == host.generate(prompt, **asked).tokens  # type: ignore[union-attr]
        assert found.stats.drafted > 20
