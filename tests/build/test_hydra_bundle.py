"""A bundle with heads that read one another's tokens: a stage of each, proven and decoded with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from graftline.build.check import check
from graftline.build.heads import is_decoder, is_sequential, recipe_of
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.errors import CheckpointError, GraftlineError
from graftline.models.heads import open_head
from graftline.models.heads.eagle_shapes import eagle_shape
from graftline.models.tiny import tiny
from graftline.runtimes.load import load
from graftline.runtimes.session import MADE
from tests.free_engine import free
from tests.hydra_files import seeded_sequence, write_hydra
from tests.markov_host import HIDDEN, VOCABULARY, MarkovCheckpoint, path_of, right_sequence
from tests.medusa_files import seeded, write_safe
from tests.models.heads.reference_hydra import CrossAttention, EagleAttention, Stacks
from tests.models.heads.reference_layers import TINY, Sizes, drawn, state, written
from tests.rounding import assert_same_sums
from tests.tiny_checkpoints import WIDE, write_tokenizer

PROMPTS = [[5, 9, 2], [1] * 9, list(range(40, 57))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hydra")


@pytest.fixture(scope="module")
def markov(known_checkpoints: dict[Path, Any], folder: Path) -> MarkovCheckpoint:
    path = path_of(folder, "markov")
    known_checkpoints[path] = found = MarkovCheckpoint(path, WIDE)
    return found


@pytest.fixture(scope="module")
def right(markov: MarkovCheckpoint, folder: Path) -> Bundle:
    """Heads that know what comes by the last token they read."""
    head = write_hydra(folder / "right", right_sequence(markov))
    return optimize(markov.path, folder / "right.graft", head=str(head))


def test_every_head_is_a_stage(right: Bundle) -> None:
    manifest = right.manifest
    assert manifest.recipe == "hydra"
    assert [o for o in manifest.engines() if o != "target"] == ["head.0", "head.1", "head.2"]
    for number in range(3):
        owner = f"head.{number}"
        stage = manifest.stages[owner]
        ports = {p.role: (p.shape, p.owner) for p in stage.ports}
        assert ports["tokens"] == (("B", "N", number + 1), owner)
        assert ports["heads.topk_ids"] == (("B", "N", 1, 10), owner)
        laws = {(w.graft.partition("{")[0], w.law): w.status for w in manifest.laws
                if w.owner == owner}  # fmt: skip
        wanted = [("export", "formula"), ("draft-heads", "head-formula"), (owner, "whole"),
                  (owner, "best")]  # fmt: skip
        assert {laws[row] for row in wanted} == {"held"}
    assert check(right.path).holds


def test_right_heads_are_accepted_to_their_end(right: Bundle) -> None:
    engine = free(right.path)
    for prompt in PROMPTS:
        result = engine.generate(prompt, max_new_tokens=41, ignore_eos=True)
        assert result.tokens == [(prompt[-1] + 7 * n) % VOCABULARY for n in range(1, 42)]
        assert result.stats.mat > 3.5
    batch = engine.generate(PROMPTS, max_new_tokens=41, ignore_eos=True)
    assert [r.tokens[-1] for r in batch] == [(p[-1] + 7 * 41) % VOCABULARY for p in PROMPTS]
    assert min(r.stats.mat for r in batch) > 3.0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_plains(wide_checkpoint: Path, folder: Path, temperature: float) -> None:
    head = write_hydra(folder / "seeded", seeded_sequence(HIDDEN, VOCABULARY, layers=2))
    out = folder / f"seeded-{temperature}.graft"
    engine = free(optimize(wide_checkpoint, out, head=str(head)).path)
    options: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True}
    options |= {"temperature": temperature, "seed": 3}
    plain = [engine.generate(p, recipe="plain", **options).tokens for p in PROMPTS]
    alone = [engine.generate(p, **options) for p in PROMPTS]
    assert [r.tokens for r in alone] == plain
    assert sum(r.stats.drafted for r in alone) > 200
    if not temperature:
        assert [r.tokens for r in engine.generate(PROMPTS, **options)] == plain


def test_recipes_and_heads_of_different_families_are_refused(
    markov: MarkovCheckpoint, right: Bundle, tmp_path: Path
) -> None:
    hydra = write_hydra(tmp_path / "hydra", right_sequence(markov))
    medusa = write_safe(tmp_path / "medusa", seeded(HIDDEN, VOCABULARY))
    out = tmp_path / "out"
    with pytest.raises(GraftlineError, match=r"medusa drafts with medusa heads, and .* hydra"):
        optimize(markov.path, out, head=str(hydra), recipe="medusa")
    with pytest.raises(GraftlineError, match=r"hydra drafts with hydra heads, and .* medusa"):
        optimize(markov.path, out, head=str(medusa), recipe="hydra")
    with pytest.raises(GraftlineError, match="medusa cannot draft with the heads of this bundle"):
        load(right.path, recipe="medusa")
    passes = "kv-cache | tap{layers=norm} | draft-heads | reduce-logits"
    with pytest.raises(GraftlineError, match="needs heads that read nothing but a state"):
        optimize(markov.path, out, head=str(hydra), passes=passes)
    assert not out.exists()


def step_files(folder: Path, kind: str) -> Path:
    module: Any = {"cross-attn": CrossAttention, "eagle-attn": EagleAttention}[kind]
    config = {
        "hydra_num_heads": 1, "hydra_num_layers": 1, "hydra_head_arch": kind,
        "grounded_heads": True, "hidden_state_offset": 0,
    }  # fmt: skip
    return written(folder, config, state(drawn(module(TINY))))


def test_a_crossed_layer_has_rotary_positions_of_its_own(tmp_path: Path) -> None:
    """Hydra's cross-attn knows no base but 10000, whatever its host's is; its scaling is its
    host's, of the kinds that the published code has."""
    head = open_head(step_files(tmp_path, "cross-attn"))
    assert (recipe_of(head), is_decoder(head), is_sequential(head)) == ("eagle", True, False)
    scaling = {"rope_type": "linear", "factor": 2.0}
    shape = eagle_shape(head, TINY.config(rope_theta=5e5, rope_scaling=scaling))
    assert (shape.rope.theta, shape.rope.numbers, shape.crossed) == (1e4, {"factor": 2.0}, True)
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    with pytest.raises(CheckpointError, match=r"rope_type=llama3\) in a layer of cross-attn"):
        eagle_shape(head, TINY.config(rope_scaling=scaling))


