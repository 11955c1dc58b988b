"""The judge's head is learned, and the sessions bring out the hidden state that it reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graftline.errors import GraftlineError
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.laws import infer_shapes
from graftline.ports import read_facts, read_ports
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.reference import ReferenceSession
from graftline.runtimes.resources import Resources
from graftline.runtimes.rules import make_rule
from graftline.runtimes.rules.judge import JudgeHead, train_judge
from graftline.runtimes.sampling import Sampling
from graftline.store import WeightFile, save_graph
from graftline.tree import Tree

PASSES = (
    "anchors | kv-cache | tree-mask | select-rows | tap{layers=0+norm} | reduce-logits | "
    "pack-projections | lower-ort"
)
Pair = tuple[OrtSession, ReferenceSession]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    model = TinyDecoder().build()
    infer_shapes(model)
    Pipeline.parse(PASSES, GRAFTS).run(model)
    save_graph(model, tmp_path / "g.onnx", WeightFile(tmp_path, "g.weights", lambda size: None), {})
    facts, ports = read_facts(model), read_ports(model)
    fast = OrtSession(tmp_path / "g.onnx", facts, ports, capacity=60)
    return fast, ReferenceSession(model, 60)


def test_both_sessions_bring_out_the_state_behind_the_final_norm(pair: Pair) -> None:
    """Ragged prompts (whose last row alone has logits), a chain, a tree, a single row."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 61, n) for n in (9, 3)]
    for session in pair:
        session.reset(2)
    tree = Tree(rng.integers(0, 61, 5), np.array([-1, 0, 0, 1, 2]))
    tokens, depth = np.stack([tree.tokens] * 2), np.stack([tree.depth] * 2)
    answers = [
        [
            session.prefill(prompts),
            session.score(tokens[:, :3]),
            session.score(tokens, depth, np.stack([tree.mask] * 2)),
            session.score(tokens[:, :1]),
        ]
        for session in pair
    ]
    width = pair[0].facts.hidden
    for fast, slow, rows in zip(*answers, (1, 3, 5, 1), strict=True):
        assert fast.hidden is not None
        assert slow.hidden is not None
        assert fast.hidden.shape == slow.hidden.shape == (2, rows, width)
        np.testing.assert_allclose(fast.hidden, slow.hidden, atol=2e-5)
    last = np.concatenate([s.hidden.reshape(-1, width) for s in answers[0] if s.hidden is not None])
    assert len(np.unique(last.round(3), axis=0)) > 10  # rows differ: none is a copy of another's


def test_a_head_trained_on_recorded_states_judges_like_its_labels(pair: Pair) -> None:
    """Right is here whatever has a large first component: linear, so the head can learn it."""
    session, rng = pair[0], np.random.default_rng(2)
    session.prefill([np.arange(3)])
    states: list[np.ndarray] = []
    for _ in range(40):
        scores = session.score(rng.integers(0, 61, (1, 8)))
        assert scores.hidden is not None
        states.append(scores.hidden[0].copy())
    hidden = np.concatenate(states)
    right = hidden[:, 0] > 0.5
    head = train_judge(hidden[:200], right[:200], decay=1e-4)
    found = hidden[200:] @ head.weight + head.bias > 0
    assert np.mean(found == right[200:]) > 0.9
    resources = Resources(tuned={"judge": {"weight": head.weight.tolist(), "bias": [head.bias]}})
    rule = make_rule("judge", Sampling(), np.random.default_rng(0), {}, resources)
    tree = Tree.chain(rng.integers(0, 61, 8))
    scores = session.score(tree.tokens[None])
    assert scores.hidden is not None
    stands = scores.hidden[0] @ head.weight + head.bias > 0
    stands[1:] |= scores.argmax[0, :-1] == tree.tokens[1:]
    expected = next((n for n in range(1, 8) if not stands[n]), 8)
    assert rule.judge(tree, scores, 0).path == tuple(range(expected))


def test_training_is_the_optimum_and_weighs_both_classes_alike() -> None:
    rng = np.random.default_rng(3)
    hidden = rng.normal(size=(4000, 6)).astype(np.float32) * 3
    truth = np.array([1.0, -0.5, 0, 0, 0.3, 0])
    right = rng.random(4000) < 1 / (1 + np.exp(-(hidden @ truth + 3)))
    head = train_judge(hidden, right, decay=1e-3)
    assert right.mean() > 0.75
    direction = head.weight / np.linalg.norm(head.weight)
    assert direction @ truth / np.linalg.norm(truth) > 0.98
    found = hidden @ head.weight + head.bias > 0
    assert abs(found[right].mean() - (~found[~right]).mean()) < 0.05  # alike, not 0.95 and 0.5

    def loss(w: np.ndarray, b: float) -> float:
        losses = np.logaddexp(0, np.where(right, -1, 1) * (hidden @ w + b))
        return (losses[right].mean() + losses[~right].mean()) / 2 + 1e-3 / 2 * float(w @ w)

    best = loss(head.weight.astype(np.float64), head.bias)
    for _ in range(20):
        nudge = rng.normal(size=7) * 0.05
        assert loss(head.weight + nudge[:6], head.bias + nudge[6]) > best


def test_separable_labels_do_not_run_away() -> None:
    hidden = np.array([[-1.0], [-2.0], [1.0], [2.0]], np.float32)
    head = train_judge(hidden, np.array([False, False, True, True]))
    assert np.isfinite(head.weight).all()
    assert (hidden @ head.weight + head.bias > 0).tolist() == [False, False, True, True]


@pytest.mark.parametrize("labels", [[True] * 4, [False] * 4, [True, False, True]])
def test_labels_that_teach_nothing_are_refused(labels: list[bool]) -> None:
    with pytest.raises(GraftlineError, match="both classes"):
        train_judge(np.zeros((4, 2), np.float32), np.array(labels))


def test_a_head_is_saved_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    JudgeHead(np.array([1.0, 2.0], np.float32), 0.5).save(path)
    head = JudgeHead.load(path)
    assert (head.weight.tolist(), head.bias) == ([1.0, 2.0], 0.5)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(GraftlineError, match="is not a head"):
        JudgeHead.load(path)
