"""What the networks of diffusers are given and give, by class: of a pipeline's samples, and of the
latents that its VAE decodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from graftline.errors import CheckpointError
from graftline.passes.anchors.denoiser import PREDICTION, TIMESTEP
from graftline.roles import CONDITION, DECODED, LATENTS, SAMPLE

if TYPE_CHECKING:
    from graftline.models.export.network import Input, Network


SIDE = 2
"""Of the blocks of a sample that Flux reads as one vector."""
Build = Callable[[Any], "Network"]
"""build(config of the module, by attribute) -> its network. Raises CheckpointError naming the
field that asks for what is not hosted."""


def _unet(config: Any) -> Network:
    """UNet2DModel."""
    _only(config, "class_embed_type", None)
    inputs = [_sample(config.in_channels), _timestep(), *_labels(config)]

    def call(module: Any, *given: Any) -> Any:
        return _mean(module, module(*given, return_dict=False)[0])

    return _network(inputs, PREDICTION, call, _halvings(config))


def _unet_condition(config: Any) -> Network:
    """UNet2DConditionModel: Stable Diffusion's, SDXL's, and those distilled from them."""
    _only(config, "class_embed_type", None, "projection", "simple_projection")
    _only(config, "addition_embed_type", None, "text", "text_time")
    _only(config, "encoder_hid_dim_type", None, "text_proj")
    width = config.encoder_hid_dim or config.cross_attention_dim
    width = width[0] if isinstance(width, list | tuple) else width
    more: dict[str, Input] = {}
    if config.class_embed_type is not None:
        size = config.projection_class_embeddings_input_dim
        more["class_labels"] = _condition("class_labels", "B", size)
    else:
        more |= {one.name: one for one in _labels(config)}
    if config.time_cond_proj_dim is not None:
        more["timestep_cond"] = _condition("timestep_cond", "B", config.time_cond_proj_dim)
    if config.addition_embed_type == "text_time":
        ids = 6  # original size, crop and target size
        size = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
        more["text_embeds"] = _condition("text_embeds", "B", size)
        more["time_ids"] = _condition("time_ids", "B", ids)
    text = _condition("encoder_hidden_states", "B", "L", width)

    def call(module: Any, x: Any, t: Any, states: Any, *rest: Any) -> Any:
        named = dict(zip(more, rest, strict=True))
        added = {n: named.pop(n) for n in ("text_embeds", "time_ids") if n in named}
        out = module(x, t, states, **named, added_cond_kwargs=added or None, return_dict=False)
        return _mean(module, out[0])

    inputs = [_sample(config.in_channels), _timestep(), text, *more.values()]
    return _network(inputs, PREDICTION, call, _halvings(config))


def _dit(config: Any) -> Network:
    """DiTTransformer2DModel: its table of positions is of one size."""
    size = config.sample_size
    inputs = [_sample(config.in_channels, size, size), _timestep(), _label()]

    def call(module: Any, x: Any, t: Any, label: Any) -> Any:
        out = module(x, timestep=t, class_labels=label, return_dict=False)
        return _mean(module, out[0])

    return _network(inputs, PREDICTION, call)


def _sd3(config: Any) -> Network:
    """SD3Transformer2DModel: of all sizes that its table of positions has places for."""
    inputs = [
        _sample(config.in_channels), _timestep(),
        _condition("encoder_hidden_states", "B", "L", config.joint_attention_dim),
        _condition("pooled_projections", "B", config.pooled_projection_dim),
    ]  # fmt: skip

    def call(module: Any, x: Any, t: Any, states: Any, pooled: Any) -> Any:
        return module(x, states, pooled, t, return_dict=False)[0]

    return _network(inputs, PREDICTION, call, config.patch_size, config.pos_embed_max_size)


def _flux(config: Any) -> Network:
    """FluxTransformer2DModel, which is given blocks of 2 x 2 of the sample as a sequence, and the
    row and column of each."""
    if config.patch_size != 1:
        raise CheckpointError(f"patch_size is {config.patch_size}, which no pipeline of Flux draws")
    if config.out_channels not in (None, config.in_channels):
        raise CheckpointError(
            f"out_channels is {config.out_channels} and in_channels {config.in_channels}: it is "
            "given more than a sample, which is not hosted; give the text-to-image model"
        )
    inputs = [
        _sample(config.in_channels // SIDE**2), _timestep(),
        _condition("encoder_hidden_states", "B", "L", config.joint_attention_dim),
        _condition("pooled_projections", "B", config.pooled_projection_dim),
    ]  # fmt: skip
    if config.guidance_embeds:
        inputs.append(_condition("guidance", "B"))

    def call(module: Any, x: Any, t: Any, states: Any, pooled: Any, guidance: Any = None) -> Any:
        import torch

        rows, columns = x.shape[2] // SIDE, x.shape[3] // SIDE
        axes = [torch.arange(size, dtype=x.dtype) for size in (1, rows, columns)]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        said = module(
            x.unflatten(2, (rows, SIDE)).unflatten(4, (columns, SIDE))
            .permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2),
            encoder_hidden_states=states, pooled_projections=pooled, guidance=guidance,
            timestep=t / 1000, img_ids=places.flatten(0, 2),
            txt_ids=torch.zeros(states.shape[1], 3), return_dict=False,
        )[0]  # fmt: skip
        blocks = said.unflatten(2, (-1, SIDE, SIDE)).unflatten(1, (rows, columns))
        return blocks.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    return _network(inputs, PREDICTION, call, SIDE)


def _decoder(config: Any) -> Network:
    """The decoder of AutoencoderKL or AutoencoderTiny."""

    def call(module: Any, z: Any) -> Any:
        return module.decode(z, return_dict=False)[0]

    inputs = [_input(LATENTS, LATENTS, "B", config.latent_channels, "H", "W")]
    return _network(inputs, DECODED, call)


NETWORKS: Mapping[str, Build] = {
    "UNet2DModel": _unet, "UNet2DConditionModel": _unet_condition,
    "DiTTransformer2DModel": _dit, "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
    "AutoencoderKL": _decoder, "AutoencoderTiny": _decoder,
}  # fmt: skip
"""By class name, as config.json has it."""
DRAWN: Mapping[str, Mapping[str, Any]] = {"FluxTransformer2DModel": {"spacing": "trailing"}}
"""What pipelines of a network say of a sampling that no scheduler's config does."""


