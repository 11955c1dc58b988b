"""Small folders as diffusers writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STABLE: dict[str, Any] = {
    "_class_name": "DDIMScheduler", "_diffusers_version": "0.35.1", "beta_start": 0.00085,
    "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "trained_betas": None,
    "prediction_type": "v_prediction", "timestep_spacing": "trailing", "skip_prk_steps": True,
}  # fmt: skip

BLOCK: dict[str, Any] = {"block_out_channels": [8], "layers_per_block": 1, "norm_num_groups": 4}
UNET: dict[str, Any] = {
    "_class_name": "UNet2DModel", "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"], "add_attention": False, **BLOCK,
}  # fmt: skip
CONDITIONED: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel", "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["UpBlock2D"], "cross_attention_dim": 6, "attention_head_dim": 4,
    "mid_block_type": None, **BLOCK,
}  # fmt: skip
XL: dict[str, Any] = {
    **CONDITIONED, "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 34, "time_cond_proj_dim": 5, "out_channels": 8,
}  # fmt: skip
"""With SDXL's conditions, an embedded guidance scale, and a learned variance."""
HALVING: dict[str, Any] = {
    **UNET, "block_out_channels": [4, 8], "down_block_types": ["DownBlock2D"] * 2,
    "up_block_types": ["UpBlock2D"] * 2, "num_class_embeds": 3,
}  # fmt: skip
DIT: dict[str, Any] = {
    "_class_name": "DiTTransformer2DModel", "num_attention_heads": 1, "attention_head_dim": 8,
    "in_channels": 4, "out_channels": 8, "num_layers": 1, "sample_size": 8, "norm_num_groups": 4,
}  # fmt: skip
SD3: dict[str, Any] = {
    "_class_name": "SD3Transformer2DModel", "sample_size": 8, "in_channels": 4, "num_layers": 2,
    "attention_head_dim": 8, "num_attention_heads": 1, "joint_attention_dim": 6,
    "caption_projection_dim": 8, "pooled_projection_dim": 5, "out_channels": 4,
    "pos_embed_max_size": 48, "qk_norm": "rms_norm", "dual_attention_layers": [0],
}  # fmt: skip
FLUX: dict[str, Any] = {
    "_class_name": "FluxTransformer2DModel", "in_channels": 12, "num_layers": 1,
    "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2,
    "joint_attention_dim": 6, "pooled_projection_dim": 5, "guidance_embeds": True,
    "axes_dims_rope": [4, 2, 2],
}  # fmt: skip
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL", "block_out_channels": [4, 8], "layers_per_block": 1,
    "norm_num_groups": 4, "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2, "scaling_factor": 0.5, "shift_factor": 0.1,
}  # fmt: skip
TINY_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderTiny", "encoder_block_out_channels": [4, 4],
    "decoder_block_out_channels": [4, 4], "num_encoder_blocks": [1, 1],
    "num_decoder_blocks": [1, 1],
}  # fmt: skip


def write_component(place: Path, config: dict[str, Any], variant: str | None = None) -> Path:
    """What save_pretrained writes of a network with seeded weights; fp16 where it is a variant."""
    import diffusers
    import torch

    torch.manual_seed(0)
    module = getattr(diffusers, config["_class_name"]).from_config(config)
    for parameter in module.parameters():  # zeros, as DiT's gates begin, would hide what is behind
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    module.to(torch.float16 if variant else torch.float32).save_pretrained(place, variant=variant)
    return place


def write_pipeline(
    place: Path, denoiser: dict[str, Any], vae: dict[str, Any], scheduler: dict[str, Any]
) -> Path:
    """The folder of a pipeline, its denoiser in fp16."""
    write_component(place / "unet", denoiser, "fp16")
    write_component(place / "vae", vae)
    (place / "scheduler").mkdir()
    (place / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (place / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return place
