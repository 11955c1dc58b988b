"""Hosts that users could have, by name: what each is, and whether graftline serves or refuses it.

Every host here was once served wrongly, ended in a traceback, or is a neighbour of one that did.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from tests.generated.draw import settle
from tests.generated.outcome import Choice
from tests.generated.settings import Layer, Settings


@dataclass(frozen=True)
class Named:
    """`refusal`: a pattern of the line that refuses it; `served`: whether it may be served."""

    settings: Settings
    served: bool
    refusal: str | None = None
    choice: Choice = field(default_factory=Choice)


ONE = (Layer(),)
PLAIN = Settings(layers=ONE)
"""One block is enough to tell a host by; those that are about several say so."""


def served(**changes: Any) -> Named:
    """A host that must be served."""
    return Named(settle(replace(PLAIN, **changes)), True)


def refused(by: str, **changes: Any) -> Named:
    """A host that must be refused, by a line that says what it is."""
    return Named(settle(replace(PLAIN, **changes)), False, by)


def either(by: str, **changes: Any) -> Named:
    """A host that is served right or refused by a line that says what it is."""
    return Named(settle(replace(PLAIN, **changes)), True, by)


def seeing(*layers: Layer) -> tuple[Layer, ...]:
    """One block for each."""
    return layers


FULL = Layer()
WINDOW = Layer("window", 24)
TWO = (FULL, FULL)

MASKS: dict[str, Named] = {
    "chunked attention, chunk 24": served(layers=seeing(Layer("chunk", 24))),
    "chunked attention, chunk 7": served(layers=seeing(Layer("chunk", 7))),
    "chunked and full blocks in turn": served(layers=seeing(Layer("chunk", 24), FULL)),
    "chunked attention over positions": served(
        layers=seeing(Layer("chunk", 24)), mask_from="positions"),
    "chunked attention with a cache": served(layers=seeing(Layer("chunk", 24)), cached=True),
    "chunked attention, Attention node": served(
        layers=seeing(Layer("chunk", 24)), opset=23, attention="op4"),
    "window of 24 and 4 sinks": served(layers=seeing(Layer("sinks", 24, 4))),
    "window of 6 and 1 sink": served(layers=seeing(Layer("sinks", 6, 1))),
    "window of 40 and 4 sinks, cached": served(layers=seeing(Layer("sinks", 40, 4)), cached=True),
    "window and sinks, Attention node": served(
        layers=seeing(Layer("sinks", 24, 4)), opset=24, attention="op3"),
    "window of 24": served(layers=seeing(WINDOW)),
    "window of 40": served(layers=seeing(Layer("window", 40))),
    "window of 41 as a difference": served(
        layers=seeing(Layer("window", 41)), compared="difference"),
    "window of 13, the old feed": served(layers=seeing(Layer("window", 13))),
    "window of 12 by a triangle less another": served(
        layers=seeing(Layer("window", 12)), mask_from="trilu"),
    "window and full blocks in turn": served(layers=(WINDOW, FULL, WINDOW, FULL)),
    "two windows": served(layers=(Layer("window", 9), Layer("window", 33))),
    "window in a stored square": served(layers=seeing(WINDOW), mask_from="buffer"),
    "sinks in a stored square": served(layers=seeing(Layer("sinks", 24, 4)), mask_from="buffer"),
    "window of 24 under a padding mask": served(
        layers=seeing(WINDOW), padding="int64", mask_from="cumsum", positions="cumsum"),
    "dilated attention": served(layers=seeing(Layer("dilated", 3))),
    "dilated attention, cached": served(layers=seeing(Layer("dilated", 4)), cached=True),
    "prefix of 20 seen by all": either(
        "mask|causal|prefix|law", layers=seeing(Layer("prefix", 20))),
    "causal square of ones": served(mask_from="trilu"),
    "causal, minus infinity": served(fill=float("-inf")),
    "causal, minus 1e4, arithmetic": served(fill=-1e4, mask_spelled="arithmetic"),
    "causal by positions": served(mask_from="positions"),
    "causal in a stored square": served(mask_from="buffer"),
    "causal, is_causal of the node": served(opset=23, attention="op4", mask_from="trilu"),
    "alibi": served(rotary="none", slopes="distance"),
    "alibi on keys": served(rotary="none", slopes="keys"),
    "alibi clipped at 40": served(rotary="none", slopes="clipped", clip=40),
    "alibi clipped at 11": served(rotary="none", slopes="clipped", clip=11),
    "alibi in a window": served(rotary="none", slopes="distance", layers=seeing(WINDOW)),
    "alibi clipped at 11 over a stored square": served(
        rotary="none", slopes="clipped", clip=11, mask_from="buffer"),
    "relative bias over windows in a stored square": served(
        rotary="none", buckets="clipped", clip=20, mask_from="buffer", layers=seeing(WINDOW)),
    "alibi, cached": served(rotary="none", slopes="distance", cached=True),
    "alibi, Attention node": served(rotary="none", slopes="distance", opset=23, attention="op4"),
    "relative bias clipped at 40": served(rotary="none", buckets="clipped", clip=40),
    "relative bias, 16 buckets": served(rotary="none", buckets="logarithmic", clip=50),
    "relative bias in a window": served(
        rotary="none", buckets="clipped", clip=20, layers=seeing(WINDOW)),
    "relative bias, cached": served(rotary="none", buckets="logarithmic", clip=50, cached=True),
    "keys of a pad token hidden": refused("token|Equal|depend", odd=("pad_keys",)),
    "keys of a pad token hidden, stored square": refused(
        "token|Equal|depend", odd=("pad_keys",), mask_from="buffer"),
    "keys of a pad token hidden, Attention node": refused(
        "token|Equal|depend", odd=("pad_keys",), opset=23, attention="op4"),
    "a bias of each key's token": refused("token|depend|bias", odd=("token_bias",)),
    "bidirectional": refused("causal|hides nothing|bidirectional", odd=("bidirectional",)),
    "bidirectional, padding mask": refused(
        "causal|hides nothing|bidirectional", odd=("bidirectional",), padding="int64"),
    "bidirectional, mask input of rank four": refused(
        "attention_mask_4d|causal", odd=("bidirectional", "open_square"), mask_input="float32"),
    "bidirectional, boolean mask input": refused(
        "attention_mask_4d|causal", odd=("bidirectional", "open_square"), mask_input="bool"),
    "causal, mask input of rank four besides": served(mask_input="float32"),
    "causal, boolean mask input besides": served(mask_input="bool"),
    "causal by its mask input alone": either(
        "attention_mask_4d", mask_from="input", mask_input="float32"),
    "causal by its boolean mask input alone, cached": either(
        "attention_mask_4d", mask_from="input", mask_input="bool", cached=True),
    "keys after the query alone": refused("mask|causal", odd=("anticausal",)),
    "keys before the query alone": either("mask|causal|law", odd=("strict",), fill=-1e9),
}  # fmt: skip

SCORES: dict[str, Named] = {
    "scores clipped": either("clip|scores", odd=("clip_scores",)),
    "scores capped": served(cap_scores=5.0),
    "scores capped, Attention node": served(cap_scores=5.0, opset=24, attention="op4"),
    "scores scaled by the length": refused("scale|scores|number|length", odd=("length_scale",)),
    "softmax over queries": refused("[Ss]oftmax", odd=("softmax_queries",)),
    "softmax over heads": refused("[Ss]oftmax", odd=("softmax_heads",)),
    "softmax with one added": either("[Ss]oftmax|attention", odd=("softmax_one",)),
    "softmax written out": either("[Ss]oftmax|attention", softmax="exp"),
    "softmax with a learned sink": either("[Ss]oftmax|sink|probabilities|Concat|attention|score",
                                          odd=("sink_logit",)),
    "probabilities masked again, 24": either("probabilities", odd=("remask",), odd_size=24),
    "probabilities masked again, 60": either("probabilities", odd=("remask",), odd_size=60),
    "probabilities scaled": either("probabilities", odd=("scaled_weights",)),
    "log-length query scale from 40, partial rotary": either(
        "quer|position|rotary|scale", odd=("log_query",), odd_size=40, rotary_share=0.5),
    "log-length query scale from 12": either(
        "quer|position|rotary|scale", odd=("log_query",), odd_size=12),
    "log-length query scale without rotary": either(
        "quer|position|rotary|scale", odd=("log_query",), odd_size=40, rotary="none"),
    "values scaled by their position": either("value|position", odd=("place_values",)),
    "scores over flat heads": served(flat_scores=True),
    "grouped products": either("multiplied in 5 dimensions", repeated="grouped"),
    "tiled heads": served(repeated="tile", kv_heads=1),
    "scaled twice": served(scaled="both"),
}  # fmt: skip

STREAM: dict[str, Named] = {
    "rotary held at position 30": served(odd=("held_positions",), odd_size=30),
    "rotary over half positions": served(odd=("halved_positions",)),
    "rotary counted from the end": refused("position|order|angles", odd=("reversed",)),
    "place in the sequence, i / N": refused("position|order", odd=("order",)),
    "noise by token parity": either("token|embedding", odd=("parity",)),
    "a table of token classes": either("token|embedding|tables", odd=("second_table",)),
    "embedding of a pad token zeroed": either("token|embedding", odd=("pad_zeroed",)),
    "input token_type_ids": refused("token_type_ids", odd=("token_types",)),
    "input image_mask": refused("image_mask", odd=("image_mask",)),
    "input image_mask beside a padding mask": refused(
        "image_mask", odd=("image_mask",), padding="int64"),
    "positions counted without pads": refused(
        "position|token", odd=("counted_without_pads",), learned=0, rotary="none"),
    "mean over the batch": refused("ReduceMean.* averages the sequences", odd=("batch_mean",)),
    "mean over the rows": refused("ReduceMean.* averages the tokens", odd=("row_mean",)),
    "running sum of rows": refused("CumSum.* adds up", odd=("running_sum",)),
    "each row with the one before": refused(
        "Concat.* puts each token in the place 1 after", odd=("token_shift",)),
    "learned positions": served(rotary="none", learned=0),
    "learned positions from 2": served(rotary="none", learned=2),
    "learned positions from 2, counted in the graph": served(
        rotary="none", learned=2, positions="range"),
    "learned positions from a padding mask": served(
        rotary="none", learned=2, positions="cumsum", padding="int64"),
    "half and full rotary, two thetas": served(
        layers=(Layer(theta=500.0), Layer(), Layer(theta=500.0), Layer())),
    "rotary in every second block": served(
        layers=(Layer(turned=False), Layer(), Layer(turned=False), Layer())),
    "rotary tables": served(rotary_spelled="tables"),
    "rotary tables, rows first, interleaved": served(
        rotary_spelled="tables", rows_first=True, rotary="interleaved"),
    "RotaryEmbedding, partial": served(rotary_spelled="op", opset=23, rotary_share=0.5),
    "angles as transformers computes them": served(rotary_spelled="matmul"),
    "rotary scaled by 4": served(rotary_factor=4.0),
    "rotary tables a tenth larger from 40 on": served(
        odd=("kinked_tables",), odd_size=40, rotary_spelled="tables"),
    "rotary by the longest position, from 40": refused(
        "angles|position", odd=("longrope",), odd_size=40),
    "stream multiplied by position from 30 on": either(
        "position|stream|embedding", odd=("place_stream",), odd_size=30),
    "RotaryEmbedding of com.microsoft": either("RotaryEmbedding", rotary_spelled="ms"),
    "the last row's logits": either("last|logits|row", odd=("last_row",)),
}  # fmt: skip

NORMS: dict[str, Named] = {
    "SkipSimplifiedLayerNormalization": served(norm_spelled="skip", epsilon=1e-3),
    "SkipSimplifiedLayerNormalization without epsilon": served(norm_spelled="skip_default"),
    "SkipLayerNormalization without epsilon": either(
        "SkipLayerNormalization", norm="layer", norm_bias=True, norm_spelled="skip_default"),
    "SimplifiedLayerNormalization": served(norm_spelled="simplified"),
    "fp16 norm scale behind a Cast": served(half_norms=True),
    "fp16 norm scale behind a Cast, RMSNormalization": served(
        half_norms=True, norm_spelled="op", opset=23),
    "fp16 matrices behind a Cast": served(layers=TWO, stored_half=True),
    "fp16 throughout": either("fp16|float16|half", half=True),
    "fp16 throughout, cached": either("fp16|float16|half", half=True, cached=True),
    "fp16 throughout, to be quantized": replace(
        refused("FLOAT16: export the model in fp32", half=True), choice=Choice(dtype="int8")),
    "fp16 throughout, SimplifiedLayerNormalization": served(
        half=True, norm_spelled="simplified", layers=TWO),
    "fp16 throughout, SkipSimplifiedLayerNormalization": served(
        half=True, norm_spelled="skip", layers=TWO),
    "fp16 throughout, RotaryEmbedding of ONNX Runtime, boolean mask input": served(
        half=True, rotary_spelled="ms", mask_input="bool", mask_spelled="bias"),
    "fp16 throughout, alibi": served(half=True, rotary="none", slopes="distance"),
    "fp16 throughout, relative bias": served(half=True, rotary="none", buckets="logarithmic"),
    "fp16 throughout, alibi, heads of six": served(
        half=True, rotary="none", slopes="clipped", head_size=6),
    "epsilon 1e-12": served(epsilon=1e-12),
    "scale plus one": served(plus_one=True),
    "norms after the sum": served(layers=TWO, place="post"),
    "norms on both sides": served(layers=TWO, place="sandwich"),
    "norms of queries and keys": served(qk_norm=True),
    "layer norm without bias": served(norm="layer"),
    "layer norm with bias, parallel": served(
        layers=TWO, norm="layer", norm_bias=True, parallel=True),
    "residual scale": served(layers=TWO, residual_scale=0.6),
}  # fmt: skip

PORTS: dict[str, Named] = {
    "two labels": refused("classif|label|logits|head", head="two_labels"),
    "labels for tokens": refused("classif|label|head|vocabulary", head="token_labels"),
    "no head": refused("head|hidden|vocabulary", head="none"),
    "int32 ids": served(ids="int32"),
    "int32 ids, positions and padding": served(
        ids="int32", positions="input32", padding="int32"),
    "boolean padding mask": served(padding="bool"),
    "float padding mask": served(padding="float32"),
    "int64 padding mask, cached": served(padding="int64", cached=True),
    "cache rows first": served(cached=True, cache="rows_first"),
    "cache held by the Attention node": served(
        cached=True, cache="inside", opset=23, attention="op4"),
    "own names, cached": served(layers=TWO, port_names="own", padding="int64", cached=True),
    "numbered names": served(port_names="numbered", padding="int64"),
    "inputs in reverse": served(
        odd=("order_of_inputs",), port_names="numbered", padding="int64", cached=True),
    "logits second": served(extra_outputs=True, logits_at=1),
    "logits second, own names": served(extra_outputs=True, logits_at=1, port_names="own"),
    "logits after the caches": served(cached=True, logits_at=9),
    "hidden state as wide as the vocabulary": served(
        extra_outputs=True, logits_at=1, port_names="own", hidden=48, vocabulary=48),
    "num_logits_to_keep": served(keep_logits=True),
    "num_logits_to_keep, own names": served(keep_logits=True, port_names="own"),
    "use_cache_branch": served(odd=("cache_switch",)),
    "values named like graftline's": served(names="usual"),
    "GroupQueryAttention": either("GroupQueryAttention", attention="gqa", rotary="half"),
    "GroupQueryAttention in a window": either(
        "GroupQueryAttention", attention="gqa", layers=seeing(WINDOW)),
    "dynamically quantized": refused("DynamicQuantizeLinear", linear="dynamic"),
    "opset 18, constants as nodes": served(opset=18, constants="nodes", names="torchscript"),
    "opset 24, Attention of rank three, cached": served(
        opset=24, attention="op3", cached=True, norm_spelled="op"),
    "two blocks": served(layers=TWO),
    "four blocks": served(layers=TWO + TWO),
    "tied, scaled embedding": served(tied=True, embedding_scale=5.66),
    "two chunked blocks, cached": served(layers=(Layer("chunk", 24),) * 2, cached=True),
    "two blocks of window and sinks": served(layers=(Layer("sinks", 24, 4),) * 2),
    "one head of two dimensions": served(heads=1, kv_heads=1, head_size=2),
    "Gemm over flat rows": served(linear="gemm", biases=True),
    "packed projections, transposed weights": served(packed=True, linear="transposed"),
}  # fmt: skip

TABLES: dict[str, Named] = {
    "192 cosines as a constant, GroupQueryAttention": served(constants="nodes", attention="gqa"),
    "192 cosines as a constant, RotaryEmbedding": served(
        constants="nodes", rotary_spelled="op", opset=24, attention="op4"),
    "192 cosines, counted from the end of the text": refused(
        "angles depend on other positions", odd=("reversed",), rotary_spelled="tables"),
    "a stored square of 192 over flat scores": served(
        constants="nodes", mask_from="buffer", flat_scores=True, shared_mask=False),
}  # fmt: skip
"""Tables that end at 192 positions, found by random seeds."""

NAMED: dict[str, Named] = {**MASKS, **SCORES, **STREAM, **NORMS, **PORTS, **TABLES}