def test_a_layer_of_its_hosts_kind_needs_to_know_it(tmp_path: Path) -> None:
    """Hydra's eagle-attn is drafted with as EAGLE's are; its rotary base is its host's."""
    head = open_head(step_files(tmp_path, "eagle-attn"))
    assert (recipe_of(head), is_decoder(head), is_sequential(head)) == ("eagle", True, False)
    with pytest.raises(CheckpointError, match=r"rotary base .* has no config\.json that says"):
        eagle_shape(head)
    shape = eagle_shape(head, TINY.config(rope_theta=5e5, rms_norm_eps=1e-3))
    assert (shape.rope.theta, shape.block.epsilon, shape.block.mlp) == (5e5, 1e-3, TINY.mlp)


@pytest.mark.slow
def test_heads_on_the_state_before_the_last_block(tmp_path: Path) -> None:
    """`hidden_state_offset` 1: what transformers calls hidden_states[-2], and PyTorch's heads say
    of it what the engine's do."""
    host = tiny("llama", tmp_path / "host", vocab_size=260)
    write_tokenizer(host)
    tensors = seeded_sequence(48, 260, heads=2)
    head = write_hydra(tmp_path / "head", tensors, hidden_state_offset=1)
    bundle = optimize(host, tmp_path / "out", head=str(head))
    assert "head-features" in bundle.manifest.stages["ort-cpu"].pipeline
    engine: Any = load(bundle.path)
    prompt = [5, 77, 13, 200, 41]
    engine.session.reset(1)
    scores = engine.session.read(0, np.asarray(prompt, np.int64), None)
    model: Any = AutoModelForCausalLM.from_pretrained(host, dtype=torch.float32)
    module = Stacks(Sizes(hidden=48, vocabulary=260), 2, 1)
    module.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()})
    with torch.no_grad():
        shown = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-2][0, -1:]
        known = model.get_input_embeddings()(torch.tensor([[7, 99]]))
        expected = module(shown[None], known[:, None])
    got = scores.tap(MADE)[0, -1:]
    assert_same_sums(got, shown.numpy(), 3 * (2 * 48 + 80 + 60))
    heads = engine.resources.head()
    for number, tokens in enumerate(([[7]], [[7, 99]])):
        ids, values = heads.answer(got.copy(), number, np.asarray(tokens))
        best = expected[number][0, 0].topk(10)
        assert ids[0, 0].tolist() == best.indices.tolist()
        assert_same_sums(values[0, 0], best.values.numpy(), 4 * 48)
    passes = "kv-cache | tree-mask | select-rows | tap{layers=norm} | reduce-logits{topk=8}"
    with pytest.raises(GraftlineError, match="put head-features into --passes"):
        optimize(host, tmp_path / "wrong", head=str(head), passes=passes)
    assert not (tmp_path / "wrong").exists()
