"""The ort-cpu session answers as the reference session does, whatever is asked of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftline.bundle.store import save_graph
from graftline.bundle.weight_file import WeightFile
from graftline.errors import BackendError, RequestError
from graftline.facts import decoder_facts
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.laws.common import infer_shapes
from graftline.ports import read_ports
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.reference import ReferenceSession
from graftline.tree import Tree
from tests.rounding import assert_same_sums, decoder_terms

HOSTS = {
    "grouped": TinyDecoder(),
    "window": TinyDecoder(window=5, layers=3),
    "alibi": TinyDecoder(alibi=True),
    "unfused": TinyDecoder(head_size=4),
}
LOWERED = (
    "anchors | kv-cache | tree-mask | select-rows | reduce-logits | pack-projections | lower-ort"
)
Pair = tuple[OrtSession, ReferenceSession]


def sessions(spec: TinyDecoder, folder: Path, text: str = LOWERED) -> Pair:
    model = spec.build()
    infer_shapes(model)
    Pipeline.parse(text, GRAFTS).run(model)
    save_graph(model, folder / "g.onnx", WeightFile(folder, "g.weights", lambda size: None), {})
    facts, ports = decoder_facts(model), read_ports(model)
    return OrtSession(folder / "g.onnx", facts, ports, capacity=60), ReferenceSession(model, 60)


@pytest.fixture(params=HOSTS.values(), ids=HOSTS.keys())
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    return sessions(request.param, tmp_path)


def test_ragged_trees_commits_and_rollbacks(pair: Pair) -> None:
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, 61, n) for n in (11, 4, 1)]
    both = list(pair)
    for session in both:
        session.reset(3)
    same([s.prefill(prompts).logits for s in both])
    for step in range(6):
        count = int(rng.integers(1, 9))
        parents = [int(rng.integers(0, n)) if n else -1 for n in range(count)]
        tokens = rng.integers(0, 61, (3, count))
        trees = [Tree(tokens[b], np.asarray(parents)) for b in range(3)]
        depth, mask = np.stack([t.depth for t in trees]), np.stack([t.mask for t in trees])
        same([s.score(tokens, depth, mask).logits for s in both])
        paths = [trees[b].path_to(int(rng.integers(0, count))) for b in range(3)]
        paths[step % 3] = ()
        for session in both:
            session.commit(paths)
        assert both[0].lengths.tolist() == both[1].lengths.tolist()
    back = [int(n) - 1 for n in both[0].lengths]
    for session in both:
        session.truncate(back)
    same([s.score(tokens[:, :1]).logits for s in both])


def same(found: list[np.ndarray]) -> None:
    assert_same_sums(*found, decoder_terms(max(HOSTS.values(), key=lambda h: h.layers), seen=60))


def test_a_chain_bundle_refuses_trees(tmp_path: Path) -> None:
    session, _ = sessions(HOSTS["grouped"], tmp_path, LOWERED.replace("tree-mask | ", ""))
    session.prefill([np.arange(3)])
    with pytest.raises(BackendError, match="rebuild it with the pass tree-mask"):
        session.score(np.zeros((1, 2), np.int64), mask=np.eye(2, dtype=np.bool_)[None])


def test_a_prompt_beyond_the_capacity_is_refused(tmp_path: Path) -> None:
    session, _ = sessions(HOSTS["grouped"], tmp_path)
    limit = session.largest
    assert limit > 60
    told = rf"61 tokens do not fit: the capacity is 60; .* a larger capacity \(at most {limit}\)$"
    with pytest.raises(RequestError, match=told):
        session.prefill([np.zeros(61, np.int64)])


def test_a_capacity_that_cannot_grow_is_not_advised(tmp_path: Path) -> None:
    """Positions end where a longrope or a learned table does: no option adds one."""
    session, _ = sessions(HOSTS["grouped"], tmp_path)
    most = OrtSession(session._graph, session.facts, session.ports)
    told = f"capacity is {most.largest}, the most that this bundle allows; shorten the prompt$"
    with pytest.raises(RequestError, match=told):
        most.prefill([np.zeros(most.largest + 1, np.int64)])


def test_reductions_are_those_of_the_logits(pair: Pair) -> None:
    session = pair[0]
    session.reset(1)
    session.prefill([np.arange(5)])
    scores = session.score(np.arange(4)[None])
    best = -np.sort(-scores.logits, axis=-1)
    assert scores.topk_ids is not None
    assert scores.top_gap is not None
    assert np.array_equal(scores.argmax, scores.logits.argmax(-1))
    assert np.array_equal(scores.topk_ids[..., 0], scores.argmax)
    assert np.array_equal(scores.top_gap, best[..., 0] - best[..., 1])


def test_a_damaged_graph_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    facts = decoder_facts(TinyDecoder().build())
    with pytest.raises(BackendError, match=r"onnxruntime cannot open .*bad\.onnx"):
        OrtSession(tmp_path / "bad.onnx", facts, ())


def test_a_sibling_takes_over_what_another_has_read(tmp_path: Path) -> None:
    """Bit for bit, whatever either of them does afterwards, and without a call of the engine."""
    session, _ = sessions(TinyDecoder(), tmp_path)
    other, alone = session.sibling(), session.sibling()
    ids = np.random.default_rng(5).integers(0, 61, 20)
    for one in (session, alone):
        one.prefill([ids])
    kept = session.snapshot(0, 0, 20)
    session.reset(1)
    session.prefill([ids[::-1].copy()])
    other.reset(2)
    runs = count_runs(other)
    other.restore(1, kept, 12)
    other.read(0, ids[:3])
    assert runs[0] == 1
    assert other.lengths.tolist() == [3, 12]
    other.leave(0)
    alone.truncate([12])
    for step in ([3], [4, 5, 6], [1]):
        found, wanted = (s.score(np.asarray([step])).logits.copy() for s in (other, alone))
        assert np.array_equal(found, wanted)
        for one in (other, alone):
            one.commit([range(len(step))])


def count_runs(session: OrtSession) -> list[int]:
    """How many calls of the engine the session has made from now on, in a list of one."""
    count, run = [0], session._run

    def counted(call: Any) -> Any:
        count[0] += 1
        return run(call)

    session._run = counted
    return count


def test_a_sibling_may_have_smaller_caches_never_larger(tmp_path: Path) -> None:
    """Measuring a long past must not take the memory of the longest."""
    session, _ = sessions(TinyDecoder(), tmp_path)
    small, large = session.sibling(capacity=20), session.sibling(capacity=10**6)
    assert (small.capacity, large.capacity) == (20, session.capacity)
    ids = np.arange(12)
    assert np.array_equal(small.prefill([ids]).logits, large.prefill([ids]).logits)
    assert small._memory.blocks[0].nbytes < large._memory.blocks[0].nbytes
