"""Routers of blocks (FiRST, arXiv 2410.12513): for each block that a text may skip, a row w [1, H]
and a bias [1], which say how likely it is needed.

A folder with config.json and model.safetensors. Tensors: model.layers.{i}.router.weight and .bias.
config.json: hidden_size, num_hidden_layers, and `routes`, the lists of blocks that a bundle has a
graph without: [[9, 13], [9, 13, 17, 21]].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.models.heads.config import Config
from graftline.models.heads.files import HeadFiles, Taken
from graftline.models.heads.head import Head, HostSize
from graftline.tensors import numbers

FAMILY = "router"
WEIGHT, BIAS = "model.layers.{}.router.weight", "model.layers.{}.router.bias"
ROUTER = r"(?:model\.)?layers\.(\d+)\.router\.weight"
"""The sign of such files."""
HARMLESS = (
    "architectures", "model_type", "base_model_name_or_path", "torch_dtype", "transformers_version",
)  # fmt: skip


@dataclass(frozen=True)
class RouterSettings:
    """Routers of the 0-based blocks `layers` of a host of `hidden` numbers, and the sets of these
    blocks that there are `routes` without."""

    layers: tuple[int, ...]
    hidden: int
    routes: tuple[tuple[int, ...], ...]


def open_router(files: HeadFiles) -> Head:
    """The routers in such files. Raises CheckpointError.

    Tensors: routers.weight [L, H] and routers.bias [L], in the order of their blocks.
    """
    config = Config(str(files.path), files.config)
    hidden, blocks = config.whole("hidden_size"), config.whole("num_hidden_layers")
    layers = tuple(sorted(int(match[1]) for match in files.matching(ROUTER)))
    if layers[0] == 0:
        config.refuse("a router of block 0, which is always computed: nothing stands before it")
    if layers[-1] >= blocks:
        config.refuse(f"a router of block {layers[-1]}, and num_hidden_layers={blocks}")
    routes = config.lists("routes")
    for route in routes:
        if not route:
            config.refuse("routes: [] skips no block")
        if odd := sorted(set(route) - set(layers)):
            config.refuse(f"routes: {list(route)} skips block {odd[0]}, which has no router")
    config.done(HARMLESS)
    taken = Taken(files)
    for layer in layers:
        taken.take(WEIGHT.format(layer), f"{layer}.weight", (1, hidden))
        taken.take(BIAS.format(layer), f"{layer}.bias", (1,))
    read = taken.rest({})
    tensors = {
        f"routers.{part}": ir.tensor(
            np.concatenate([numbers(read[f"{layer}.{part}"]) for layer in layers]),
            name=f"routers.{part}",
        )
        for part in ("weight", "bias")
    }
    config.decide(f"routers of {len(layers)} of {blocks} blocks, and {len(routes)} routes")
    sizes = (
        HostSize("config.json: hidden_size", hidden, "hidden"),
        HostSize("config.json: num_hidden_layers", blocks, "layers"),
    )
    settings = RouterSettings(layers, hidden, routes)
    return Head(FAMILY, files.path, settings, (), tensors, sizes, tuple(config.decided))
