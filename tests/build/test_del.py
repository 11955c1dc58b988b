"""DEL: the exit that drafts best for its price is found, from rows that another exit drafted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.errors import BackendError, GraftlineError, LawBroken
from graftline.kinds.decoder.exits import prove_rest
from graftline.kinds.kind import Parts
from graftline.models.host import Host
from graftline.ports import by_role
from graftline.recipe import recipe
from graftline.runtimes.drafters import del_exits
from graftline.runtimes.load import load
from tests.free_engine import free
from tests.tiny_checkpoints import WIDE, TinyCheckpoint

SPEC = replace(WIDE, layers=4)
EXITS = 1, 2, 3


@dataclass
class SilentBehind(TinyCheckpoint):
    """Blocks from the third on add nothing, so that an exit behind the second drafts the truth."""

    def host(self, full_export: bool = False, watch: Any = None) -> Host:
        made = super().host(full_export, watch)
        for block in range(2, self.decoder.layers):
            for part in ("attention.o", "mlp.down"):
                held = made.model.graph.initializers[f"layers.{block}.{part}.weight"]
                assert held.const_value is not None
                zeros = np.zeros(held.const_value.shape, np.float32)  # type: ignore[arg-type]
                held.const_value = ir.tensor(zeros, name=held.name)
        return made


@pytest.fixture(scope="module")
def bundle(known_checkpoints: dict[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("checkpoint")
    known_checkpoints[path] = SilentBehind(path, SPEC)
    out = tmp_path_factory.mktemp("exits") / "del.graft"
    return optimize(path, out, recipe="del", exits=EXITS)


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look takes 0.16 of a round's time, as the engines below have it."""
    ticks = count()
    monkeypatch.setattr(del_exits, "perf_counter", lambda: next(ticks) * 0.16e-3)


def opened(bundle: Bundle, agreement: float = 0.5) -> Any:
    """An engine that drafts at every step, whose exits cost as deep as they are and are believed to
    be alike."""
    engine = free(bundle.path)
    for way in engine.resources.exits():
        way.engine.step, way.engine.agreement = way.blocks / SPEC.layers, agreement
        way.engine.rows_cost = lambda rows: 0.9 + 0.1 * rows  # nothing hangs on this machine's pace
        object.__setattr__(way, "rest_cost", partial(rest_cost, 1.0 - way.engine.step))
    return engine


def rest_cost(share: float, rows: int, past: float, batch: int) -> float:
    """Of that share of the target's blocks."""
    return share * (0.9 + 0.1 * rows)


def drafter(engine: Any) -> Any:
    return engine.policies.of(engine.recipe).drafter


def test_states_of_a_rest_are_read_before_its_next_call(bundle: Bundle) -> None:
    """Also where that one has the rows of several sequences."""
    engine = free(bundle.path)
    first, second, _ = engine.resources.exits()
    engine.session.reset(2)
    engine.session.prefill([np.arange(4), np.arange(4)])
    states = np.random.default_rng(2).standard_normal((2, SPEC.hidden)).astype(np.float32)
    scores = first.rest.resume(0, [4], [states])
    first.rest.resume(0, [4, 4], [states, states])
    with pytest.raises(BackendError, match="read after the next call"):
        scores.tap(second.tap)


def test_every_part_brings_out_what_exits_need(bundle: Bundle) -> None:
    stages = bundle.manifest.stages
    layers = {
        name: [p.layer for p in by_role(stages[name].ports, "hidden", "out")]
        for name in ("ort-cpu", "exit-1", "exit-3", "rest-1", "rest-2", "rest-3", "exit-head")
    }
    assert layers == {
        "ort-cpu": [0, 1, 2], "exit-1": [0], "exit-3": [0, 1, 2], "rest-1": [1, 2], "rest-2": [2],
        "rest-3": [], "exit-head": [],
    }  # fmt: skip
    assert not [p for p in stages["exit-head"].ports if p.state]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_those_of_plain_decoding(bundle: Bundle, temperature: float) -> None:
    engine = opened(bundle)
    random = np.random.default_rng(5)
    prompts = [random.integers(0, 256, n).tolist() for n in (5, 17, 40)]
    options: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True}
    options |= {"temperature": temperature, "seed": 3}
    plain = engine.generate(prompts, recipe="plain", **options)
    batch = engine.generate(prompts, **options)
    assert [r.tokens for r in batch] == [r.tokens for r in plain]
    assert sum(r.stats.drafted for r in batch) > 30


def test_the_exit_that_is_always_right_is_found(bundle: Bundle) -> None:
    engine = opened(bundle)
    shared = drafter(engine).acceptance
    engine.generate([1, 2, 3], max_new_tokens=60, ignore_eos=True)
    first, second, third = (shared.of(blocks)[0] for blocks in EXITS)
    assert second == third > 0.9 > 0.8 > first
    result = engine.generate([7, 8, 9], max_new_tokens=40, ignore_eos=True)
    assert drafter(engine).fork()._exit.way.blocks == 2
    assert result.stats.acceptance_rate == 1.0
    assert result.stats.mat > 3


