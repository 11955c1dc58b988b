"""The parts that references are made of are those of transformers, where it has them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.models.heads.reference_layers import Layer, Sizes, causal, drawn
from tests.models.heads.reference_mtp import LatentAttention, Sigmoid, Softmax
from tests.rounding import assert_same_sums

SIZES = Sizes(head_size=8)
TERMS = 3000
ROWS = 7
ROPE = {"rope_type": "default", "rope_theta": 1e4}
COMMON: dict[str, Any] = {
    "hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 40, "rms_norm_eps": 1e-5, "vocab_size": 61, "num_hidden_layers": 1,
    "attn_implementation": "eager", "max_position_embeddings": 64,
}  # fmt: skip


def given(module: nn.Module, config: Any, mine: nn.Module) -> Any:
    """transformers' module in fp64 with the weights of ours."""
    missing = module.load_state_dict(mine.state_dict(), strict=False)
    assert not missing.missing_keys
    assert not missing.unexpected_keys
    return module.double().eval()


def inputs(rotary: Any) -> dict[str, Any]:
    """What a layer of transformers takes beside its hidden states."""
    positions = torch.arange(ROWS)[None]
    mask = torch.zeros(1, 1, ROWS, ROWS, dtype=torch.float64)
    x = torch.zeros(1, 1, dtype=torch.float64)
    return {
        "position_embeddings": rotary(x, positions),
        "attention_mask": mask.masked_fill(~causal(ROWS), -torch.inf),
    }


def states() -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randn(2, ROWS, 24, dtype=torch.float64)


def test_layers_are_those_of_llama() -> None:
    from transformers.models.llama import modeling_llama as llama

    config = llama.LlamaConfig(rope_parameters=ROPE, **COMMON)
    mine = drawn(Layer(SIZES))
    module, x = given(llama.LlamaDecoderLayer(config, 0), config, mine), states()
    got = module(x, **inputs(llama.LlamaRotaryEmbedding(config)))
    got = got[0] if isinstance(got, tuple) else got
    want = mine(x, torch.arange(ROWS), causal(ROWS))
    assert_same_in_fp32(got, want)


def test_gated_attention_is_that_of_qwen() -> None:
    from transformers.models.qwen3_next import modeling_qwen3_next as qwen

    rope = {**ROPE, "partial_rotary_factor": 0.5}
    config = qwen.Qwen3NextConfig(rope_parameters=rope, **COMMON)
    layer = Layer(SIZES, offset=1.0, query_norm=True, gated=True, rotary=4)
    mine = drawn(layer).self_attn
    module, x = given(qwen.Qwen3NextAttention(config, 0), config, mine), states()
    got = module(x, **inputs(qwen.Qwen3NextRotaryEmbedding(config)))[0]
    assert_same_in_fp32(got, mine(x, torch.arange(ROWS), causal(ROWS)))


def test_latent_attention_is_that_of_deepseek() -> None:
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek

    scaling = {"rope_type": "default", "rope_theta": 1e4}
    config = deepseek.DeepseekV3Config(
        q_lora_rank=10, kv_lora_rank=12, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5,
        rope_parameters=scaling, **{**COMMON, "num_key_value_heads": 4},
    )  # fmt: skip
    mine = drawn(LatentAttention(SIZES, 10, 12, 6, 4, 5))
    module, x = given(deepseek.DeepseekV3Attention(config, 0), config, mine), states()
    config.head_dim = 4
    got = module(x, **inputs(deepseek.DeepseekV3RotaryEmbedding(config)))[0]
    assert_same_in_fp32(got, mine(x, torch.arange(ROWS), causal(ROWS)))


def fused(mine: nn.Module, module: nn.Module) -> Any:
    """transformers' mixture, whose experts lie in one tensor, with the weights of ours."""
    tensors = dict(mine.state_dict())
    parts = [
        [tensors.pop(f"experts.{e}.{k}_proj.weight") for k in ("gate", "up", "down")]
        for e in range(len(mine.experts))  # type: ignore[arg-type]
    ]
    tensors["experts.gate_up_proj"] = torch.stack([torch.cat([g, u]) for g, u, _ in parts])
    tensors["experts.down_proj"] = torch.stack([d for _, _, d in parts])
    module.load_state_dict(tensors)
    return module.double().eval()


def test_mixtures_are_those_of_qwen_and_deepseek() -> None:
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek
    from transformers.models.qwen3_next import modeling_qwen3_next as qwen

    config = qwen.Qwen3NextConfig(
        num_experts=6, num_experts_per_tok=2, moe_intermediate_size=10,
        shared_expert_intermediate_size=14, norm_topk_prob=True, **COMMON,
    )  # fmt: skip
    mine, x = drawn(Softmax(SIZES, 6, 2, 10, 14)), states()
    module = fused(mine, qwen.Qwen3NextSparseMoeBlock(config))
    assert_same_in_fp32(module(x), mine(x))
    config = deepseek.DeepseekV3Config(
        n_routed_experts=8, num_experts_per_tok=3, moe_intermediate_size=10, n_group=4,
        topk_group=2, routed_scaling_factor=2.5, n_shared_experts=1, **COMMON,
    )  # fmt: skip
    mine = drawn(Sigmoid(SIZES, 8, 3, 10, groups=4, kept=2, scale=2.5))
    module = fused(mine, deepseek.DeepseekV3MoE(config))
    assert_same_in_fp32(module(x), mine(x))


def assert_same_in_fp32(got: torch.Tensor, want: torch.Tensor) -> None:
    """transformers computes angles, norms' means and routers' scores in fp32 whatever its type."""
    assert_same_sums(got.detach().numpy(), want.detach().numpy(), TERMS)


