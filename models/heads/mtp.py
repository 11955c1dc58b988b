"""Heads of multi-token prediction (MTP), which come with their host's own checkpoint.

x = fc([norm of the embedding of token t+1; norm of the hidden state of t]), then one decoder layer
and a final norm, which the host's lm_head scores. transformers leaves these tensors out, so they
are read from the files. Three layouts: `mtp.*` (Qwen3-Next, Qwen3.5), a layer behind the host's
last (DeepSeek-V3, GLM-4.5) and `mtp_layers.*` (the speculators format).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from graftline.errors import CheckpointError
from graftline.models.heads.block import (
    ORDINARY,
    Block,
    Layer,
    read_block,
    take_layer,
    take_mlp,
    with_files,
)
from graftline.models.heads.config import Config
from graftline.models.heads.experts import Experts, take_experts
from graftline.models.heads.files import HeadFiles, Taken
from graftline.models.heads.head import Head, HostSize, Tap
from graftline.models.heads.latent import Latent, is_latent, take_latent
from graftline.models.heads.taps import requested_taps
from graftline.models.ties import equal

NORM_OFFSETS: Mapping[str, float] = {
    "qwen3": 0.0, "qwen3_next": 1.0, "qwen3_5": 1.0, "qwen3_5_text": 1.0, "qwen3_5_moe": 1.0,
    "qwen3_5_moe_text": 1.0,
}  # fmt: skip
"""What `model_type` means for the RMS norms of `mtp.*`: 1 where the file stores w - 1."""
UNHOSTED = ("mtp_hybrid_override_pattern", "mtp_layers_block_type")
"""Keys of Nemotron-H, whose MTP layers are of several kinds."""
HOST = {r"(?!depths\.|mtp\.).*": "the host's own tensors"}
ALONE = {r"(verifier_)?(embed_tokens|lm_head|norm)\.weight": "the host's own, saved as a part"}
COMPUTED = {r".*rotary_emb\.inv_freq": "computed from the config"}


@dataclass(frozen=True)
class Depth:
    """One MTP layer: its attention, and its MLP by size or of experts."""

    attention: Block | Latent
    mlp: int | Experts


@dataclass(frozen=True)
class MtpSettings:
    """An MTP head: depth k drafts the token k + 2 places on. `norm_offset` is added to every norm's
    weights; `feedback_normed`: the state given to the next depth is behind the final norm."""

    depths: tuple[Depth, ...]
    hidden: int
    vocabulary: int
    epsilon: float
    norm_offset: float
    feedback_normed: bool
    own_embedding: bool
    own_lm_head: bool


def by_depth(head: Head) -> tuple[Head, ...]:
    """An MTP head as heads of one layer each, in the order of their depths; another head as it is.
    All have the tables that depths share."""
    if not isinstance(settings := head.settings, MtpSettings) or len(settings.depths) == 1:
        return (head,)
    shared = {name: t for name, t in head.tensors.items() if not name.startswith("depths.")}
    found: list[Head] = []
    for number, depth in enumerate(settings.depths):
        own = f"depths.{number}."
        named = {n: t for n, t in head.tensors.items() if n.startswith(own)}
        tensors = {f"depths.0.{name.removeprefix(own)}": t for name, t in named.items()}
        one = replace(settings, depths=(depth,))
        found.append(replace(head, settings=one, tensors=shared | tensors))
    return tuple(found)


def behind_last(count: int, first: int) -> dict[str, str]:
    """What stands before the tensors of the layers behind the host's last, and our name of it."""
    names = {
        "enorm.": "embedding_norm.", "hnorm.": "hidden_norm.", "eh_proj.": "fc.",
        "shared_head.norm.": "final_norm.", "shared_head.head.": "lm_head.",
        "embed_tokens.": "embed_tokens.", "": "layer.",
    }  # fmt: skip
    return {
        f"model.layers.{first + k}.{there}": f"depths.{k}.{here}"
        for k in range(count)
        for there, here in names.items()
    }


QWEN = {
    "mtp.pre_fc_norm_embedding.": "depths.0.embedding_norm.",
    "mtp.pre_fc_norm_hidden.": "depths.0.hidden_norm.", "mtp.fc.": "depths.0.fc.",
    "mtp.norm.": "depths.0.final_norm.", "mtp.lm_head.": "depths.0.lm_head.",
    "mtp.embed_tokens.": "depths.0.embed_tokens.", "mtp.layers.0.": "depths.0.layer.",
}  # fmt: skip
"""The same of `mtp.*`."""


def by_prefix(names: Mapping[str, str]) -> Callable[[str], str]:
    """Renames whatever starts with a key of `names`, the first that fits."""

    def rename(key: str) -> str:
        for there, here in names.items():
            if key.startswith(there):
                return here + key.removeprefix(there)
        return key

    return rename


def placed(files: HeadFiles, names: Mapping[str, str]) -> HeadFiles:
    """The files with their tensors under our names."""
    back = {here: there for there, here in names.items()}
    return files.renamed(by_prefix(names), by_prefix(back))