def _network(
    inputs: list[Input], output: str, call: Any, multiple: int = 1, most: int | None = None
) -> Network:
    from graftline.models.export.network import Network

    return Network(tuple(inputs), output, call, multiple, most)


def _input(name: str, role: str, *shape: int | str, integer: bool = False) -> Input:
    from graftline.models.export.network import Input

    return Input(name, role, shape, integer)


def _sample(channels: int, height: int | str = "H", width: int | str = "W") -> Input:
    return _input(SAMPLE, SAMPLE, "B", channels, height, width)


def _timestep() -> Input:
    return _input(TIMESTEP, TIMESTEP, "B")


def _condition(name: str, *shape: int | str) -> Input:
    return _input(name, CONDITION, *shape)


def _label() -> Input:
    return _input("class_labels", CONDITION, "B", integer=True)


def _labels(config: Any) -> list[Input]:
    """The class of a sample, where there are classes."""
    return [] if config.num_class_embeds is None else [_label()]


def _halvings(config: Any) -> int:
    """What sizes must be multiples of: every block but the last halves them."""
    return 1 << (len(config.block_out_channels) - 1)


def _mean(module: Any, out: Any) -> Any:
    """A prediction without the variance that was learned with it, which are as many channels
    again (Nichol and Dhariwal, 2102.09672)."""
    channels = module.config.in_channels
    return out[:, :channels] if out.shape[1] == 2 * channels else out


def _only(config: Any, field: str, *known: str | None) -> None:
    value = getattr(config, field)
    if value not in known:
        told = ", ".join(map(repr, known))
        raise CheckpointError(
            f"{field} is {value!r}, which asks for inputs that are not hosted (only {told}); "
            "export the component to ONNX yourself, as model.onnx beside its config"
        )
