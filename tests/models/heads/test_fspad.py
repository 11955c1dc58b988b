"""FSPAD: what the loader hands out computes what the description says; keys too many or missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from graftline.models.heads import Head, Tap, open_head
from graftline.tensors import Widened, row_range
from tests.models.heads.evaluate import Weights, assert_same, attention, causal, silu, values
from tests.models.heads.reference_fspad import Fspad
from tests.models.heads.reference_layers import TINY, drawn, state, written
from tests.models.heads.refusing import refuses

TERMS = 600
PUBLISHED = {
    "embed_tokens.weight": [61, 24], "fc.fc.weight": [24, 48], "fc.fc.bias": [24],
    "fc.mlp.gate_proj.weight": [40, 24], "fc.mlp.up_proj.weight": [40, 24],
    "fc.mlp.down_proj.weight": [24, 40], "fc.post_attention_layernorm.weight": [24],
    "layers.0.self_attn.q_proj.weight": [24, 24], "layers.0.self_attn.k_proj.weight": [12, 24],
    "layers.0.self_attn.v_proj.weight": [12, 24], "layers.0.self_attn.o_proj.weight": [24, 24],
    "layers.0.mlp.gate_proj.weight": [40, 24], "layers.0.mlp.up_proj.weight": [40, 24],
    "layers.0.mlp.down_proj.weight": [48, 40], "layers.0.post_attention_layernorm.weight": [24],
}  # fmt: skip
"""The keys and shapes of a published file, of the tiny sizes."""


def files(**changes: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    tensors = state(drawn(Fspad(TINY)))
    tensors["embed_tokens.weight"] = torch.zeros(TINY.vocabulary, TINY.hidden)
    return TINY.config(**changes), tensors


def evaluated(head: Head, embeddings: Any, features: Any) -> tuple[Any, Any]:
    """By our names: what is scored, and the feature of the next token."""
    block, w = head.settings.block, Weights(values(head))
    x = w.linear("fc", np.concatenate([embeddings, features], axis=-1))
    gate, normed = silu(w.linear("sampling.gate", embeddings)), w.norm(
        "sampling.norm", x, block.epsilon
    )
    x = x + w.linear("sampling.down", gate * w.linear("sampling.up", normed))
    own, rows = w.under("layers.0"), x.shape[1]
    x = x + attention(own, block, x, np.arange(rows), causal(rows))
    normed = own.norm("mlp_norm", x, block.epsilon)
    inner = silu(own.linear("gate", normed)) * own.linear("up", normed)
    return x + own.linear("down", inner), x + own.linear("feature_down", inner)


def test_the_tensors_compute_the_reference(tmp_path: Path) -> None:
    config, tensors = files()
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == PUBLISHED
    head = open_head(written(tmp_path, config, tensors))
    assert head.family == "fspad"
    assert head.taps == (Tap(-1, normed=True),)
    assert head.decided[0] == "an FSPAD head, by tensor 'fc.fc.weight'"
    embeddings, features = torch.randn(2, 2, 7, TINY.hidden, dtype=torch.float64)
    wanted = drawn(Fspad(TINY))(embeddings, features)
    for got, want in zip(
        evaluated(head, embeddings.numpy(), features.numpy()), wanted, strict=True
    ):
        assert_same(got, want.detach().numpy(), TERMS)


def test_both_ends_lie_where_the_file_has_them(tmp_path: Path) -> None:
    """Rows of one tensor: none is copied, of a file in half precision neither."""
    config, tensors = files()
    name = "layers.0.mlp.down_proj.weight"
    for dtype in (torch.float32, torch.float16):
        stored = {key: tensor.to(dtype) for key, tensor in tensors.items()}
        head = open_head(written(tmp_path / str(dtype), config, stored))
        ends = [head.tensors[f"layers.0.{part}.weight"] for part in ("down", "feature_down")]
        for end, want in zip(ends, stored[name].float().chunk(2), strict=True):
            narrow = end.narrow if isinstance(end, Widened) else end
            assert isinstance(narrow, ir.ExternalTensor)
            np.testing.assert_array_equal(end.numpy(), want.numpy())


def test_rows_of_a_tensor_that_is_in_no_file_are_its_rows() -> None:
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    part = row_range(ir.tensor(array, name="whole"), 1, 2, "part")
    assert (part.name, list(part.shape.numpy())) == ("part", [2, 3])
    np.testing.assert_array_equal(part.numpy(), array[1:3])


READ = [k for k in PUBLISHED if k not in ("embed_tokens.weight", "fc.fc.weight")]
"""Without the host's own table, and without what shows such a head."""


@pytest.mark.parametrize("missing", READ)
def test_a_tensor_that_is_missing_is_named(tmp_path: Path, missing: str) -> None:
    config, tensors = files()
    del tensors[missing]
    refuses(written(tmp_path, config, tensors), f"'{missing}' is missing".replace(".", r"\."))


def test_what_does_not_belong_is_refused(tmp_path: Path) -> None:
    config, tensors = files()
    more = {**tensors, "norm.weight": torch.ones(TINY.hidden)}
    refuses(written(tmp_path, config, more), r"tensor 'norm\.weight' has no place")
    narrow = {**tensors, "layers.0.mlp.down_proj.weight": torch.zeros(24, 40)}
    refuses(written(tmp_path, config, narrow), r"down_proj\.weight' is \[24, 40\].*\[48, 40\]")
    config, tensors = files(num_hidden_layers=2)
    refuses(written(tmp_path, config, tensors), "num_hidden_layers=2 is not hosted")
    config, tensors = files(bias=False, odd=3)
    refuses(written(tmp_path, config, tensors), "odd=3 is a key that such a head is not known to")
