"""A target that drafts for itself by a route: one weight store and set of caches, plain tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.bundle.store import load_graph
from graftline.commands.cli import app
from graftline.errors import GraftlineError, LawBroken
from graftline.kinds.decoder.stages import prove_route
from graftline.kinds.kind import Parts
from graftline.runtimes.load import load
from graftline.runtimes.sessions import one_copy, open_session
from tests.free_engine import free
from tests.rounding import assert_same_sums, decoder_terms
from tests.tiny_checkpoints import WIDE, TinyCheckpoint

SPEC = replace(WIDE, layers=5)
ROUTES: dict[str, dict[str, Any]] = {
    "blocks": {"skip": "1,3"},
    "parts": {"skip": "attention=1-2,mlp=3"},
    "int8": {"skip": "1", "draft": "int8"},
}


@pytest.fixture(scope="module")
def checkpoint(
    known_checkpoints: dict[Path, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    known_checkpoints[path] = TinyCheckpoint(path, SPEC)
    return path


@pytest.fixture(scope="module", params=ROUTES)
def bundle(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    out = tmp_path_factory.mktemp("routes") / "skip.graft"
    return optimize(checkpoint, out, recipe="self-skip", **ROUTES[request.param])


def of(bundle: Bundle) -> dict[str, Any]:
    said = bundle.manifest.rebuild
    return next(o for o in ROUTES.values() if f"--skip {o['skip']}" in said)


def test_a_route_has_the_caches_and_the_work_that_are_left(bundle: Bundle) -> None:
    gone = {"1,3": {1, 3}, "attention=1-2,mlp=3": {1, 2}, "1": {1}}[of(bundle)["skip"]]
    stage = bundle.manifest.stages["route"]
    assert {p.layer for p in stage.ports if p.mirror} == set(range(5)) - gone
    nodes = load_graph(bundle.graph("route")).graph
    assert sum(n.op_type == "GroupQueryAttention" for n in nodes) == 5 - len(gone)
    assert stage.owner == ("draft" if "draft" in of(bundle) else "target")
    held = {(row.graft, row.law) for row in bundle.manifest.laws if row.status == "held"}
    assert {("route", "route"), ("route", "skipped")} <= held


def test_weights_are_in_the_bundle_once(bundle: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    """Bytes counted: a route adds a graph and no weights."""
    draft = of(bundle).get("draft")
    plain = optimize(checkpoint, tmp_path / "a", recipe="plain", draft=draft)

    def size(one: Bundle) -> int:
        return sum(f.size for name, f in one.manifest.files.items() if name.endswith(".weights"))

    assert size(bundle) == size(plain)

    def places(stage: str) -> set[tuple[int | None, int | None]]:
        weights = load_graph(bundle.graph(stage)).graph.initializers.values()
        tensors = [v.const_value for v in weights]
        return {(t.offset, t.length) for t in tensors if isinstance(t, ir.ExternalTensor)}

    route, whole = places("route"), places((draft and "draft") or bundle.manifest.target)
    assert len(route) > 4
    assert route < whole


def test_the_process_maps_one_copy_too(bundle: Bundle) -> None:
    """What the route reads of the laid out weights is what the target does, in the same file."""
    graphs = one_copy(bundle, None)
    if bundle.manifest.stages["route"].owner == "draft":
        assert "route" not in graphs
        return

    def outside(stage: str) -> dict[str, tuple[str, ...]]:
        tensors = onnx.load(graphs[stage], load_external_data=False).graph.initializer
        outer = [t for t in tensors if t.external_data]
        return {t.name: tuple(e.value for e in t.external_data) for t in outer}

    target, route = outside(bundle.manifest.target), outside("route")
    assert route.items() < target.items()
    inside = onnx.load(graphs["route"], load_external_data=False).graph.initializer
    assert sum(len(t.raw_data) for t in inside if not t.external_data) < 2048


def test_check_runs_the_laws_of_the_route_again(bundle: Bundle) -> None:
    load(bundle.path).generate([1, 2, 3], max_new_tokens=4)
    report = check(bundle.path)
    assert report.holds, [f for f in report.findings if not f.holds]
    found = [f.found for f in report.findings]
    assert any(text.startswith("route: ") and "made again as stored" in text for text in found)
    assert any(f.what.startswith("greedy tokens, self-skip") for f in report.findings)


def test_inspect_shows_the_route(bundle: Bundle) -> None:
    result = CliRunner().invoke(app, ["inspect", str(bundle.path)])
    assert result.exit_code == 0
    said = " ".join(result.output.split())
    assert "stage route" in said
    assert "layer-skip{" in said
    assert CliRunner().invoke(app, ["inspect", str(bundle.path), "--stage", "route"]).exit_code == 0


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_tokens_are_plains_alone_and_in_a_ragged_batch(bundle: Bundle, temperature: float) -> None:
    """With costs None every step drafts."""
    engine = free(bundle.path)
    random = np.random.default_rng(5)
    prompts = [random.integers(0, 256, n).tolist() for n in (5, 17, 40)]
    options: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True}
    options |= {"temperature": temperature, "seed": 3}
    plain = [engine.generate(p, recipe="plain", **options).tokens for p in prompts]
    alone = [engine.generate(p, recipe="self-skip", **options) for p in prompts]
    assert [r.tokens for r in alone] == plain
    assert sum(r.stats.drafted for r in alone) > 30
    if not temperature:
        assert sum(r.stats.steps for r in alone) < 0.97 * 3 * 29
        batch = engine.generate(prompts, recipe="self-skip", **options)
        assert [r.tokens for r in batch] == plain
        assert sum(r.stats.drafted for r in batch) > 30


def test_one_call_drafts_for_all_sequences(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = free(bundle.path)
    together: list[int] = []
    route = engine.resources.route()
    real = route.session.follow_rows

    def counted(first: int, starts: Any, tokens: Any) -> Any:
        together.append(len(tokens))
        return real(first, starts, tokens)

    monkeypatch.setattr(route.session, "follow_rows", counted)
    prompts = [[1, 2, 3], [4, 5, 6, 7], [8, 9]]
    engine.generate(prompts, recipe="self-skip", max_new_tokens=8, ignore_eos=True)
    assert together.count(3) > 3


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_route_within_the_draft_answers_first(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """Both precision and blocks are saved on, the whole draft is asked where the route is unsure,
    and the text is plain's, alone and in a ragged batch."""
    engine = free(bundle.path)
    if "draft" not in of(bundle):
        with pytest.raises(GraftlineError, match="nested-skip needs a draft here"):
            engine.generate([1, 2, 3], recipe="nested-skip", max_new_tokens=4)
        return
    parts = {"route": engine.resources.route(), "whole": engine.resources.draft()}
    calls = dict.fromkeys(parts, 0)
    for name, part in parts.items():

        def run(call: Any, name: str = name, ran: Any = part.session._run) -> Any:
            calls[name] += 1
            return ran(call)

        monkeypatch.setattr(part.session, "_run", run)
    prompts = [np.arange(n).tolist() for n in (5, 17, 40)]
    options: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True}
    options |= {"temperature": temperature, "seed": 3}
    plain = [engine.generate(p, recipe="plain", **options).tokens for p in prompts]
    assert calls == {"route": 0, "whole": 0}
    alone = [engine.generate(p, recipe="nested-skip", **options) for p in prompts]
    assert [r.tokens for r in alone] == plain
    assert sum(r.stats.drafted for r in alone) > 30
    assert min(calls.values()) > 10
    batch = engine.generate(prompts, recipe="nested-skip", **options)
    together = engine.generate(prompts, recipe="plain", **options)
    assert [r.tokens for r in batch] == [r.tokens for r in together]


