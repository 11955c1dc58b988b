"""Accelerators of a host's first blocks, after the idea of M2R2 (arXiv 2502.02040): for each block
a number s by which its step is scaled, and two matrices A [r, H] and B [H, r].

A folder with config.json and model.safetensors. None are published in this form, whose formulas
are ours (`passes/grafts/accelerators.py`): `graftline train accelerator` writes it. The exit is
behind the last block that has an accelerator.
"""

from __future__ import annotations

from dataclasses import dataclass

from graftline.models.heads.config import Config
from graftline.models.heads.files import HeadFiles, Taken
from graftline.models.heads.head import Head, HostSize

FAMILY = "m2r2"
SCALE, DOWN, UP = (f"accelerators.{{}}.{part}" for part in ("scale", "down.weight", "up.weight"))
SIGN = r"accelerators\.\d+\.down\.weight"
"""The sign of such files."""
EXIT_LAYER, RANK = "exit_layer", "accelerator_rank"
"""Keys of config.json: after how many of the host's blocks the exit is, and r."""


@dataclass(frozen=True)
class AcceleratorSettings:
    """Accelerators of the first `exit` blocks of a host of `hidden` numbers."""

    exit: int
    hidden: int
    rank: int
    epsilon: float


def open_m2r2(files: HeadFiles) -> Head:
    """The accelerators in such files. Raises CheckpointError.

    Tensors: accelerator.{l}.scale [1], accelerator.{l}.down [r, H], accelerator.{l}.up [H, r]; in
    the files accelerators.{l}.scale, .down.weight and .up.weight.
    """
    config = Config(str(files.path), files.config)
    hidden, blocks = config.whole("hidden_size"), config.whole("num_hidden_layers")
    rank, exit_layer = config.whole(RANK), config.whole(EXIT_LAYER)
    epsilon = config.number("rms_norm_eps")
    if exit_layer >= blocks:
        config.refuse(
            f"{EXIT_LAYER}={exit_layer}, and num_hidden_layers={blocks}: an exit is in front of "
            "its host's last block"
        )
    config.done(())
    taken = Taken(files)
    for block in range(exit_layer):
        taken.take(SCALE.format(block), f"accelerator.{block}.scale", (1,))
        taken.take(DOWN.format(block), f"accelerator.{block}.down", (rank, hidden))
        taken.take(UP.format(block), f"accelerator.{block}.up", (hidden, rank))
    config.decide(f"accelerators of rank {rank} for the first {exit_layer} of {blocks} blocks")
    sizes = (
        HostSize("config.json: hidden_size", hidden, "hidden"),
        HostSize("config.json: num_hidden_layers", blocks, "layers"),
    )
    settings = AcceleratorSettings(exit_layer, hidden, rank, epsilon)
    return Head(FAMILY, files.path, settings, (), taken.rest({}), sizes, tuple(config.decided))
