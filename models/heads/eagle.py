"""EAGLE-1 and EAGLE-2 heads: one decoder layer over the last feature and the next token.

Li et al. 2024 (arXiv 2401.15077, 2406.16858): x = fc([embedding of token t+1; feature of t]), then
the layers; the output is the feature of t+1, which the host's lm_head scores, or the head's own
where the file has one. EAGLE-2 changes only the tree. The first layer has no norm before its
attention, and no norm follows the last.
"""

from __future__ import annotations

from dataclasses import dataclass

from graftline.models.heads.block import (
    ORDINARY,
    Block,
    Layer,
    read_block,
    read_windows,
    take_layer,
    with_files,
)
from graftline.models.heads.config import Config
from graftline.models.heads.files import HeadFiles, Taken
from graftline.models.heads.head import Head, HostSize, Tap
from graftline.models.heads.modelopt import REPEATED, WITHOUT, check_switches
from graftline.models.heads.names import by_newer_names
from graftline.models.heads.taps import IDS, requested_taps

HARMLESS = {
    r"embed_tokens\.weight": "the host's table, saved as a part",
    r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq": "computed from the config",
}


@dataclass(frozen=True)
class EagleSettings:
    """An EAGLE-1/2 head: `layers` blocks behind `fc`, which has a bias or none. `own_lm_head`: not
    the host's lm_head scores."""

    block: Block
    layers: int
    fc_bias: bool
    own_lm_head: bool
    vocabulary: int


def open_eagle(files: HeadFiles) -> Head:
    """The head of such files. Raises CheckpointError.

    Tensors: fc.weight [H, 2H] (embedding first), fc.bias [H]; layers.{i}.query/key/value/output/
    gate/up/down.weight (.bias), layers.{i}.mlp_norm.weight and, from the second layer on,
    layers.{i}.attention_norm.weight; lm_head.weight [V, H] where the file has it.
    """
    files = by_newer_names(files)
    config = Config(str(files.path), files.config)
    modelopt = config.inner("eagle_config")
    check_switches(modelopt, WITHOUT)
    modelopt.ids(IDS)
    modelopt.done((*REPEATED, "parallel_draft_heads_num_layers"))
    layers, vocabulary = config.whole("num_hidden_layers"), config.whole("vocab_size")
    taken = Taken(files)
    block = with_files(taken, config, read_block(config), "layers.0.self_attn")
    bias = _fc_bias(config, files)
    taken.take("fc.weight", "fc.weight", [block.hidden, 2 * block.hidden])
    if bias:
        taken.take("fc.bias", "fc.bias", [block.hidden])
    for index in range(layers):
        norms = ORDINARY if index else {"post_attention_layernorm": "mlp_norm"}
        place = f"layers.{index}"
        take_layer(taken, block, Layer(place, place, block.hidden, norms))
    own = taken.take_if("lm_head.weight", "lm_head.weight", [vocabulary, block.hidden])
    tensors = taken.rest(HARMLESS)
    config.must("draft_vocab_size", vocabulary, "EAGLE-1/2 scores the host's whole vocabulary")
    if any(read_windows(config, layers)):
        config.refuse("sliding windows in an EAGLE-1/2 head, whose code has none, are not hosted")
    config.done()
    config.decide(
        "reads the host's final norm's output; the host's embedding "
        f"{'' if own else 'and lm_head '}serve{'s' if own else ''}"
    )
    if files.has("embed_tokens.weight"):
        config.decide("embed_tokens.weight in the file is not read: it is the host's own table")
    settings = EagleSettings(block, layers, bias, own, vocabulary)
    taps = requested_taps(config, files, 1) or (Tap(-1, normed=True),)
    sizes = (
        HostSize("config.json: hidden_size", block.hidden, "hidden"),
        HostSize("config.json: vocab_size", vocabulary, "vocabulary"),
    )
    return Head("eagle", files.path, settings, taps, tensors, sizes, tuple(config.decided))


def _fc_bias(config: Config, files: HeadFiles) -> bool:
    """Whether `fc` has a bias: the file says, and `bias` must not contradict (absent: true)."""
    present = files.has("fc.bias")
    if config.has("bias") and config.flag("bias", present) != present:
        there = "holds" if present else "lacks"
        config.refuse(f"bias={config.raw['bias']} but the file {there} tensor 'fc.bias'")
    if not present and not config.has("bias"):
        config.decide("no fc.bias in the file, though config.json does not say bias=false: no bias")
    return present
