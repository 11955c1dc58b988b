"""`trt:smXX` up to its parser: what TensorRT 11 is asked, by a stand-in that writes it down.

The stand-in has the names of the real library's Python interface that a build uses; building needs
TensorRT 11 and a GPU (plugins/README.md has the commands).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest

from graftline.build import engines
from graftline.build.engines import EngineRequest
from graftline.build.tensorrt import builder as build_tensorrt
from graftline.build.tensorrt import options as tensorrt_options
from graftline.build.tensorrt import target as tensorrt_target
from graftline.errors import BackendError
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.laws.common import infer_shapes
from graftline.plugins import PLUGINS, fingerprint, quick_plugin
from graftline.plugins.fingerprint import fingerprint as mark
from graftline.ports import read_ports

FUSED = (
    "anchors | kv-cache | tree-mask | select-rows | reduce-logits{topk=8} | fuse-verify | "
    "fuse-draft | pack-projections"
)
INSIDE = ["CandidateUpdate", "DraftTree", "TreeAttention", "TreeVerify"]


@dataclass
class Asked:
    """What a build asked of the library, in order."""

    steps: list[str] = field(default_factory=list[str])
    parsed: ir.Model | None = None


class Network:
    num_layers = 0


@dataclass
class Config:
    asked: Asked

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def take(*given: Any, **named: Any) -> Any:
            self.asked.steps.append(f"{name} {' '.join(map(str, given))}")
            return SimpleNamespace(serialize=lambda: b"times")

        return take

    def add_optimization_profile(self, profile: Any) -> int:
        self.asked.steps.append("profile")
        return 0


@dataclass
class Builder:
    asked: Asked
    logger: Any

    def create_network(self, flags: int) -> Network:
        self.asked.steps.append(f"network {flags:b}")
        return Network()

    def create_builder_config(self) -> Config:
        return Config(self.asked)

    def create_optimization_profile(self) -> Any:
        return SimpleNamespace(set_shape=lambda *shapes: None)

    def build_serialized_network_to_stream(self, network: Any, config: Any, to: Any) -> bool:
        to.write(b"engine")
        return True


@dataclass
class Parser:
    asked: Asked
    parses: bool
    network: Network
    logger: Any
    num_errors = 1

    def parse_from_file(self, file: str) -> bool:
        self.asked.steps.append("parse")
        self.asked.parsed = ir.load(file)
        return self.parses

    def get_error(self, index: int) -> Any:
        words = {"node_operator": "TreeVerify", "node_name": "n", "desc": "no creator"}
        return SimpleNamespace(**{k: (lambda v=v: v) for k, v in words.items()})


def stand_in(asked: Asked, parses: bool = True) -> Any:
    """TensorRT's module, as far as a build goes."""
    base = type("Base", (), {})
    module = ModuleType("tensorrt")
    flags = SimpleNamespace(STRONGLY_TYPED=1, PREFER_AOT_PYTHON_PLUGINS=4)
    names = {
        "__version__": "11.0",
        "ILogger": type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0}),
        "IProgressMonitor": base,
        "IStreamWriter": base,
        "Builder": partial(Builder, asked),
        "OnnxParser": partial(Parser, asked, parses),
        "NetworkDefinitionCreationFlag": flags,
        "BuilderFlag": SimpleNamespace(TF32="TF32"),
        "PreviewFeature": SimpleNamespace(ALIASED_PLUGIN_IO_10_03="ALIASED"),
    }
    for name, value in names.items():
        setattr(module, name, value)
    return module


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """A machine that has an H100 and TensorRT 11."""
    found = Asked()
    library = stand_in(found)
    for module in (engines, build_tensorrt):
        monkeypatch.setattr(module, "library", lambda aim: library)
    for module in (tensorrt_target, tensorrt_options):
        monkeypatch.setattr(module, "gpu_capability", lambda: 90)

    def register(plugins: Any, capability: int) -> None:
        found.steps.append(f"register {capability} {' '.join(p.name for p in plugins)}")

    monkeypatch.setattr(engines, "register", register)
    return found


def step(folder: Path, request: EngineRequest, text: str = FUSED) -> Path:
    """A tiny decoder, lowered as the request wants it, as a file."""
    model = TinyDecoder().build()
    infer_shapes(model)
    Pipeline.parse(f"{text} | {request.lowering}", GRAFTS).run(model)
    ir.save(model, folder / "graph.onnx")
    return folder / "graph.onnx"


