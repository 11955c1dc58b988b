"""routers: for each row that is asked for, the chance that each block is needed for what follows.

A router of a block (FiRST, arXiv 2410.12513) reads the stream x [B, R, H] that enters it:

    needed = sigmoid(w · x / rms(x) + b)        w [H], b a number; rms(x)² = mean(x²) + 1e-6
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Array, Feed
from graftline.facts import decoder_facts
from graftline.head_notes import RouterNote
from graftline.law import Evidence
from graftline.passes.anchors.anchors import block_outputs
from graftline.passes.grafts.adapter_cache import stream_of
from graftline.passes.grafts.head_parts import carried
from graftline.passes.graph.emit import Emit, new_input, new_output
from graftline.passes.graph.ports import input_of, port_of, roles_of
from graftline.passes.graph.text import write
from graftline.passes.graph.weights import tensor_of
from graftline.passes.laws.compare import Comparison
from graftline.passes.pipeline.graft import Evaluate, Graft, Law
from graftline.ports import ROUTERS, Port, read_ports, write_ports
from graftline.tensors import numbers

FLOAT = ir.DataType.FLOAT
WEIGHT, BIAS, STREAMS = "routers.weight", "routers.bias", "streams"
"""Initializers [L, H] and [L] of the routers' graph, and its input [B, N, L, H]."""
EPSILON = 1e-6
_ROW = """
    two = Constant <value_ints = [2]> ()
    index = Unsqueeze (rows, two)
    row = GatherND <batch_dims = 1> (stream, index)
    wide = Unsqueeze (row, two)
"""
_NEEDED = """
    last = Constant <value_ints = [-1]> ()
    epsilon = Constant <value_float = 1e-6> ()
    squares = Mul (streams, streams)
    mean = ReduceMean (squares, last)
    size = Add (mean, epsilon)
    rms = Sqrt (size)
    normed = Div (streams, rms)
    products = Mul (normed, weight)
    sums = ReduceSum <keepdims = 0> (products, last)
    logits = Add (sums, bias)
    needed = Sigmoid (logits)
"""
_OF_ALL = """
    pads = Constant <value_ints = [0, 0, 1, 0, 0, 0]> ()
    one = Constant <value_float = 1.0> ()
    padded = Pad (needed, pads, one)
    routers = Gather <axis = 2> (padded, columns)
"""


def routed(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """Every router says what its formula, in numpy, makes of the host's stream as it enters its
    block, at the rows that are asked for; blocks without one are needed for certain."""
    assert isinstance(graft, Routers)
    head, layers = _head(after), graft.layers(after)
    fed = graft.neutral(feed, after)
    batch, count = feed[roles_of(after).inputs["tokens"]].shape
    rows = np.stack([np.arange(count)[::-2], np.arange(count)[::-2] - 1 + count % 2], 0)
    rows = rows[np.arange(batch) % 2].clip(0)  # of each sequence others, not in their order
    got = evaluate(after, fed | roles_of(after).feed(rows=rows.astype(np.int64)))
    port = port_of(after, ROUTERS, "out")
    assert port is not None, "the graft adds it"
    expected = np.ones((*rows.shape, len(block_outputs(after.graph))), np.float32)
    for layer, place in layers.items():
        stream = stream_of(before, layer, feed, evaluate)
        x = np.take_along_axis(stream, rows[..., None], axis=1).astype(np.float64)
        expected[..., layer] = _formula(head, place, x)
    comparison = Comparison(graft.name(), "routed")
    worst = comparison.output(port.name, got[port.name], expected)
    what = f"{len(layers)} routers say what their formula makes of the host's stream"
    return Evidence(what, worst, comparison.limit)


def _formula(head: ir.Model, place: int, x: Array) -> Array:
    """[B, R]: what the router of that place says of streams [B, R, H]."""
    weight, bias = (numbers(tensor_of(head.graph.initializers[n])) for n in (WEIGHT, BIAS))
    normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON)
    return 1 / (1 + np.exp(-(normed @ weight[place].astype(np.float64) + bias[place])))


