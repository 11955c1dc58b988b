"""TensorRT engines built here without a GPU: every graft, several targets, and what goes wrong.

They cannot be run here: what an engine computes is proven on the graph it is built from
(test_lower_tensorrt.py), and on a GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest

from graftline.build.tensorrt.builder import BuildOptions
from graftline.build.tensorrt.watch import error_log
from graftline.errors import BackendError
from graftline.models.checkpoint import open_checkpoint
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.lower.tensorrt.importable import IMPORTED
from graftline.ports import Port, read_ports
from tests.build.tensorrt.rtx_engines import FULL, TWO, engine, graph, trt
from tests.passes.lower.tensorrt.tensorrt_hosts import WITHOUT_HEADS

GRAFTED = {
    "host": "",
    "kv-cache": "kv-cache",
    "tree-mask": "kv-cache | tree-mask",
    "select-rows": "kv-cache | select-rows",
    "tap": "kv-cache | tap{layers=0+norm}",
    "reduce-logits": "kv-cache | reduce-logits{topk=4,entropy=true}",
    "route": "kv-cache | select-rows | layer-skip{layers=0} | reduce-logits{topk=4}",
    "another-route": "kv-cache | select-rows | layer-skip{attention=1,mlp=0}",
    "exit": "kv-cache | select-rows | tap{layers=0} | cut-depth{blocks=1} | pack-projections",
    "rest": "kv-cache | select-rows | depth-rest{blocks=1} | pack-projections",
    "pack-projections": "kv-cache | pack-projections{mlp=true}",
}
VERIFY = "kv-cache | tree-mask | select-rows | reduce-logits{topk=8} | fuse-verify"
FUSED = {
    "verify": VERIFY,
    "draft": f"{VERIFY} | fuse-draft",
    "sample": f"{VERIFY}{{sample=true}} | fuse-draft",
}


@pytest.mark.parametrize("target", ["trt-rtx:sm89", "trt-rtx:sm120"])
@pytest.mark.parametrize("text", GRAFTED.values(), ids=GRAFTED.keys())
def test_every_graft_builds(tmp_path: Path, text: str, target: str) -> None:
    """One sequence: where only the rows vary, TensorRT-RTX stumbles over a mask of two attentions.
    """
    made = engine(graph(tmp_path, text), target)
    assert made.size == made.path.stat().st_size > 100_000
    assert list(tmp_path.glob("*.partial")) == []


@pytest.mark.parametrize(
    ("spec", "dtype"),
    [
        (TinyDecoder(), "fp32"),
        (TinyDecoder(), "bf16"),
        (TinyDecoder(window=3, layers=3), "fp16"),
        (TinyDecoder(alibi=True), "fp16"),
        (TinyDecoder(head_size=8), "bf16"),
    ],
    ids=["fp32", "bf16", "window", "alibi", "head-of-8"],
)
def test_every_kind_of_host_and_precision_builds(
    tmp_path: Path, spec: TinyDecoder, dtype: str
) -> None:
    """Several profiles, of several sequences, for several GPUs."""
    options = BuildOptions(rows=(1, 8), chunk=16, batch=4)
    made = engine(graph(tmp_path, FULL, dtype, spec), "trt-rtx:sm80+sm89+sm120", options)
    assert list(made.profiles) == ["decode.1", "decode.8", "prefill"]


@pytest.mark.parametrize("passes", sorted(WITHOUT_HEADS))
def test_every_recipe_builds(tmp_path: Path, passes: str) -> None:
    assert engine(graph(tmp_path, f"{passes} | pack-projections"), "trt-rtx:sm89").size > 0


@pytest.mark.parametrize("name", FUSED)
def test_every_fused_step_builds(tmp_path: Path, name: str) -> None:
    """One engine call that verifies, drafts, and commits what the last one accepted."""
    target = "trt-rtx:sm89" if name == "sample" else TWO  # its random numbers take 5 s a target
    made = engine(graph(tmp_path, f"{FUSED[name]} | pack-projections"), target)
    decode, prefill = (made.profiles[name] for name in ("decode.8", "prefill"))
    assert decode["last.path"] == decode["parents"] == [[1, 8]] * 3
    assert (prefill["parents"][2], prefill["last.path"][2]) == ([1, 16], [1, 8])
    assert made.size < 1 << 26, "code for following parents must not grow with every doubling"


def test_a_fused_step_of_several_sequences_builds(tmp_path: Path) -> None:
    spec = TinyDecoder(window=3, layers=3)
    file = graph(tmp_path, FUSED["draft"], "bf16", spec)
    made = engine(file, "trt-rtx:sm89", BuildOptions(rows=(1, 8), chunk=16, batch=4))
    assert made.profiles["decode.1"]["template.parents"] == [[1]] * 3


def test_two_steps_in_a_cache_that_holds_one_are_refused(tmp_path: Path) -> None:
    ports = read_ports(ir.load(graph(tmp_path, FUSED["draft"])))
    with pytest.raises(BackendError, match="40 rows in a step after a last one of 40, and a cache"):
        BuildOptions(rows=(40,)).profiles(ports)
    with pytest.raises(BackendError, match="follows trees of at most 256 nodes, not 300"):
        BuildOptions(rows=(300,)).profiles([p for p in ports if "cache" not in p.role])


def test_what_an_engine_file_says(tmp_path: Path) -> None:
    options = BuildOptions(
        rows=(8,), chunk=16, version_compatible=True, timing_cache=str(tmp_path / "timings")
    )
    lines: list[str] = []
    file = graph(tmp_path, FULL)
    for _ in range(2):  # the second build reads the timing cache of the first
        made = engine(file, "trt-rtx:sm89", options, watch=lines.append)
        assert (tmp_path / "timings").stat().st_size > 0
    facts = json.loads(json.dumps(made.facts()))
    assert facts["target"] == "trt-rtx:sm89"
    assert facts["library"] == f"tensorrt-rtx-cu13 {trt.__version__}"
    assert facts["profiles"]["decode.8"]["mask"] == [[1, 1, 8, 64]] * 3
    assert facts["profiles"]["prefill"]["tokens"] == [[1, 1], [1, 16], [1, 16]]
    assert facts["peak_memory"] > 1 << 20
    assert any(line.startswith("trt-rtx:sm89: ") and " step " in line for line in lines)


def test_decode_profiles_have_one_shape_and_symbols_must_be_known() -> None:
    tokens = Port("tokens", "tokens", "in", "int64", ("B", "N"))
    profiles = BuildOptions(rows=(1, 64), chunk=512, batch=4).profiles([tokens])
    assert profiles["decode.64"]["tokens"] == [[1, 64], [4, 64], [4, 64]]
    assert profiles["prefill"]["tokens"] == [[1, 1], [4, 512], [4, 512]]
    shape, half = ("B", 2, 96, 64), "float16"
    cache = Port("c.out", "cache.key", "out", half, shape, mirror="c", state="slots")
    assert BuildOptions().profiles([tokens, cache])["prefill"]["tokens"][2] == [1, 96]
    with pytest.raises(BackendError, match="128 rows in a step, and a cache of 96 slots"):
        BuildOptions(rows=(128,)).profiles([tokens, cache])
    free = Port("x", "cache.key", "in", half, ("B", 2, "S", 64), state="slots")
    with pytest.raises(BackendError, match="port 'x': no range is known for the dimension S"):
        BuildOptions().profiles([free])


def test_the_table_of_operators_is_the_libraries() -> None:
    log = error_log(trt)
    builder = trt.Builder(log)
    parser = trt.OnnxParser(builder.create_network(1), log)
    assert [op for op in sorted(IMPORTED) if not parser.supports_operator(op)] == []


REAL = """
import json, sys
from pathlib import Path
from graftline.build.tensorrt.builder import build
from graftline.ports import read_ports
from graftline.bundle.store import load_graph
graph, target = Path(sys.argv[1]), sys.argv[2]
made = build(graph, read_ports(load_graph(graph)), target, graph.with_name("step.engine"))
print(json.dumps(made.facts()))
"""


@pytest.mark.slow
def test_smollm2_builds_within_its_memory(smollm2: Path, tmp_path: Path) -> None:
    """fp16, cache and tree of 64 nodes, two targets at once, in a process of its own: under three
    times its weights plus 1 GB. The step that drafts and verifies holds all that a plain one has.
    """
    from graftline.bundle.store import save_graph
    from graftline.bundle.weight_file import WeightFile

    model = open_checkpoint(smollm2).host().model
    passes = f"canonicalize | anchors | {FUSED['draft']} | pack-projections | lower-tensorrt"
    Pipeline.parse(passes, GRAFTS).run(model)
    weights = WeightFile(tmp_path, "fp16.weights", lambda size: None)
    save_graph(model, tmp_path / "fp16.onnx", weights, {})
    size = (tmp_path / "fp16.weights").stat().st_size
    assert size < 280e6, "134.5 million parameters of two bytes, the tied ones once"
    told = subprocess.run(
        [sys.executable, "-c", REAL, str(tmp_path / "fp16.onnx"), TWO],
        capture_output=True,
        text=True,
        check=True,
    )
    made = json.loads(told.stdout)
    assert size < made["size"] < 1.25 * size
    assert 0 < made["peak_memory"] < 3 * size + 1e9
