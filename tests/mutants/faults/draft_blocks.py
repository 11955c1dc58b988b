"""EAGLE and DFlash heads whose features, vocabulary or entry are other than they say."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import constant, rewired
from faults.mutant import Mutant, Touched, after, instead
from graftline.kinds import draft_block
from graftline.passes import GRAFTS
from graftline.passes.anchors.anchors import block_outputs, with_role
from graftline.passes.grafts import next_feature
from graftline.passes.grafts.masks import LATER, SlotMasks
from graftline.passes.graph.emit import Emit
from graftline.passes.graph.ports import cache_of, input_of
from graftline.ports import FEATURES, Port

EAGLE3, DFLASH, DSPARK = {"head": "eagle3"}, {"head": "dflash"}, {"head": "dspark"}
DOMINO, MTP, FSPAD = {"head": "domino"}, {"head": "mtp"}, {"head": "fspad"}
KV_CACHE = GRAFTS["kv-cache"]


def _turned_taps(model: ir.Model) -> int:
    """The taps side by side in the other order."""
    node = next(
        n for n in model.graph
        if n.op_type == "Concat" and n.metadata_props.get("graftline.made_by") == "head-features"
    )  # fmt: skip
    first, second = node.inputs[0], node.inputs[-1]
    return rewired(node, 0, second) + rewired(node, len(node.inputs) - 1, first)


def _turned_layers(real: Any, touched: Touched) -> Any:
    """The pass and its own formula read the layers in the other order."""

    def blocks_of(*given: Any) -> list[int]:
        touched.count += 1
        return real(*given)[::-1]

    return blocks_of


def _next_ids(model: ir.Model) -> int:
    """Ids of the next token in the head's own vocabulary."""
    value = model.graph.initializers["draft.ids"]
    assert value.const_value is not None
    value.const_value = ir.tensor(np.roll(value.const_value.numpy(), 1), name=value.name)
    return 1


def _places_off(model: ir.Model) -> int:
    """Scores beside the tokens that they are of."""
    value = model.graph.initializers["draft.places"]
    assert value.const_value is not None
    value.const_value = ir.tensor(np.roll(value.const_value.numpy(), 1), name=value.name)
    return 1


def _embedding_for_features(model: ir.Model) -> int:
    """What was to read the features reads the embedding."""
    given = next(v for v in model.graph.inputs if v.name == "features")
    table = next(
        n.outputs[0] for n in model.graph
        if n.op_type == "Gather" and n.metadata_props.get("graftline.role") == "embedding"
    )  # fmt: skip
    uses = list(given.uses())
    for node, index in uses:
        node.replace_input_with(index, table)
    return len(uses)


def _mask_unread(model: ir.Model) -> int:
    """The zeros of a mask are taken for its feature."""
    node = next(
        n for n in model.graph
        if n.op_type == "Where" and any(v is not None and v.name == "features" for v in n.inputs)
    )  # fmt: skip
    node.outputs[0].replace_all_uses_with(node.inputs[1])
    return 1


def _block_as_chain(model: ir.Model) -> int:
    """Rows see of their step only those before them, whatever the mask says."""
    nodes = with_role(model.graph, "attention")
    given = [input_of(model, role) for role in ("tokens", "positions", "write_index")]
    slots = SlotMasks(Emit(model.graph, "fault", model.graph[0]), *given, cache_of(model))
    for node in nodes:
        emit = Emit(model.graph, "fault", node)
        both = emit.op("And", [node.inputs[3], slots.of(node)])
        node.replace_input_with(3, both)
    return len(nodes)


def _block_grouped(model: ir.Model) -> int:
    """Nothing says that rows see those behind them, which a causal kernel cannot."""
    nodes = with_role(model.graph, "attention")
    return sum(node.metadata_props.pop(LATER, "") == "yes" for node in nodes)


def _loop_of(model: ir.Model) -> ir.Graph:
    """The body of the walk over a block."""
    return next(n for n in model.graph if n.op_type == "Loop").attributes["body"].as_graph()


def _stale_token(model: ir.Model) -> int:
    """Every row is scored by the token before the block."""
    body = _loop_of(model)
    before = body.inputs[2]
    emit = Emit(body, "fault")
    body.outputs[1] = emit.op("Identity", [before], "markov.stale")
    return 1