@dataclass(frozen=True)
class Routers(Graft):
    """Adds the output routers [B, R, L]: of each row that is asked for, the chance that each of the
    host's L blocks is needed for the tokens behind it (FiRST, arXiv 2410.12513). A block without a
    router, as the first always is, is needed for certain: 1.

    It reads the stream as it enters a block, so that no block is computed to learn that it is not
    needed; and the rows that are asked for alone, the last token of a prompt, which has seen all of
    it. Which blocks a sequence skips is decided by who reads it. Adds no input.

    `blocks`: of routers for more than a host's first so many blocks, those; 0: all.
    """

    laws: ClassVar[tuple[Law, ...]] = (routed,)

    blocks: int = 0

    def layers(self, model: ir.Model) -> Mapping[int, int]:
        """The blocks of that host that have a router, and the place of each among the routers; a
        small host, which stands for another, has one at least. Raises NotApplicable."""
        count, note = len(block_outputs(model.graph)), RouterNote.read(_head(model))
        assert note is not None, "was looked at"
        found = {layer: place for place, layer in enumerate(note.layers) if layer < count}
        if not self.blocks and len(found) < len(note.layers):
            raise NotApplicable(
                f"there is a router of block {note.layers[-1]}, and this host has blocks 0 to "
                f"{count - 1}: the routers are another model's"
            )
        return found or {count - 1: 0}

    def requires(self, model: ir.Model) -> None:
        if len(block_outputs(model.graph)) < 2:
            raise NotApplicable("routers needs two stamped blocks or more; run anchors first")
        width, hidden = _head(model).graph.initializers[WEIGHT].shape, decoder_facts(model).hidden
        assert width is not None
        if width[1] != hidden:
            raise NotApplicable(
                f"the routers read {width[1]} numbers, and the host's hidden states have {hidden}: "
                "they are another model's"
            )
        self.layers(model)
        if input_of(model, "rows") is None:
            raise NotApplicable("routers needs the input 'rows'; put select-rows before")
        if (known := port_of(model, ROUTERS, "out")) is not None:
            raise NotApplicable("this graph has routers already", [known.name])

    def apply(self, model: ir.Model) -> None:
        graph, layers, head = model.graph, self.layers(model), _head(model)
        stream, rows = block_outputs(graph), input_of(model, "rows")
        assert rows is not None
        emit, wide = Emit(graph, self.name(), block=ROUTERS), list[ir.Value]()
        for layer in layers:
            given = {"rows": rows, "stream": stream[layer - 1]}
            wide += write(emit, _ROW, given, ["wide"])
        streams = emit.op("Concat", wide, axis=2)
        if stream[-1].dtype not in (None, FLOAT):
            streams = emit.op("Cast", [streams], to=FLOAT)
        given = {"streams": streams, **_own(emit, head, list(layers.values()))}
        (needed,) = write(emit, _NEEDED, given, ["needed"])
        places = {layer: column for column, layer in enumerate(layers, 1)}
        columns = [places.get(block, 0) for block in range(len(stream))]
        given = {"needed": needed, "columns": emit.const("routers.columns", columns, np.int64)}
        (routers,) = write(emit, _OF_ALL, given, ["routers"], [ROUTERS])
        shape = ("B", "R", len(stream))
        new_output(graph, routers, ROUTERS, FLOAT, shape)
        port = Port(ROUTERS, ROUTERS, "out", "float32", shape, max(layers) - 1)
        write_ports(model, [*read_ports(model), port])

    def apart(self, before: ir.Model) -> Mapping[int, bool]:
        return dict.fromkeys(self.layers(before), True)

    def within(self, blocks: int) -> Routers:
        return replace(self, blocks=blocks)


def routers_graph(tensors: Mapping[str, ir.TensorProtocol], note: RouterNote) -> ir.Model:
    """The routers alone: the streams [B, N, L, H] that enter their blocks -> routers [B, N, L].
    `tensors` are those of their files (`models/heads/router.py`)."""
    graph = ir.Graph([], [], nodes=[], name=ROUTERS, opset_imports={"": 24})
    model = ir.Model(graph, ir_version=11)
    note.write(model)
    emit, count = Emit(graph, ROUTERS), len(note.layers)
    given = {name: emit.initializer(f"routers.{name}", tensors[f"routers.{name}"])
             for name in ("weight", "bias")}  # fmt: skip
    hidden = int(tensors[WEIGHT].shape.numpy()[1])
    given[STREAMS] = new_input(graph, STREAMS, FLOAT, ["B", "N", count, hidden])
    (needed,) = write(emit, _NEEDED, given, ["needed"])
    new_output(graph, needed, ROUTERS, FLOAT, ["B", "N", count])
    return model


def _head(model: ir.Model) -> ir.Model:
    """The routers that a model carries. Raises NotApplicable for one that carries none."""
    return carried(
        model, RouterNote,
        "routers needs routers that were trained for this host; make some with `graftline train "
        "router` and give them: --head PATH",
    )[0]  # fmt: skip


def _own(emit: Emit, head: ir.Model, places: list[int]) -> dict[str, ir.Value]:
    """The weights of the routers of those places, as initializers of a host."""
    found: dict[str, ir.Value] = {}
    for name, own in (("weight", WEIGHT), ("bias", BIAS)):
        tensor = tensor_of(head.graph.initializers[own])
        if places != list(range(int(tensor.shape.numpy()[0]))):
            tensor = ir.tensor(numbers(tensor)[places], name=own)
        found[name] = emit.initializer(own, tensor)
    return found
