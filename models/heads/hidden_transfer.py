"""Hidden Transfer's matrices (arXiv 2404.12022): for each of K tokens to come a linear map [H, H]
of a middle state of the host.

No such files are published; ours are a folder with config.json (transfer_layer, hidden_size,
num_hidden_layers) and model.safetensors, whose tensors are `transfer.{i}.weight`. Matrix i makes
the state of the token i + 2 places behind a row, where `transfer_layer` blocks of the host have
read it.
"""

from __future__ import annotations

from dataclasses import dataclass

from graftline.models.heads.config import Config
from graftline.models.heads.files import HeadFiles, Taken
from graftline.models.heads.head import Head, HostSize

FAMILY = "hidden-transfer"
WEIGHT = "transfer.{}.weight"
SIGN = r"transfer\.(\d+)\.weight"
"""The tensors of such files."""


@dataclass(frozen=True)
class TransferSettings:
    """`count` matrices over states of `hidden` numbers that enter behind `blocks` blocks."""

    count: int
    blocks: int
    hidden: int


def open_hidden_transfer(files: HeadFiles) -> Head:
    """The matrices in such files. Raises CheckpointError.

    Tensors: transfer.{i}.weight [H, H].
    """
    config = Config(str(files.path), files.config)
    hidden, blocks = config.whole("hidden_size"), config.whole("num_hidden_layers")
    entered = config.whole("transfer_layer")
    count = len(files.matching(SIGN))
    if entered >= blocks:
        config.refuse(f"transfer_layer={entered}, and num_hidden_layers={blocks}: none is left")
    config.done()
    taken = Taken(files)
    for number in range(count):
        taken.take(WEIGHT.format(number), WEIGHT.format(number), (hidden, hidden))
    config.decide(
        f"{count} matrices, for the tokens 2 to {count + 1} places ahead, behind {entered} of "
        f"{blocks} blocks"
    )
    sizes = (
        HostSize("config.json: hidden_size", hidden, "hidden"),
        HostSize("config.json: num_hidden_layers", blocks, "layers"),
    )
    settings = TransferSettings(count, entered, hidden)
    return Head(FAMILY, files.path, settings, (), taken.rest({}), sizes, tuple(config.decided))
