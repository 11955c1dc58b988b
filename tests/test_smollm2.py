"""The main job on the real model: a checkpoint in, a lossless engine out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graftline
from graftline.bundle.reader import Bundle
from graftline.contrib_ops.quantized import dequantize
from graftline.errors import BundleError
from graftline.kinds.decoder.kind import Decoder
from graftline.nearness import gaps, limit
from graftline.passes.lower.quantize.block_codes import quantize_rows
from graftline.passes.lower.quantize.rounding import Moments, compensated
from graftline.runtimes.engine import Engine
from graftline.runtimes.study.perplexity import HELD_OUT
from graftline.runtimes.text.tokenizer import Tokenizer
from graftline.targets import QUANTIZE
from tests.free_engine import free

PROMPTS = (
    "Summarize: The cat sat on the mat. The cat sat on the mat again. The dog saw the cat.",
    "Write a Python function that adds two numbers and one that multiplies two numbers.",
    "Repeat after me: one two three four five six seven eight nine ten, one two three four five.",
)
DRAFTING = ("prompt-lookup", "token-recycling", "suffix")
COUNT = 40
HEAD = Path(__file__).parent / "bench" / "heads" / "smollm2-135m-instruct-eagle3"


@pytest.fixture(scope="module")
def bundle(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a fused step beside the host's, so that one bundle serves both."""
    out = tmp_path_factory.mktemp("smollm2") / "fp32.graft"
    made = graftline.optimize(smollm2_gguf, out, recipe="token-recycling", step="fused")
    laws = {w.law: w.text for w in made.manifest.laws if w.graft == "fused"}
    assert laws["fused"].startswith("24 steps")
    held = {w.law for w in made.manifest.laws if w.status == "held"}
    assert {"whole", "neutral", "checkpoint"} <= held
    assert made.manifest.exactness is not None
    return out


@pytest.fixture(scope="module")
def engine(bundle: Path, no_measuring: None) -> Engine:
    return graftline.load(bundle, capacity=512)


@pytest.fixture(scope="module")
def fused(bundle: Path) -> Engine:
    """The whole tree in every step, however busy the machine is."""
    loaded = graftline.load(bundle, step="fused", capacity=512)
    loaded.policies.costs = None
    return loaded


@pytest.fixture(scope="module")
def plain(engine: Engine) -> list[list[int]]:
    return [tokens(engine, p, recipe="plain") for p in PROMPTS]


def test_the_file_is_what_the_bundle_says(bundle: Path, smollm2_gguf: Path) -> None:
    facts = Bundle.open(bundle).manifest.facts
    assert (facts.layers, facts.source) == (30, smollm2_gguf.name)
    assert (bundle / "tokenizer" / "tokenizer.json").is_file()


def tokens(engine: Engine, prompt: str, **options: Any) -> list[int]:
    return engine.generate(prompt, max_new_tokens=COUNT, ignore_eos=True, **options).tokens


@pytest.mark.parametrize("recipe", DRAFTING)
def test_drafting_changes_no_token(engine: Engine, plain: list[list[int]], recipe: str) -> None:
    drafted = 0
    for prompt, expected in zip(PROMPTS, plain, strict=True):
        result: Any = engine.generate(prompt, max_new_tokens=COUNT, ignore_eos=True, recipe=recipe)
        assert result.tokens == expected
        assert result.stats.lossless
        assert result.stats.row_invariant
        drafted += result.stats.drafted
    assert drafted > 0, "nothing was drafted, so nothing was tested"


@pytest.mark.parametrize("recipe", ["plain", "token-recycling"])
def test_a_ragged_batch_is_each_alone(engine: Engine, plain: list[list[int]], recipe: str) -> None:
    results: Any = engine.generate(
        list(PROMPTS), max_new_tokens=COUNT, ignore_eos=True, recipe=recipe
    )
    assert [r.tokens for r in results] == plain


def test_plain_is_what_transformers_decodes(
    engine: Engine, plain: list[list[int]], smollm2: Path
) -> None:
    """Token for token; a difference must be a near-tie of transformers' own two best logits."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    for prompt, ours in zip(PROMPTS, plain, strict=True):
        assert engine.tokenizer is not None
        ids = engine.tokenizer.encode(prompt)
        with torch.no_grad():
            logits = model(torch.tensor([ids + ours])).logits[0, len(ids) - 1 : -1]
        best = logits.topk(2).values.numpy()
        for at in np.flatnonzero(logits.argmax(-1).numpy() != np.asarray(ours)):
            gap = float(best[at, 0] - best[at, 1])
            assert gap < 1e-3, f"token {at} differs where the two best are {gap:.3g} apart"


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "min_p": 0.05, "seed": 5}])
def test_fused_steps_give_plains_tokens(fused: Engine, options: dict[str, Any]) -> None:
    """One engine call per step, and the host's very tokens."""
    asked = {"max_new_tokens": COUNT, "ignore_eos": True, **options}
    plain: Any = fused.generate(list(PROMPTS[1:]), recipe="plain", step="host", **asked)
    found: Any = fused.generate(list(PROMPTS[1:]), **asked)
    assert [r.tokens for r in found] == [r.tokens for r in plain]
    assert [r.text for r in found] == [r.text for r in plain]
    assert all(r.stats.lossless and r.stats.steps < COUNT - 2 for r in found)


