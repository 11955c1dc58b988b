"""MTP layers of Qwen3-Next, Qwen3.5, DeepSeek-V3 and GLM-4.5: the tensors compute the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graftline.models.heads import Head, Tap, open_head
from graftline.models.heads.experts import Experts
from graftline.models.heads.latent import Latent
from tests.models.heads.evaluate import (
    Weights,
    assert_same,
    attend,
    attention,
    causal,
    mlp,
    rotate,
    sigmoid,
    softmax,
    values,
)
from tests.models.heads.reference_layers import ABSENT, TINY, drawn, state, written
from tests.models.heads.reference_mtp import Behind, LatentAttention, Mtp, Sigmoid, Softmax
from tests.models.heads.refusing import refuses

TERMS = 3000
ROPE = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
LINEAR = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]


def qwen(moe: bool = False, **changes: Any) -> dict[str, Any]:
    """The config of a whole Qwen3-Next or Qwen3.5 model."""
    experts = {
        "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 10,
        "shared_expert_intermediate_size": 14, "norm_topk_prob": True, "decoder_sparse_step": 1,
    }  # fmt: skip
    settings = {
        "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "head_dim": 8,
        "num_hidden_layers": 4, "layer_types": LINEAR, "rope_parameters": ROPE,
        "rope_theta": ABSENT, "attention_bias": False, "linear_num_key_heads": 2,
        **(experts if moe else {}), "mtp_num_hidden_layers": 1,
    }  # fmt: skip
    return SIZED.config(**{**settings, **changes})


SIZED = type(TINY)(head_size=8)
QWEN: dict[str, Any] = {"query_norm": True, "gated": True, "rotary": 4}


def whole(module: Any, prefix: str, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """A checkpoint of a host with an MTP layer; the host's tensors are not looked at."""
    host = {
        "model.embed_tokens.weight": torch.ones(61, 24), "lm_head.weight": torch.ones(61, 24),
        "model.layers.0.linear_attn.in_proj_qkvz.weight": torch.ones(3, 3),
    }  # fmt: skip
    return {**host, **{f"{prefix}{k}": v for k, v in state(module).items()}, **more}


def experts(w: Weights, form: Experts, x: Any) -> Any:
    """A mixture by our names."""
    scores = x @ w["router.weight"].T
    scores = sigmoid(scores) if form.sigmoid else softmax(scores)
    choice = scores + w["router.bias"] if form.corrected else scores
    parts = np.stack(np.split(choice, form.groups, axis=-1), axis=-2)
    if form.groups > 1:
        ranks = np.sort(parts, axis=-1)[..., -2:].sum(-1)
        least = np.sort(ranks, axis=-1)[..., -form.kept]
        parts = np.where((ranks >= least[..., None])[..., None], parts, -np.inf)
    choice = parts.reshape(choice.shape)
    held = choice >= np.sort(choice, axis=-1)[..., -form.chosen][..., None]
    weights = np.where(held, scores, 0.0)
    weights = weights / weights.sum(-1, keepdims=True) if form.normed else weights
    found = np.zeros_like(x)
    for index in range(form.count):
        share = form.scale * weights[..., index, None]
        found = found + share * mlp(w.under(f"experts.{index}"), x)
    if form.shared:
        gate = sigmoid(x @ w["shared_gate.weight"].T) if form.shared_gated else 1.0
        found = found + gate * mlp(w.under("shared"), x)
    return found


def latent(w: Weights, form: Latent, x: Any, seen: Any) -> Any:
    """Latent attention by our names; its scaling of scores by the settings."""
    batch, rows, _ = x.shape
    if form.query_rank is None:
        query = w.linear("query", x)
    else:
        low = w.norm("query_down_norm", w.linear("query_down", x), 1e-6)
        query = w.linear("query_up", low)
    query = query.reshape(batch, rows, form.heads, -1)
    both = w.linear("key_value_down", x)
    made = w.linear("key_value_up", w.norm("key_value_norm", both[..., : form.rank], 1e-6))
    made = made.reshape(batch, rows, form.heads, -1)
    shared = rotate(both[..., None, form.rank :], np.arange(rows), form.rope)
    turned = rotate(query[..., form.plain :], np.arange(rows), form.rope)
    q = np.concatenate([query[..., : form.plain], turned], axis=-1)
    wide = np.broadcast_to(shared, (batch, rows, form.heads, form.rope.size))
    k = np.concatenate([made[..., : form.plain], wide], axis=-1)
    out = attend(q, k, made[..., form.plain :], seen, q.shape[-1] ** -0.5)
    return w.linear("output", out.reshape(batch, rows, -1))


