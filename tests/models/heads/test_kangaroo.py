"""Kangaroo's adapters as they are published: what is read, and what is not hosted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftline.errors import CheckpointError
from graftline.facts import DecoderFacts
from graftline.models.heads import open_head
from graftline.models.heads.block import Block, Rope
from graftline.models.heads.kangaroo import KangarooSettings
from tests.kangaroo_files import seeded, write_kangaroo

HIDDEN, HEADS, KV, VOCABULARY = 32, 4, 2, 61
HOST = DecoderFacts(VOCABULARY, HIDDEN, 4, 4, 2, 8, 256)
FREQUENCIES = "layers.0.self_attn.rotary_emb.inv_freq"
MLP = "layers.0.mlp.gate_proj.weight"
QUERY = "layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("pickled", [False, True])
def test_tensors_are_read_as_they_are(tmp_path: Path, pickled: bool) -> None:
    tensors = seeded(HIDDEN, HEADS, KV) | {FREQUENCIES: np.ones(4, np.float32)}
    folder = write_kangaroo(tmp_path / "head", tensors, HEADS, KV, VOCABULARY, pickled)
    head = open_head(folder)
    block = Block(HIDDEN, HEADS, KV, 8, 64, 1e-6, Rope(10000.0, 8))
    assert (head.family, head.taps) == ("kangaroo", ())
    assert head.settings == KangarooSettings(block, VOCABULARY, None)
    assert head.decided[0].startswith("Kangaroo's adapter, by tensor")
    assert "no exit named: --exit says it" in head.decided[-1]
    published = {"adapter.query": QUERY, "adapter.final_norm": "norm.weight",
                 "adapter.norm": "layers.0.input_layernorm.weight"}  # fmt: skip
    for ours, theirs in published.items():
        np.testing.assert_array_equal(head.tensors[ours].numpy(), tensors[theirs])
    assert len(head.tensors) == 6
    head.check(HOST)


def test_the_exit_is_read_where_the_config_says_it(tmp_path: Path) -> None:
    tensors = seeded(HIDDEN, HEADS, KV)
    folder = write_kangaroo(tmp_path / "head", tensors, HEADS, KV, VOCABULARY, exit_layer=3)
    head = open_head(folder)
    assert head.settings.exit == 3
    assert "after 3 blocks" in head.decided[-1]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 2}, "num_hidden_layers=2; an adapter is one layer of attention"),
        ({"head_dim": 16}, "head_dim=16, but the published code has 4 heads of 8 numbers"),
        ({"rope_theta": 5e5}, "always has the base 10000 and no scaling"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "base 10000 and no scaling"),
        ({"attention_bias": True}, r"attention_bias=True is not hosted \(an adapter with biases"),
        ({"exit_layer": 0}, "exit_layer=0 is not a whole number of 1 or more"),
        ({"num_attention_heads": 2}, "k_proj.weight' is .* they do not belong together"),
        ({"twist": 1}, "twist=1 is a key that such a head is not known to have"),
    ],
)
def test_what_is_not_hosted_is_said(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    tensors = seeded(HIDDEN, HEADS, KV)
    folder = write_kangaroo(tmp_path / "head", tensors, HEADS, KV, VOCABULARY, **config)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_head(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("missing", "extra", "message"),
    [
        (QUERY, "", f"tensor '{QUERY}' is missing"),
        ("", MLP, f"tensor '{MLP}' has no place in such a head"),
        ("", "layers.1.input_layernorm.weight", "has no place in such a head"),
        ("norm.weight", "", "not a draft head that graftline knows"),
    ],
)
def test_keys_too_few_or_too_many_are_refused(
    tmp_path: Path, missing: str, extra: str, message: str
) -> None:
    tensors = seeded(HIDDEN, HEADS, KV)
    tensors.pop(missing, None)
    tensors |= {extra: np.ones((4, 4), np.float32)} if extra else {}
    folder = write_kangaroo(tmp_path / "head", tensors, HEADS, KV, VOCABULARY)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_head(folder)
    assert "\n" not in str(caught.value)


def test_another_models_adapter_and_broken_numbers_are_refused(tmp_path: Path) -> None:
    narrow = seeded(16, HEADS, KV)
    other = open_head(write_kangaroo(tmp_path / "other", narrow, HEADS, KV, VOCABULARY))
    with pytest.raises(CheckpointError, match=r"hidden_size is 16, but .* needs 32"):
        other.check(HOST)
    tensors = seeded(HIDDEN, HEADS, KV)
    wide = open_head(write_kangaroo(tmp_path / "wide", tensors, HEADS, KV, VOCABULARY + 3))
    with pytest.raises(CheckpointError, match=r"vocab_size is 64, but .* needs 61"):
        wide.check(HOST)
    tensors["norm.weight"][3] = np.nan
    broken = open_head(write_kangaroo(tmp_path / "broken", tensors, HEADS, KV, VOCABULARY))
    with pytest.raises(CheckpointError, match="numbers that are not finite"):
        broken.check(HOST)