def test_the_projects_own_head_drafts_what_the_model_says(
    smollm2_gguf: Path, plain: list[list[int]], tmp_path: Path, no_measuring: None
) -> None:
    """The head of `make demo`, whose lm_head rows are the model's own."""
    size = sum(file.stat().st_size for file in HEAD.iterdir())
    assert size <= 10 * 2**20
    out = graftline.optimize(smollm2_gguf, tmp_path / "out.graft", head=str(HEAD)).path
    drafting = free(out, recipe="eagle-3", capacity=512)
    steps = 0.0
    for prompt, expected in zip(PROMPTS, plain, strict=True):
        result: Any = drafting.generate(prompt, max_new_tokens=COUNT, ignore_eos=True)
        assert result.tokens == expected
        steps += COUNT / result.stats.mat
    # a head that reads another layer's states stays near 1
    assert len(PROMPTS) * COUNT / steps > 1.3


def test_streamed_pieces_are_the_text(engine: Engine) -> None:
    whole: Any = engine.generate(PROMPTS[1], max_new_tokens=COUNT)
    pieces = list(engine.stream(PROMPTS[1], max_new_tokens=COUNT))
    assert "".join(pieces) == whole.text
    assert len(pieces) > 3


def test_every_way_it_decodes_answers_as_its_export(bundle: Path, no_measuring: None) -> None:
    """What `check` compares of answers; the laws, which it runs again, are those of `optimize`."""
    findings = Decoder().answers(Bundle.open(bundle))
    assert all(f.holds for f in findings), findings
    told = [f.what for f in findings]
    for way in ("plain", "token-recycling", "token-recycling, fused"):
        assert sum(what.startswith(f"greedy tokens, {way}") for what in told) >= 2, told


def test_one_flipped_byte_is_refused(bundle: Path) -> None:
    graph = bundle / "ort-cpu.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    try:
        with pytest.raises(BundleError, match=r"ort-cpu\.onnx was changed"):
            graftline.load(bundle)
    finally:
        graph.write_bytes(whole)


@pytest.fixture(scope="module", params=["int4", "int8"])
def quantized(
    request: pytest.FixtureRequest, smollm2_gguf: Path, no_measuring: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Engine:  # fmt: skip
    """All blocks as integers, the nearest ones: calibrating all of int4 takes three minutes, and
    how a matrix is rounded is nothing to the kernels."""
    out = tmp_path_factory.mktemp("smollm2") / f"{request.param}.graft"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(QUANTIZE, "int4", "quantize{bits=4,block=0,head_bits=8,embedding=true}")
        made = graftline.optimize(smollm2_gguf, out, dtype=request.param)
    quality, most = made.manifest.quality, {"int4": 1.35, "int8": 1.02}[request.param]
    assert quality[f"perplexity {request.param}"] < most * quality["perplexity fp32"]
    return graftline.load(out, capacity=512, exact=True)


def test_exact_integers_change_no_token_either(quantized: Engine) -> None:
    for prompt in PROMPTS[:2]:
        expected = tokens(quantized, prompt, recipe="plain")
        for recipe in DRAFTING:
            assert tokens(quantized, prompt, recipe=recipe) == expected


def test_steps_are_padded_where_a_row_alone_is_rounded_unlike_several(quantized: Engine) -> None:
    """What `exact_rows` says is what the kernels of this very processor do with a real prompt."""
    session = quantized.session
    ids = np.asarray(quantized.encode(PROMPTS[0]), np.int64)
    session.reset(1)
    session.prefill([ids])
    alone, *beside = (session.score(ids[None, :rows]).logits[0, :1].copy() for rows in (1, 2, 5))
    apart = max(float(gaps(other, alone).max()) for other in beside)
    assert apart <= limit("fp32", session.facts) or session.exact_rows != 1
    few, more = (session.score(ids[None, :rows]).logits[0, :1].copy() for rows in (2, 5))
    assert session.exact_rows != 2 or float(gaps(more, few).max()) <= limit("fp32", session.facts)
    session.reset(0)


def test_compensation_keeps_a_real_matrix_closer(smollm2: Path) -> None:
    """Of the first block's queries, for the inputs that another text gives them."""
    from safetensors import safe_open

    with safe_open(smollm2 / "model.safetensors", "np") as file:
        table, scale, rows = (
            np.asarray(file.get_tensor(f"model.{name}.weight"), np.float32)
            for name in ("embed_tokens", "layers.0.input_layernorm", "layers.0.self_attn.q_proj")
        )
    text = HELD_OUT.read_text(encoding="utf-8")
    ids = np.asarray(Tokenizer.from_folder(smollm2).encode(text, raw=True))
    inputs = table[ids] / np.sqrt((table[ids] ** 2).mean(-1, keepdims=True) + 1e-5) * scale
    seen, others = np.array_split(inputs, 2)
    near = quantize_rows(rows, 4, 32, "rtn")
    good = compensated(rows, Moments(seen, 32), 4, 32)
    errors = [
        float(np.linalg.norm(others @ (dequantize(p.data.reshape(len(rows), -1), p.scales, p.zeros,
                                                  rows.shape[1], 32, 4) - rows).T))
        for p in (near, good)
    ]  # fmt: skip
    print("relative error", errors[1] / errors[0])
    assert errors[1] < 0.75 * errors[0]
