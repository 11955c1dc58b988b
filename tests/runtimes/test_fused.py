"""Fused steps give the host's tokens, whatever is asked: greedy or sampled, alone or in a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftline.bundle.store import save_graph
from graftline.bundle.weight_file import WeightFile
from graftline.errors import BackendError, GraftlineError, LawBroken, RequestError
from graftline.facts import decoder_facts
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.laws.common import infer_shapes
from graftline.ports import read_ports
from graftline.recipe import recipe
from graftline.runtimes import fused_law
from graftline.runtimes.engine import Engine
from graftline.runtimes.fused import chain
from graftline.runtimes.fused_drafts import TableDrafts
from graftline.runtimes.fused_law import fused_is_host
from graftline.runtimes.ort.fused import OrtFusedStep
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.prefix_cache import PrefixCache

HOSTS = {
    "grouped": TinyDecoder(positions=90),
    "window": TinyDecoder(window=5, layers=3),
    "alibi": TinyDecoder(alibi=True),
    "unfused": TinyDecoder(head_size=4),
}
FRONT = "anchors | kv-cache | tree-mask | select-rows | reduce-logits{topk=8}"
BACK = "pack-projections | lower-ort"
FUSING = "fuse-verify{sample=true} | fuse-draft{width=8}"
CAPACITY = 90
SMALL = replace(recipe("token-recycling"), options={"rows": 12, "width": 8})
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.4, "seed": 1},
    {"temperature": 1.1, "min_p": 0.05, "seed": 2},
)
Opened = tuple[OrtSession, OrtFusedStep]


def opened(spec: TinyDecoder, folder: Path, back: str = BACK) -> Opened:
    """A tiny decoder as an ordinary graph and as a fused step over its caches."""
    graphs: list[Any] = []
    for name, text in (("host", f"{FRONT} | {back}"), ("fused", f"{FRONT} | {FUSING} | {back}")):
        model = spec.build()
        infer_shapes(model)
        Pipeline.parse(text, GRAFTS).run(model)
        path = folder / f"{name}.onnx"
        save_graph(model, path, WeightFile(folder, f"{name}.weights", lambda size: None), {})
        graphs.append((path, decoder_facts(model), read_ports(model)))
    (graph, facts, ports), (fused, _, fused_ports) = graphs
    session = OrtSession(graph, facts, ports, capacity=CAPACITY)
    session.row_invariant, session.exact_rows = True, 1
    return session, OrtFusedStep(fused, fused_ports, session)


def engine_of(pair: Opened, ends: tuple[int, ...] = ()) -> Engine:
    session, fused = pair
    return Engine(session, None, {"eos_token_id": list(ends)}, SMALL, None, fused=lambda: fused)


@pytest.fixture(scope="module", params=HOSTS.values(), ids=HOSTS.keys())
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return opened(request.param, tmp_path_factory.mktemp("fused"))


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return opened(HOSTS["grouped"], tmp_path_factory.mktemp("fused"))


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = np.random.default_rng(7)
    return [rng.integers(1, 61, count).tolist() for count in (11, 1, 4, 23, 2)]


def test_the_law_of_the_fused_step(pair: Opened) -> None:
    assert "steps" in fused_is_host(*pair, TableDrafts({"rows": 9}))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_law_holds_where_rows_depend_on_the_rows_beside_them(tmp_path: Path, bits: int) -> None:
    """Both ways of a step score the same rows, so quantized weights are no excuse."""
    wide = TinyDecoder(hidden=32, head_size=16, mlp=64)
    back = f"pack-projections | quantize{{bits={bits}}} | lower-ort"
    assert "steps" in fused_is_host(*opened(wide, tmp_path, back), TableDrafts({"rows": 9}))


def test_the_law_sees_a_step_that_commits_the_wrong_slot(
    grouped: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, fused = grouped
    right = fused.step

    def wrong(row: int, room: int) -> list[int]:
        chosen = right(row, room)
        next(iter(session.caches(row).values()))[0, :, session.lengths[row] - 1] += 1
        return chosen

    monkeypatch.setattr(fused, "step", wrong)
    with pytest.raises(LawBroken, match=r"breaks the law 'fused' at cache\.0"):
        fused_is_host(session, fused, TableDrafts({"rows": 9}))


def test_the_law_sees_a_wrong_draw_but_not_on_a_near_tie(
    grouped: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, fused = grouped
    right = fused.step

    def wrong(row: int, room: int) -> list[int]:
        chosen = right(row, room)
        warm = fused._seats[row].inputs["temperature"] > 0
        return [(chosen[0] + 1) % 61, *chosen[1:]] if warm else chosen

    monkeypatch.setattr(fused, "step", wrong)
    with pytest.raises(LawBroken, match=r"breaks the law 'fused' at tokens: the host has \["):
        fused_is_host(session, fused, TableDrafts({"rows": 9}))
    monkeypatch.setattr(fused_law, "NEAR_TIE", 1.0)
    told = fused_is_host(session, fused, TableDrafts({"rows": 9}))
    assert told.startswith("12 steps")
    assert told.endswith(", 1 near-ties")


@pytest.mark.parametrize("options", SETTINGS)
def test_fused_host_and_plain_give_the_same_tokens(
    pair: Opened, prompts: list[list[int]], options: dict[str, Any]
) -> None:
    engine, accepted = engine_of(pair), 0
    for prompt in prompts:
        asked = {"max_new_tokens": 40, **options}
        plain: Any = engine.generate(prompt, recipe="plain", **asked)
        host: Any = engine.generate(prompt, **asked)
        fused: Any = engine.generate(prompt, step="fused", **asked)
        assert fused.tokens == host.tokens == plain.tokens
        assert fused.stats.lossless
        assert len(fused.tokens) == 40
        accepted += 39 - fused.stats.steps
    assert accepted > 0, "nothing drafted was ever accepted, so nothing was tested"


@pytest.mark.parametrize("options", SETTINGS)
@pytest.mark.parametrize("batch", [None, 2])
def test_a_ragged_batch_is_the_hosts(
    grouped: Opened, prompts: list[list[int]], options: dict[str, Any], batch: int | None
) -> None:
    engine = engine_of(grouped)
    asked = {"max_new_tokens": 25, "batch": batch, **options}
    host: Any = engine.generate(prompts, recipe="plain", **asked)
    fused: Any = engine.generate(prompts, step="fused", **asked)
    assert [r.tokens for r in fused] == [r.tokens for r in host]


def test_ends_and_limits_inside_an_accepted_path(
    grouped: Opened, prompts: list[list[int]]
) -> None:
    free: list[Any] = [
        engine_of(grouped).generate(p, max_new_tokens=40, recipe="plain") for p in prompts
    ]
    reasons: set[str] = set()
    for end in {token for result in free for token in result.tokens[3:30]}:
        engine = engine_of(grouped, (end,))
        for prompt in prompts:
            expected: Any = engine.generate(prompt, max_new_tokens=40, recipe="plain")
            got: Any = engine.generate(prompt, max_new_tokens=40, step="fused")
            assert (got.tokens, got.finish_reason) == (expected.tokens, expected.finish_reason)
            reasons.add(got.finish_reason)
    assert reasons == {"eos", "length"}
    for limit in range(1, 18):
        got = engine_of(grouped).generate(prompts[0], max_new_tokens=limit, step="fused")
        assert got.tokens == free[0].tokens[:limit]
        assert got.finish_reason == "length"


def test_a_prompt_that_was_read_is_copied(tmp_path: Path) -> None:
    """By fused steps from fused ones, and between them and the host's."""
    session, fused = opened(HOSTS["grouped"], tmp_path)
    reads: list[int] = []
    read = session.read
    session.read = lambda row, tokens, show=None: (reads.append(len(tokens)), read(row, tokens))[1]  # type: ignore[method-assign]

    def engine(prefixes: PrefixCache | None) -> Engine:
        return Engine(session, None, {}, SMALL, None, fused=lambda: fused, prefixes=prefixes)

    plain, known = engine(None), engine(PrefixCache())
    history = [5, 9, 5, 9, 7, 5]
    for step in ("fused", "host", "fused", "fused"):
        options: dict[str, Any] = {"max_new_tokens": 6, "step": step}
        want = plain.generate([history, [*history, 1]], **options)
        reads.clear()
        found = known.generate([history, [*history, 1]], **options)
        assert [r.tokens for r in found] == [r.tokens for r in want]
        assert sum(reads) == len(history) + 1 - found[0].stats.reused + (
            len(history) - found[1].stats.reused
        )
        history = [*history, *found[0].tokens, 3]
    prompt = len(history) - 6 - 1
    assert found[0].stats.reused >= prompt - 2, "all but 3 and, perhaps, the token before"