def _lost_state(model: ir.Model) -> int:
    """The state begins anew at every row."""
    body = _loop_of(model)
    body.outputs[2] = Emit(body, "fault").op("Identity", [body.inputs[3]], "markov.lost")
    return 1


def _all_corrected(model: ir.Model) -> int:
    """The recurrent correction begins at the first row."""
    value = model.graph.initializers["markov.first"]
    value.const_value = ir.tensor(np.asarray(0, np.int64), name=value.name)
    return 1


def _anchor_drafted(model: ir.Model) -> int:
    """The first row of a block drafts, which is the last token's own."""
    node = next(n for n in _loop_of(model) if n.op_type == "Where")
    return rewired(node, 1, node.inputs[2])  # pyright: ignore[reportArgumentType]


def _sure_of_the_opposite(model: ir.Model) -> int:
    """The confidence is that of a rejection."""
    body = _loop_of(model)
    node = [n for n in body if n.op_type == "Sigmoid"][-1]
    read = node.inputs[0]
    node.replace_input_with(0, Emit(body, "fault", node).op("Neg", [read], "markov.opposite"))
    return 1


def _step_off(real: Any, touched: Touched) -> Any:
    """What the proof sees of the engine is a row off."""

    def answers(*given: Any) -> Any:
        touched.count += 1
        logits, states = real(*given)
        return logits, np.roll(states, 1, axis=1)

    return answers


def _before_the_norm(real: Any, touched: Touched) -> Any:
    """What is fed back is what leaves the last block."""

    def state_port(ports: Any, normed: bool) -> Port:
        touched.count += normed
        return real(ports, False)

    return state_port


def _foretold_by_the_scored_end(model: ir.Model) -> int:
    """What is added to for the next feature has left the MLP already."""
    value = next(v for v in model.graph.outputs if v.name == next_feature.NAME)
    node, (end,) = value.producer(), block_outputs(model.graph)
    assert node is not None
    return rewired(node, 0, end)


def _feature_unsampled(model: ir.Model) -> int:
    """What the embedding gates at the entry is made of the embedding, not of the feature."""
    if not _of_head(model):
        return 0
    gate, up = (_product_of(model, f"sampling.{name}.weight") for name in ("gate", "up"))
    return rewired(up, 0, gate.inputs[0])


def _product_of(model: ir.Model, weight: str) -> ir.Node:
    """What multiplies by a matrix that lies as torch has it."""
    (turned,) = model.graph.initializers[weight].consumers()
    (product,) = turned.outputs[0].consumers()
    return product


def _of_head(model: ir.Model) -> bool:
    return FEATURES in model.graph.initializers


def _entry_norms_exchanged(model: ir.Model) -> int:
    """The embedding is normed as the feature is, and the other way round."""
    if not _of_head(model):
        return 0
    one, other = (model.graph.initializers[f"{n}_norm.weight"] for n in ("embedding", "hidden"))
    uses = [(node, index, value) for value, user in ((other, one), (one, other))
            for node, index in user.uses()]  # fmt: skip
    return sum(rewired(node, index, value) for node, index, value in uses)


def _gates_open(model: ir.Model) -> int:
    """What attention gives is not multiplied by its gate's sigmoid."""
    if not _of_head(model):
        return 0
    for node in model.graph:
        if node.op_type == "MatMul" and (made := node.inputs[0]) is not None:
            while made is not None and (maker := made.producer()) is not None:
                if maker.op_type == "Mul" and _is_gated(maker):
                    return rewired(maker, 1, constant(model, 1.0, np.float32))
                made = maker.inputs[0] if maker.op_type == "Reshape" else None
    return 0


def _is_gated(node: ir.Node) -> bool:
    makers = [value.producer() for value in node.inputs if value is not None]
    return makers[1] is not None and makers[1].op_type == "Sigmoid"


def _one_expert_less(model: ir.Model) -> int:
    """The last of the chosen experts is the first again."""
    if not _of_head(model):
        return 0
    for node in model.graph:
        if node.op_type == "TopK":
            ids = node.outputs[1]
            uses = list(ids.uses())
            zeros = constant(model, [0, 0], np.int64)
            maker = ir.node("Gather", [ids, zeros], {"axis": -1})
            model.graph.insert_after(node, maker)
            for user, index in uses:
                user.replace_input_with(index, maker.outputs[0])
            return len(uses)
    return 0


