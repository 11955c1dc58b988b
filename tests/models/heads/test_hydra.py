"""Hydra's four architectures: the tensors compute the reference; the traps of their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graftline.errors import CheckpointError
from graftline.facts import DecoderFacts
from graftline.models.heads import Head, Tap, open_head
from graftline.models.heads.block import Block, Rope
from tests.models.heads.evaluate import (
    Weights,
    assert_same,
    attend,
    causal,
    layer,
    mlp,
    rotate,
    silu,
    values,
)
from tests.models.heads.reference_hydra import CrossAttention, EagleAttention, Stacks
from tests.models.heads.reference_layers import TINY, drawn, state, written
from tests.models.heads.refusing import refuses

TERMS = 1000
HOST = DecoderFacts(
    vocabulary=61, hidden=24, layers=12, heads=4, kv_heads=2, head_size=6, positions=0,
    source="host",
)  # fmt: skip
BLOCK = Block(24, 4, 2, 6, 40, TINY.epsilon, Rope(TINY.theta, 6))
"""The host's layers, whose numbers of heads such a head has."""


def config(architecture: str, heads: int = 1, layers: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "hydra_num_heads": heads, "hydra_num_layers": layers, "hydra_head_arch": architecture,
        "grounded_heads": True, "hidden_state_offset": 0, "dropout_rate": 0.0,
        "base_model_name_or_path": "lmsys/vicuna-7b-v1.3", "transformers_version": "4.34.1",
        **changes,
    }  # fmt: skip


def stacks(head: Head, hidden: Any, embeddings: Any) -> list[Any]:
    """The logits of every head by our names."""
    s, w, rows = head.settings, Weights(values(head)), hidden.shape[1]
    if s.architecture == "prefix-mlp":
        part = w.under("layer")
        x = layer(part, BLOCK, hidden, np.arange(rows), causal(rows), normed=True)
        hidden = part.norm("final_norm", x, TINY.epsilon)
    found = []
    for index in range(s.heads):
        part = w.under(f"head.{index}")
        drafted = embeddings[:, :, : index + 1].reshape(*hidden.shape[:2], -1)
        x = np.concatenate([hidden, drafted], axis=-1) if s.grounded else hidden
        for depth in range(s.layers):
            through = part.linear("residual", x) if s.grounded and depth == 0 else x
            x = through + silu(part.linear(f"layer.{depth}", x))
        found.append(part.linear("lm_head", x))
    return found


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("grounded", [True, False])
@pytest.mark.parametrize("name", ["mlp", "prefix-mlp"])
def test_stacks_compute_the_reference(
    tmp_path: Path, name: str, grounded: bool, layers: int
) -> None:
    module = drawn(Stacks(TINY, 3, layers, grounded, prefix=name == "prefix-mlp"))
    folder = written(tmp_path, config(name, 3, layers, grounded_heads=grounded), state(module))
    head = open_head(folder)
    assert head.taps == (Tap(-1, normed=True),)
    hidden = torch.randn(2, 5, TINY.hidden, dtype=torch.float64)
    embeddings = torch.randn(2, 5, 3, TINY.hidden, dtype=torch.float64)
    got = stacks(head, hidden.numpy(), embeddings.numpy())
    for mine, want in zip(got, module(hidden, embeddings), strict=True):
        assert_same(mine, want.detach().numpy(), TERMS)


def test_cross_attention_computes_the_reference(tmp_path: Path) -> None:
    module = drawn(CrossAttention(TINY))
    head = open_head(written(tmp_path, config("cross-attn"), state(module)))
    x, hidden = torch.randn(2, 2, 5, TINY.hidden, dtype=torch.float64)
    w, rope = Weights(values(head), "layer."), Rope(head.settings.rope_theta, 6)
    query, keyed = (w.norm("attention_norm", v.numpy(), TINY.epsilon) for v in (x, hidden))
    q = rotate(w.linear("query", query).reshape(2, 5, 4, 6), np.arange(5), rope)
    k = rotate(w.linear("key", keyed).reshape(2, 5, 2, 6), np.arange(5), rope)
    v = w.linear("value", keyed).reshape(2, 5, 2, 6)
    mixed = attend(q, k, v, causal(5), 6**-0.5).reshape(2, 5, -1)
    got = x.numpy() + w.linear("output", mixed)
    got = got + mlp(w, w.norm("mlp_norm", got, TINY.epsilon))
    assert_same(got, module(x, hidden).detach().numpy(), TERMS)


