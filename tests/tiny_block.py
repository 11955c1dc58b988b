"""A draft block for a tiny decoder, written without torch: it nearly knows what its host writes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from graftline.facts import DraftBlockFacts, decoder_facts, write_facts
from graftline.head_notes import write_draft_ids
from graftline.models.decoder import TinyDecoder
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.laws.common import infer_shapes
from graftline.ports import FEATURES, read_ports, write_ports

SPEC = TinyDecoder(layers=1, positions=90)
"""Of a host, and of the block beside it: the same layer, but for what it reads besides tokens."""
PLACES = 16
PASSES = "anchors | tap{layers=-1} | kv-cache | tree-mask | select-rows | reduce-logits{topk=4}"


def block_export(spec: TinyDecoder = SPEC, loud: float = 0.05, drafted: int = 0) -> ir.Model:
    """A block whose first sum has the feature in it, so many times; `drafted`: how many tokens it
    scores, every other one of the host's. 0: all."""
    model = spec.build()
    graph, tokens = model.graph, model.graph.inputs[0]
    (embedded,) = (n for n in graph if n.op_type == "Gather" and n.inputs[1] is tokens)
    table = np.random.default_rng(5).standard_normal((PLACES, spec.hidden)).astype(np.float32)
    places, scale = _weight(graph, "places", np.asarray(PLACES)), _weight(
        graph, "loud", np.asarray(loud, np.float32)
    )
    nodes = [ir.node("Mod", [tokens, places])]
    nodes.append(ir.node("Gather", [_weight(graph, FEATURES, table), nodes[0].outputs[0]]))
    nodes.append(ir.node("Mul", [nodes[1].outputs[0], scale]))
    x = embedded.outputs[0]
    nodes.append(ir.node("Add", [x, nodes[2].outputs[0]]))
    x.replace_all_uses_with(nodes[3].outputs[0])
    nodes[3].replace_input_with(0, x)
    graph.insert_after(embedded, nodes)
    facts = {k: v for k, v in vars(decoder_facts(model)).items() if k != "kind"}
    if drafted:
        _score_fewer(model, drafted, spec.vocabulary)
        facts["vocabulary"] = drafted
    write_facts(model, DraftBlockFacts(**facts))
    infer_shapes(model)
    return model


def block_graph(spec: TinyDecoder = SPEC, loud: float = 0.05, drafted: int = 0) -> ir.Model:
    """The same over a cache and features."""
    model = block_export(spec, loud, drafted)
    renamed = " | draft-vocabulary" if drafted else ""
    Pipeline.parse(f"{PASSES}{renamed} | features", GRAFTS).run(model)
    return model


def _score_fewer(model: ir.Model, drafted: int, vocabulary: int) -> None:
    ids = np.arange(drafted) * 2
    head = model.graph.initializers["lm_head.weight"]
    assert head.const_value is not None
    head.const_value = ir.tensor(head.const_value.numpy()[ids], name=head.name)
    head.shape = ir.Shape([drafted, head.const_value.shape[1]])
    (logits,) = model.graph.outputs
    logits.shape = ir.Shape(["B", "N", drafted])
    ports = [
        p if p.role != "logits" else replace(p, shape=("B", "N", drafted))
        for p in read_ports(model)
    ]
    write_ports(model, ports)
    write_draft_ids(model, ids, vocabulary)


def _weight(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )  # fmt: skip
    graph.register_initializer(value)
    return value
