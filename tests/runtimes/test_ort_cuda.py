"""The ort-cuda session's own logic, on the CPU provider; and its refusals where there is no GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from graftline.bundle.store import save_graph
from graftline.bundle.weight_file import WeightFile
from graftline.errors import BackendError, NotApplicable
from graftline.facts import decoder_facts
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.laws.common import infer_shapes
from graftline.plugins.kv_commit import reference
from graftline.ports import read_ports
from graftline.runtimes.ort.commit import CommitGraph
from graftline.runtimes.ort.cuda import CudaSession
from graftline.runtimes.ort.provider import CUDA, float_nodes, left_behind, open_on
from graftline.runtimes.reference import ReferenceSession
from graftline.runtimes.session import Session
from graftline.tree import Tree

FRONT = "anchors | kv-cache | tree-mask | select-rows | reduce-logits | pack-projections"
HOSTS = {
    "grouped": TinyDecoder(),
    "window": TinyDecoder(window=5, layers=3),
    "alibi": TinyDecoder(alibi=True),
    "unfused": TinyDecoder(head_size=4),
}
LIMITS = {"fp32": 1e-5, "fp16": 1e-2, "int4": 2e-2}
"""Largest difference of logits, relative to the largest."""


def sessions(spec: TinyDecoder, folder: Path, dtype: str) -> tuple[CudaSession, ReferenceSession]:
    """A session over the graph lowered for CUDA, and the oracle over the graph before lowering."""
    model = spec.build()
    infer_shapes(model)
    quantize = " | quantize{bits=4,block=16}" if dtype == "int4" else ""
    Pipeline.parse(FRONT + quantize, GRAFTS).run(model)
    oracle = ReferenceSession(model.clone(), 60)
    low = "fp16" if dtype == "int4" else dtype  # as graftline.targets has it
    Pipeline.parse(f"lower-ort{{provider=cuda,dtype={low}}}", GRAFTS).run(model)
    save_graph(model, folder / "g.onnx", WeightFile(folder, "g.weights", lambda size: None), {})
    facts, ports = decoder_facts(model), read_ports(model)
    return CudaSession(folder / "g.onnx", facts, ports, capacity=60, device="cpu"), oracle


CASES = [(host, dtype) for host in HOSTS for dtype in ("fp32", "fp16")]


@pytest.mark.parametrize(("host", "dtype"), [*CASES, ("grouped", "int4")])
def test_ragged_trees_commits_and_rollbacks(host: str, dtype: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, 61, n) for n in (11, 4, 1)]
    both: list[Session] = [*sessions(HOSTS[host], tmp_path, dtype)]
    for session in both:
        session.reset(3)
    same([s.prefill(prompts).logits for s in both], dtype)
    for step in range(6):
        count = int(rng.integers(1, 9))
        parents = [int(rng.integers(0, n)) if n else -1 for n in range(count)]
        tokens = rng.integers(0, 61, (3, count))
        trees = [Tree(tokens[b], np.asarray(parents)) for b in range(3)]
        depth, mask = np.stack([t.depth for t in trees]), np.stack([t.mask for t in trees])
        same([s.score(tokens, depth, mask).logits for s in both], dtype)
        paths = [trees[b].path_to(int(rng.integers(0, count))) for b in range(3)]
        paths[step % 3] = ()
        for session in both:
            session.commit(paths)
        assert both[0].lengths.tolist() == both[1].lengths.tolist()
    back = [int(n) - 1 for n in both[0].lengths]
    for session in both:
        session.truncate(back)
    same([s.score(tokens[:, :1]).logits for s in both], dtype)
    for session in both:
        session.leave(1)  # the last one moves there
        session.read(session.seat(), prompts[0])
    same([s.score(tokens[:, :2]).logits for s in both], dtype)


def same(found: list[np.ndarray], dtype: str) -> None:
    assert np.abs(found[0] - found[1]).max() <= LIMITS[dtype] * max(1.0, np.abs(found[1]).max())


def test_logits_stay_on_the_device_until_they_are_read(tmp_path: Path) -> None:
    session, oracle = sessions(HOSTS["grouped"], tmp_path, "fp32")
    for one in (session, oracle):
        one.prefill([np.arange(5)])
    tokens = np.arange(4)[None]
    scores = session.score(tokens)
    assert "logits" not in vars(scores)
    want = oracle.score(tokens)
    assert scores.argmax.tolist() == want.argmax.tolist()
    assert scores.topk_ids is not None
    assert "logits" not in vars(scores)
    same([scores.logits, want.logits], "fp32")
    assert scores.logits is scores.logits


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_slots_that_were_kept_are_put_back(dtype: str, tmp_path: Path) -> None:
    """Some slots of one sequence behind the slots of another: as if it had read those tokens."""
    prompts = [np.arange(3, 15), np.arange(5)]
    both: list[Session] = [*sessions(HOSTS["grouped"], tmp_path, dtype)]
    for session in both:
        session.reset(2)
        session.prefill(prompts)
        kept = session.snapshot(0, 2, 9)
        session.truncate([0, 2])
        session.read(0, prompts[0][:1])
        session.restore(1, kept, 5)
        assert session.lengths.tolist() == [1, 7]
    same([s.score(np.array([[7, 8], [9, 10]])).logits for s in both], dtype)


def test_a_reset_keeps_the_memory(tmp_path: Path) -> None:
    """Nothing is allocated between requests of one batch size."""
    session, _ = sessions(HOSTS["grouped"], tmp_path, "fp16")

    def addresses() -> list[int]:
        return [block.memory.data_ptr() for block in session._device_memory]

    session.reset(2)
    before = addresses()
    session.prefill([np.arange(4), np.arange(3)])
    session.reset(2)
    assert addresses() == before
    beside = session.sibling()
    beside.prefill([np.arange(3)])
    assert addresses() == before


def test_a_guest_works_on_the_caches_of_its_host(tmp_path: Path) -> None:
    """How a draft of the target's own weights drafts: no prompt of its own, nothing committed."""
    session, _ = sessions(HOSTS["grouped"], tmp_path, "fp16")
    guest = session.sibling(session)
    session.reset(2)
    session.prefill([np.arange(9), np.arange(4)])
    want = session.score(np.full((2, 3), 7)).logits[:, -1].copy()
    for row, length in enumerate((9, 4)):
        got = guest.follow(row, length, [7, 7, 7]).logits[0, -1]
        same([got, want[row]], "fp16")
    assert session.lengths.tolist() == [9, 4]
    (tmp_path / "other").mkdir()
    other, _ = sessions(HOSTS["unfused"], tmp_path / "other", "fp16")
    with pytest.raises(BackendError, match="caches of different shapes"):
        other.sibling(session)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_commit_moves_rows_where_they_lie(dtype: type) -> None:
    rng = np.random.default_rng(0)
    cache = rng.standard_normal((4, 2, 20, 8)).astype(dtype)
    path = np.array([[0, 3, 5, -1], [0, 1, -1, -1]])
    count, lengths = np.array([3, 2]), np.array([9, 2])
    want = reference(cache.copy(), path, count, lengths)[0]
    value = onnxruntime.OrtValue.ortvalue_from_numpy(cache)
    kind = {np.float32: 1, np.float16: 10}[dtype]
    CommitGraph("cpu", 1).run(value.data_ptr(), cache.shape, kind, path, count, lengths)
    np.testing.assert_array_equal(cache, want)


