"""What holds for every plugin: its table, its function on other backends, its errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir.passes.common import InlinePass

import graftline.plugins
from graftline.errors import GraftlineError
from graftline.plugins import PLUGINS

from .cases import Case, every_plugin, tolerances, tree_attention
from .conftest import model, referred

CASES = every_plugin()


def inlined(case: Case) -> ir.Model:
    name, inputs, values = case
    found = model(PLUGINS[name], inputs, values)
    InlinePass()(found)
    assert not found.functions
    return found


def test_there_is_a_case_for_every_plugin() -> None:
    assert {name for name, _, _ in CASES} == set(PLUGINS)
    for name, plugin in PLUGINS.items():
        assert plugin.name == name


def test_every_kernel_file_is_a_plugins() -> None:
    kernels = Path(graftline.plugins.__file__).parent / "kernels"
    files = {file.stem for file in kernels.glob("*.py")} - {"__init__"}
    assert files == {plugin.module for plugin in PLUGINS.values()}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c[0])
def test_the_function_runs_inlined_on_onnx_runtime(case: Case) -> None:
    name, inputs, values = case
    plugin = PLUGINS[name]
    proto = ir.to_proto(inlined(case))
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    feed = {t.name: x for t, x in zip(plugin.inputs, inputs, strict=True)}
    wanted = referred(plugin, inputs, values)
    limits = tolerances(case) or [0] * len(wanted)
    for got, want, limit in zip(session.run(None, feed), wanted, limits, strict=True):
        assert (np.abs(got - want) <= limit).all()


PLAIN = tree_attention(0, [5, 0], 6, (4, 2), 16, 14, scale=0.25, window=4)
READ = [PLAIN, *(c for c in CASES if c[0] not in ("TreeAttention", "Uniforms"))]
REFUSED = {"TreeAttention": ("Attention", "softcap"), "Uniforms": ("BitwiseXor", "")}


def parse(case: Case) -> list[tuple[str, str]]:
    """The nodes that TensorRT-RTX's parser refuses, with what it says."""
    trt = pytest.importorskip("tensorrt_rtx", reason="pip install graftline[tensorrt]")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = trt.Builder(logger).create_network(flag)
    parser = trt.OnnxParser(network, logger)
    parser.parse(ir.to_proto(inlined(case)).SerializeToString())
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    return [(error.node_operator(), error.desc()) for error in errors]


@pytest.mark.parametrize("case", READ, ids=lambda c: c[0])
def test_the_function_is_read_by_tensorrt_rtx(case: Case) -> None:
    """TensorRT-RTX takes no plugins: its parser must take what they mean."""
    assert parse(case) == []


@pytest.mark.parametrize("case", [c for c in CASES if c[0] in REFUSED], ids=lambda c: c[0])
def test_what_tensorrt_rtx_refuses(case: Case) -> None:
    """plugins/README.md says what to do instead; this fails when a new version takes them."""
    operator, said = REFUSED[case[0]]
    assert {(op, said in text) for op, text in parse(case)} == {(operator, True)}


def test_importing_the_plugins_imports_no_heavy_library() -> None:
    code = "import sys, graftline.plugins, graftline.plugins.quick_plugin as q, "
    code += "graftline.plugins.compile; print([m for m in ('triton', 'torch', 'tensorrt') "
    code += "if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_refusals() -> None:
    plugin = PLUGINS["TreeAttention"]
    with pytest.raises(GraftlineError, match=r"TreeAttention has no attribute scael; known: scale"):
        plugin.values({"scael": 1.0})
    shapes = [(1, 2, 3, 16), (1, 2, 9, 16), (1, 2, 9, 32), (1, 3), (1,)]
    with pytest.raises(GraftlineError, match="D is 16, and 32 in value"):
        plugin.dims(shapes, plugin.values())
    with pytest.raises(GraftlineError, match="key has 3 dimensions, not 4"):
        plugin.dims([(1, 2, 3, 16), (1, 2, 9), *shapes[2:]], plugin.values())
    with pytest.raises(GraftlineError, match="TreeVerify: 257 nodes; a tree has at most 256"):
        PLUGINS["TreeVerify"].dims([(1, 257)] * 3, {})
    mixed = [np.zeros(s, t) for s, t in zip(shapes[:2], (np.float32, np.float16), strict=True)]
    mixed += [np.zeros((1, 2, 9, 16), np.float32), np.zeros((1, 3), int), np.zeros(1, int)]
    with pytest.raises(GraftlineError, match="must have one type, not"):
        plugin.empty(mixed, plugin.values())
