"""A bundle whose tokens mostly pass some blocks by: each is that of the definition, in torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.commands.cli import app
from graftline.errors import GraftlineError
from graftline.models.heads.lora_drop import CYCLE, DOWN, UP
from graftline.models.tiny import tiny
from graftline.models.training.frozen import FrozenHost
from graftline.models.training.lora_drop import LoraDrop
from graftline.recipe import recipe
from graftline.runtimes.load import load
from graftline.runtimes.schedules.refresh import Refresh
from graftline.runtimes.study.perplexity import HELD_OUT
from tests.kangaroo_files import seeded as kangaroo_tensors
from tests.kangaroo_files import write_kangaroo
from tests.lora_drop_files import seeded, write_lora_drop
from tests.tiny_checkpoints import write_tokenizer

BLOCKS, HIDDEN, RANK, LAYERS = 6, 64, 4, (1, 3)
"""Apart, and a block behind others than those; the passes' own tests have two in a row."""
PROMPT, NEW = [7, 30, 101, 5, 66, 91], 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("lora-drop")
    tiny("llama", place / "host", vocab_size=260, num_hidden_layers=BLOCKS, hidden_size=HIDDEN,
         max_position_embeddings=512)  # fmt: skip
    write_tokenizer(place / "host")
    tensors = seeded(LAYERS, HIDDEN, RANK)
    write_lora_drop(place / "head", tensors, BLOCKS, alpha=2.0 * RANK)
    return place


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return optimize(folder / "host", folder / "made.graft", head=str(folder / "head"))


@pytest.fixture(scope="module")
def student(folder: Path) -> LoraDrop:
    """The definition: one pass of the host in torch, with masks and mixed streams."""
    made = LoraDrop(FrozenHost(folder / "host"), "+".join(map(str, LAYERS)), RANK)
    tensors = load_file(folder / "head" / "model.safetensors")
    with torch.no_grad():
        for place, layer in enumerate(LAYERS):
            made.module.down[place].copy_(tensors[DOWN.format(layer)])
            made.module.up[place].copy_(tensors[UP.format(layer)])
    return made


def logits(student: LoraDrop, ids: list[int], prompt: int) -> np.ndarray:
    """[N, V] of a whole text: behind the prompt all blocks compute each fourth position."""
    places = torch.arange(len(ids))
    refreshed = places - (places - prompt).clamp_min(0) % CYCLE
    with torch.no_grad():
        states = student.read(torch.tensor([ids]), refreshed[None])[0]
        return student.scores(states, 0, None).numpy()


def generate(engine: Any, prompt: Any = None, **options: Any) -> Any:
    given = PROMPT if prompt is None else prompt
    return engine.generate(given, max_new_tokens=NEW, ignore_eos=True, **options)


def test_tokens_are_those_of_the_definition(bundle: Bundle, student: LoraDrop) -> None:
    answer = generate(load(bundle.path))
    rows = logits(student, [*PROMPT, *answer.tokens], len(PROMPT))[len(PROMPT) - 1 : -1]
    chosen = rows[np.arange(NEW), answer.tokens]
    assert (rows.max(axis=-1) - chosen < 1e-4).all()
    assert not answer.stats.lossless
    assert generate(load(bundle.path, recipe="plain")).tokens != answer.tokens


def test_neighbours_change_nothing_and_get_nothing(bundle: Bundle) -> None:
    """Ragged prompts of several recipes, in seats that move; and what a route wrote is no other
    text's beginning."""
    prompts = [PROMPT, PROMPT[:3], [*PROMPT, 9, 9], PROMPT[1:], PROMPT * 3]
    names = ["lora-drop", "plain", "lora-drop", "prompt-lookup", "lora-drop"]
    pairs = zip(prompts, names, strict=True)
    alone = [generate(load(bundle.path), p, recipe=n).tokens for p, n in pairs]
    engine = load(bundle.path)
    each: list[Any] = [
        {"recipe": name, "max_new_tokens": NEW - 3 * place} for place, name in enumerate(names)
    ]
    found = engine.generate(prompts, ignore_eos=True, options=each)
    assert [len(r.tokens) for r in found] == [NEW - 3 * place for place in range(5)]
    assert all(r.tokens == t[: len(r.tokens)] for t, r in zip(alone, found, strict=True))
    text = [*PROMPT, *alone[0][:10]]
    plain = generate(load(bundle.path, recipe="plain"), text).tokens
    assert generate(engine, text, recipe="plain").tokens == plain
    assert generate(engine).tokens == alone[0]


