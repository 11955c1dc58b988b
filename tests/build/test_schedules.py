"""Recipes whose tokens are computed without all of the model: unified-layer-skip and skipdecode."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.build.plan import Plan
from graftline.bundle.reader import Bundle
from graftline.commands.cli import app
from graftline.errors import GraftlineError
from graftline.evaluate import run
from graftline.route import LOWER, SPREAD, ordered
from graftline.runtimes.load import load
from graftline.runtimes.schedules.budgets import Budgets
from graftline.runtimes.study.perplexity import HELD_OUT
from tests.tiny_checkpoints import WIDE, TinyCheckpoint

SPEC = replace(WIDE, layers=8)
UNIFIED, SKIPDECODE = "unified-layer-skip", "skipdecode"
STAGES = {UNIFIED: ["unified-1"], SKIPDECODE: ["budgets-1", "budgets-2", "budgets-3"]}
PROMPT, NEW = [7, 30, 101, 5, 66, 91], 136


@pytest.fixture(scope="module")
def checkpoint(
    known_checkpoints: dict[Path, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    known_checkpoints[path] = TinyCheckpoint(path, SPEC)
    return path


@pytest.fixture(scope="module", params=STAGES)
def bundle(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    out = tmp_path_factory.mktemp("schedules") / "made.graft"
    return optimize(checkpoint, out, recipe=request.param)


def skipped_at(recipe: str, position: int, prompt: int) -> frozenset[int]:
    """The definition: 3 of 8 blocks everywhere; or behind the prompt a quarter of 128 steps each
    with all, without 1, 2 and 3 blocks from the second on."""
    if recipe == UNIFIED:
        return ordered(8, 3, SPREAD)
    step = position - prompt
    return frozenset() if step < 0 or recipe == "plain" else ordered(8, min(step // 32, 3), LOWER)


def reference(recipe: str, tokens: Sequence[int], prompt: int = len(PROMPT)) -> np.ndarray:
    """Logits [N, V] of a whole text, nothing cached: what a block adds to the stream of a position
    that skips it is multiplied by zero."""
    model = SPEC.build()
    keep = np.ones((8, 1, len(tokens), 1), np.float32)
    for position in range(len(tokens)):
        keep[sorted(skipped_at(recipe, position, prompt)), :, position] = 0
    sums = [node for node in model.graph if node.op_type == "Add"]
    assert len(sums) == 16
    for place, node in enumerate(sums):  # of each block, attention's and the MLP's
        value = ir.AttrTensor("value", ir.tensor(keep[place // 2]))
        gate = ir.Node("", "Constant", [], {"value": value})
        gated = ir.Node("", "Mul", [node.inputs[1], gate.outputs[0]])
        model.graph.insert_before(node, [gate, gated])
        node.replace_input_with(1, gated.outputs[0])
    feed = {"tokens": np.asarray([tokens]), "positions": np.arange(len(tokens))[None]}
    return run(model, feed)["logits"][0]


def generate(engine: Any, prompt: Any = None, **options: Any) -> Any:
    prompt = PROMPT if prompt is None else prompt
    return engine.generate(prompt, max_new_tokens=NEW, ignore_eos=True, **options)


def test_tokens_are_those_of_the_definition(bundle: Bundle) -> None:
    """Every token is the best one of a model that leaves out at each position what the method says,
    recomputed from the first position on."""
    answer = generate(load(bundle.path))
    expected = reference(bundle.manifest.recipe, [*PROMPT, *answer.tokens])[len(PROMPT) - 1 : -1]
    best = np.sort(expected, axis=-1)
    chosen = expected[np.arange(NEW), answer.tokens]
    assert (best[:, -1] - chosen < 1e-3).all()
    assert (best[:, -1] - best[:, -2] > 1e-3).mean() > 0.9
    plain = load(bundle.path, recipe="plain")
    assert generate(plain).tokens != answer.tokens


def test_every_law_of_the_schedule_is_held(bundle: Bundle) -> None:
    last = STAGES[bundle.manifest.recipe][-1]
    laws = {(row.graft, row.law): row.status for row in bundle.manifest.laws}
    assert laws[last, "schedule"] == "held"
    assert all(laws[stage, "skipped"] == "held" for stage in STAGES[bundle.manifest.recipe])


def test_work_is_saved_by_the_call(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which graph answers which call, and the attentions that each of them runs."""
    engine = load(bundle.path)
    graphs = engine.policies.of(None).course.graphs  # type: ignore[attr-defined]
    calls: list[int] = []
    for number, graph in enumerate(graphs):
        kept = sum(p.role == "cache.key" for p in graph.ports if p.mirror) or len(
            {p.layer for p in graph.ports if p.mirror}
        )
        real = graph.follow

        def counted(*given: Any, real: Any = real, kept: int = kept) -> Any:
            calls.append(kept)
            return real(*given)

        monkeypatch.setattr(graph, "follow", counted)
        assert number == 0 or kept < 8
    generate(engine)
    if bundle.manifest.recipe == UNIFIED:
        assert calls == [5] * NEW  # the prompt and all steps but the last, which needs none
    else:
        assert calls == [8] * 32 + [7] * 32 + [6] * 32 + [5] * (NEW - 1 - 96)


