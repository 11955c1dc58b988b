"""The trt session against ort-cpu, over a device that stands in for the GPU (stand_in_device.py).

What runs on a real GPU is in test_trt_gpu.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from trt_pair import SLOTS, WIDE, generated, pair, ragged_trees, same, same_choices

from graftline.errors import BackendError, RequestError
from graftline.models.decoder import TinyDecoder
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.session import FINAL
from graftline.tree import Tree
from tests.passes.tiny_hosts import rename

HOSTS = {
    "grouped": TinyDecoder(),
    "window": TinyDecoder(window=5, layers=3),
    "alibi": TinyDecoder(alibi=True),
}


@pytest.mark.parametrize("spec", HOSTS.values(), ids=HOSTS.keys())
def test_ragged_trees_commits_and_rollbacks(spec: TinyDecoder, tmp_path: Path) -> None:
    """Trees of 1 to 20 rows: padded to profiles of 1 and 8, and in several calls."""
    far = spec.window or spec.alibi
    ragged_trees(pair(tmp_path, spec, **(WIDE if far else {})))


def test_inputs_and_outputs_of_other_names(tmp_path: Path) -> None:
    ragged_trees(pair(tmp_path, change=rename))


def test_branches_by_explicit_slots(tmp_path: Path) -> None:
    p, rng = pair(tmp_path), np.random.default_rng(5)
    prompt = rng.integers(0, 61, 9)
    for session in p.both:
        session.prefill([prompt])
    seen = np.zeros((1, 3, 12), np.bool_)
    seen[0, :, :9] = True
    seen[0, :, 9:] = np.eye(3, dtype=np.bool_)
    tokens = rng.integers(0, 61, (1, 3))
    positions = np.asarray([[9, 9, 9]])
    for _ in range(2):  # the second time the columns of the first are overwritten
        same([s.score_slots(tokens, positions, seen).logits for s in p.both])
        seen[0, :, 3:6] = False
    same([s.score(tokens).logits for s in p.both])


def test_a_host_of_distances_scores_no_branches(tmp_path: Path) -> None:
    p = pair(tmp_path, TinyDecoder(alibi=True), **WIDE)
    p.trt.prefill([np.arange(3)])
    with pytest.raises(BackendError, match=r"depends on distance \(alibi\)"):
        p.trt.score_slots(np.zeros((1, 1), np.int64), np.zeros((1, 1)), np.ones((1, 1, 4)) > 0)
    with pytest.raises(BackendError, match="a tree of 65 rows; this engine scores 64 in one"):
        p.trt.score(np.zeros((1, 65), np.int64), None, np.eye(65, dtype=np.bool_)[None])
    with pytest.raises(BackendError, match=r"on distance \(window\), so .* --engine rows=64; reb"):
        pair(tmp_path / "narrow", TinyDecoder(window=5, layers=3))


@pytest.mark.parametrize("text", ["anchors | kv-cache", "anchors | kv-cache | reduce-logits"])
def test_an_engine_without_mask_or_rows(text: str, tmp_path: Path) -> None:
    p = pair(tmp_path, text=text)
    rng = np.random.default_rng(1)
    prompt = rng.integers(0, 61, 21)
    same([s.prefill([prompt]).logits[:, -1:] for s in p.both])
    tokens = rng.integers(0, 61, (1, 11))
    found = [s.score(tokens) for s in p.both]
    same([s.logits for s in found])
    same_choices(found)
    for session in p.both:
        session.commit([range(7)])
    same([s.score(tokens[:, :3]).logits for s in p.both])
    with pytest.raises(BackendError, match="rebuild it with the pass tree-mask"):
        p.trt.score(tokens, mask=np.eye(11, dtype=np.bool_)[None])


def test_a_step_is_recorded_once_and_then_launched(tmp_path: Path) -> None:
    p = pair(tmp_path)
    p.trt.prefill([np.arange(40)])
    assert p.device.runs == 3, "chunks of 16, 16 and 8 rows"
    p.ort.prefill([np.arange(40)])
    for step in range(6):
        tokens = np.full((1, 1), step)
        same([s.score(tokens).logits for s in p.both])
        for session in p.both:
            session.commit([(0,)])
    assert (p.device.runs, p.device.launches) == (9, 5)
    p.trt.reset(2)  # other shapes: what was recorded does not hold
    p.ort.reset(2)
    both = [np.arange(5), np.arange(3)]
    same([s.prefill(both).logits for s in p.both])
    for _ in range(3):
        same([s.score(np.ones((2, 1), np.int64)).logits for s in p.both])
    assert (p.device.runs, p.device.launches) == (14, 7)


def test_only_what_is_read_is_copied(tmp_path: Path) -> None:
    p = pair(tmp_path)
    p.trt.prefill([np.arange(30)])
    p.device.fetched.clear()
    p.device.columns = 0
    scores = p.trt.score(np.asarray([[3]]))
    small = 8 + 8 * 8 + 8 * 4 + 4
    assert sum(p.device.fetched) == small, "argmax, eight best with their logits, the gap"
    assert scores.logits.shape == (1, 1, 61)
    assert scores.logits is scores.logits
    assert sum(p.device.fetched) == small + 61 * 4
    p.trt.commit([(0,)])
    p.device.columns = 0
    p.trt.score(np.asarray([[3]]))
    assert p.device.columns <= 3, "of 96: the mask moved on by one slot"
    with pytest.raises(BackendError, match="read after the next call"):
        print(p.trt.score(np.asarray([[3]])) and scores.tap(FINAL))


def test_a_path_moves_rows_of_all_layers_at_once(tmp_path: Path) -> None:
    p = pair(tmp_path, TinyDecoder(layers=4))
    p.trt.prefill([np.arange(5)])
    tree = Tree(np.arange(8), np.asarray([-1, 0, 0, 1, 2, 2, 5, 6]))
    p.trt.score(tree.tokens[None], tree.depth[None], tree.mask[None])
    p.trt.commit([tree.path_to(7)])
    assert p.device.moves == 4, "0 stays; 2, 5, 6 and 7 move, keys and values of 4 layers"
    p.trt.score(np.asarray([[1]]))
    p.trt.commit([(0,)])
    assert p.device.moves == 4


def test_moves_of_the_last_commit_are_through_before_memory_is_given_back(tmp_path: Path) -> None:
    p = pair(tmp_path)
    p.trt.prefill([np.asarray([5, 9, 5])])
    tree = Tree(np.asarray([1, 2, 3]), np.asarray([-1, 0, 0]))
    p.trt.score(tree.tokens[None], tree.depth[None], tree.mask[None])
    p.trt.commit([(0, 2)])
    assert p.device.queue
    p.trt.reset(2)  # the stand-in refuses to read or write memory that is nobody's
    p.trt.prefill([np.asarray([5]), np.asarray([9])])


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["plain", "token-recycling", "prompt-lookup"])
def test_generates_what_ort_generates(name: str, dtype: str, tmp_path: Path) -> None:
    p = pair(tmp_path, dtype=dtype, capacity=80, slots=144)
    if dtype == "fp16":  # the same graph on both: what differs is the session alone
        p.ort = OrtSession(tmp_path / "trt/g.onnx", p.trt.facts, p.trt.ports, capacity=80)
    texts = generated(p, name)
    assert texts[0] == texts[1]
    assert texts[0][:3] == texts[0][3:6]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    p = pair(tmp_path)
    assert p.trt.capacity == SLOTS - 8
    told = r"89 tokens do not fit: the capacity is 88, the most .* shorten the prompt or rebuild"
    with pytest.raises(RequestError, match=told):
        p.trt.prefill([np.zeros(89, np.int64)])
    with pytest.raises(RequestError, match="empty prompt"):
        p.trt.prefill([np.zeros(0, np.int64)])
    with pytest.raises(BackendError, match=r"built for 3 sequences at once, not 4; .*batch=4"):
        p.trt.reset(4)
    p.trt.prefill([np.zeros(88, np.int64)])
    with pytest.raises(BackendError, match="8 rows behind 96 positions do not fit 96 slots"):
        p.trt.score(np.zeros((1, 12), np.int64))
    with pytest.raises(BackendError, match="cannot roll back"):
        p.trt.truncate([89])
    with pytest.raises(BackendError, match=r"capacity of 90 was asked .*96 slots were built, 8 of"):
        pair(tmp_path / "more", capacity=90)


def test_rows_that_see_later_ones_need_one_call(tmp_path: Path) -> None:
    p = pair(tmp_path)
    for session in p.both:
        session.prefill([np.arange(4)])
    tokens, depth = np.arange(9)[None], np.zeros((1, 9), np.int64)
    mask = np.eye(9, dtype=np.bool_)[None]
    mask[0, 0, 8] = True
    with pytest.raises(BackendError, match="the same step, which has 8 rows; rebuild with"):
        p.trt.score(tokens, depth, mask)
