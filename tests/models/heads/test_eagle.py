"""EAGLE-1/2: what the loader hands out computes what the description says; its files' traps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graftline.models.heads import Head, Tap, open_head
from tests.models.heads.evaluate import Weights, assert_same, causal, layer, values
from tests.models.heads.reference_eagle import Eagle
from tests.models.heads.reference_layers import ABSENT, TINY, drawn, state, written
from tests.models.heads.refusing import refuses

TERMS = 400


def evaluated(head: Head, embeddings: Any, features: Any) -> Any:
    """By our names: the feature of the next token."""
    settings, w = head.settings, Weights(values(head))
    x = w.linear("fc", np.concatenate([embeddings, features], axis=-1))
    rows = x.shape[1]
    for index in range(settings.layers):
        under = w.under(f"layers.{index}")
        x = layer(under, settings.block, x, np.arange(rows), causal(rows), normed=index > 0)
    return x


@pytest.mark.parametrize(("layers", "bias", "qkv"), [(1, True, False), (2, False, True)])
def test_the_tensors_compute_the_reference(
    tmp_path: Path, layers: int, bias: bool, qkv: bool
) -> None:
    module = drawn(Eagle(TINY, layers, bias, qkv))
    config = TINY.config(num_hidden_layers=layers, bias=bias, qkv_bias=qkv)
    head = open_head(written(tmp_path, config, state(module)))
    assert head.family == "eagle"
    assert head.taps == (Tap(-1, normed=True),)
    assert (head.settings.fc_bias, head.settings.block.bias) == (bias, qkv)
    embeddings, features = torch.randn(2, 2, 7, TINY.hidden, dtype=torch.float64)
    want = module(embeddings, features).detach().numpy()
    assert_same(evaluated(head, embeddings.numpy(), features.numpy()), want, TERMS * layers)


def _files(**changes: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return TINY.config(**changes), state(drawn(Eagle(TINY)))


def test_a_bias_that_is_absent_without_a_word_is_said(tmp_path: Path) -> None:
    """TensorRT-LLM #2588: KeyError 'fc.bias' for heads of LLaMA-3, whose fc has none."""
    config, tensors = _files(bias=ABSENT)
    del tensors["fc.bias"]
    head = open_head(written(tmp_path, config, tensors))
    assert not head.settings.fc_bias
    assert any("no fc.bias" in line for line in head.decided)


def test_a_bias_against_the_config_is_refused(tmp_path: Path) -> None:
    config, tensors = _files(bias=True)
    del tensors["fc.bias"]
    refuses(written(tmp_path, config, tensors), r"bias=True but the file lacks tensor 'fc\.bias'")
    config, tensors = _files(bias=False)
    refuses(written(tmp_path, config, tensors), r"bias=False but the file holds tensor 'fc\.bias'")


def test_the_hosts_table_in_the_file_is_not_read(tmp_path: Path) -> None:
    config, tensors = _files()
    tensors["embed_tokens.weight"] = torch.zeros(TINY.vocabulary, TINY.hidden)
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(3)
    head = open_head(written(tmp_path, config, tensors))
    assert not any("embed" in name for name in head.tensors)
    assert any("embed_tokens.weight in the file is not read" in line for line in head.decided)


def test_a_final_norm_is_refused(tmp_path: Path) -> None:
    config, tensors = _files()
    tensors["norm.weight"] = torch.ones(TINY.hidden)
    refuses(written(tmp_path, config, tensors), r"tensor 'norm\.weight' has no place")


def test_a_pickled_head(tmp_path: Path) -> None:
    config, tensors = _files()
    folder = written(tmp_path, config, tensors)
    (folder / "model.safetensors").unlink()
    torch.save({k: v.half() for k, v in tensors.items()}, folder / "pytorch_model.bin")
    head = open_head(folder)
    want = tensors["fc.weight"].half().float().numpy()
    assert np.array_equal(head.tensors["fc.weight"].numpy(), want)


def test_bias_of_queries_must_be_as_the_config_says(tmp_path: Path) -> None:
    config, tensors = _files(qkv_bias=True)
    folder = written(tmp_path, config, tensors)
    refuses(folder, r"qkv_bias=True but the file has no 'layers\.0\.self_attn\.q_proj\.bias'")


def test_modelopts_keys_and_names(tmp_path: Path) -> None:
    """Its block says that this is no EAGLE-3 head; its layers are called `midlayer`."""
    switches = {
        "use_aux_hidden_state": False, "use_input_layernorm_in_first_layer": False,
        "use_last_layernorm": False, "use_mtp_layernorm": False, "parallel_draft_step": 1,
        "parallel_draft_heads_num_layers": 1, "eagle_aux_hidden_state_layer_ids": [],
    }  # fmt: skip
    config, tensors = _files(eagle_config=switches)
    renamed = {k.replace("layers.0.", "midlayer."): v for k, v in tensors.items()}
    renamed["lm_head.weight"] = torch.randn(TINY.vocabulary, TINY.hidden)
    head = open_head(written(tmp_path, config, renamed))
    assert (head.family, head.settings.own_lm_head) == ("eagle", True)
    want = values(open_head(written(tmp_path / "plain", *_files())))
    assert head.tensors.keys() - want.keys() == {"lm_head.weight"}
    for key in ("use_aux_hidden_state", "use_last_layernorm", "use_mtp_layernorm"):
        config, _ = _files(eagle_config={**switches, key: True})
        refuses(written(tmp_path, config, renamed), f"eagle_config: {key}=True is not hosted")


def test_windows_are_refused(tmp_path: Path) -> None:
    config, tensors = _files(sliding_window=8, layer_types=["sliding_attention"])
    refuses(written(tmp_path, config, tensors), "sliding windows in an EAGLE-1/2 head")
    config, tensors = _files(sliding_window=8, use_sliding_window=False)
    open_head(written(tmp_path, config, tensors))
