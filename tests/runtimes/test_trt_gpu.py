"""The trt session on a real GPU. On a machine with one (driver of CUDA 13, 580 or later):

    pip install -e ".[export,tensorrt,trt,dev]"     # TensorRT-RTX: sm75, 80, 86, 89, 120, 121
    pip install tensorrt-cu13                       # the others (Hopper: sm90), and these too
    python -m pytest tests/runtimes/test_trt_gpu.py tests/plugins -m gpu -rs -v
    graftline doctor
    graftline optimize SmolLM2-135M-Instruct -o gpu.graft --target trt:sm90 --dtype fp16
    graftline run gpu.graft "Write a short story about a lighthouse."
    graftline bench gpu.graft

Without a GPU everything here is skipped; test_trt.py and test_trt_engine.py say what holds then.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from trt_pair import GRAFTED, WIDE, Pair, generated, lowered, ragged_trees

from graftline.build.tensorrt.builder import BuildOptions, build
from graftline.build.tensorrt.target import FLAVOURS, gpu_capability
from graftline.models.decoder import TinyDecoder
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.trt.cuda import CudaDevice, look
from graftline.runtimes.trt.engine import TrtEngine, tensorrt
from graftline.runtimes.trt.plan import LIBRARIES, EnginePlan
from graftline.runtimes.trt.session import TrtSession

CAPABILITY = gpu_capability()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CAPABILITY is None, reason="no NVIDIA GPU or driver here"),
]


def flavours() -> list[str]:
    """The installed libraries that build for this GPU."""
    fit = [f.name for f in FLAVOURS.values() if CAPABILITY in f.capabilities]
    return [name for name in fit if tensorrt(name) is not None]


def real_pair(folder: Path, flavour: str, spec: TinyDecoder, dtype: str, slots: int) -> Pair:
    """Build an engine for this GPU, check it as `load` does, and open it."""
    if flavour not in flavours():
        pytest.skip(f"{LIBRARIES[flavour]} is not installed, or builds for no sm{CAPABILITY}")
    lower = f"{GRAFTED} | lower-tensorrt{{dtype={dtype},capacity={slots}}}"
    graph, facts, ports = lowered(spec, lower, folder / "trt")
    rows = WIDE["rows"] if slots == WIDE["slots"] else (1, 8)
    options = BuildOptions(rows=rows, chunk=16, batch=3)
    made = build(graph, ports, f"{flavour}:sm{CAPABILITY}", folder / "e.engine", options)
    plan = EnginePlan(
        "e.engine", "graph", made.target, made.library, made.profiles, False, False, {}, "rebuild",
        "tokens",
    )
    plan.check(look(flavour))
    device = CudaDevice(TrtEngine(plan, made.path, graph))
    session = TrtSession(device, plan, facts, ports, graph, 80)
    other = lowered(spec, f"{GRAFTED} | lower-ort", folder / "ort")
    return Pair(session, OrtSession(*other, capacity=80), device)


@pytest.mark.parametrize("flavour", LIBRARIES)
@pytest.mark.parametrize(
    ("spec", "dtype", "near"),
    [
        (TinyDecoder(), "fp32", 1e-4),
        (TinyDecoder(head_size=64, hidden=64), "fp16", 3e-2),
        (TinyDecoder(head_size=64, hidden=64), "bf16", 2e-1),
    ],
    ids=["fp32", "fp16", "bf16"],
)
def test_ragged_trees(
    flavour: str, spec: TinyDecoder, dtype: str, near: float, tmp_path: Path
) -> None:
    ragged_trees(real_pair(tmp_path, flavour, spec, dtype, 144), near, choices=dtype == "fp32")


@pytest.mark.parametrize("flavour", LIBRARIES)
@pytest.mark.parametrize(
    "spec", [TinyDecoder(window=5, layers=3), TinyDecoder(alibi=True)], ids=["window", "alibi"]
)
def test_hosts_whose_attention_goes_by_distance(
    flavour: str, spec: TinyDecoder, tmp_path: Path
) -> None:
    ragged_trees(real_pair(tmp_path, flavour, spec, "fp32", int(WIDE["slots"])), 1e-4)


@pytest.mark.parametrize("flavour", LIBRARIES)
@pytest.mark.parametrize("name", ["plain", "token-recycling"])
def test_generates_what_ort_generates(flavour: str, name: str, tmp_path: Path) -> None:
    """fp32: the tiny host's logits are far enough apart for equal tokens."""
    texts = generated(real_pair(tmp_path, flavour, TinyDecoder(), "fp32", 144), name)
    assert texts[0] == texts[1]