DRAFT_BLOCKS = [
    Mutant("features-of-turned-taps", "head-features: apply", "the taps are in another order",
           "plain", "features-formula",
           after(GRAFTS["head-features"], _turned_taps), EAGLE3),
    Mutant("features-of-turned-layers", "head-features: blocks_of", "layers are read in turn",
           "plain", "layers",
           instead(GRAFTS["head-features"], "blocks_of", _turned_layers), EAGLE3),
    Mutant("draft-ids-of-the-next", "draft-vocabulary: apply", "ids are the next one's",
           "plain", "neutral", after(GRAFTS["draft-vocabulary"], _next_ids), EAGLE3),
    Mutant("draft-scores-off", "draft-vocabulary: apply", "scores stand one place off",
           "plain", "neutral", after(GRAFTS["draft-vocabulary"], _places_off), EAGLE3),
    Mutant("features-unread", "features: apply", "the embedding is read in their place",
           "plain", "neutral", after(GRAFTS["features"], _embedding_for_features), EAGLE3),
    Mutant("mask-feature-unread", "features: apply", "a mask has no feature of its own",
           "plain", "neutral", after(GRAFTS["features"], _mask_unread), {"head": "peagle"}),
    Mutant("block-as-a-chain", "block-mask: apply", "a block's rows see those before them alone",
           "plain", "any-order", after(GRAFTS["block-mask"], _block_as_chain), DFLASH),
    Mutant("block-in-a-causal-kernel", "block-mask: apply", "nothing says what a block sees",
           "plain", "whole", after(GRAFTS["block-mask"], _block_grouped), DFLASH),
    Mutant("walk-behind-one-token", "markov: apply", "every token is scored by the first",
           "plain", "walk", after(GRAFTS["markov"], _stale_token), DSPARK),
    Mutant("walk-without-its-state", "markov: apply", "the recurrent state is not carried on",
           "plain", "walk", after(GRAFTS["markov"], _lost_state), DSPARK),
    Mutant("domino-without-its-state", "markov: apply", "the recurrent state is not carried on",
           "plain", "walk", after(GRAFTS["markov"], _lost_state), DOMINO),
    Mutant("domino-corrects-all-rows", "markov: apply", "the rows without a correction get one",
           "plain", "walk", after(GRAFTS["markov"], _all_corrected), DOMINO),
    Mutant("domino-drafts-at-its-anchor", "markov: apply", "the last token's own row drafts",
           "plain", "walk", after(GRAFTS["markov"], _anchor_drafted), DOMINO),
    Mutant("walk-sure-of-the-opposite", "markov: apply", "confidences are turned around",
           "plain", "walk", after(GRAFTS["markov"], _sure_of_the_opposite), DSPARK),
    Mutant("head-state-a-row-off", "draft_block: the engine", "the state is the row before's",
           "plain", "taps", instead(draft_block, "_answers", _step_off), EAGLE3),
    Mutant("mtp-state-before-the-norm", "ports: state_port", "what is fed back is not normed",
           "plain", "taps", instead(draft_block, "state_port", _before_the_norm), MTP),
    Mutant("fspad-foretold-by-the-scored-end", "next-feature: apply", "the scored end is added to",
           "plain", "foretold",
           after(GRAFTS["next-feature"], _foretold_by_the_scored_end), FSPAD),
    Mutant("fspad-feature-unsampled", "kv-cache: apply", "the embedding gates itself",
           "plain", "neutral", after(KV_CACHE, _feature_unsampled), FSPAD),
    Mutant("mtp-entry-norms-exchanged", "kv-cache: apply", "entry norms have each other's weights",
           "plain", "neutral", after(KV_CACHE, _entry_norms_exchanged), MTP),
    Mutant("mtp-gates-open", "kv-cache: apply", "attention's gates do nothing",
           "plain", "neutral", after(KV_CACHE, _gates_open), MTP),
    Mutant("mtp-one-expert-less", "kv-cache: apply", "an expert is taken twice",
           "plain", "neutral", after(KV_CACHE, _one_expert_less), MTP),
]  # fmt: skip
