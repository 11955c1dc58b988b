"""DFlash heads and those built on them: a block of tokens drafted in one pass, in z-lab's layout.

The block is the last accepted token and mask tokens behind it. x = embeddings of the block; every
layer's attention has keys and values of both hidden_norm(fc(concat of the taps)), one row per
accepted token, and of the block itself; queries are the block's. `norm` and the host's lm_head
score it. DFlash2 adds convolutions and a selector, DSpark a Markov and a confidence head, Domino a
recurrent correction, JetSpec a causal block.
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
from graftline.models.heads.dflash_parts import (
    Confidence,
    Convolution,
    Domino,
    Markov,
    Selector,
    take_confidence,
    take_convolution,
    take_domino,
    take_markov,
    take_selector,
)
from graftline.models.heads.files import HeadFiles, Taken
from graftline.models.heads.head import Head, HostSize, Tap
from graftline.models.heads.merged import merged
from graftline.models.heads.taps import requested_taps
from graftline.models.heads.vocabulary import take_draft_ids, take_lm_head

HARMLESS = {
    r"target_model\..*": "the host, saved by the training script",
    r"verifier_(norm|lm_head)\.weight": "the host's own, saved by the training script",
    r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq": "computed from the config",
}
CONTAINER = "logit_head."
"""What early files have before the names of Domino's and DSpark's parts."""
PROJECTORS = {"dflash": "dflash", "dspark": "dspark", "domino": "domino"}
"""`projector_type` and the family it makes."""
OWN = ("dflash_config", "dspark_config", "jetspec_config")
"""Blocks of a config that hold a head's own keys."""
OUTER = (
    "block_size", "mask_token_id", "target_layer_ids", "is_causal", "causal", "causal_head",
    "markov_rank", "markov_head_type", "enable_confidence_head", "use_confidence_head",
    "confidence_head_with_markov", "sample_from_anchor", "projector_type",
    "sliding_window_non_causal", "emb_dim", "gru_hidden_dim",
)  # fmt: skip
"""Keys of those blocks that some files have at the top level."""


@dataclass(frozen=True)
class DFlashSettings:
    """A DFlash head. `windows`: positions each layer attends to (0: all); `causal`: whether each
    layer's block attends only backwards; `anchor_drafts`: the first row, of the last accepted
    token, drafts too. Logits are multiplied by `output_multiplier`, then soft-capped
    (`softcap` x tanh(logits / softcap); 0: not); embeddings by `embedding_scale`."""

    block: Block
    layers: int
    windows: tuple[int, ...]
    causal: tuple[bool, ...]
    block_size: int
    mask_token: int
    vocabulary: int
    draft_vocabulary: int
    host_layers: int | None
    anchor_drafts: bool
    own_embedding: bool
    own_lm_head: bool
    output_multiplier: float
    softcap: float
    embedding_scale: float
    convolution: Convolution | None
    selector: Selector | None
    markov: Markov | None
    confidence: Confidence | None
    domino: Domino | None


def open_dflash(files: HeadFiles) -> Head:
    """The head of such files. Raises CheckpointError.

    Tensors: fc.weight [H, taps x H], hidden_norm.weight, layers.{i}.* as in `block`, norm.weight;
    embedding.weight, lm_head.weight and draft_ids where the file has them; those of the parts.
    """
    files = files.renamed(lambda key: key.removeprefix(CONTAINER), str)
    config = Config(str(files.path), files.config)
    own = merged(config, OWN, OUTER)
    own.must("attention_mode", "gqa", "latent attention")
    taken = Taken(files)
    block = with_files(taken, config, read_block(config), "layers.0.self_attn")
    layers, hidden = config.whole("num_hidden_layers"), block.hidden
    config.must("target_hidden_size", hidden, "a host of another width")
    vocabulary = config.whole("vocab_size")
    drafted = config.whole("draft_vocab_size", vocabulary)
    for index in range(layers):
        place = f"layers.{index}"
        take_layer(taken, block, Layer(place, place, hidden, ORDINARY))
    for name in ("hidden_norm", "norm"):
        taken.take(f"{name}.weight", f"{name}.weight", [hidden])
    taps = _taps(config, own, files, hidden)
    taken.take("fc.weight", "fc.weight", [hidden, len(taps) * hidden])
    family, settings = _settings(config, own, taken, block, layers, vocabulary, drafted)
    take_draft_ids(taken, vocabulary, drafted)
    tensors = taken.rest(HARMLESS)
    own.done()
    config.done()
    _decide(config, settings)
    sizes = _sizes(settings)
    return Head(family, files.path, settings, taps, tensors, sizes, tuple(config.decided))


