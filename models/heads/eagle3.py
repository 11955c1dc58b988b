"""EAGLE-3 heads (arXiv 2503.01840), 3.1 and P-EAGLE: layers over several taps and the next token.

x = fc(concat of the taps), each or all of them normed first where the head has such norms. The
first layer's attention reads [norm(embedding of token t+1); norm(x)], its residual is x. `norm` and
the head's own `lm_head` score its vocabulary. What is fed back for the next token is the last
layer's output, or with `norm_output` what `norm` made of it.
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
from graftline.models.heads.head import Head, HostSize
from graftline.models.heads.modelopt import REPEATED, WITH_TAPS, check_switches
from graftline.models.heads.names import by_newer_names
from graftline.models.heads.parallel import Parallel, take_parallel
from graftline.models.heads.taps import eagle3_taps
from graftline.models.heads.vocabulary import take_draft_ids, take_lm_head

HARMLESS = {
    r"target_model\..*": "the host, saved by the training script",
    r"verifier_(norm|lm_head)\.weight": "the host's own, saved by the training script",
    r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq": "computed from the config",
}
FIRST = {"hidden_norm": "hidden_norm", "input_layernorm": "embedding_norm"}


@dataclass(frozen=True)
class Eagle3Settings:
    """An EAGLE-3 head. `windows`: how many positions each layer attends to (0: all);
    `norm_before_fc`: one norm over all taps together; `fc_norm`: one per tap; `residual_normed`:
    the first layer's residual is the normed x; `own_embedding`: the head has a table of its own;
    `mask_token`: what stands for tokens not drafted yet (P-EAGLE), whose taps are the tensor
    `mask_hidden`; `parallel`: further tokens from one step (ModelOpt)."""

    block: Block
    layers: int
    windows: tuple[int, ...]
    taps: int
    host_hidden: int
    vocabulary: int
    draft_vocabulary: int
    own_embedding: bool
    own_lm_head: bool
    norm_before_fc: bool
    fc_norm: bool
    residual_normed: bool
    norm_output: bool
    mask_token: int | None
    parallel: Parallel | None


def open_eagle3(files: HeadFiles, family: str = "eagle3", square_fc: bool = False) -> Head:
    """The head of such files; `square_fc`: its format says that fc is applied whatever its shape.
    Raises CheckpointError.

    Tensors: fc.weight [H, taps x host hidden], fc_norm.{k}.weight or fc_norm.weight,
    layers.{i}.* as in `eagle` with layers.0.embedding_norm and layers.0.hidden_norm, norm.weight,
    lm_head.weight [draft vocabulary, H], embedding.weight [V, H], draft_ids, mask_hidden,
    parallel.*.
    """
    files = by_newer_names(files)
    config = Config(str(files.path), files.config)
    modelopt = config.inner("eagle_config")
    check_switches(modelopt, WITH_TAPS)
    taken = Taken(files)
    settings = _settings(taken, config, modelopt, square_fc)
    family = _family(config, family, settings.mask_token)
    taps = eagle3_taps(config, modelopt, files, settings.taps)
    _refuse_scales(files)
    tensors = taken.rest(HARMLESS)
    modelopt.done(REPEATED)
    config.done()
    return Head(
        family, files.path, settings, taps, tensors, _sizes(settings), tuple(config.decided)
    )


def _family(config: Config, family: str, mask_token: int | None) -> str:
    """P-EAGLE is what has a mask, whatever the file calls itself."""
    if mask_token is not None:
        config.decide(f"tokens of a draft not known yet are masks, of id {mask_token}: P-EAGLE")
        return "peagle"
    if family == "peagle":
        config.refuse("a P-EAGLE head without the tensor 'mask_hidden', the feature of its masks")
    return family


def _settings(
    taken: Taken, config: Config, modelopt: Config, square_fc: bool
) -> Eagle3Settings:
    """Every number and switch; their tensors are taken with them."""
    block = with_files(taken, config, read_block(config), "layers.0.self_attn")
    vocabulary = config.whole("vocab_size")
    drafted = _drafted(config, vocabulary)
    host = config.whole("target_hidden_size", block.hidden)
    count = _take_fc(taken, config, block.hidden, host, square_fc)
    config.must("num_aux_hidden_states", count, f"'fc.weight' takes {count} hidden states")
    layers = config.whole("num_hidden_layers")
    _take_layers(taken, block, layers)
    settings = Eagle3Settings(
        block, layers, read_windows(config, layers), count, host, vocabulary, drafted,
        own_embedding=_take_embedding(taken, vocabulary, block.hidden, host),
        own_lm_head=_take_end(taken, config, drafted, vocabulary, block.hidden, host),
        norm_before_fc=config.flag("norm_before_fc", False),
        fc_norm=config.flag("fc_norm", False),
        residual_normed=config.flag("norm_before_residual", False),
        norm_output=config.flag("norm_output", False),
        mask_token=_take_mask(taken, config, count * host),
        parallel=take_parallel(taken, modelopt, block.hidden, drafted),
    )  # fmt: skip
    _take_norms(taken, config, settings)
    if settings.norm_output:
        config.decide("norm_output: the state that is fed back is behind the head's norm")
    take_draft_ids(taken, vocabulary, drafted)
    return settings


def _drafted(config: Config, vocabulary: int) -> int:
    """The head's vocabulary, by either name; the host's where the config does not say."""
    values = {
        config.whole(key) for key in ("draft_vocab_size", "truncated_vocab_size") if config.has(key)
    }
    if len(values) > 1:
        config.refuse("draft_vocab_size and truncated_vocab_size name different sizes")
    return values.pop() if values else vocabulary


def _take_fc(taken: Taken, config: Config, hidden: int, host: int, square: bool) -> int:
    """`fc`, which brings the taps to the head's width; how many taps its width makes."""
    width = taken.files.matrix("fc.weight")[1]
    if width % host:
        config.refuse(
            f"tensor 'fc.weight' is {list(taken.files.shape('fc.weight'))}, whose width is no "
            f"multiple of the host's hidden size of {host}"
        )
    taken.take("fc.weight", "fc.weight", [hidden, width])
    if taken.take_if("fc.bias", "fc.bias", [hidden]):
        config.decide("fc has a bias")
    if width == hidden and not square:
        config.refuse(
            "tensor 'fc.weight' is square: some loaders apply it to a single tap of the head's "
            "own width and some do not, and nothing here says which; save it in the speculators "
            "format"
        )
    return width // host


