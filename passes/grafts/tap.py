"""tap: publish hidden states of the residual stream, for draft heads and early exits to read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Feed
from graftline.facts import decoder_facts
from graftline.law import Evidence
from graftline.passes.anchors.anchors import block_outputs, with_role
from graftline.passes.canonical.norms.find import find_norm
from graftline.passes.graph.emit import Emit, new_output
from graftline.passes.graph.mismatch import Mismatch, refusal
from graftline.passes.graph.ports import roles_of
from graftline.passes.laws.compare import Comparison, activation_dtype
from graftline.passes.pipeline.graft import BLOCK, Evaluate, Graft, Law
from graftline.ports import Port, read_ports, write_ports


def tapped(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """Each tap is what the host has there: put in its place, it leads to the host's logits, and
    what comes before it alone leads to it."""
    logits = roles_of(before).outputs["logits"]
    expected, got = evaluate(before, feed)[logits], evaluate(after, feed)
    comparison, worst = Comparison(graft.name(), "tapped", activation_dtype(after)), 0.0
    ports = [p for p in read_ports(after) if p.role == "hidden"]
    for port in ports:
        host = before.clone()
        source = tapped_value(host.graph, port)
        dtype = source.dtype or ir.DataType.FLOAT
        given = ir.Value(name="given", type=ir.TensorType(dtype), shape=ir.Shape(list(port.shape)))
        source.replace_all_uses_with(given)
        host.graph.inputs.append(given)
        new_output(host.graph, source, "found", dtype, port.shape)
        found = evaluate(host, {**feed, "given": got[port.name]})
        worst = max(worst, comparison.output(logits, found[logits], expected))
        worst = max(worst, comparison.output(port.name, got[port.name], found["found"]))
    return Evidence(f"{len(ports)} taps stand for the host's stream", worst, comparison.limit)


def tapped_value(graph: ir.Graph, port: Port) -> ir.Value:
    """The value of the host that a tap is to give: it leaves block `layer`, or enters the head."""
    if port.layer is not None:
        return block_outputs(graph)[port.layer]
    head = with_role(graph, "lm_head")[0].inputs[0]
    maker = head.producer() if head is not None else None
    if maker is not None and maker.op_type == "GatherND":  # select-rows stands before the head
        head = maker.inputs[0]
    assert head is not None, "a head multiplies something"
    return head


@dataclass(frozen=True)
class Tap(Graft):
    """Adds outputs hidden.{layer} [B, N, H]: the residual stream leaving each listed block.

    `layers` are 0-based block numbers joined by `+`, e.g. `1+14+26`; negative ones count from the
    end; `norm` stands for the output of the final norm. Adds no input.
    """

    laws: ClassVar[tuple[Law, ...]] = (tapped,)

    layers: str = "norm"

    def requires(self, model: ir.Model) -> None:
        count = len(block_outputs(model.graph))
        if count == 0:
            raise NotApplicable("tap needs stamped blocks; run anchors first")
        words = self.layers.split("+")
        for word in words:
            if word == "norm":
                if not with_role(model.graph, "final_norm"):
                    raise refusal("tap{layers=norm}: this host has no final norm", _near(model))
            elif not word.lstrip("-").isdigit() or not -count <= int(word) < count:
                raise NotApplicable(
                    f"tap: there is no layer '{word}'; this host has blocks 0 to {count - 1}, "
                    f"-{count} to -1, and 'norm'"
                )
        if len({w if w == "norm" else str(int(w) % count) for w in words}) < len(words):
            raise NotApplicable(
                f"tap{{layers={self.layers}}} names one layer twice; name each once"
            )

    def apply(self, model: ir.Model) -> None:
        graph = model.graph
        stream = block_outputs(graph)
        hidden = decoder_facts(model).hidden
        ports = list(read_ports(model))
        for word in self.layers.split("+"):
            if word == "norm":
                source, layer, tap = with_role(graph, "final_norm")[-1].outputs[0], None, "postnorm"
            else:
                layer = int(word) % len(stream)
                source, tap = stream[layer], "prenorm"
            name = f"hidden.{word if layer is None else layer}"
            value = Emit(graph, self.name()).op("Identity", [source])
            dtype = source.dtype or ir.DataType.FLOAT
            new_output(graph, value, name, dtype, ["B", "N", hidden])
            shape = ("B", "N", hidden)
            ports.append(Port(name, "hidden", "out", dtype.numpy().name, shape, layer, tap))
        write_ports(model, ports)

    def within(self, blocks: int) -> Tap:
        words = self.layers.split("+")
        # what is no number is refused by `requires`, in these words
        near = (_nearest(int(w), blocks) if w.lstrip("-").isdigit() else w for w in words)
        return replace(self, layers="+".join(dict.fromkeys(near)))


def _near(model: ir.Model) -> list[Mismatch]:
    """What of the head computes a mean, and why it is no norm."""
    head = [n for n in model.graph if n.metadata_props.get(BLOCK) == "head"]
    means = [n for n in head if n.op_type in ("ReduceMean", "ReduceSumSquare")]
    found = [find_norm(node) for node in means]
    return [mismatch for mismatch in found if isinstance(mismatch, Mismatch)]


def _nearest(layer: int, blocks: int) -> str:
    """The number of the block that stands for `layer` where there are only so many."""
    return str(max(min(layer, blocks - 1), -blocks) % blocks)