def test_what_exits_would_have_drafted_is_what_they_draft(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every row that is looked at, each exit's own engine names the token that the shadow did,
    whichever exit had drafted."""
    engine = opened(bundle)
    ways, seen = engine.resources.exits(), list[Any]()
    head = ways[0].head
    real = head.shadow

    def shadow(states: Any) -> Any:
        seen.append((states.copy(), real(states)))
        return seen[-1][1]

    monkeypatch.setattr(head, "shadow", shadow)
    prompt = [5, 6, 7, 8]
    result = engine.generate(prompt, max_new_tokens=12, ignore_eos=True)
    text = prompt + result.tokens
    own = [way.engine.session.sibling() for way in ways]
    expected = []
    for session in own:
        session.reset(1)
        session.prefill([np.asarray(text[:3])])
        expected.append(session.score(np.asarray([text[3:]])).argmax[0].tolist())
    at = 0
    for states, scores in seen:
        best = scores.argmax[0].reshape(len(ways), -1)
        rows = len(states) // len(ways)
        for number in range(len(ways)):
            assert best[number].tolist() == expected[number][at : at + rows]
        at += rows
    assert at > 8


@pytest.mark.parametrize("milliseconds", [0.25, 1.0])
def test_looking_takes_a_small_share_of_the_time(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, milliseconds: float
) -> None:
    """Whatever a look takes, beside rounds of one millisecond."""
    engine = opened(bundle)
    head = engine.resources.exits()[0].head
    calls: list[float] = []
    real = head.shadow

    def shadow(states: Any) -> Any:
        calls.append(milliseconds)
        return real(states)

    monkeypatch.setattr(head, "shadow", shadow)
    monkeypatch.setattr(del_exits, "perf_counter", lambda: sum(calls) / 1e3)
    engine.policies._made.clear()
    results = [engine.generate([n, 2, 3], max_new_tokens=60, ignore_eos=True) for n in range(6)]
    rounds = sum(r.stats.steps + 1 for r in results)
    late = sum(calls[del_exits.EAGER :])
    assert 0.5 * 0.01 * rounds - milliseconds < late <= 0.01 * rounds
    assert len(calls) >= del_exits.EAGER


def test_the_proof_sees_a_rest_that_begins_elsewhere(bundle: Bundle) -> None:
    stages, silent = dict(bundle.manifest.stages), lambda line: None
    parts = Parts(bundle.path, stages, bundle.manifest.target, bundle.manifest.target)
    assert [row.law for row in prove_rest(parts, "rest-1", silent)] == ["joined", "resumed"]
    stages["exit-1"] = replace(stages["exit-1"], file=stages["exit-2"].file)
    with pytest.raises((LawBroken, GraftlineError)):
        prove_rest(parts, "rest-1", silent)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_nested_exits_ask_the_deeper_where_the_first_is_unsure(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """Every row that any exit has read is verified by the blocks behind the first exit alone: the
    whole target scores only last tokens that leave no room for a draft. The text is plain's, alone
    and in a ragged batch."""
    engine = free(bundle.path)
    ways = engine.resources.exits()
    parts = {"whole": engine.session, "verified": ways[0].rest}
    parts |= {str(way.blocks): way.engine.session for way in ways}
    rows = dict.fromkeys(parts, 0)
    for name, part in parts.items():

        def run(call: Any, name: str = name, ran: Any = part._run) -> Any:
            rows[name] += call.tokens.size
            return ran(call)

        monkeypatch.setattr(part, "_run", run)
    prompts = [np.arange(n).tolist() for n in (5, 17, 40)]
    options: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True}
    options |= {"temperature": temperature, "seed": 3}
    plain = [engine.generate(p, recipe="plain", **options).tokens for p in prompts]
    before = rows["whole"]  # prompts are not read again
    alone = [engine.generate(p, recipe="s2d-exits", **options) for p in prompts]
    assert [r.tokens for r in alone] == plain
    drafted, steps = (sum(getattr(r.stats, of) for r in alone) for of in ("drafted", "steps"))
    whole = rows["whole"] - before
    assert whole <= len(prompts)
    assert rows["verified"] + whole == drafted + steps > 40
    assert min(rows["1"], rows["2"]) > 10
    together = engine.generate(prompts, recipe="plain", **options)
    batch = engine.generate(prompts, recipe="s2d-exits", **options)
    assert [r.tokens for r in batch] == [r.tokens for r in together]


def test_nested_exits_take_no_single_exit(bundle: Bundle) -> None:
    one = recipe("s2d-exits")
    with pytest.raises(GraftlineError, match=r"nested-exits: exit=2: it drafts with all exits"):
        load(bundle.path, recipe=replace(one, options={"exit": 2}))


def test_one_exit_is_no_choice(
    bundle: Bundle, tmp_path: Path, known_checkpoints: dict[Path, Any]
) -> None:
    path = tmp_path / "checkpoint"
    known_checkpoints[path] = TinyCheckpoint(path, SPEC)
    with pytest.raises(GraftlineError, match="recipe del chooses among exits; add --exit 6,12,18"):
        optimize(path, tmp_path / "a", recipe="del", exits=(2,))
    single = optimize(path, tmp_path / "b", recipe="layer-skip", exits=(2,))
    with pytest.raises(GraftlineError, match=r"del needs exits here; .*--exit 6,12,18"):
        load(single.path, recipe="del")
