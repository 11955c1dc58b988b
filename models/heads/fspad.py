"""FSPAD heads: EAGLE's layer behind a sampled feature, with an end of its own for the next one.

Gui et al. 2024 (arXiv 2408.15562). x = fc([embedding of token t+1; feature of t]), then
x + down(silu(gate(embedding)) * up(norm(x))); then one layer without a norm before its attention,
the last matrix of whose MLP has 2 H rows. With the first H the layer's end is what the host's
lm_head scores, with the others it is the feature of t+1. The tree is EAGLE-2's.
"""

from __future__ import annotations

from dataclasses import dataclass

from graftline.models.heads.block import MLP, Block, Layer, read_block, take_layer, with_files
from graftline.models.heads.config import Config
from graftline.models.heads.eagle import HARMLESS
from graftline.models.heads.files import HeadFiles, Taken
from graftline.models.heads.head import Head, HostSize, Tap
from graftline.models.heads.taps import requested_taps
from graftline.tensors import row_range

FAMILY = "fspad"
SAMPLED = r"fc\.fc\.weight"
"""The tensor that shows such a head."""


@dataclass(frozen=True)
class FspadSettings:
    """An FSPAD head of one layer, over the whole vocabulary of its host."""

    block: Block
    vocabulary: int


def open_fspad(files: HeadFiles) -> Head:
    """The head of such files. Raises CheckpointError.

    Tensors: fc.weight [H, 2H] (embedding first), fc.bias [H]; sampling.norm/gate/up/down.weight;
    layers.0.query/key/value/output/gate/up/down.weight (.bias), layers.0.feature_down.weight [H,
    I], layers.0.mlp_norm.weight.
    """
    config = Config(str(files.path), files.config)
    vocabulary = config.whole("vocab_size")
    config.must("num_hidden_layers", 1, "an FSPAD head is one layer, whose end is twice as wide")
    config.read.add("bias")  # its code hands it on, and fc has one in any case
    taken = Taken(files)
    block = with_files(taken, config, read_block(config), "layers.0.self_attn")
    hidden, inner = block.hidden, block.mlp
    taken.take("fc.fc.weight", "fc.weight", [hidden, 2 * hidden])
    taken.take("fc.fc.bias", "fc.bias", [hidden])
    taken.take("fc.post_attention_layernorm.weight", "sampling.norm.weight", [hidden])
    for key, name in MLP.items():
        shape = [hidden, inner] if key == "down_proj" else [inner, hidden]
        taken.take(f"fc.mlp.{key}.weight", f"sampling.{name}.weight", shape)
        shape = [2 * hidden, inner] if key == "down_proj" else [inner, hidden]
        taken.take(f"layers.0.mlp.{key}.weight", f"layers.0.{name}.weight", shape)
    norms = {"post_attention_layernorm": "mlp_norm"}
    take_layer(taken, block, Layer("layers.0", "layers.0", hidden, norms), mlp=False)
    tensors = dict(taken.rest(HARMLESS))
    ends = tensors["layers.0.down.weight"]
    for place, name in enumerate(("layers.0.down.weight", "layers.0.feature_down.weight")):
        tensors[name] = row_range(ends, place * hidden, hidden, name)
    config.done()
    config.decide(
        "reads the host's final norm's output; of the layer's two ends the first is scored by the "
        "host's lm_head, and the second is the next feature"
    )
    taps = requested_taps(config, files, 1) or (Tap(-1, normed=True),)
    sizes = (
        HostSize("config.json: hidden_size", hidden, "hidden"),
        HostSize("config.json: vocab_size", vocabulary, "vocabulary"),
    )
    settings = FspadSettings(block, vocabulary)
    return Head(FAMILY, files.path, settings, taps, tensors, sizes, tuple(config.decided))
