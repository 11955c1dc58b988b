"""Every form of layer that draft heads have: the head's engine, called over its cache, has the
logits and the states of the PyTorch reference; a reference without that form has others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from graftline.errors import CheckpointError
from graftline.models.heads import open_head
from graftline.models.heads.eagle_shapes import eagle_shape
from tests.draft_engine import ROWS, answered, seeded_tables, seeded_text
from tests.models.heads.reference_eagle import Eagle
from tests.models.heads.reference_eagle3 import Eagle3, Form
from tests.models.heads.reference_fspad import Fspad
from tests.models.heads.reference_hydra import CrossAttention, EagleAttention
from tests.models.heads.reference_layers import (
    ABSENT,
    Attention,
    RmsNorm,
    Sizes,
    drawn,
    state,
    written,
)
from tests.models.heads.reference_mtp import Behind, LatentAttention, Mtp, Sigmoid, Softmax
from tests.rounding import assert_same_sums

SIZES = Sizes(hidden=20, heads=3, kv_heads=1, head_size=8, mlp=28, vocabulary=61, layers=4)
TERMS = 2 * (8 * SIZES.hidden + 2 * ROWS + 2 * SIZES.mlp + 24) + 2 * SIZES.hidden
"""Additions on the way through two layers of `SIZES`, or through one and its experts."""
FAR = 1e-3
"""Of the largest logit, what another form differs by at least."""


def attentions(module: nn.Module) -> list[Any]:
    return [m for m in module.modules() if isinstance(m, Attention)]


def unrotated_part(module: nn.Module) -> None:
    for one in attentions(module):
        one.rotary = None


def unrotated(module: nn.Module) -> None:
    for one in attentions(module):
        one.rotary = 0


def ungated(module: nn.Module) -> None:
    for one in attentions(module):
        one.gated = False


def unnormed(module: nn.Module) -> None:
    for one in attentions(module):
        del one.q_norm, one.k_norm


def unbiased(module: nn.Module) -> None:
    for one in attentions(module):
        for part in (one.q_proj, one.k_proj, one.v_proj):
            part.bias = None


def one_offset(module: nn.Module) -> None:
    for norm in (m for m in module.modules() if isinstance(m, RmsNorm)):
        norm.offset = 0.0


def fewer_experts(module: nn.Module) -> None:
    for mixture in (m for m in module.modules() if isinstance(m, Softmax | Sigmoid)):
        mixture.chosen -= 1


def all_groups(module: nn.Module) -> None:
    for mixture in (m for m in module.modules() if isinstance(m, Sigmoid)):
        mixture.kept = mixture.groups


def unstretched(module: nn.Module) -> None:
    for one in (m for m in module.modules() if isinstance(m, LatentAttention)):
        one.yarn = None


def unscaled(module: nn.Module) -> None:
    for one in (m for m in module.modules() if isinstance(m, LatentAttention)):
        one.scale = (one.plain + one.rotary) ** -0.5


def unsampled(module: Any) -> None:
    module.fc.on = False


def ends_exchanged(module: Any) -> None:
    module.exchanged = True


def over_embeddings(module: Any) -> None:
    run = module.forward
    module.forward = lambda embeddings, _: run(embeddings, embeddings)


def over_states(module: Any) -> None:
    run = module.forward
    module.forward = lambda _, hidden: run(hidden, hidden)


def unwindowed(module: Any) -> None:
    module.form = replace(module.form, windows=())


@dataclass(frozen=True)
class Case:
    """`recipe` by which a head of the `module` is built; what its config has besides, before what
    its tensors' names stand; what `other` forms the module must not have; and what the config of
    its `host` has besides."""

    recipe: str
    module: Callable[[], nn.Module]
    config: dict[str, Any]
    prefix: str = ""
    others: tuple[Callable[[Any], None], ...] = field(default=())
    host: dict[str, Any] = field(default_factory=dict[str, Any])


QWEN = {"query_norm": True, "gated": True, "rotary": 4}
PART = {"partial_rotary_factor": 0.5}
NEXT = {"model_type": "qwen3_next", "num_hidden_layers": SIZES.layers, **PART}
GLM = {
    "model_type": "glm4_moe", "num_hidden_layers": SIZES.layers, "attention_bias": True, **PART,
    "num_nextn_predict_layers": 1,
}  # fmt: skip
LATENT = {
    "model_type": "deepseek_v3", "num_hidden_layers": SIZES.layers, "num_nextn_predict_layers": 1,
    "num_key_value_heads": 3, "q_lora_rank": 10, "kv_lora_rank": 12, "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 8, "v_head_dim": 5, "head_dim": ABSENT, "attention_bias": False,
}  # fmt: skip
YARN = {
    "type": "yarn", "factor": 4, "original_max_position_embeddings": 64, "beta_fast": 32,
    "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip
SOFTMAX = {
    "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 10,
    "shared_expert_intermediate_size": 14, "norm_topk_prob": True,
}  # fmt: skip
SIGMOID = {
    "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 10, "n_group": 4,
    "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True, "n_shared_experts": 1,
    "scoring_func": "sigmoid", "topk_method": "noaux_tc",
}  # fmt: skip


def grouped() -> Sigmoid:
    return Sigmoid(SIZES, 8, 3, 10, groups=4, kept=2, scale=2.5)


def deepseek(
    query_rank: int | None, value: int, yarn: Any = None, mlp: Any = lambda: None
) -> Callable[[], nn.Module]:
    return lambda: Behind(
        SIZES, mlp(), LatentAttention(SIZES, query_rank, 12, 6, 8, value, yarn)
    )


def eagle3(**form: Any) -> Callable[[], nn.Module]:
    return lambda: Eagle3(Form(SIZES, taps=2, host_hidden=20, drafted=61, **form))


THREE = {"draft_vocab_size": 61,
         "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2]}}  # fmt: skip
WINDOWS = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"],
           "sliding_window": 5}  # fmt: skip
CASES = {
    "eagle": Case(
        "eagle", lambda: Eagle(SIZES, 2, qkv_bias=True, **QWEN),
        {"num_hidden_layers": 2, "qkv_bias": True, "attn_output_gate": True, **PART},
        others=(unbiased, unnormed, ungated, unrotated_part),
    ),
    "eagle-3": Case(
        "eagle-3", eagle3(layers=2, windows=(5, 0), qk_norm=True, bias=True, norm_output=True),
        {**THREE, **WINDOWS, "norm_output": True, "attention_bias": True},
        others=(unwindowed, unnormed, unbiased),
    ),
    "fspad": Case("fspad", lambda: Fspad(SIZES), {}, others=(unsampled, ends_exchanged)),
    "mtp: qwen3-next, experts": Case(
        "mtp", lambda: Mtp(SIZES, 1.0, Softmax(SIZES, 6, 2, 10, 14), **QWEN),
        {**NEXT, **SOFTMAX}, "mtp.", (one_offset, ungated, unrotated_part, fewer_experts),
    ),
    "mtp: deepseek": Case(
        "mtp", deepseek(10, 5, (4.0, 1.0, 64), grouped),
        {**LATENT, **SIGMOID, "rope_scaling": YARN},
        "model.layers.4.", (unstretched, unscaled, fewer_experts, all_groups),
    ),
}  # fmt: skip
FURTHER = {
    "mtp: qwen3": Case(
        "mtp", lambda: Mtp(SIZES, 0.0, None, query_norm=True),
        {"model_type": "qwen3", "num_hidden_layers": SIZES.layers}, "mtp.", (unnormed,),
    ),
    "mtp: glm": Case(
        "mtp", lambda: Behind(SIZES, grouped(), query_norm=True, bias=True, rotary=4),
        {**GLM, **SIGMOID}, "model.layers.4.", (fewer_experts, all_groups, unbiased),
    ),
    "hydra: eagle-attn": Case(
        "eagle", lambda: EagleAttention(SIZES),
        {"hydra_num_heads": 1, "hydra_num_layers": 1, "hydra_head_arch": "eagle-attn",
         "grounded_heads": True},
        others=(unrotated,),
    ),
    "hydra: cross-attn, another base than its host's": Case(
        "eagle-2", lambda: CrossAttention(SIZES),
        {"hydra_num_heads": 1, "hydra_num_layers": 1, "hydra_head_arch": "cross-attn"},
        others=(over_embeddings, over_states), host={"rope_theta": 5e5},
    ),
    "mtp: deepseek, wide values": Case(
        "mtp", deepseek(None, 17), {**LATENT, "q_lora_rank": None, "v_head_dim": 17},
        "model.layers.4.",
    ),
}  # fmt: skip
"""Other arrangements of the same parts."""


def referred(case: Case, module: Any) -> tuple[Any, Any]:
    """What the reference scores and hands on, [N, V] and [N, H], for the seeded text."""
    table, lm_head = (torch.from_numpy(t).double() for t in seeded_tables(SIZES))
    tokens, features = (torch.from_numpy(t) for t in seeded_text(SIZES))
    embedded, features = table[tokens], features.double()
    with torch.no_grad():
        if isinstance(module, Eagle3):
            states, logits = module.step(embedded, features)
            return logits[0].numpy(), states[0].numpy()
        if isinstance(module, Eagle | EagleAttention | CrossAttention):
            states = normed = module(embedded, features)
        elif isinstance(module, Fspad):
            normed, states = module(embedded, features)
        elif isinstance(module, Behind):
            states, normed = module.step(module.embed_tokens(tokens), features)
            lm_head = module.shared_head.head.weight
        else:
            states, normed = module(embedded, features)
        return (normed @ lm_head.T)[0].numpy(), states[0].numpy()


def test_frequencies_that_change_are_refused(tmp_path: Path) -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    config = SIZES.config(rope_scaling=scaling)
    head = open_head(written(tmp_path, config, state(drawn(Eagle(SIZES)))))
    with pytest.raises(CheckpointError, match=r"change with the length .* \(rope_type=dynamic\)"):
        eagle_shape(head)


@pytest.mark.parametrize(
    "name", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in FURTHER)]
)
def test_the_engine_is_the_reference_call_by_call(name: str, tmp_path: Path) -> None:
    case = (CASES | FURTHER)[name]
    module = drawn(case.module())
    tensors = {f"{case.prefix}{key}": tensor for key, tensor in state(module).items()}
    hydra = "hydra_head_arch" in case.config
    config = case.config if hydra else SIZES.config(**case.config)
    head = open_head(written(tmp_path, config, tensors))
    logits, states = answered(head, case.recipe, SIZES, tmp_path, SIZES.config(**case.host))
    wanted = referred(case, module)
    assert_same_sums(logits, wanted[0], TERMS)
    assert_same_sums(states, wanted[1], TERMS)
    for other in case.others:
        changed = drawn(case.module())
        other(changed)
        gap = np.abs(logits - referred(case, changed)[0]).max() / np.abs(logits).max()
        assert gap > FAR, f"{other.__name__}: {gap}"
