"""Engines of tiny decoders, built by TensorRT-RTX where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from graftline.build.tensorrt.builder import BuildOptions, EngineFile, build
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.laws.common import infer_shapes
from graftline.ports import read_ports

trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")
FULL = "kv-cache | tree-mask | select-rows | tap{layers=0+norm} | reduce-logits{topk=4}"
TWO = "trt-rtx:sm89+sm120"
SMALL = BuildOptions(rows=(8,), chunk=16)


def graph(folder: Path, text: str, dtype: str = "fp16", spec: TinyDecoder | None = None) -> Path:
    """A tiny decoder, grafted and lowered, as a file."""
    model = (spec or TinyDecoder()).build()
    infer_shapes(model)
    parts = ["anchors", text, f"lower-tensorrt{{dtype={dtype},capacity=64}}"]
    Pipeline.parse(" | ".join(filter(None, parts)), GRAFTS).run(model)
    ir.save(model, folder / "graph.onnx")
    return folder / "graph.onnx"


def engine(file: Path, target: str, options: BuildOptions = SMALL, **more: Any) -> EngineFile:
    ports = read_ports(ir.load(file))
    return build(file, ports, target, file.with_name("step.engine"), options, **more)