def test_eagle_attention_computes_the_reference(tmp_path: Path) -> None:
    module = drawn(EagleAttention(TINY))
    head = open_head(written(tmp_path, config("eagle-attn"), state(module)))
    x, hidden = torch.randn(2, 2, 5, TINY.hidden, dtype=torch.float64)
    w = Weights(values(head))
    joint = w.linear("fc", np.concatenate([x.numpy(), hidden.numpy()], axis=-1))
    got = layer(w.under("layer"), BLOCK, joint, np.arange(5), causal(5), normed=True)
    assert_same(got, module(x, hidden).detach().numpy(), TERMS)


def pickled(folder: Path, tensors: dict[str, torch.Tensor], **changes: Any) -> Path:
    """As published: config.json and hydra_lm_head.pt."""
    written(folder, config("mlp", 2, **changes), tensors)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "hydra_lm_head.pt")
    return folder


def test_pickled_heads_with_the_hosts_table(tmp_path: Path) -> None:
    """`input_embed_fn` is a part of the head's module, so its weights can be in the file."""
    tensors = state(drawn(Stacks(TINY, 2, 1)))
    tensors["input_embed_fn.weight"] = torch.zeros(61, 24)
    head = open_head(pickled(tmp_path, tensors))
    assert set(head.tensors) == {
        f"head.{i}.{name}.{end}"
        for i in range(2)
        for name in ("layer.0", "residual", "lm_head")
        for end in ("weight", "bias")
    }


def test_the_hosts_lm_head_is_left_for_attention_only(tmp_path: Path) -> None:
    tensors = state(drawn(EagleAttention(TINY)))
    extra = {name: torch.zeros(61, 24) for name in ("lm_head.weight", "input_embed_fn.weight")}
    open_head(written(tmp_path / "attention", config("eagle-attn"), {**tensors, **extra}))
    tensors = state(drawn(Stacks(TINY, 2, 1)))
    refuses(written(tmp_path / "mlp", config("mlp", 2), {**tensors, **extra}), "'lm_head.weight'")


@pytest.mark.parametrize(("offset", "tap"), [(0, Tap(-1, normed=True)), (1, Tap(-2)), (3, Tap(-4))])
def test_the_offset_counts_hidden_states_from_the_end(
    tmp_path: Path, offset: int, tap: Tap
) -> None:
    """hidden_states[-1] is behind the final norm, hidden_states[-2] the last layer's input."""
    tensors = state(drawn(Stacks(TINY, 2, 1)))
    settings = config("mlp", 2, hidden_state_offset=offset)
    assert open_head(written(tmp_path, settings, tensors)).taps == (tap,)


def test_a_bias_of_lm_head_is_needed(tmp_path: Path) -> None:
    tensors = state(drawn(Stacks(TINY, 2, 1)))
    del tensors["hydra_lm_head.1.bias"]
    refuses(written(tmp_path, config("mlp", 2), tensors), r"'hydra_lm_head\.1\.bias' is missing")


def test_the_number_of_heads_must_be_the_files(tmp_path: Path) -> None:
    tensors = state(drawn(Stacks(TINY, 2, 1)))
    refuses(written(tmp_path, config("mlp", 1), tensors), "has no place in such a head")
    refuses(written(tmp_path, config("mlp", 3), tensors), r"'hydra_mlp\.2\.0\.linear\.weight' is m")


def test_dropouts_take_numbers_in_prefix_heads_only(tmp_path: Path) -> None:
    tensors = state(drawn(Stacks(TINY, 2, 2)))
    refuses(written(tmp_path, config("prefix-mlp", 2, 2), tensors), "is missing")


def test_switches(tmp_path: Path) -> None:
    tensors = state(drawn(Stacks(TINY, 2, 1)))
    folder = written(tmp_path, config("mlp", 2, grounded_heads=False), tensors)
    refuses(folder, "grounded_heads=False but the file holds 'res_connection'")
    refuses(written(tmp_path, config("swin", 2), tensors), "hydra_head_arch='swin' is not hosted")
    attention = state(drawn(EagleAttention(TINY)))
    folder = written(tmp_path, config("eagle-attn", 4), attention)
    refuses(folder, "eagle-attn heads are one grounded layer, not 4 of 1")


def test_another_hosts_heads(tmp_path: Path) -> None:
    module = Stacks(TINY, 2, 1, prefix=True)
    head = open_head(written(tmp_path, config("prefix-mlp", 2), state(drawn(module))))
    head.check(HOST)
    other = DecoderFacts(**{**vars(HOST), "kv_heads": 4})
    words = r"self_attn\.k_proj\.weight' is 12, but host needs 24 \(KV heads x head size"
    with pytest.raises(CheckpointError, match=words):
        head.check(other)