def test_the_last_slot_and_the_last_position_are_used(grouped: Opened) -> None:
    """The capacity is the host's number of positions: a drafted node past it has no rotary row."""
    session, _ = grouped
    assert session.capacity == session.facts.positions == CAPACITY
    prompt = [5, 6, 7, 5, 6, 7, 5, 6]
    asked = {"max_new_tokens": CAPACITY - len(prompt)}
    plain: Any = engine_of(grouped).generate(prompt, recipe="plain", **asked)
    assert engine_of(grouped).generate(prompt, step="fused", **asked).tokens == plain.tokens
    with pytest.raises(RequestError, match="capacity is 90"):
        engine_of(grouped).generate(prompt, step="fused", max_new_tokens=CAPACITY)


def test_a_request_that_failed_holds_nothing_of_its_engine(
    grouped: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else only a collection would find an engine that was dropped after a fault."""
    begun = engine_of(grouped).submit([5, 6, 7], max_new_tokens=4, step="fused")

    def broken(given: Any) -> Any:
        raise BackendError("out of memory")

    monkeypatch.setattr(grouped[1], "_run_bound", broken)
    with pytest.raises(BackendError, match="out of memory"):
        begun.wait()
    one = begun._generation.one
    assert (one.done, one.outfit, one.digest_with) == (True, None, None)


def test_the_table_outlives_a_request(
    prompts: list[list[int]], tmp_path: Path
) -> None:
    """As the host drafter's store does: what was said once is said faster."""
    engine = engine_of(opened(HOSTS["grouped"], tmp_path))
    first: Any = engine.generate(prompts[0], max_new_tokens=40, step="fused")
    again: Any = engine.generate(prompts[0], max_new_tokens=40, step="fused")
    assert again.tokens == first.tokens
    assert again.stats.steps < first.stats.steps


def test_a_step_is_one_engine_call(
    grouped: Opened, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    session, fused = grouped
    calls: list[str] = []

    def counted(name: str, run: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda given: (calls.append(name), run(given))[1]

    monkeypatch.setattr(session, "_run", counted("host", session._run))
    monkeypatch.setattr(fused, "_run_bound", counted("fused", fused._run_bound))
    result: Any = engine_of(grouped).generate(prompts[3], max_new_tokens=30, step="fused")
    assert calls == ["host"] + ["fused"] * result.stats.steps  # the prompt, then the steps
    assert result.stats.drafted == 11 * result.stats.steps
    assert result.stats.controller.startswith("fused: token-recycling, a tree of 12 rows")


@pytest.mark.parametrize(("least", "rows"), [(2, 4), (7, 7)])  # the tree is 3 deep below its root
def test_an_exact_request_keeps_to_chains_and_to_the_fewest_rows(
    grouped: Opened, prompts: list[list[int]], least: int, rows: int
) -> None:
    session, fused = grouped
    session.row_invariant, session.exact_rows = False, least
    try:
        engine = engine_of(grouped)
        exact: Any = engine.generate(prompts[0], max_new_tokens=20, step="fused", exact=True)
        tokens, parents = fused.tree(0)
        assert tokens.shape == (rows,)
        assert all(p in (-1, node - 1) for node, p in enumerate(parents.tolist()))
        loose: Any = engine.generate(prompts[0], max_new_tokens=20, step="fused")
        assert fused.tree(0)[0].shape == (12,)
        assert exact.tokens == loose.tokens
        assert exact.stats.lossless
        assert not loose.stats.lossless
    finally:
        session.row_invariant, session.exact_rows = True, 1


def test_several_answers_are_fused_together_under_one_id(grouped: Opened) -> None:
    """As the host writes them; an id of its own for each prompt, and options too."""
    engine = engine_of(grouped)
    options: dict[str, Any] = {"max_new_tokens": 9, "temperature": 0.9, "seed": 3, "n": 2}
    prompts: list[Any] = [[5, 6, 7], [8, 9]]
    own: Any = [{"request_id": "first"}, {"min_p": 0.1, "ignore_eos": True}]
    fused: Any = engine.generate(prompts, own, step="fused", **options)
    host: Any = engine.generate(prompts, own, step="host", **options)
    assert [r.tokens for r in fused] == [r.tokens for r in host]
    assert [r.id for r in fused][:3] == ["first", "first", fused[3].id]
    assert [r.usage.prompt_tokens for r in fused] == [3, 3, 2, 2]
    with pytest.raises(RequestError, match="leave recipe and exact out of"):
        engine.generate(prompts, [{}, {"exact": True}], step="fused", max_new_tokens=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 5}, "top_k=5: a fused step takes temperature and min_p, and no other"),
        ({"top_p": 0.5}, r"top_p=0\.5"),
        ({"repetition_penalty": 1.2}, r"repetition_penalty=1\.2"),
        ({"recipe": "suffix"}, r"recipe suffix: .* medusa or eagle, not by suf"),
        ({"recipe": "typical"}, "recipe typical: a fused step"),
        ({"step": "fussed"}, "step is 'fussed'; use host or fused"),
    ],
)
def test_what_a_fused_step_cannot_do_is_refused_in_one_line(
    grouped: Opened, options: dict[str, Any], message: str
) -> None:
    engine = engine_of(grouped)
    for call in (engine.generate, engine.stream):
        with pytest.raises(GraftlineError, match=message + "|no tokenizer") as caught:
            call([1, 2], **{"max_new_tokens": 8, "step": "fused", "temperature": 1.0, **options})
        assert "\n" not in str(caught.value)


def test_a_rule_that_is_not_in_the_graph_is_refused(grouped: Opened) -> None:
    loose = replace(SMALL, name="loose", rule="typical", lossless=False)
    with pytest.raises(GraftlineError, match="judges by greedy or point-mass, not by typical"):
        engine_of(grouped).generate([1, 2], max_new_tokens=8, recipe=loose, step="fused")


def test_a_tree_that_does_not_fit_the_graph_is_refused(grouped: Opened) -> None:
    session, fused = grouped
    with pytest.raises(BackendError, match="a tree of 65 rows; this session scores at most 64"):
        fused.reset(chain(65))
    session.reset(1)
    wide = replace(chain(2), ranks=np.array([0, 8]))
    with pytest.raises(BackendError, match="candidate 8 of a token; this step keeps 8"):
        fused.reset(wide)


def test_without_a_fused_graph_the_request_is_refused(grouped: Opened) -> None:
    engine = Engine(grouped[0], None, {}, SMALL, None)
    with pytest.raises(RequestError, match="no fused step; rebuild it with --step fused"):
        engine.generate([1, 2], max_new_tokens=8, step="fused")