def test_stages_laws_and_work(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.recipe == "lora-drop"
    assert list(manifest.stages) == ["export", "canonical", "adapter", "ort-cpu", "refresh-1"]
    laws = {(row.graft, row.law): row.status for row in manifest.laws}
    for law in ("substituted", "corrected", "schedule"):
        assert laws["refresh-1", law] == "held"
    light = {p.layer for p in manifest.stages["refresh-1"].ports if p.role == "cache.key"}
    assert light == set(range(BLOCKS)) - set(LAYERS), "a light step computes no other block"
    assert check(bundle.path).holds


def test_it_says_that_it_is_lossy_and_bench_prints_its_quality(
    bundle: Bundle, student: LoraDrop, tmp_path: Path
) -> None:
    prompts, figures = tmp_path / "p.jsonl", tmp_path / "f.json"
    prompts.write_text('{"prompt": "hello"}\n')
    asked = ["bench", str(bundle.path), "--prompts", str(prompts), "--recipes", "lora-drop"]
    result = CliRunner().invoke(app, [*asked, "--max-new-tokens", "6", "--json", str(figures)])
    assert result.exit_code == 0, result.output
    told = " ".join(result.output.split())
    assert "lora-drop, not lossless: perplexity" in told
    assert "25% of them computed by the whole model" in told
    quality = json.loads(figures.read_text())["recipes"]["lora-drop"]["quality"]
    tokenizer = load(bundle.path).tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode_part(HELD_OUT.read_text(encoding="utf-8"))[:256]
    rows = logits(student, ids, 64)[63:-1].astype(np.float64)
    chances = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
    expected = np.exp(-chances[np.arange(192), ids[64:]].mean())
    assert quality["perplexity"] == pytest.approx(expected, rel=1e-3)
    assert quality["perplexity"] != pytest.approx(quality["plain"], rel=1e-3)
    shown = " ".join(CliRunner().invoke(app, ["inspect", str(bundle.path)]).output.split())
    assert "stage refresh-1" in shown
    assert "not lossless" in shown


def test_states_and_flags_survive_growth_and_moves(bundle: Bundle) -> None:
    """A sequence that is seated beside many, and moves when another leaves, goes on as alone."""
    engine = load(bundle.path)
    alone = generate(engine).tokens
    many = [[3, 4, number] for number in range(9)]
    each: list[Any] = [{"max_new_tokens": 2 + place} for place in range(9)]
    each.append({"max_new_tokens": NEW})
    found = engine.generate([*many, PROMPT], ignore_eos=True, options=each)
    assert found[-1].tokens == alone


REFUSED: Mapping[str, tuple[dict[str, Any], str]] = {
    "head": ({"recipe": "lora-drop"}, "lora-drop needs a draft head"),
    "family": ({"recipe": "lora-drop", "head": "kangaroo"}, "lora-drop takes no kangaroo head"),
    "recipe": ({"recipe": "kangaroo", "head": "head", "exits": (2,)}, "takes no lora-drop head"),
    "precision": ({"head": "head:int8"}, "corrections are part of a route, and stay fp32"),
    "passes": ({"head": "head", "passes": "kv-cache | select-rows"}, "put refresh-state"),
    "speed": ({"head": "head", "speedup": 1.5}, "lora-drop: .*no option 'speedup'"),
    "target": ({"head": "head", "target": "trt-rtx:sm89", "dtype": "fp16"}, "--target ort-cpu"),
    "blocks": ({"head": "other"}, "num_hidden_layers is 7, but .* needs 6"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused(folder: Path, tmp_path: Path, case: str) -> None:
    options, message = dict(REFUSED[case][0]), REFUSED[case][1]
    if case == "family":
        write_kangaroo(folder / "kangaroo", kangaroo_tensors(HIDDEN, 2, 1), 2, 1, 260)
    if case == "blocks":
        write_lora_drop(folder / "other", seeded((2, 6), HIDDEN), 7, 8.0)
    if "head" in options:
        options["head"] = str(folder / options["head"])
    with pytest.raises(GraftlineError, match=message) as caught:
        optimize(folder / "host", tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_training_and_decoding_have_one_cycle() -> None:
    assert recipe("lora-drop").schedule_options == {"cycle": CYCLE}
    taken = [Refresh().route(step, 1) for step in range(9)]
    assert taken == [0, 1, 1, 1, 0, 1, 1, 1, 0]
    with pytest.raises(GraftlineError, match="a cycle of 1 tokens passes no block by"):
        Refresh(cycle=1).check()