def _settings(
    config: Config, own: Config, taken: Taken, block: Block, layers: int, vocabulary: int,
    drafted: int,
) -> tuple[str, DFlashSettings]:  # fmt: skip
    hidden = block.hidden
    projector = own.choice("projector_type", "dflash", PROJECTORS)
    causal, jetspec = _causal(own)
    windows = _windows(config, own, layers)
    convolution = take_convolution(taken, own, hidden, layers)
    markov = take_markov(taken, own, hidden, vocabulary, drafted)
    family = "dflash2" if convolution is not None else PROJECTORS[projector]
    family = "dspark" if markov is not None else family
    domino = take_domino(taken, own, hidden, vocabulary)
    anchor = domino.shifted if domino is not None else family == "dspark"
    settings = DFlashSettings(
        block, layers, windows, _causal_layers(own, causal, config, layers),
        block_size=own.whole("block_size", least=2),
        mask_token=own.whole("mask_token_id", least=0),
        vocabulary=vocabulary,
        draft_vocabulary=drafted,
        host_layers=config.whole("num_target_layers") if config.has("num_target_layers") else None,
        anchor_drafts=own.flag("sample_from_anchor", anchor),
        own_embedding=taken.take_if(
            "embed_tokens.weight", "embedding.weight", [vocabulary, hidden]
        ),
        own_lm_head=take_lm_head(taken, config, vocabulary, drafted, hidden),
        output_multiplier=own.number("output_multiplier", 1.0),
        softcap=own.number("final_logit_softcapping", 0.0),
        embedding_scale=own.number("input_embedding_scale", 1.0),
        convolution=convolution,
        selector=take_selector(taken, own, hidden, vocabulary),
        markov=markov,
        confidence=take_confidence(taken, own, hidden, markov),
        domino=domino,
    )  # fmt: skip
    if settings.mask_token >= vocabulary:
        config.refuse(f"mask_token_id={settings.mask_token} is outside vocab_size={vocabulary}")
    return ("jetspec" if jetspec and family == "dflash" else family), settings


def _taps(config: Config, own: Config, files: HeadFiles, hidden: int) -> tuple[Tap, ...]:
    """The outputs of `target_layer_ids`. Raises CheckpointError."""
    config.read.add("num_target_layers")
    ids = own.ids("target_layer_ids")
    count = files.matrix("fc.weight")[1] // hidden
    if (requested := requested_taps(config, files, count)) is not None:
        return requested
    if ids is None or any(i < 0 for i in ids):
        own.refuse("target_layer_ids is missing, or names what enters layer 0; give the taps")
    config.decide(
        f"taps by target_layer_ids={list(ids)}, numbers of layers whose output is read "
        "(transformers' hidden_states one further)"
    )
    last = config.whole("num_target_layers") if config.has("num_target_layers") else 0
    if any(i + 1 == last for i in ids):
        config.decide(
            f"layer {last - 1} is the last: transformers' hidden_states[{last}], which z-lab's "
            "code reads, is behind the final norm, so is this tap"
        )
    return tuple(Tap(-1, normed=True) if i + 1 == last else Tap(i) for i in ids)


def _causal(own: Config) -> tuple[bool | None, bool]:
    """What the config says of the block's attention (None: by the kind of layer), and whether it
    says so as JetSpec does. Raises CheckpointError for a contradiction."""
    named = {k: own.flag(k, False) for k in ("is_causal", "causal", "causal_head") if own.has(k)}
    own.read |= {"is_causal", "causal", "causal_head"}
    if len(set(named.values())) > 1:
        own.refuse(f"{' and '.join(f'{k}={v}' for k, v in named.items())} contradict one another")
    return next(iter(named.values()), None), named.get("causal_head", False)


def _causal_layers(
    own: Config, causal: bool | None, config: Config, layers: int
) -> tuple[bool, ...]:
    """Per layer: as the config says, or else those with a window, unless it says they are not."""
    bidirectional = own.flag("sliding_window_non_causal", False)
    if causal is not None:
        return (causal,) * layers
    return tuple(w > 0 and not bidirectional for w in _windows(config, own, layers))


def _windows(config: Config, own: Config, layers: int) -> tuple[int, ...]:
    """By `use_swa` and `swa_window_size`, one for all layers, or by layer_types."""
    by_types = read_windows(config, layers)
    if not own.flag("use_swa", False):
        own.read.add("swa_window_size")
        return by_types
    if any(by_types):
        own.refuse("use_swa and layer_types both name windows; remove one")
    return (own.whole("swa_window_size"),) * layers


def _decide(config: Config, settings: DFlashSettings) -> None:
    if any(settings.windows):
        kinds = [f"{w or 'all'}{', backwards only' if c else ''}"
                 for w, c in zip(settings.windows, settings.causal, strict=True)]  # fmt: skip
        config.decide(f"positions that each layer attends to: {'; '.join(kinds)}")
    if not settings.own_embedding:
        config.decide("no embed_tokens in the file: the host's embedding serves")
    first = "drafts too" if settings.anchor_drafts else "does not draft"
    config.decide(
        f"blocks of {settings.block_size}: the row of the last accepted token {first}; rotary "
        f"base {settings.block.rope.theta:g}, which must be the host's"
    )


def _sizes(settings: DFlashSettings) -> tuple[HostSize, ...]:
    sizes = [
        HostSize("config.json: hidden_size", settings.block.hidden, "hidden"),
        HostSize("config.json: vocab_size", settings.vocabulary, "vocabulary"),
    ]
    if settings.host_layers is not None:
        sizes.append(HostSize("config.json: num_target_layers", settings.host_layers, "layers"))
    return tuple(sizes)
