"""What is added to a DFlash head: convolutions and a selector, a Markov and a confidence head, a
recurrent correction of the logits."""

from __future__ import annotations

from dataclasses import dataclass

from graftline.models.heads.config import Config
from graftline.models.heads.files import Taken


@dataclass(frozen=True)
class Convolution:
    """DFlash2: around attention and MLP of each layer, y[t] = sum over k of (base[k] + dynamic[k])
    * x[t - k] with `size` taps inside a block; `dynamic`, one number per `group` channels, is a
    projection of the part's normed input. The tensors hold that of the input, then the output."""

    size: int
    group: int


@dataclass(frozen=True)
class Selector:
    """DFlash2: of the best `candidates` at each place, that with the highest logit plus
    sum(predecessor[token before] * projection(hidden) * successor[candidate]); `rank` wide."""

    rank: int
    candidates: int


@dataclass(frozen=True)
class Markov:
    """DSpark: logits += w2 @ w1[token before]. `kind` "gated": w1's row times
    sigmoid(gate([hidden; row])); "rnn": tanh of the last third of joint([state; row; hidden]),
    whose first two thirds move the state: g = sigmoid(a), state = g * state + (1 - g) * tanh(b).
    """

    rank: int
    kind: str


@dataclass(frozen=True)
class Confidence:
    """DSpark: the logit of a draft's acceptance, linear in the hidden state or, `with_markov`, in
    [hidden; w1's row]."""

    with_markov: bool


@dataclass(frozen=True)
class Domino:
    """Domino: from row `first` on, logits += embed2(silu(embed1([hidden; GRU state]))). The GRU (no
    biases) reads embeddings of the block's tokens before a row's own; with `shifted` labels, where
    row t drafts what follows its token, the row's own too."""

    state: int
    width: int
    first: int
    shifted: bool


def take_convolution(taken: Taken, own: Config, hidden: int, layers: int) -> Convolution | None:
    """The convolutions by `conv_kernel_size`; None without. Raises CheckpointError.

    Tensors per layer and part (attention, mlp): layers.{i}.{part}_conv.base [2, size, H],
    layers.{i}.{part}_conv.projection.weight [2 x size x H / group, H].
    """
    if not own.has("conv_kernel_size"):
        own.must("conv_group_size", None, "without conv_kernel_size")
        return None
    size, group = own.whole("conv_kernel_size"), own.whole("conv_group_size")
    if hidden % group:
        own.refuse(f"conv_group_size={group} does not divide hidden_size={hidden}")
    for index in range(layers):
        for part in ("attention", "mlp"):
            place = f"layers.{index}.{part}_conv"
            taken.take(f"{place}.base_kernel", f"{place}.base", [2, size, hidden])
            shape = [2 * size * (hidden // group), hidden]
            taken.take(f"{place}.kernel_projection.weight", f"{place}.projection.weight", shape)
    return Convolution(size, group)


def take_selector(taken: Taken, own: Config, hidden: int, vocabulary: int) -> Selector | None:
    """The selector by `selector_rank`; None without. Raises CheckpointError.

    Tensors: selector.predecessor and selector.successor [V, rank], selector.projection.weight.
    """
    if not own.has("selector_rank"):
        own.must("selector_top_k", None, "without selector_rank")
        return None
    rank, candidates = own.whole("selector_rank"), own.whole("selector_top_k")
    there = "candidate_selector"
    for side in ("predecessor", "successor"):
        key = f"{there}.{side}_codebook"
        key = f"{key}.weight" if taken.files.has(f"{key}.weight") else key
        taken.take(key, f"selector.{side}", [vocabulary, rank])
    taken.take(f"{there}.hidden_projection.weight", "selector.projection.weight", [rank, hidden])
    return Selector(rank, candidates)


def take_markov(
    taken: Taken, own: Config, hidden: int, vocabulary: int, drafted: int
) -> Markov | None:
    """The Markov head by `markov_rank`; None without (0). Raises CheckpointError.

    Tensors: markov.w1 [V, rank], markov.w2 [draft vocabulary, rank], markov.gate.weight/.bias or
    markov.joint.weight/.bias.
    """
    rank = own.whole("markov_rank", 0, least=0) if own.has("markov_rank") else 0
    kind = own.choice("markov_head_type", "vanilla", ("vanilla", "gated", "rnn"))
    own.read.add("markov_rank")
    if not rank:
        return None
    taken.take("markov_head.markov_w1.weight", "markov.w1", [vocabulary, rank])
    taken.take("markov_head.markov_w2.weight", "markov.w2", [drafted, rank])
    shapes = {
        "gated": ("gate", [rank, hidden + rank]),
        "rnn": ("joint", [3 * rank, 2 * rank + hidden]),
    }
    if kind in shapes:
        name, shape = shapes[kind]
        there = f"markov_head.{name}_proj"
        taken.take(f"{there}.weight", f"markov.{name}.weight", shape)
        taken.take(f"{there}.bias", f"markov.{name}.bias", shape[:1])
    return Markov(rank, kind)


def take_confidence(
    taken: Taken, own: Config, hidden: int, markov: Markov | None
) -> Confidence | None:
    """The confidence head by `enable_confidence_head` (or `use_confidence_head`); None without.

    Tensors: confidence.weight [1, H (+ rank)], confidence.bias [1]. Raises CheckpointError.
    """
    keys = ("enable_confidence_head", "use_confidence_head")
    named = {own.flag(key, False) for key in keys if own.has(key)}
    own.read |= {*keys, "confidence_head_with_markov"}
    present = taken.files.has("confidence_head.proj.weight")
    if len(named) > 1 or (named and named != {present}):
        own.refuse(
            f"{' and '.join(k for k in keys if own.has(k))} says {sorted(named)}, but the file "
            f"{'holds' if present else 'has no'} 'confidence_head.proj.weight'"
        )
    if not present:
        return None
    wide = own.flag("confidence_head_with_markov", markov is not None)
    if wide and markov is None:
        own.refuse("confidence_head_with_markov=True without a Markov head")
    width = hidden + (markov.rank if wide and markov is not None else 0)
    taken.take("confidence_head.proj.weight", "confidence.weight", [1, width])
    taken.take("confidence_head.proj.bias", "confidence.bias", [1])
    return Confidence(wide)


def take_domino(taken: Taken, own: Config, hidden: int, vocabulary: int) -> Domino | None:
    """The correction where projector_type is domino; None elsewhere. Raises CheckpointError.

    Tensors: gru.input.weight [3 x state, H], gru.state.weight [3 x state, state] (reset, update,
    new), correction.0.weight [width, H + state], correction.1.weight [V, width].
    """
    if own.raw.get("projector_type") != "domino":
        own.must("gru_hidden_dim", None, "without projector_type=domino")
        return None
    state, width = own.whole("gru_hidden_dim"), own.whole("emb_dim")
    shifted = own.flag("shift_label", False)
    first = own.whole("pure_draft_prefix_len", 0, least=0) + (0 if shifted else 1)
    taken.take("prefix_gru.weight_ih_l0", "gru.input.weight", [3 * state, hidden])
    taken.take("prefix_gru.weight_hh_l0", "gru.state.weight", [3 * state, state])
    taken.take("embed_proj.0.weight", "correction.0.weight", [width, hidden + state])
    taken.take("embed_proj.2.weight", "correction.1.weight", [vocabulary, width])
    return Domino(state, width, first, shifted)