def open_mtp(files: HeadFiles) -> Head:
    """The MTP head of a checkpoint, by the layout of its tensors. Raises CheckpointError.

    Tensors, per depth k: depths.{k}.fc.weight [H, 2H] (embedding first), embedding_norm,
    hidden_norm, final_norm, attention_norm, mlp_norm; query, key, value, output or those of
    `latent`; gate, up, down or those of `experts`; embedding.weight and lm_head.weight where the
    file has its own.
    """
    text: Any = files.config.get("text_config")
    config = Config(str(files.path), text if isinstance(text, dict) else files.config)
    for key in UNHOSTED:
        config.must(key, None, "MTP layers of several kinds, as Nemotron-H's")
    if any(key.startswith("mtp.") for key in files.weights.stored):
        return open_qwen_mtp(files, config)
    keys = [key for key in ("num_nextn_predict_layers", "num_mtp_layers") if config.has(key)]
    if not keys:
        config.refuse("num_nextn_predict_layers is missing, and the file has no 'mtp.*'")
    count, first = config.whole(keys[0]), config.whole("num_hidden_layers")
    config.decide(
        f"MTP of {count} layers from 'model.layers.{first}' on, behind the host's last; what is "
        "fed back is before the final norm, as in the paper (transformers feeds it normed)"
    )
    if count > 1:
        config.decide(
            f"layer k of {count} drafts the k-th token on the states of the layer before it, and "
            "behind the last layer's token nothing is drafted, as in the paper"
        )
    renamed = placed(files, behind_last(count, first))
    layout = Layout(count, 0.0, feedback_normed=False, rest=HOST)
    return build(renamed, config, layout, first)


def open_qwen_mtp(files: HeadFiles, config: Config, alone: bool = False) -> Head:
    """The head of `mtp.*`; `alone`: the files hold nothing but the head."""
    kind = str(config.raw.get("model_type"))
    if kind not in NORM_OFFSETS:
        config.refuse(
            f"model_type={kind!r}: whether its RMS norms store w or w - 1 is not known; known: "
            f"{', '.join(sorted(NORM_OFFSETS))}"
        )
    for key in ("mtp_num_hidden_layers", "num_nextn_predict_layers"):
        config.must(
            key, 1, "several layers under 'mtp.*', of which it is not known whether each reads the "
            "whole text",
        )  # fmt: skip
    renamed = placed(files, QWEN)
    offset = NORM_OFFSETS[kind]
    config.decide(
        f"MTP layer under 'mtp.*'; model_type {kind}: norms multiply by w{' + 1' if offset else ''}"
        "; what is fed back is behind the final norm"
    )
    if config.flag("mtp_use_dedicated_embeddings", False):
        renamed.shape("depths.0.embed_tokens.weight")
    layout = Layout(1, offset, feedback_normed=True, rest=ALONE if alone else HOST)
    return build(renamed, config, layout, None if alone else config.whole("num_hidden_layers"))


@dataclass(frozen=True)
class Layout:
    """What a layout says of its head: see `MtpSettings`. `rest`: the tensors it may leave."""

    count: int
    norm_offset: float
    feedback_normed: bool
    rest: Mapping[str, str]


def build(files: HeadFiles, config: Config, layout: Layout, host: int | None) -> Head:
    """The head whose tensors are named `depths.{k}.*`, of a host of `host` layers (None: any)."""
    taken = Taken(files)
    hidden, vocabulary = config.whole("hidden_size"), config.whole("vocab_size")
    depths = tuple(
        _take_depth(taken, config, k, hidden, layout.norm_offset) for k in range(layout.count)
    )
    own = [
        _take_once(taken, layout.count, there, here, [vocabulary, hidden])
        for there, here in (("embed_tokens", "embedding"), ("lm_head", "lm_head"))
    ]
    settings = MtpSettings(
        depths, hidden, vocabulary, config.number("rms_norm_eps", 1e-6),
        layout.norm_offset, layout.feedback_normed, *own,
    )  # fmt: skip
    taps = requested_taps(config, files, 1) or (Tap(-1, normed=True),)
    config.decide("reads the host's final norm's output")
    tensors = taken.rest({**layout.rest, **COMPUTED})
    sizes = [
        HostSize("config.json: hidden_size", hidden, "hidden"),
        HostSize("config.json: vocab_size", vocabulary, "vocabulary"),
    ]
    if host is not None:
        sizes.append(HostSize("config.json: num_hidden_layers", host, "layers"))
    return Head("mtp", files.path, settings, taps, tensors, tuple(sizes), tuple(config.decided))


def _take_once(taken: Taken, count: int, there: str, here: str, shape: list[int]) -> bool:
    """A table that every depth may repeat: the first depth's, where there is one."""
    keys = [f"depths.{k}.{there}.weight" for k in range(count)]
    present = [key for key in keys if taken.files.has(key)]
    if not present:
        return False
    stored = taken.files.weights.stored
    taken.take(present[0], f"{here}.weight", shape)
    for key in present[1:]:
        if not equal(stored[present[0]], stored[key]):
            raise CheckpointError(
                f"{taken.files.path}: tensors '{stored[present[0]].name}' and '{stored[key].name}' "
                "differ; MTP layers with tables of their own each are not hosted"
            )
        taken.used.add(key)
    return True


def _take_depth(taken: Taken, config: Config, k: int, hidden: int, offset: float) -> Depth:
    place, layer = f"depths.{k}", f"depths.{k}.layer"
    taken.take(f"{place}.fc.weight", f"{place}.fc.weight", [hidden, 2 * hidden])
    for name in ("embedding_norm", "hidden_norm", "final_norm"):
        taken.take(f"{place}.{name}.weight", f"{place}.{name}.weight", [hidden])
    attention: Block | Latent
    if is_latent(taken, layer):
        attention = take_latent(taken, config, layer, place, hidden)
        for there, here in ORDINARY.items():
            taken.take(f"{layer}.{there}.weight", f"{place}.{here}.weight", [hidden])
    else:
        attention = with_files(taken, config, read_block(config, offset), f"{layer}.self_attn")
        take_layer(taken, attention, Layer(layer, place, hidden, ORDINARY), mlp=False)
    experts = take_experts(taken, config, f"{layer}.mlp", place, hidden)
    if experts is not None:
        return Depth(attention, experts)
    size = config.whole("intermediate_size")
    take_mlp(taken, f"{layer}.mlp", place, hidden, size)
    return Depth(attention, size)