def test_a_batch_and_neighbours_of_other_recipes_change_nothing(bundle: Bundle) -> None:
    """Ragged prompts of several recipes in the same steps, one of which drafts."""
    recipe = bundle.manifest.recipe
    prompts = [PROMPT, PROMPT[:3], [*PROMPT, 9, 9], PROMPT[1:], PROMPT * 3]
    names = [recipe, "plain", recipe, "prompt-lookup", recipe]
    pairs = zip(prompts, names, strict=True)
    alone = [generate(load(bundle.path), p, recipe=n).tokens for p, n in pairs]
    engine = load(bundle.path)
    each: list[Any] = [{"recipe": name} for name in names]
    together = generate(engine, prompts, options=each)
    assert [r.tokens for r in together] == alone
    assert [r.stats.lossless for r in together] == [False, True, False, True, False]
    exact = generate(load(bundle.path), [PROMPT, PROMPT[:4]], exact=True)
    assert exact[0].tokens == alone[0]


def test_explain_tells_which_graph_computed_each_token(bundle: Bundle) -> None:
    recipe, engine = bundle.manifest.recipe, load(bundle.path)
    stories = engine.explain()
    answer = generate(engine)
    assert [token for one in stories for token in one.fresh] == answer.tokens[1:]
    told = [one.why.partition(";")[0].removeprefix("computed by ") for one in stories]
    if recipe == UNIFIED:
        assert told == ["route 1 of unified"] * (NEW - 1)
    else:
        parts = ["all of the model", *(f"route {n} of budgets" for n in (1, 2, 3))]
        assert told == [parts[min(step // 32, 3)] for step in range(NEW - 1)]
    shown = CliRunner().invoke(
        app, ["run", str(bundle.path), "hello", "--explain", "--max-new-tokens", "4"]
    )
    assert "computed by" in shown.output
    del stories[:]
    generate(engine, [PROMPT, PROMPT[:3]], options=[{"recipe": recipe}, {"recipe": "plain"}])
    assert {one.why.startswith("computed by all of the model") for one in stories} == (
        {True, False}
    )


def test_nobody_gets_keys_and_values_that_a_route_has_written(bundle: Bundle) -> None:
    engine = load(bundle.path)
    plain = generate(load(bundle.path, recipe="plain")).tokens
    mine = generate(engine).tokens
    assert generate(engine, recipe="plain").tokens == plain
    text = [*PROMPT, *mine[:60]]
    follow = generate(engine, text, recipe="plain").tokens
    assert follow == generate(load(bundle.path, recipe="plain"), text).tokens
    again = generate(engine)
    assert again.tokens == mine
    assert (again.stats.reused > 0) == (bundle.manifest.recipe == SKIPDECODE)


def test_it_says_everywhere_that_it_is_lossy(bundle: Bundle, tmp_path: Path) -> None:
    path, invoke = str(bundle.path), CliRunner().invoke
    said = invoke(app, ["run", path, "hello", "--stats", "--max-new-tokens", "8"])
    assert "not lossless" in " ".join(said.output.split())
    shown = " ".join(invoke(app, ["inspect", path]).output.split())
    assert f"stage {STAGES[bundle.manifest.recipe][0]}" in shown
    assert "not lossless" in shown
    listed = " ".join(invoke(app, ["recipes"]).output.split())
    assert bundle.manifest.recipe in listed


def test_check_holds_and_measures_the_tokens(bundle: Bundle) -> None:
    if bundle.manifest.recipe == UNIFIED:
        pytest.skip("the budgets have all that is checked of the other")
    report = check(bundle.path)
    assert report.holds, [f for f in report.findings if not f.holds]
    assert any(f.what == "law schedule" for f in report.findings)


def test_bench_prints_quality_beside_speed(bundle: Bundle, tmp_path: Path) -> None:
    """Perplexity is that of the definition, on the very text."""
    prompts, figures, name = tmp_path / "p.jsonl", tmp_path / "f.json", bundle.manifest.recipe
    prompts.write_text('{"prompt": "hello"}\n')
    asked = ["bench", str(bundle.path), "--prompts", str(prompts), "--recipes", name]
    result = CliRunner().invoke(app, [*asked, "--max-new-tokens", "6", "--json", str(figures)])
    assert result.exit_code == 0, result.output
    assert f"{name}, not lossless: perplexity" in result.output
    found = json.loads(figures.read_text())["recipes"]
    assert "quality" not in found["plain"]
    tokenizer = load(bundle.path).tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode_part(HELD_OUT.read_text(encoding="utf-8"))[:256]
    for recipe, key in ((name, "perplexity"), ("plain", "plain")):
        logits = reference(recipe, ids, 64)[63:-1].astype(np.float64)
        chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = np.exp(-chances[np.arange(192), ids[64:]].mean())
        assert found[name]["quality"][key] == pytest.approx(expected, rel=1e-3)


REFUSED: Mapping[str, tuple[dict[str, Any], str]] = {
    "plain": ({"recipe": "plain", "speedup": 1.5}, "plain does not: leave it out"),
    "nothing": ({"recipe": UNIFIED, "speedup": 1.0}, "a speed-up of 1 skips nothing"),
    "much": ({"recipe": UNIFIED, "speedup": 9.0}, "use at most 3"),
    "budgets": ({"recipe": SKIPDECODE, "speedup": 2.0}, "more than 1 and less than 2 times"),
    "target": ({"recipe": UNIFIED, "target": "trt-rtx:sm89", "dtype": "fp16"},
               "recipe unified-layer-skip needs --target ort-cpu, not trt-rtx:sm89"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_speed_ups_are_refused_and_nothing_is_written(
    checkpoint: Path, tmp_path: Path, case: str
) -> None:
    options, message = REFUSED[case]
    with pytest.raises(GraftlineError, match=message) as caught:
        optimize(checkpoint, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_without_routes_and_prompt_scores_are_refused(
    checkpoint: Path, tmp_path: Path, bundle: Bundle
) -> None:
    other = {UNIFIED: SKIPDECODE, SKIPDECODE: UNIFIED}[bundle.manifest.recipe]
    with pytest.raises(GraftlineError, match=f"recipe {other} needs routes here; build"):
        load(bundle.path, recipe=other)
    if bundle.manifest.recipe == UNIFIED:
        with pytest.raises(GraftlineError, match="reads prompts without some blocks"):
            load(bundle.path).generate(PROMPT, prompt_logprobs=1)


def test_the_command_that_makes_it_again_has_the_speed_up() -> None:
    none: Any = None
    asked = "ort-cpu", "fp32", none, none, (), "", "host"
    plan = Plan.of(UNIFIED, none, *asked, speedup=2.0)
    assert plan.command("A", "B", "").endswith(f"--recipe {UNIFIED} --dtype fp32 --speedup 2")
    assert "layer-skip{speedup=2}" not in plan.stages[0].text
    assert "layer-skip{speedup=2.0}" in plan.stages[-1].text


def test_budgets_fall_in_levels_whose_mean_is_the_speed_up() -> None:
    budgets = Budgets(speedup=1.25, levels=3, span=128)
    routes = [budgets.route(step, 3) for step in range(200)]
    assert routes == [0] * 32 + [1] * 32 + [2] * 32 + [3] * 104
    gains = [1.0, *(float(p.partition("=")[2].partition(",")[0]) for p in budgets.passes())]
    assert np.mean([1 / gain for gain in gains]) == pytest.approx(1 / 1.25, abs=1e-3)