def silent(skip: dict[str, list[int]]) -> ir.Model:
    """The checkpoint's decoder in which the skipped parts add nothing."""
    model = SPEC.build()
    names = [f"layers.{i}.attention.o.weight" for i in skip["attention"]]
    for name in [*names, *(f"layers.{i}.mlp.down.weight" for i in skip["mlp"])]:
        held = model.graph.initializers[name]
        assert held.const_value is not None
        held.const_value = ir.tensor(np.zeros(held.const_value.shape, np.float32), name=name)  # type: ignore[arg-type]
    return model


def test_drafts_are_those_of_the_model_without_these_parts(bundle: Bundle) -> None:
    """The route's engine, as it is opened to draft, beside ONNX's own reference of the decoder
    whose skipped parts add nothing."""
    from graftline.evaluate import run

    if "draft" in of(bundle):
        pytest.skip("int8 weights are only near")
    skip = {"attention": [1, 2], "mlp": [3]}
    if of(bundle)["skip"] == "1,3":
        skip = {"attention": [1, 3], "mlp": [1, 3]}
    tokens = np.random.default_rng(2).integers(0, 256, (1, 12))
    feed = {"tokens": tokens, "positions": np.arange(12)[None]}
    expected = run(silent(skip), feed)["logits"]
    session = open_session(bundle, capacity=64, stage="route")
    session.prefill([tokens[0, :6]])
    got = session.score(tokens[:, 6:]).logits
    assert_same_sums(got, expected[:, 6:], decoder_terms(SPEC, seen=12))


