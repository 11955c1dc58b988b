"""A target that drafts with its first blocks and verifies with the others: one store, one cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.bundle.store import load_graph
from graftline.errors import GraftlineError
from graftline.runtimes.control.choose import Terms
from graftline.runtimes.load import load
from graftline.runtimes.sessions import one_copy
from graftline.tree import Tree
from tests.free_engine import answers_are_plains, free
from tests.tiny_checkpoints import WIDE, TinyCheckpoint

SPEC = replace(WIDE, layers=4)
BLOCKS = 2


@pytest.fixture(scope="module")
def checkpoint(
    known_checkpoints: dict[Path, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    known_checkpoints[path] = TinyCheckpoint(path, SPEC)
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("exits") / "exit.graft"
    return optimize(checkpoint, out, recipe="layer-skip", exits=(BLOCKS,))


def prompts() -> list[list[int]]:
    random = np.random.default_rng(5)
    return [random.integers(0, 256, n).tolist() for n in (5, 17, 40)]


def test_every_cache_and_every_block_is_in_one_of_the_two(bundle: Bundle) -> None:
    stages = bundle.manifest.stages
    first, rest = (stages[f"{name}-{BLOCKS}"] for name in ("exit", "rest"))
    of = [{p.layer for p in stage.ports if p.mirror} for stage in (first, rest)]
    assert of == [{0, 1}, {2, 3}]
    counts = [
        sum(n.op_type == "GroupQueryAttention" for n in load_graph(bundle.graph(name)).graph)
        for name in ("exit-2", "rest-2", "ort-cpu")
    ]
    assert counts == [2, 2, 4]
    held = {(row.graft, row.law) for row in bundle.manifest.laws if row.status == "held"}
    expected = {("exit-2", "prefix"), ("rest-2", "joined"), ("rest-2", "resumed")}
    assert expected | {(f"rest-2-rows-{n}", "form") for n in (2, 4, 8)} <= held


def test_weights_are_in_the_bundle_and_in_the_process_once(
    bundle: Bundle, checkpoint: Path, tmp_path: Path
) -> None:
    plain = optimize(checkpoint, tmp_path / "a", recipe="plain")

    def size(one: Bundle) -> int:
        return sum(f.size for name, f in one.manifest.files.items() if name.endswith(".weights"))

    assert size(bundle) == size(plain)
    graphs = one_copy(bundle, None)

    def outside(stage: str) -> dict[str, tuple[str, ...]]:
        tensors = onnx.load(graphs[stage], load_external_data=False).graph.initializer
        return {t.name: tuple(e.value for e in t.external_data) for t in tensors if t.external_data}

    target, first, rest = (outside(name) for name in ("ort-cpu", "exit-2", "rest-2"))
    assert first.items() | rest.items() == target.items()
    for stage in ("exit-2", "rest-2", "rest-2-rows-2"):
        tensors = onnx.load(graphs[stage], load_external_data=False).graph.initializer
        assert sum(len(t.raw_data) for t in tensors if not t.external_data) < 2048


def test_caches_are_in_the_process_once(bundle: Bundle) -> None:
    engine = free(bundle.path)
    (way,) = engine.resources.exits()
    own = {id(array.base) for array in engine.session.caches(0).values()}
    views = [s._memory.of(0, 1) for s in (way.engine.session, way.rest)]
    assert {id(array.base) for some in views for array in some.values()} == own


def test_check_runs_the_laws_again(bundle: Bundle) -> None:
    report = check(bundle.path)
    assert report.holds, [f for f in report.findings if not f.holds]
    assert any(f.what.startswith("greedy tokens, layer-skip") for f in report.findings)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_those_of_plain_decoding(bundle: Bundle, temperature: float) -> None:
    answers_are_plains(bundle.path, prompts(), temperature)


def counted(engine: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Calls of the target's step, of its exit and of the rest, by their rows in all."""
    calls: dict[str, list[int]] = {"whole": [], "rest": [], "exit": []}
    (way,) = engine.resources.exits()
    sessions = {"whole": engine.session, "rest": way.rest, "exit": way.engine.session}
    for name, session in sessions.items():
        ran, packed = session._run, session._packed_call

        def run(call: Any, name: str = name, ran: Any = ran) -> Any:
            calls[name].append(call.tokens.size)
            return ran(call)

        def pack(first: int, many: int, name: str = name, packed: Any = packed) -> Any:
            calls[name].append(many)
            return packed(first, many)

        monkeypatch.setattr(session, "_run", run)
        monkeypatch.setattr(session, "_packed_call", pack)
    return calls