def _take_layers(taken: Taken, block: Block, layers: int) -> None:
    for index in range(layers):
        place, first = f"layers.{index}", index == 0
        norms = {**FIRST, "post_attention_layernorm": "mlp_norm"} if first else ORDINARY
        width = block.hidden * (2 if first else 1)
        take_layer(taken, block, Layer(place, place, width, norms))


def _take_embedding(taken: Taken, vocabulary: int, hidden: int, host: int) -> bool:
    if host != hidden:
        taken.take("embed_tokens.weight", "embedding.weight", [vocabulary, hidden])
        return True
    return taken.take_if("embed_tokens.weight", "embedding.weight", [vocabulary, hidden])


def _take_end(
    taken: Taken, config: Config, drafted: int, vocabulary: int, hidden: int, host: int
) -> bool:
    """The last norm and the lm_head, which can be the host's in a head of the host's width."""
    taken.take("norm.weight", "norm.weight", [hidden])
    own = take_lm_head(taken, config, vocabulary, drafted, hidden)
    if not own and hidden != host:
        config.refuse(
            f"no tensor 'lm_head.weight' in a head of width {hidden}, and the host's is {host} wide"
        )
    return own


def _take_mask(taken: Taken, config: Config, width: int) -> int | None:
    """P-EAGLE's mask token, and the taps that stand at its places."""
    if not taken.files.has("mask_hidden"):
        config.must("mask_token_id", None, "a mask token without the tensor 'mask_hidden'")
        return None
    taken.take("mask_hidden", "mask_hidden", [1, 1, width])
    token, vocabulary = config.whole("mask_token_id", least=0), config.whole("vocab_size")
    if token >= vocabulary:
        config.refuse(f"mask_token_id={token} is outside vocab_size={vocabulary}")
    return token


def _take_norms(taken: Taken, config: Config, settings: Eagle3Settings) -> None:
    """The norms before `fc`: over all taps together, or one per tap."""
    if settings.norm_before_fc and settings.fc_norm:
        config.refuse("norm_before_fc and fc_norm exclude one another")
    width = settings.host_hidden
    if settings.norm_before_fc:
        taken.take("input_norm.weight", "fc_norm.weight", [settings.taps * width])
    for index in range(settings.taps if settings.fc_norm else 0):
        taken.take(f"fc_norm.{index}.weight", f"fc_norm.{index}.weight", [width])


def _refuse_scales(files: HeadFiles) -> None:
    for match in files.matching(r".*\._?pre_quant_scale"):
        Config(str(files.path), {}).refuse(
            f"tensor '{match[0]}' scales the inputs of quantized weights, which graftline does not "
            "read; give the head as it was before quantization"
        )


def _sizes(settings: Eagle3Settings) -> tuple[HostSize, ...]:
    where = f"the width of tensor 'fc.weight' for {settings.taps} taps"
    width = settings.taps * settings.host_hidden
    return (
        HostSize(where, width, "hidden", settings.taps),
        HostSize("config.json: vocab_size", settings.vocabulary, "vocabulary"),
    )