def test_what_a_route_writes_is_gone_with_the_targets_next_step(bundle: Bundle) -> None:
    """And it writes nothing at all where it skips an attention."""
    target, route = (
        open_session(bundle, capacity=64),
        open_session(bundle, capacity=64, stage="route"),
    )
    guest = route.sibling(target)
    target.prefill([np.arange(9)])
    expected = target.score(np.asarray([[7]])).logits.copy()
    before = {name: array.copy() for name, array in target.caches(0).items()}
    guest.follow(0, 9, [1, 2, 3, 4])
    own = {p.mirror for p in bundle.manifest.stages["route"].ports if p.mirror}
    for name, array in target.caches(0).items():
        assert np.array_equal(array[:, :, :9], before[name][:, :, :9])
        assert np.array_equal(array, before[name]) == (name not in own)
    assert np.array_equal(target.score(np.asarray([[7]])).logits, expected)


def test_the_proof_sees_an_engine_of_another_route(bundle: Bundle) -> None:
    if "draft" in of(bundle):
        pytest.skip("int8 weights are only near")
    stages, silent = dict(bundle.manifest.stages), lambda line: None
    parts = Parts(bundle.path, stages, bundle.manifest.target, bundle.manifest.target)
    assert prove_route(parts, "route", silent)[-1].law == "skipped"
    wrong = stages["route"].pipeline.replace("=1", "=2")
    stages["route"] = replace(stages["route"], pipeline=wrong)
    with pytest.raises(LawBroken, match="'skipped' at row"):
        prove_route(parts, "route", silent)


REFUSED = [
    ({"skip": "0-4"}, "--skip 0-4: a route that skips every block of 5 is no model; keep one"),
    ({"skip": "3-9"}, "--skip 3-9: there is no block 9 to skip; this host has blocks 0 to 4"),
    ({"skip": "4-3"}, "--skip 4-3: the range of blocks 4-3 is empty; write 3-4, as in --skip"),
    ({"skip": "a"}, "'a' is neither a block nor a range of blocks"),
    ({"skip": ""}, "names no block, as in --skip 10-20"),
    ({"skip": "heads=3"}, "takes layers, attention, mlp, each once, not 'heads'"),
    ({"skip": "mlp=1,mlp=2"}, "each once, not 'mlp'"),
    ({"skip": "1", "draft": "OTHER"}, "skips blocks of the target; --draft .* is another model"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda o: str(o)[:40])
def test_bad_routes_are_refused_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    if "draft" in options:
        options = {**options, "draft": str(checkpoint)}
    with pytest.raises(GraftlineError, match=message) as caught:
        optimize(checkpoint, tmp_path / "out", recipe="self-skip", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_skip_the_recipe_has_a_route_of_its_own(checkpoint: Path, tmp_path: Path) -> None:
    made = optimize(checkpoint, tmp_path / "a", recipe="self-skip", dtype="int8")
    assert "layer-skip{layers=middle}" in made.manifest.stages["route"].pipeline
    assert "--skip" not in made.manifest.rebuild
    engine = load(made.path, exact=True)
    plain = engine.generate([5, 6, 7], recipe="plain", max_new_tokens=12, ignore_eos=True)
    own = engine.generate([5, 6, 7], max_new_tokens=12, ignore_eos=True)
    assert own.tokens == plain.tokens


def test_a_bundle_without_a_route_says_how_to_get_one(checkpoint: Path, tmp_path: Path) -> None:
    made = optimize(checkpoint, tmp_path / "a", recipe="plain")
    assert load(made.path).resources.route is None
    with pytest.raises(GraftlineError, match=r"needs a route here; .*CHECKPOINT --skip 10-20"):
        load(made.path, recipe="self-skip")
