"""Hydra heads (arXiv 2402.05109): each head also reads the tokens drafted before it.

`mlp` and `prefix-mlp`: head i is a stack of residual blocks over the hidden state and the
embeddings of the next i + 1 tokens, with an lm_head of its own; `prefix-mlp` first sends the hidden
states through a decoder layer. `cross-attn` and `eagle-attn` are one layer called once per token.
"""

from __future__ import annotations

from dataclasses import dataclass

from graftline.models.heads.block import ORDINARY, take_mlp
from graftline.models.heads.config import Config
from graftline.models.heads.files import HeadFiles, Taken
from graftline.models.heads.head import Head, HostSize, Tap
from graftline.models.heads.taps import requested_taps

CROSSED, STEPPED, PREFIXED = "cross-attn", "eagle-attn", "prefix-mlp"
LAYERS = (CROSSED, STEPPED)
"""Heads that are a decoder layer called once per token."""
ARCHITECTURES = ("mlp", PREFIXED, *LAYERS)
PREFIX = "prefix_embeding_layer"
"""So is it spelt in the files."""
HARMLESS = {
    r"input_embed_fn\.weight": "the host's embedding, saved as a part",
    r".*rotary_emb\.inv_freq": "computed from the config",
}
SHARED = {r"lm_head\.weight": "the host's own, saved as a part"}
UNUSED = {rf"{PREFIX}\.embed_tokens\.weight": "never called: the layer is given hidden states"}


@dataclass(frozen=True)
class HydraSettings:
    """Hydra heads. `grounded`: they read the tokens drafted before them. The layer of `prefix-mlp`,
    `cross-attn` and `eagle-attn` has the host's numbers of heads and its norms' epsilon; its rotary
    positions have the base `rope_theta`, or the host's (None)."""

    architecture: str
    heads: int
    layers: int
    grounded: bool
    hidden: int
    vocabulary: int | None
    mlp: int | None = None
    rope_theta: float | None = None


def is_prefixed(head: Head) -> bool:
    """Whether heads stand behind a decoder layer of their own."""
    return isinstance(head.settings, HydraSettings) and head.settings.architecture == PREFIXED


def open_hydra(files: HeadFiles) -> Head:
    """The heads of such files. Raises CheckpointError.

    Tensors: head.{i}.layer.{j}.weight/.bias and head.{i}.residual.weight/.bias (the first block's,
    of grounded heads), head.{i}.lm_head.weight/.bias; layer.attention_norm/mlp_norm/query/key/
    value/output/gate/up/down.weight, layer.final_norm.weight (prefix), fc.weight/.bias
    (eagle-attn).
    """
    config = Config(str(files.path), files.config)
    name = config.choice("hydra_head_arch", "", ARCHITECTURES)
    heads, layers = config.whole("hydra_num_heads"), config.whole("hydra_num_layers")
    taken = Taken(files)
    grounded = _grounded(config, files, name)
    if name not in LAYERS:
        settings = _take_stacks(taken, config, name, heads, layers, grounded)
        tensors = taken.rest({**HARMLESS, **UNUSED})
    else:
        if (heads, layers, grounded) != (1, 1, True):
            config.refuse(f"{name} heads are one grounded layer, not {heads} of {layers}")
        settings = _take_step(taken, name)
        tensors = taken.rest({**HARMLESS, **SHARED})
    taps = requested_taps(config, files, 1) or (_tap(config),)
    if name == CROSSED:
        config.decide(
            "cross-attn: each drafted state stands at a position of its own, as in training (the "
            "published proposal leaves all at the last chosen one's)"
        )
    config.done()
    return Head(
        "hydra", files.path, settings, taps, tensors, _sizes(taken, settings), tuple(config.decided)
    )


def _grounded(config: Config, files: HeadFiles, name: str) -> bool:
    """Whether heads read the tokens before them: their first blocks then have another residual."""
    present = name in LAYERS or bool(files.matching(r"hydra_mlp\.0\.\d\.res_connection\.weight"))
    if config.flag("grounded_heads", present) != present:
        there = "holds" if present else "has no"
        config.refuse(
            f"grounded_heads={config.raw['grounded_heads']} but the file {there} 'res_connection'"
        )
    return present


def _tap(config: Config) -> Tap:
    """`hidden_state_offset` k means hidden_states[-(k + 1)]; the last of them is normed."""
    offset = config.whole("hidden_state_offset", 0, least=0)
    tap = Tap(-1, normed=True) if offset == 0 else Tap(-offset - 1)
    config.decide(f"hidden_state_offset={offset}: reads hidden_states[{-offset - 1}], {tap}")
    return tap