def evaluated(head: Head, k: int, embeddings: Any, hidden: Any) -> tuple[Any, Any]:
    """Depth k by our names: what is fed back, and what lm_head scores."""
    s, w, rows = head.settings, Weights(values(head), f"depths.{k}."), hidden.shape[1]

    def norm(name: str, x: Any) -> Any:
        return w.norm(name, x, s.epsilon, s.norm_offset)

    depth, seen = s.depths[k], causal(rows)
    both = [norm("embedding_norm", embeddings), norm("hidden_norm", hidden)]
    x = w.linear("fc", np.concatenate(both, axis=-1))
    inner = norm("attention_norm", x)
    if isinstance(depth.attention, Latent):
        x = x + latent(w, depth.attention, inner, seen)
    else:
        x = x + attention(w, depth.attention, inner, np.arange(rows), seen)
    inner = norm("mlp_norm", x)
    x = x + (experts(w, depth.mlp, inner) if isinstance(depth.mlp, Experts) else mlp(w, inner))
    normed = norm("final_norm", x)
    return (normed if s.feedback_normed else x), normed


def assert_computes(head: Head, step: Any, k: int = 0) -> None:
    embeddings, hidden = torch.randn(2, 2, 5, 24, dtype=torch.float64)
    wanted = [value.detach().numpy() for value in step(embeddings, hidden)]
    mine = evaluated(head, k, embeddings.numpy(), hidden.numpy())
    for got, want in zip(mine, wanted, strict=True):
        assert_same(got, want, TERMS)


@pytest.mark.parametrize("moe", [False, True])
def test_qwen_computes_the_reference(tmp_path: Path, moe: bool) -> None:
    """Norms multiply by 1 + w; queries bring a gate; half of a head's numbers are rotated."""
    module = drawn(Mtp(SIZED, 1.0, Softmax(SIZED, 6, 2, 10, 14) if moe else None, **QWEN))
    head = open_head(written(tmp_path, qwen(moe), whole(module, "mtp.")))
    assert (head.family, head.taps) == ("mtp", (Tap(-1, normed=True),))
    assert (head.settings.norm_offset, head.settings.feedback_normed) == (1.0, True)
    assert not head.settings.own_embedding
    assert_computes(head, module)


def test_a_composite_models_text_config(tmp_path: Path) -> None:
    module = drawn(Mtp(SIZED, 1.0, None, **QWEN))
    text = qwen(model_type="qwen3_5_text", attn_output_gate=True)
    rope = {**ROPE, "mrope_section": [1, 1, 0], "mrope_interleaved": True}
    config = {"model_type": "qwen3_5", "text_config": {**text, "rope_parameters": rope}}
    head = open_head(written(tmp_path, config, whole(module, "mtp.")))
    assert_computes(head, module)
    text["attn_output_gate"] = False
    refuses(written(tmp_path, config | {"text_config": text}, whole(module, "mtp.")), "64 rows")


def test_a_table_of_its_own(tmp_path: Path) -> None:
    module = drawn(Mtp(SIZED, 1.0, None, **QWEN))
    config = qwen(mtp_use_dedicated_embeddings=True)
    folder = written(tmp_path / "none", config, whole(module, "mtp."))
    refuses(folder, r"tensor 'mtp\.embed_tokens\.weight' is missing")
    tables = {f"mtp.{name}.weight": torch.randn(61, 24) for name in ("embed_tokens", "lm_head")}
    head = open_head(written(tmp_path / "own", config, whole(module, "mtp.", **tables)))
    assert (head.settings.own_embedding, head.settings.own_lm_head) == (True, True)
    table = head.tensors["embedding.weight"].numpy()
    assert np.array_equal(table, tables["mtp.embed_tokens.weight"].numpy())


def test_norms_of_an_unknown_model_type_are_not_guessed(tmp_path: Path) -> None:
    module = drawn(Mtp(SIZED, 1.0, None, **QWEN))
    folder = written(tmp_path, qwen(model_type="qwen9"), whole(module, "mtp."))
    refuses(folder, "model_type='qwen9': whether its RMS norms store w or w - 1 is not known")


def test_several_layers_of_qwen_are_refused(tmp_path: Path) -> None:
    module = drawn(Mtp(SIZED, 1.0, None, **QWEN))
    more = {"mtp.layers.1.mlp.up_proj.weight": torch.ones(2, 2)}
    folder = written(tmp_path, qwen(mtp_num_hidden_layers=2), whole(module, "mtp.", **more))
    refuses(folder, "mtp_num_hidden_layers=2 is not hosted")
    folder = written(tmp_path, qwen(), whole(module, "mtp.", **more))
    refuses(folder, r"'mtp\.layers\.1\.mlp\.up_proj\.weight' has no place")


MIXTURE = {
    "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 10, "n_group": 4,
    "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True, "n_shared_experts": 1,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc", "first_k_dense_replace": 3,
}  # fmt: skip


def deepseek(**changes: Any) -> dict[str, Any]:
    settings = {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
        "num_hidden_layers": 7, "num_nextn_predict_layers": 1, "num_key_value_heads": 4,
        "q_lora_rank": 10, "kv_lora_rank": 12, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4,
        "v_head_dim": 5, "head_dim": ABSENT, "attention_bias": False, **MIXTURE,
    }  # fmt: skip
    return TINY.config(**{**settings, **changes})