def test_work_left_to_the_cpu_is_named() -> None:
    placed = [
        (CUDA, "MatMul", "a"), (CUDA, "GroupQueryAttention", "b"),
        ("CPUExecutionProvider", "Shape", "c"), ("CPUExecutionProvider", "Cast", "d"),
    ]  # fmt: skip
    assert left_behind(placed, frozenset("ab")) == []
    placed += [("CPUExecutionProvider", "Attention", f"n{i}") for i in range(3)]
    placed.append(("CPUExecutionProvider", "Reshape", "activations"))
    floats = frozenset(("a", "b", "activations"))
    assert left_behind(placed, floats) == ["Attention (3 nodes)", "Reshape (1 node)"]


def test_the_provider_says_where_it_put_every_node(tmp_path: Path) -> None:
    """What `left_behind` reads: on the CPU provider nothing of a decoder is on the GPU."""
    sessions(HOSTS["grouped"], tmp_path, "fp16")
    opened = open_on("cpu", tmp_path / "g.onnx", 1)
    placed = [
        (graph.ep_name, node.op_type, node.name)
        for graph in opened.get_provider_graph_assignment_info()
        for node in graph.get_nodes()
    ]
    floats = float_nodes(tmp_path / "g.onnx")
    left = left_behind(placed, floats)
    assert "GroupQueryAttention (2 nodes)" in left
    assert not any(entry.startswith("Shape") for entry in left)
    kinds = {node: operator for _, operator, node in placed}
    assert {"RMSNormalization", "Where", "TopK", "Pad"} <= {kinds.get(n) for n in floats}


def test_no_cuda_is_one_line_with_the_command(tmp_path: Path) -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(BackendError, match=r"built without CUDA; pip install \"graftline\[gpu\]\""):
        open_on("cuda", tmp_path / "none.onnx", 1)


def test_cuda_keeps_plain_attention_at_fp32_only() -> None:
    """GroupQueryAttention's CUDA kernels are fp16 and bf16; its bias has their type."""
    found = {}
    for dtype in ("fp32", "fp16", "bf16"):
        model = TinyDecoder().build()
        infer_shapes(model)
        text = f"{FRONT} | lower-ort{{provider=cuda,dtype={dtype}}}"
        Pipeline.parse(text, GRAFTS).run(model)
        kinds = {n.op_type: n for n in model.graph}
        found[dtype] = "Attention" in kinds, "GroupQueryAttention" in kinds
        node = kinds.get("GroupQueryAttention")
        if node is not None:
            assert node.inputs[10].dtype == node.inputs[0].dtype == node.inputs[3].dtype
    assert found == {"fp32": (True, False), "fp16": (False, True), "bf16": (False, True)}


def test_an_unknown_provider_is_refused() -> None:
    model = TinyDecoder().build()
    with pytest.raises(NotApplicable, match="lower-ort has no provider 'cdua'; did you mean"):
        Pipeline.parse(f"{FRONT} | lower-ort{{provider=cdua}}", GRAFTS).run(model)