def _take_stacks(
    taken: Taken, config: Config, name: str, heads: int, layers: int, grounded: bool
) -> HydraSettings:
    """The residual blocks and lm_heads; `prefix-mlp` has dropouts between, which take numbers."""
    stride = 2 if name == PREFIXED else 1
    inner = ".1" if name == PREFIXED else ""
    vocabulary, hidden = taken.files.matrix(f"hydra_lm_head.0{inner}.weight")
    for head in range(heads):
        place = f"hydra_mlp.{head}"
        for layer in range(layers):
            there = f"{place}.{layer * stride + stride - 1}"
            first = layer == 0 and grounded
            width = hidden * (head + 2 if first else 1)
            _linear(taken, f"{there}.linear", f"head.{head}.layer.{layer}", [hidden, width])
            if first:
                residual = f"head.{head}.residual"
                _linear(taken, f"{there}.res_connection", residual, [hidden, width])
        there = f"hydra_lm_head.{head}{inner}"
        _linear(taken, there, f"head.{head}.lm_head", [vocabulary, hidden])
    mlp = _take_prefix(taken, hidden) if name == PREFIXED else None
    config.decide(f"{heads} heads of {layers} blocks, each with an lm_head of its own")
    return HydraSettings(name, heads, layers, grounded, hidden, vocabulary, mlp)


def _linear(taken: Taken, there: str, here: str, shape: list[int]) -> None:
    taken.take(f"{there}.weight", f"{here}.weight", shape)
    taken.take(f"{there}.bias", f"{here}.bias", shape[:1])


def _take_prefix(taken: Taken, hidden: int) -> int:
    """The layer in front of `prefix-mlp` heads, and its final norm; the size of its MLP."""
    taken.take(f"{PREFIX}.norm.weight", "layer.final_norm.weight", [hidden])
    return _take_layer(taken, f"{PREFIX}.layers.0", "self_attn", hidden)


def _take_layer(taken: Taken, there: str, attention: str, hidden: int) -> int:
    """A layer whose numbers of heads are the host's: widths as the file has them."""
    dot = f"{there}." if there else ""
    for key, name in ORDINARY.items():
        taken.take(f"{dot}{key}.weight", f"layer.{name}.weight", [hidden])
    rows = {k: taken.files.matrix(f"{dot}{attention}.{k}_proj.weight")[0] for k in "qk"}
    shapes = {
        "q_proj": ("query", [rows["q"], hidden]), "k_proj": ("key", [rows["k"], hidden]),
        "v_proj": ("value", [rows["k"], hidden]), "o_proj": ("output", [hidden, rows["q"]]),
    }  # fmt: skip
    for key, (name, shape) in shapes.items():
        taken.take(f"{dot}{attention}.{key}.weight", f"layer.{name}.weight", shape)
    mlp = taken.files.matrix(f"{dot}mlp.gate_proj.weight")[0]
    take_mlp(taken, f"{dot}mlp", "layer", hidden, mlp)
    return mlp


def _take_step(taken: Taken, name: str) -> HydraSettings:
    """The one layer of `cross-attn` (the queries are embeddings, keys and values hidden states) or
    `eagle-attn` (over fc of both)."""
    if name == CROSSED:
        hidden = taken.files.matrix("cross_attn.o_proj.weight")[0]
        mlp = _take_layer(taken, "", "cross_attn", hidden)
        return HydraSettings(name, 1, 1, True, hidden, None, mlp, rope_theta=10000.0)
    hidden = taken.files.matrix("fc.weight")[0]
    _linear(taken, "fc", "fc", [hidden, 2 * hidden])
    mlp = _take_layer(taken, "attn", "self_attn", hidden)
    return HydraSettings(name, 1, 1, True, hidden, None, mlp)


def _sizes(taken: Taken, settings: HydraSettings) -> tuple[HostSize, ...]:
    """What the host must have, by the tensors that show it."""
    name = settings.architecture
    score = "hydra_lm_head.0.1.weight" if name == PREFIXED else "hydra_lm_head.0.weight"
    widths = {CROSSED: "cross_attn.o_proj.weight", STEPPED: "fc.weight"}
    rows = "the number of rows of tensor '%s'"
    where = rows % widths[name] if name in widths else f"the width of tensor '{score}'"
    sizes = [HostSize(where, settings.hidden, "hidden")]
    if settings.vocabulary is not None:
        sizes.append(HostSize(rows % score, settings.vocabulary, "vocabulary"))
    if name != "mlp":
        there = {CROSSED: "cross_attn", STEPPED: "attn.self_attn"}
        place = there.get(name, f"{PREFIX}.layers.0.self_attn")
        have = {n: taken.tensors[f"layer.{n}.weight"].shape.numpy()[0] for n in ("query", "key")}
        sizes.append(HostSize(rows % f"{place}.q_proj.weight", have["query"], "queries"))
        sizes.append(HostSize(rows % f"{place}.k_proj.weight", have["key"], "keys"))
    return tuple(sizes)