def test_work_is_saved(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole target reads the prompt and a last token that no draft could precede; every drafted
    row, and the root's, goes through the first blocks once, and through the others once."""
    engine = free(bundle.path)
    calls = counted(engine, monkeypatch)
    result = engine.generate(prompts()[0], max_new_tokens=24, ignore_eos=True)
    steps = len(calls["rest"])
    assert calls["whole"] in ([5], [5, 1])
    assert steps == result.stats.steps + 1 - len(calls["whole"])
    assert calls["exit"] == [1] * sum(calls["rest"])
    assert sum(calls["rest"]) == steps + result.stats.drafted


def test_tokens_are_not_vouched_for_where_rows_round_unlike(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exit that was asked has written the target's caches, several rows at a time, whether
    anything was drafted or not."""
    engine: Any = load(bundle.path)
    monkeypatch.setattr(type(engine._around), "alike", lambda around, exact: False)
    options: dict[str, Any] = {"max_new_tokens": 2, "ignore_eos": True}
    stats = {r: engine.generate([1, 2, 3], recipe=r, **options).stats for r in ("plain", None)}
    assert [one.drafted for one in stats.values()] == [0, 0]
    assert [one.lossless for one in stats.values()] == [True, False]


def test_all_sequences_share_calls(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = free(bundle.path)
    calls = counted(engine, monkeypatch)
    same = prompts()[0]
    results = engine.generate([same, same[::-1], same[1:]], max_new_tokens=24, ignore_eos=True)
    steps = max(r.stats.steps for r in results)
    assert calls["whole"][:3] == [5, 5, 4]
    assert sum(calls["whole"][3:]) <= 3
    assert 0.8 * steps <= len(calls["rest"]) <= 1.5 * steps
    assert calls["exit"].count(3) > steps


def test_states_of_other_tokens_are_not_used(bundle: Bundle) -> None:
    """A step on other tokens, or at another length, runs whole."""
    engine = free(bundle.path)
    (way,), session = engine.resources.exits(), engine.session
    session.reset(1)
    session.prefill([np.arange(6)])
    expected = session.score(np.asarray([[7, 8]])).logits.copy()
    wrong = np.full((2, SPEC.hidden), 9.0, np.float32)
    for start, tokens in ((6, [7, 9]), (5, [7, 8]), (6, [7])):
        way.begun(0, start, Tree.chain(tokens), wrong[: len(tokens)])
        assert np.array_equal(session.score(np.asarray([[7, 8]])).logits, expected)
    for forgetting in (lambda: session.score(np.asarray([[1]])), lambda: session.reset(1)):
        way.begun(0, 6, Tree.chain([7, 8]), wrong)
        forgetting()
    session.prefill([np.arange(6)])
    assert np.array_equal(session.score(np.asarray([[7, 8]])).logits, expected)
    way.begun(0, 6, Tree.chain([7, 8]), wrong)
    assert not np.allclose(session.score(np.asarray([[7, 8]])).logits, expected)
    assert np.array_equal(session.score(np.asarray([[7, 8]])).logits, expected)


def test_sequences_begun_and_not_begun_go_together(bundle: Bundle) -> None:
    engine = free(bundle.path)
    (way,), session = engine.resources.exits(), engine.session
    texts = [np.arange(3, 9), np.arange(40, 45), np.arange(7)]
    tokens = np.asarray([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    session.reset(3)
    session.prefill(texts)
    expected = session.score(tokens, counts=[3, 1, 2]).logits.copy()
    guest = way.engine.session
    for row, count in ((0, 3), (2, 2)):
        new, start = tokens[row, :count].tolist(), len(texts[row])
        states = guest.follow(row, start, new, count).tap(way.tap)[0].copy()
        way.begun(row, start, Tree.chain(new), states)
    got = session.score(tokens, counts=[3, 1, 2]).logits
    for row, count in enumerate((3, 1, 2)):
        np.testing.assert_allclose(got[row, :count], expected[row, :count], atol=2e-5)


REFUSED = [
    ({"exits": (4,)}, "--exit 4: the target has 4 blocks, .* in front of its last; use 1 to 3"),
    ({}, "the recipe layer-skip needs an exit; add --exit 8"),
    ({"exits": (2,), "target": "ort-cuda"}, "--exit needs --target ort-cpu, not ort-cuda"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda o: str(o)[:40])
def test_bad_exits_are_refused_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(GraftlineError, match=message) as caught:
        optimize(checkpoint, tmp_path / "out", recipe="layer-skip", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_without_an_exit_says_how_to_get_one(checkpoint: Path, tmp_path: Path) -> None:
    made = optimize(checkpoint, tmp_path / "a", recipe="plain")
    with pytest.raises(GraftlineError, match=r"needs an exit here; .*CHECKPOINT --exit 8"):
        load(made.path, recipe="layer-skip")


def test_the_controller_prices_a_verification_by_the_rest(bundle: Bundle) -> None:
    """With costs measured, and the same tokens."""
    engine = load(bundle.path)
    plain = engine.generate([5, 6, 7], recipe="plain", max_new_tokens=40, ignore_eos=True)
    own = engine.generate([5, 6, 7], max_new_tokens=40, ignore_eos=True)
    assert own.tokens == plain.tokens
    (way,) = engine.resources.exits()
    object.__setattr__(way, "rest_cost", lambda rows, past, batch: 0.5 + 0.1 * rows * rows)
    whole = engine.policies.costs.of(4)
    policy = engine.policies.of(engine.recipe)
    paid, costs = policy.control.paid, engine.policies.costs
    bid = paid.bid(policy.drafter, Terms(1, 64, 256, 0.0), 1 / whole)
    rises = [way.rest_cost(n + 1, 256, 1) - way.rest_cost(n, 256, 1) for n in range(1, 6)]
    rate = max(costs.pace.slower("layer-skip", "paid", 1) / whole, 1 / costs.of(1))
    assert bid.keep[1:6] == pytest.approx([rate * rise for rise in rises])
