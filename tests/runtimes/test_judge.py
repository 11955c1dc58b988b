"""The judge's head is learned, and the sessions bring out the hidden state that it reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_session import FLAT

from graftline.bundle.store import save_graph
from graftline.bundle.weight_file import WeightFile
from graftline.errors import GraftlineError
from graftline.facts import decoder_facts
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.laws.common import infer_shapes
from graftline.ports import read_ports
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.reference import ReferenceSession
from graftline.runtimes.resources import Resources
from graftline.runtimes.rules import make_rule
from graftline.runtimes.rules.judge import JudgeHead, train_judge
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import FINAL, Scores
from graftline.runtimes.study.judging import Judged, Judging, tune_judge
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree
from tests.rounding import assert_same_sums, decoder_terms

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
    facts, ports = decoder_facts(model), read_ports(model)
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
        assert fast.tap(FINAL).shape == slow.tap(FINAL).shape == (2, rows, width)
        assert_same_sums(fast.tap(FINAL), slow.tap(FINAL), decoder_terms(TinyDecoder(), seen=60))
    last = np.concatenate([s.tap(FINAL).reshape(-1, width) for s in answers[0]])
    assert len(np.unique(last.round(3), axis=0)) > 10  # rows differ: none is a copy of another's


def test_a_head_trained_on_recorded_states_judges_like_its_labels(pair: Pair) -> None:
    """Right is here whatever has a large first component: linear, so the head can learn it."""
    session, rng = pair[0], np.random.default_rng(2)
    session.prefill([np.arange(3)])
    states: list[np.ndarray] = []
    for _ in range(40):
        scores = session.score(rng.integers(0, 61, (1, 8)))
        states.append(scores.tap(FINAL)[0].copy())
    hidden = np.concatenate(states)
    right = hidden[:, 0] > 0.5
    head = train_judge(hidden[:200], right[:200], decay=1e-4)
    found = hidden[200:] @ head.weight + head.bias > 0
    assert np.mean(found == right[200:]) > 0.9
    resources = Resources(tuned={"judge": {"weight": head.weight.tolist(), "bias": [head.bias]}})
    rule = make_rule("judge", Sampling(), np.random.default_rng(0), {}, resources)
    tree = Tree.chain(rng.integers(0, 61, 8))
    scores = session.score(tree.tokens[None])
    stands = scores.tap(FINAL)[0] @ head.weight + head.bias > 0
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


def test_labels_are_the_targets_own() -> None:
    """Right: at least a tenth as likely as the best; each token's state is its own row's."""
    probs = np.full((1, 4, 10), 1e-6)
    probs[0, 0, [5, 7, 8]] = 0.6, 0.3, 0.05
    probs[0, 1, [2, 3]] = 0.9, 0.091
    probs[0, 2, [2, 3]] = 0.9, 0.089
    logits = np.log(probs).astype(np.float32)
    hidden = np.arange(8, dtype=np.float32).reshape(1, 4, 2)
    scores = Scores(logits.argmax(-1), logits, taps={FINAL: hidden})
    judging = Judging()
    assert judging.judge(Tree.chain([1, 7, 3, 3]), scores, 0) == Verdict((0,), 5)
    judging.judge(Tree.chain([1]), scores, 0)
    assert judging.judge(Tree.chain([1, 5, 2]), scores, 0) == Verdict((0, 1, 2), 2)
    first, second = judging.drafts
    assert first.own.tolist() == [False, False, False]
    assert first.right.tolist() == [True, True, False]
    assert first.hidden.tolist() == [[2, 3], [4, 5], [6, 7]]
    assert second.own.tolist() == second.right.tolist() == [True, True]
    with pytest.raises(GraftlineError, match="from chains"):
        judging.judge(Tree(np.array([1, 5, 7]), np.array([-1, 0, 0])), scores, 0)


def drafts(random: np.random.Generator, count: int, sure: float) -> list[Judged]:
    """Chains of 4 whose tokens are the target's choice with chance 0.5, else right with chance
    `sure`; the state's first component says which are right."""
    made: list[Judged] = []
    for _ in range(count):
        own = random.random(4) < 0.5
        right = own | (random.random(4) < sure)
        state = np.where(right, 1.0, -1.0)[:, None] + random.normal(size=(4, 3)) * [0.2, 1, 1]
        made.append(Judged(state.astype(np.float32), own, right))
    return made


def test_a_head_is_kept_where_it_promises_tokens() -> None:
    random = np.random.default_rng(4)
    good = (drafts(random, 200, 0.8), drafts(random, 200, 0.8))
    tuning = tune_judge("judge-decoding", good, FLAT, 0.5)
    assert tuning.steps == 400
    assert tuning.after > 1.3 * tuning.before
    head = JudgeHead.of(tuning.judge)
    every = [*good[0], *good[1]]
    found = np.concatenate([head.chances(d.hidden) > 0.5 for d in every])
    assert np.mean(found == np.concatenate([d.right for d in every])) > 0.95
    idle = (drafts(random, 50, 0.0), drafts(random, 50, 0.0))
    kept = tune_judge("judge-decoding", idle, FLAT, 0.999999)
    assert (kept.judge, kept.after) == ({}, kept.before)
    with pytest.raises(GraftlineError, match="cannot train a judge"):
        tune_judge("judge-decoding", ([], good[0]), FLAT, 0.5)
    assert tuning.table == {}