def mixture() -> Sigmoid:
    return Sigmoid(TINY, 8, 3, 10, groups=4, kept=2, scale=2.5)


@pytest.mark.parametrize("query_rank", [10, None])
def test_deepseek_computes_the_reference(tmp_path: Path, query_rank: int | None) -> None:
    module = drawn(Behind(TINY, mixture(), LatentAttention(TINY, query_rank, 12, 6, 4, 5)))
    tensors = whole(module, "model.layers.7.")
    head = open_head(written(tmp_path, deepseek(q_lora_rank=query_rank), tensors))
    assert (head.family, head.settings.feedback_normed) == ("mtp", False)
    assert (head.settings.own_embedding, head.settings.own_lm_head) == (True, True)
    assert any("'model.layers.7' on, behind the host's last" in line for line in head.decided)
    assert_computes(head, module.step)


def test_yarn_of_deepseek_is_in_the_settings(tmp_path: Path) -> None:
    module = drawn(Behind(TINY, mixture(), LatentAttention(TINY, 10, 12, 6, 4, 5)))
    scaling = {
        "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
        "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
    }  # fmt: skip
    tensors = whole(module, "model.layers.7.")
    head = open_head(written(tmp_path, deepseek(rope_scaling=scaling), tensors))
    rope = head.settings.depths[0].attention.rope
    assert (rope.kind, rope.interleaved, rope.size) == ("yarn", True, 4)
    assert rope.numbers == {k: v for k, v in scaling.items() if k != "type"}


def test_weights_in_fp8_are_multiplied_by_their_scales(tmp_path: Path) -> None:
    module = drawn(Behind(TINY, mixture(), LatentAttention(TINY, 10, 12, 6, 4, 5)))
    tensors, name = whole(module, "model.layers.7."), "model.layers.7.eh_proj.weight"
    narrow, scale = tensors[name].to(torch.float8_e4m3fn), torch.rand(3, 6) + 0.5
    tensors |= {name: narrow, f"{name}_scale_inv": scale}
    quantized = {"quant_method": "fp8", "weight_block_size": [8, 8]}
    head = open_head(written(tmp_path, deepseek(quantization_config=quantized), tensors))
    wide = scale.repeat_interleave(8, 0).repeat_interleave(8, 1)
    want = narrow.float() * wide
    assert np.array_equal(head.tensors["depths.0.fc.weight"].numpy(), want.numpy())


def test_glm_computes_the_reference(tmp_path: Path) -> None:
    """Ordinary attention with biases, partly rotated; two MTP layers."""
    form = {"query_norm": True, "bias": True, "rotary": 4}
    modules = [drawn(Behind(SIZED, mixture(), **form), seed) for seed in (0, 1)]
    tied = {k: v for k, v in state(modules[0]).items() if "embed" in k or "shared_head.head" in k}
    tensors = whole(modules[0], "model.layers.5.")
    tensors |= {f"model.layers.6.{k}": v for k, v in {**state(modules[1]), **tied}.items()}
    config = SIZED.config(
        model_type="glm4_moe", architectures=["Glm4MoeForCausalLM"], num_hidden_layers=5,
        num_nextn_predict_layers=2, partial_rotary_factor=0.5, attention_bias=True,
        use_qk_norm=True, **MIXTURE,
    )  # fmt: skip
    head = open_head(written(tmp_path / "tied", config, tensors))
    for k, module in enumerate(modules):
        assert_computes(head, module.step, k)
    tensors["model.layers.6.embed_tokens.weight"] = torch.randn(61, 24)
    refuses(written(tmp_path / "apart", config, tensors), "differ; MTP layers with tables of their")


def test_a_layer_that_is_missing_or_not_counted(tmp_path: Path) -> None:
    module = drawn(Behind(TINY, mixture(), LatentAttention(TINY, 10, 12, 6, 4, 5)))
    tensors = whole(module, "model.layers.7.")
    refuses(written(tmp_path, deepseek(num_nextn_predict_layers=2), tensors), "is missing")
    refuses(
        written(tmp_path, deepseek(num_nextn_predict_layers=ABSENT), tensors),
        "num_nextn_predict_layers is missing",
    )
    del tensors["model.layers.7.mlp.experts.5.up_proj.weight"]
    words = r"tensor 'model\.layers\.7\.mlp\.experts\.5\.up_proj\.weight' is missing"
    refuses(written(tmp_path, deepseek(), tensors), words)


def test_nemotron_h_is_refused(tmp_path: Path) -> None:
    module = drawn(Mtp(SIZED, 1.0, None, **QWEN))
    config = qwen(mtp_hybrid_override_pattern="*E", model_type="nemotron_h")
    refuses(written(tmp_path, config, whole(module, "mtp.")), "as Nemotron-H's")
