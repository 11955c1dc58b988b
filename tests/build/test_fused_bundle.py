"""A bundle with a fused step: made over the same weights, shown, proven again, and used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.build.recheck import recheck
from graftline.bundle.reader import Bundle
from graftline.commands.cli import app
from graftline.errors import BackendError, GraftlineError, LawBroken
from graftline.runtimes.engine import Engine
from graftline.runtimes.load import load

PROMPT = "abcabdabcabd"


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("fused") / "tiny.graft"
    return optimize(tiny_checkpoint, out, recipe="token-recycling", step="fused")


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Engine:
    return load(bundle.path, step="fused", capacity=256)


def test_the_second_graph_brings_no_second_weights(
    bundle: Bundle, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    alone = optimize(tiny_checkpoint, tmp_path / "alone.graft", recipe="token-recycling")
    weights = {rel: f for rel, f in bundle.manifest.files.items() if rel.endswith(".weights")}
    assert weights == {
        rel: f for rel, f in alone.manifest.files.items() if rel.endswith(".weights")
    }
    assert set(bundle.manifest.files) - set(alone.manifest.files) == {"fused.onnx"}
    assert bundle.manifest.main.pipeline == alone.manifest.main.pipeline
    assert bundle.manifest.rebuild.endswith(" --step fused")
    told = bundle.manifest.stages["fused"].pipeline
    assert "| fuse-verify{sample=true} | fuse-draft | pack" in told
    assert told.endswith("pack-projections | lower-ort")


def test_its_passes_and_laws_are_in_the_manifest_and_hold_again(bundle: Bundle) -> None:
    passes = [p.name for p in bundle.manifest.passes]
    assert passes.count("lower-ort") == 1
    assert {"fuse-verify", "fuse-draft"} <= set(passes)
    laws = {(w.graft.partition("{")[0], w.law) for w in bundle.manifest.laws}
    assert {("fuse-verify", "fused"), ("fuse-draft", "drafted"), ("fused", "fused")} <= laws
    report = check(bundle.path)
    assert report.holds, [f for f in report.findings if not f.holds]
    found = [f.what for f in report.findings]
    assert "law fused" in found
    assert found.count("law reproducible") == 2 + len(bundle.manifest.of_role("form"))
    assert any(what.startswith("greedy tokens, token-recycling, fused") for what in found)


def test_a_graph_that_its_pipeline_does_not_make_is_found(bundle: Bundle) -> None:
    other = bundle.manifest.stages["fused"].pipeline.replace("{sample=true}", "")
    stages = bundle.manifest.stages
    stages = {**stages, "fused": replace(stages["fused"], pipeline=other)}
    manifest = replace(bundle.manifest, stages=stages)
    with pytest.raises(LawBroken, match="fused breaks the law 'reproducible'"):
        recheck(Bundle(bundle.path, manifest), lambda line: None)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "min_p": 0.02, "seed": 3}])
def test_stop_strings_end_inside_an_accepted_path(
    engine: Engine, options: dict[str, Any]
) -> None:
    asked = {"max_new_tokens": 60, "ignore_eos": True, **options}
    free: Any = engine.generate(PROMPT, recipe="plain", step="host", **asked)
    text = free.text
    assert engine.generate(PROMPT, **asked).text == text  # type: ignore[union-attr]
    for start in range(4, 40, 3):
        stop = text[start : start + 3]
        host: Any = engine.generate(PROMPT, recipe="plain", step="host", stop=stop, **asked)
        fused: Any = engine.generate(PROMPT, stop=stop, **asked)
        assert (fused.text, fused.tokens) == (host.text, host.tokens)
        assert fused.finish_reason == host.finish_reason == "stop"
        both: Any = engine.generate([PROMPT, "xy"], stop=stop, **asked)
        assert both[0].tokens == host.tokens
    stream = engine.stream(PROMPT, stop=text[20:23], **asked)
    assert "".join(stream) == text[: text.index(text[20:23])]


def test_the_command_line(bundle: Bundle) -> None:
    def said(*words: str) -> str:
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        return result.stdout

    run = ["run", str(bundle.path), PROMPT, "--max-new-tokens", "30", "--json"]
    host, fused = json.loads(said(*run)), json.loads(said(*run, "--step", "fused"))
    assert fused["tokens"] == host["tokens"]
    assert fused["stats"]["controller"].startswith("fused: ")
    assert "fuse-verify{sample=true}" in said("inspect", str(bundle.path))
    shown = json.loads(said("inspect", str(bundle.path), "--stage", "fused", "--json"))
    assert {"accepted", "count"} <= {p["role"] for p in shown["graph"]["ports"]}


def test_bench_compares_the_fused_step_with_plain(bundle: Bundle, tmp_path: Path) -> None:
    questions, figures = tmp_path / "q.jsonl", tmp_path / "figures.json"
    questions.write_text(json.dumps({"prompt": PROMPT}) + "\n")
    words = [
        "bench", str(bundle.path), "--prompts", str(questions), "--max-new-tokens", "30",
        "--ignore-eos", "--step", "fused", "--json", str(figures),
    ]  # fmt: skip
    assert CliRunner().invoke(app, [*words, "--recipes", "token-recycling"]).exit_code == 0
    found = json.loads(figures.read_text())
    assert found["step"] == "fused"
    assert found["recipes"]["token-recycling"]["overall"]["identical"]
    assert found["recipes"]["token-recycling"]["overall"]["predicted"] is None
    refused = CliRunner().invoke(app, [*words, "--recipes", "suffix"])
    assert refused.exit_code == 2
    assert "recipe suffix: a fused step drafts by token-recycling" in refused.stderr


def test_refusals(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "no.graft"
    for options, told in (
        ({"recipe": "prompt-lookup"}, "medusa or eagle, not by prompt-lookup"),
        ({"recipe": "token-recycling", "step": "fusd"}, "unknown step 'fusd'; did you mean"),
        ({"recipe": "token-recycling", "target": "ort-cuda"}, "--step fused needs --target"),
        ({"recipe": "token-recycling", "passes": "kv-cache"}, "needs the target.s argmax"),
    ):
        with pytest.raises(GraftlineError, match=told):
            optimize(tiny_checkpoint, out, **{"step": "fused", **options})  # type: ignore[arg-type]
        assert not out.exists()
    with pytest.raises(BackendError, match=r"has no fused step; rebuild: .*--step fused"):
        load(tiny_bundle, step="fused")
    with pytest.raises(GraftlineError, match="unknown step 'both'"):
        load(tiny_bundle, step="both")
