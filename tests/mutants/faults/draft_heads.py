"""Draft heads that read another state, compute something else, or name other candidates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from faults.graphs import constant, op, rewired
from faults.mutant import Apply, Edit, Mutant, Touched, after, instead
from faults.passes import LOWER
from graftline.build import head_graph
from graftline.kinds import draft_head
from graftline.passes import GRAFTS
from graftline.passes.anchors.anchors import block_outputs, with_role
from graftline.passes.grafts import draft_heads as made
from graftline.passes.grafts import markov_walk
from graftline.passes.pipeline.graft import MADE_BY

DRAFT = GRAFTS["draft-heads"]
V1, V2, HYDRA = {"head": "v1"}, {"head": "v2"}, {"head": "hydra"}
BIGRAMS = {"head": "bigrams"}
ON_TARGET = {"head": "v1", "passes": "kv-cache | tap{layers=norm} | draft-heads | reduce-logits"}
IDS, LOGITS = "heads.topk_ids", "heads.topk_logits"


def _ours(model: ir.Model, op_type: str) -> list[ir.Node]:
    return [
        n for n in model.graph
        if n.op_type == op_type and n.metadata_props.get(MADE_BY) == DRAFT.name()
    ]  # fmt: skip


def _activation(model: ir.Model) -> ir.Node | None:
    """x * sigmoid(x)."""
    for node in _ours(model, "Mul"):
        if any(v is not None and (p := v.producer()) and p.op_type == "Sigmoid"
               for v in node.inputs):  # fmt: skip
            return node
    return None


def _sigmoid_alone(model: ir.Model) -> int:
    node = _activation(model)
    return 0 if node is None else rewired(node, 0, constant(model, 1.0, np.float32))


def _no_residual(model: ir.Model) -> int:
    node = _activation(model)
    if node is None:
        return 0
    total = node.outputs[0].consumers()[0]
    return rewired(total, 0, node.outputs[0])


def _biases_of_the_next(model: ir.Model) -> int:
    found = [v for n, v in model.graph.initializers.items() if n == "heads.layer.0.bias"]
    for value in found:
        assert value.const_value is not None
        value.const_value = ir.tensor(np.roll(value.const_value.numpy(), 1, 0), name=value.name)
    return len(found)


def _published(name: str, op_type: str, *constants: tuple[Any, Any], **attributes: Any) -> Edit:
    """An output of heads, where a graph has it, is made of what was to be it."""

    def edit(model: ir.Model) -> int:
        old = next((v for v in model.graph.outputs if v.name == name), None)
        if old is None:
            return 0
        maker = ir.node("Identity", [None])
        model.graph.append(maker)
        more = [constant(model, *pair) for pair in constants]
        maker.replace_input_with(0, op(model, maker, op_type, [old, *more], **attributes))
        new = maker.outputs[0]
        new.type, new.shape = old.type, old.shape
        model.graph.outputs[list(model.graph.outputs).index(old)] = new
        old.name, new.name = f"{name}.right", name
        return 1

    return edit


def _reading(source: Callable[[ir.Model], ir.Value | None]) -> Apply:
    """The heads read another value of their host than the tap."""

    def make(real: Any, touched: Touched) -> Any:
        def value_of(model: ir.Model, port: Any) -> ir.Value:
            other = source(model) if port.direction == "out" else None
            touched.count += other is not None
            return real(model, port) if other is None else other

        return value_of

    return instead(made, "value_of", make)


def _text(name: str, old: str, new: str) -> Apply:
    """A formula of the published graph, written otherwise."""

    def make(real: str, touched: Touched) -> str:
        touched.count += old in real
        return real.replace(old, new)

    return instead(head_graph, name, make)


def _bigrams_of_the_last(model: ir.Model) -> int:
    """Every head is scored by the token behind the row."""
    looks = [n for n in _ours(model, "Gather") if "markov" in (n.inputs[0].name or "")]  # type: ignore[union-attr]
    for look in looks[1:]:
        look.replace_input_with(1, looks[0].inputs[1])
    return len(looks[1:])


def _bigrams_turned(model: ir.Model) -> int:
    """What follows a token is taken for what stands before it."""
    one, two = (
        next((v for n, v in model.graph.initializers.items() if n.endswith(f"markov.w{k}")), None)
        for k in (1, 2)
    )
    if one is None or two is None:
        return 0
    one.const_value, two.const_value = two.const_value, one.const_value
    return 1


def _bigrams_written(old: str, new: str) -> Apply:
    """The formula of bigrams, in the published graph and the pass alike, written otherwise."""

    def make(real: str, touched: Touched) -> str:
        touched.count += old in real
        return real.replace(old, new)

    return instead(markov_walk, "_HEAD", make)


def _engine_off(factor: float) -> Apply:
    """What the proof sees of the lowered heads is off."""

    def make(real: Any, touched: Touched) -> Any:
        def run(self: Any, graph: Any, ports: Any, facts: Any, names: Any) -> Any:
            found = real(self, graph, ports, facts, names)
            if graph.name == "head.0.onnx":
                touched.count += 1
                found = [array * np.float32(factor) for array in found]
            return found

        return run

    return instead(draft_head.DraftHead, "_run", make)


ROLLED = ([1, 2, 0], np.int64)
DRAFT_HEADS = [
    Mutant("heads-read-before-the-norm", "draft-heads: _tap", "the state before the final norm",
           "plain", "head-formula",
           _reading(lambda m: with_role(m.graph, "final_norm")[-1].inputs[0]), ON_TARGET),
    Mutant("heads-read-another-layer", "draft-heads: _tap", "the state after the first block",
           "plain", "head-formula", _reading(lambda m: block_outputs(m.graph)[0]), ON_TARGET),
    Mutant("heads-read-the-step-before", "draft-heads: _tap", "the state before the last block",
           "plain", "head-formula", _reading(lambda m: block_outputs(m.graph)[-2]), ON_TARGET),
    Mutant("heads-without-silu", "draft-heads: _ACTED", "the activation is a sigmoid",
           "plain", "neutral", after(DRAFT, _sigmoid_alone), V1),
    Mutant("heads-without-residual", "draft-heads: _ACTED", "the state is not added",
           "plain", "neutral", after(DRAFT, _no_residual), V2),
    Mutant("heads-biases-of-the-next", "draft-heads: _logits", "each head has another's bias",
           "plain", "neutral", after(DRAFT, _biases_of_the_next), V1),
    Mutant("heads-biases-on-the-target", "draft-heads: _logits", "each head has another's bias",
           "plain", "head-formula", after(DRAFT, _biases_of_the_next), ON_TARGET),
    Mutant("heads-candidates-of-the-next", "draft-heads: apply", "ids are those of the next head",
           "plain", "head-formula",
           after(DRAFT, _published(IDS, "Gather", ROLLED, axis=2)), V1),
    Mutant("heads-logits-of-the-next", "draft-heads: apply", "logits are those of the next head",
           "plain", "head-formula",
           after(DRAFT, _published(LOGITS, "Gather", ROLLED, axis=2)), V2),
    Mutant("heads-candidates-of-another-group", "reduce-logits: Groups.topk", "256 too few",
           "plain", "head-formula", after(DRAFT, _published(IDS, "Mod", (256, np.int64))), V1),
    Mutant("heads-lowered", "lower-ort", "the lowered candidates' logits are 1 % too large",
           "plain", "neutral",
           after(LOWER, _published(LOGITS, "Mul", (1.01, np.float32))), V1),
    Mutant("heads-published-without-silu", "head_graph: _ACTED", "the activation is a sigmoid",
           "plain", "formula", _text("_ACTED", "Mul (linear, ", "Identity ("), V1),
    Mutant("sequence-state-behind-the-tokens", "head_graph: _READ", "the state comes last",
           "plain", "formula",
           _text("_READ", "(hidden, Reshape (known, joined))", "(Reshape (known, joined), hidden)"),
           HYDRA),
    Mutant("sequence-without-silu", "head_graph: _ACTED", "the activation is a sigmoid",
           "plain", "formula", _text("_ACTED", "Mul (linear, ", "Identity ("), HYDRA),
    Mutant("sequence-candidates-of-another-group", "reduce-logits: Groups.topk", "256 too few",
           "plain", "head-formula", after(DRAFT, _published(IDS, "Mod", (256, np.int64))), HYDRA),
    Mutant("bigrams-of-the-last", "draft-heads: _with_bigrams", "all follow the row's own token",
           "plain", "neutral", after(DRAFT, _bigrams_of_the_last), BIGRAMS),
    Mutant("bigrams-turned", "draft-heads: _with_bigrams", "w1 and w2 change places",
           "plain", "neutral", after(DRAFT, _bigrams_turned), BIGRAMS),
    Mutant("bigrams-taken-off", "markov_walk: _HEAD", "what the token before says is taken off",
           "plain", "formula", _bigrams_written("Add (logits,", "Sub (logits,"), BIGRAMS),
    Mutant("heads-engine-off", "lower-ort", "the lowered heads' logits are 0.1 % too large",
           "plain", "whole", _engine_off(1.001), V2),
    Mutant("heads-int8-engine-off", "quantize", "the int8 heads' logits are a quarter too large",
           "plain", "whole", _engine_off(1.25), {**V2, "dtype": "int8"}),
]  # fmt: skip
