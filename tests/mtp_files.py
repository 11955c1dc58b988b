"""Files of an MTP layer as Qwen3-Next has it, apart from its host's, seeded."""

from __future__ import annotations

from pathlib import Path

from tests.models.heads.reference_layers import Sizes, drawn, state, written
from tests.models.heads.reference_mtp import Mtp, Softmax


def write_mtp(folder: Path, hidden: int, vocabulary: int, layers: int) -> Path:
    """For a host of so many layers: norms over 1 + w, gated attention, half a head rotated, six
    experts and a shared one."""
    sizes = Sizes(hidden=hidden, heads=2, kv_heads=1, head_size=hidden // 2, mlp=2 * hidden,
                  vocabulary=vocabulary)  # fmt: skip
    half = hidden // 4
    mixture = Softmax(sizes, 6, 2, hidden // 2, hidden)
    module = drawn(Mtp(sizes, 1.0, mixture, query_norm=True, gated=True, rotary=half))
    config = sizes.config(
        model_type="qwen3_next", num_hidden_layers=layers, mtp_num_hidden_layers=1,
        partial_rotary_factor=0.5, num_experts=6, num_experts_per_tok=2, norm_topk_prob=True,
        moe_intermediate_size=hidden // 2, shared_expert_intermediate_size=hidden,
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    tensors = {f"mtp.{name}": tensor for name, tensor in state(module).items()}
    return written(folder, config, tensors)
