"""routers: what each says of a row, and which it says nothing of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import run
from graftline.head_notes import RouterNote
from graftline.models.decoder import TinyDecoder
from graftline.models.heads import open_head
from graftline.models.heads.router import BIAS, WEIGHT
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.anchors import block_outputs
from graftline.passes.grafts import routers
from graftline.passes.grafts.head_parts import HEADS
from graftline.passes.grafts.routers import routers_graph
from graftline.passes.graph.cut import elements
from graftline.ports import ROUTERS, read_ports
from tests.passes.tiny_hosts import decoder_feed, host
from tests.router_files import seeded, write_routers

HIDDEN, VOCABULARY, BLOCKS = 32, 61, 4
SPEC = TinyDecoder(layers=BLOCKS)
CACHED = "kv-cache | select-rows | reduce-logits{topk=4}"
ROUTED = f"{CACHED} | routers"


def opened(folder: Path, layers: tuple[int, ...] = (1, 3), hidden: int = HIDDEN) -> ir.Model:
    blocks = max(BLOCKS, *(layer + 1 for layer in layers))
    files = write_routers(folder / "head", seeded(layers, hidden), blocks, [layers[:1]])
    head = open_head(files)
    return routers_graph(head.tensors, RouterNote(head.settings.layers))


def carrying(head: ir.Model | None, spec: TinyDecoder = SPEC) -> ir.Model:
    """An anchored host that carries routers."""
    model = host(spec)
    Pipeline.parse("anchors", GRAFTS).run(model)
    if head is not None:
        model.meta[HEADS] = head
    return model


def test_the_graph_alone_is_the_formula(tmp_path: Path) -> None:
    tensors, head = seeded((1, 3), HIDDEN), opened(tmp_path)
    streams = 40 * np.random.default_rng(1).normal(size=(2, 5, 2, HIDDEN)).astype(np.float32)
    got = run(head, {"streams": streams})[ROUTERS]
    for place, layer in enumerate((1, 3)):
        x = streams[:, :, place]
        normed = x / np.sqrt((x**2).mean(-1, keepdims=True))
        logit = normed @ tensors[WEIGHT.format(layer)][0] + tensors[BIAS.format(layer)]
        np.testing.assert_allclose(got[..., place], 1 / (1 + np.exp(-logit)), rtol=1e-4)


def test_before_and_after(tmp_path: Path) -> None:
    """A dozen nodes for all routers together, of the rows that are asked for; the host's answers
    stay what they are."""
    model = carrying(opened(tmp_path))
    (report,) = Pipeline.parse(ROUTED, GRAFTS).run(model, decoder_feed(VOCABULARY))[-1:]
    assert {row.law: row.status for row in report.laws}.items() >= {
        ("neutral", "held"), ("routed", "held"),
    }  # fmt: skip
    assert report.added == {
        "Add": 2, "Concat": 1, "Div": 1, "Gather": 1, "GatherND": 2, "Mul": 2, "Pad": 1,
        "ReduceMean": 1, "ReduceSum": 1, "Sigmoid": 1, "Sqrt": 1, "Unsqueeze": 4,
    }  # fmt: skip
    (port,) = [p for p in read_ports(model) if p.role == ROUTERS]
    assert port.shape == ("B", "R", BLOCKS)


def test_a_route_answers_no_routers_and_keeps_none_of_their_weights(tmp_path: Path) -> None:
    """What was read at the prompt is computed at no step of a route; nor in parts of the host."""
    plain = carrying(None)
    Pipeline.parse(f"{CACHED} | layer-skip{{layers=1+3}}", GRAFTS).run(plain)
    feed = decoder_feed(VOCABULARY)
    model = carrying(opened(tmp_path))
    reports = Pipeline.parse(f"{ROUTED} | layer-skip{{layers=1+3}}", GRAFTS).run(model, feed)
    assert {r.law: r.status for r in reports[-1].laws}["route"] == "held"
    assert not [p for p in read_ports(model) if p.role == ROUTERS]
    assert (len(model.graph), elements(model)) == (len(plain.graph), elements(plain))
    assert sum(node.op_type == "Attention" for node in model.graph) == BLOCKS - 2
    for cut in ("cut-depth{blocks=2}", "depth-rest{blocks=2}"):
        part = carrying(opened(tmp_path))
        Pipeline.parse(f"{ROUTED} | {cut}", GRAFTS).run(part, feed)
        assert not [p for p in read_ports(part) if p.role == ROUTERS]
    shallow = carrying(opened(tmp_path / "shallow", (1,)))
    Pipeline.parse(f"{ROUTED} | cut-depth{{blocks=2}}", GRAFTS).run(shallow, feed)
    assert [p for p in read_ports(shallow) if p.role == ROUTERS]


def test_lowered_and_packed_they_say_the_same(tmp_path: Path) -> None:
    model = carrying(opened(tmp_path))
    text = f"{ROUTED} | pack-projections | lower-ort"
    reports = Pipeline.parse(text, GRAFTS).run(model, decoder_feed(VOCABULARY))
    laws = {row.law: row.status for row in reports[-1].laws}
    assert (laws["neutral"], laws["alike"]) == ("held", "held")


def test_a_router_of_another_stream_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that reads what leaves its block, which is computed only to learn that it is not needed.
    """
    model = carrying(opened(tmp_path))
    real = routers.write

    def shifted(emit: object, text: str, given: dict[str, ir.Value], *rest: object) -> object:
        if "stream" in given:
            streams = block_outputs(model.graph)
            given = {**given, "stream": streams[streams.index(given["stream"]) + 1]}
        return real(emit, text, given, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(routers, "write", shifted)
    with pytest.raises(LawBroken, match=r"routers breaks the law 'routed'"):
        Pipeline.parse(ROUTED, GRAFTS).run(model, decoder_feed(VOCABULARY))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    one = opened(tmp_path / "one", (1,))
    cases = (
        (None, ROUTED, "needs routers that were trained for this host"),
        (opened(tmp_path / "narrow", (1,), 16), ROUTED, "read 16 numbers, and .* have 32"),
        (opened(tmp_path / "deep", (1, 9)), ROUTED, "router of block 9, .* has blocks 0 to 3"),
        (one, "kv-cache | routers", "put select-rows before"),
        (one, f"{ROUTED} | routers", "has routers already"),
    )
    for head, text, message in cases:
        with pytest.raises(NotApplicable, match=message):
            Pipeline.parse(text, GRAFTS).run(carrying(head))
    with pytest.raises(NotApplicable, match="needs two stamped blocks or more"):
        Pipeline.parse(ROUTED, GRAFTS).run(carrying(one, TinyDecoder(layers=1)))