def built(folder: Path, request: EngineRequest, text: str = FUSED) -> Any:
    graph = step(folder, request, text)
    ports = read_ports(ir.load(graph))
    lines: list[str] = []
    out = folder / "step.engine"
    return request.build(graph, ports, out, folder / "timings", lines.append)


def test_plugins_are_registered_then_parsed_as_plugins(tmp_path: Path, asked: Asked) -> None:
    request = EngineRequest.parse("trt:sm90", "fp16", "rows=8,capacity=64")
    assert request.lowering == "lower-tensorrt{dtype=fp16,capacity=64,plugins=true,rows=8}"
    made = built(tmp_path, request)
    assert made.facts()["plugins"] == {name: mark(PLUGINS[name]) for name in INSIDE}
    order = [s.partition(" ")[0] for s in asked.steps]
    assert order.index("register") < order.index("network") < order.index("parse")
    assert f"register 90 {' '.join(INSIDE)}" in asked.steps
    assert "network 10010" in asked.steps, "strongly typed, kernels compiled ahead of time"
    assert "set_preview_feature ALIASED True" in asked.steps
    assert asked.parsed is not None
    assert not asked.parsed.functions
    own = {n.op_type: n for n in asked.parsed.graph if n.domain == "graftline"}
    assert sorted(own) == INSIDE
    spaces = {n.attributes["plugin_namespace"].as_string() for n in own.values()}
    assert spaces == {"graftline"}
    assert not (tmp_path / "graph.plugins.onnx").exists()


def test_a_step_without_plugins_asks_for_none(tmp_path: Path, asked: Asked) -> None:
    request = EngineRequest.parse("trt:sm90", "fp16", "rows=8,capacity=64")
    made = built(tmp_path, request, "anchors | kv-cache | tree-mask | pack-projections")
    assert made.facts()["plugins"] == {}
    assert "network 10" in asked.steps
    assert not [s for s in asked.steps if s.startswith(("register", "set_preview"))]


def test_kernels_are_for_one_number_of_rows(tmp_path: Path, asked: Asked) -> None:
    request = EngineRequest.parse("trt:sm90", "fp16", "rows=4+8,capacity=64")
    with pytest.raises(BackendError, match=r"compiled for 8 rows in a step; rows cannot be 4\+8"):
        built(tmp_path, request)


def test_what_the_parser_refuses_is_named_and_leaves_nothing(
    tmp_path: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_tensorrt, "library", lambda aim: stand_in(asked, parses=False))
    request = EngineRequest.parse("trt:sm90", "fp16", "rows=8,capacity=64")
    with pytest.raises(BackendError, match=r"import graph\.plugins\.onnx: TreeVerify 'n': no"):
        built(tmp_path, request)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["graph.onnx"]


def test_a_fingerprint_tells_schema_and_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = PLUGINS["TreeAttentionParts"]
    was, other = mark(plugin), mark(PLUGINS["TreeVerify"])
    assert len(was) == len(hashlib.sha256().hexdigest())
    assert len({mark(p) for p in PLUGINS.values()}) == len(PLUGINS)
    assert mark(replace(plugin, scalars=())) != was
    for file in fingerprint.KERNELS.glob("*.py"):
        text = file.read_text(encoding="utf-8")
        changed = text.replace("LOG2E =", "LOG2E = 0 *", 1)  # in a file that its kernel imports
        (tmp_path / file.name).write_text(changed, encoding="utf-8")
    monkeypatch.setattr(fingerprint, "KERNELS", tmp_path)
    assert mark(plugin) != was
    assert mark(PLUGINS["TreeVerify"]) == other


def test_a_process_registers_a_plugin_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    module = SimpleNamespace()
    monkeypatch.setattr(quick_plugin.importlib, "import_module", lambda name: module)
    monkeypatch.setattr(quick_plugin, "_registered", dict[str, int]())
    monkeypatch.setattr(quick_plugin, "_register", lambda p, *rest: seen.append(p.name))
    plugins = [PLUGINS["TreeVerify"], PLUGINS["DraftTree"]]
    for _ in range(2):
        quick_plugin.register(plugins, 90)
    assert seen == ["TreeVerify", "DraftTree"]
    with pytest.raises(BackendError, match="TreeVerify is registered for sm_90 in this process"):
        quick_plugin.register(plugins, 80)
    with pytest.raises(BackendError, match=r"plugins are compiled for sm_80, .* not for sm_86"):
        quick_plugin.register(plugins, 86)
