"""accelerated-exit: the accelerators' stream in a host's exit, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import run
from graftline.facts import decoder_facts
from graftline.head_notes import AcceleratorNote
from graftline.models.decoder import TinyDecoder
from graftline.models.heads import open_head
from graftline.models.heads.m2r2 import DOWN, SCALE, UP
from graftline.models.training.m2r2 import AcceleratorModule
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.anchors import block_outputs, with_role
from graftline.passes.anchors.residual import Span, spans
from graftline.passes.grafts import accelerated_exit
from graftline.passes.grafts.accelerators import accelerators_graph, neutralise
from graftline.passes.grafts.head_parts import HEADS
from graftline.passes.graph.emit import new_output
from graftline.ports import read_ports
from tests.m2r2_files import seeded, write_m2r2
from tests.passes.tiny_hosts import decoder_feed, host

HIDDEN, VOCABULARY, BLOCKS = 32, 61, 2
SPEC = TinyDecoder(layers=4)
CACHED = "kv-cache | select-rows | reduce-logits{topk=4}"
CUT = f"{CACHED} | tap{{layers=1}} | cut-depth{{blocks=2}}"
EXIT = f"{CUT} | accelerated-exit"


@pytest.fixture(scope="module")
def accelerators(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    return opened(tmp_path_factory.mktemp("accelerators"))


def opened(folder: Path, blocks: int = BLOCKS, hidden: int = HIDDEN) -> ir.Model:
    head = open_head(write_m2r2(folder, seeded(blocks, hidden), SPEC.layers))
    return accelerators_graph(head.tensors, AcceleratorNote(blocks, head.settings.epsilon))


def carrying(accelerators: ir.Model | None, spec: TinyDecoder = SPEC) -> ir.Model:
    """An anchored host that carries accelerators."""
    model = host(spec)
    Pipeline.parse("anchors", GRAFTS).run(model)
    if accelerators is not None:
        model.meta[HEADS] = accelerators
    return model


def streams_of(model: ir.Model) -> list[np.ndarray]:
    """h_0, h_1, ... of a host that is anchored, on the feed of these tests."""
    bare, found = model.clone(), spans(model.graph)
    assert isinstance(found, list)
    own = spans(bare.graph)
    assert isinstance(own, list)
    for number, value in enumerate([own[0].start, *(span.end for span in own)]):
        new_output(bare.graph, value, f"h.{number}", ir.DataType.FLOAT, ["B", "N", HIDDEN])
    got = run(bare, decoder_feed(VOCABULARY))
    return [got[f"h.{number}"] for number in range(len(own) + 1)]


def in_torch(streams: list[np.ndarray]) -> np.ndarray:
    """By the module that training learns: the stream beside the last of these."""
    module, tensors = AcceleratorModule(BLOCKS, HIDDEN, 4), seeded(BLOCKS, HIDDEN)
    with torch.no_grad():
        for block in range(BLOCKS):
            module.gain[block] = float(tensors[SCALE.format(block)][0]) - 1
            module.down[block].copy_(torch.from_numpy(tensors[DOWN.format(block)]))
            module.up[block].copy_(torch.from_numpy(tensors[UP.format(block)]))
        return module([torch.from_numpy(stream) for stream in streams]).numpy()


def test_the_graph_is_the_module_and_the_formula(accelerators: ir.Model) -> None:
    random = np.random.default_rng(1)
    streams = [random.normal(size=(2, 5, HIDDEN)).astype(np.float32) for _ in range(BLOCKS + 1)]
    fed = {f"stream.{number}": stream for number, stream in enumerate(streams)}
    got = run(accelerators, fed)
    p, tensors = streams[0].astype(np.float64), seeded(BLOCKS, HIDDEN)
    for block in range(BLOCKS):
        normed = p / np.sqrt((p**2).mean(-1, keepdims=True) + 1e-6)
        narrow = normed @ tensors[DOWN.format(block)].T
        added = narrow / (1 + np.exp(-narrow)) @ tensors[UP.format(block)].T
        p = p + tensors[SCALE.format(block)] * (streams[block + 1] - streams[block]) + added
        # sums of 32 numbers in another order
        np.testing.assert_allclose(got[f"state.{block + 1}"], p, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["state.2"], in_torch(streams), rtol=1e-4, atol=1e-5)


def test_an_exit_before_and_after(accelerators: ir.Model) -> None:
    """The final norm reads the stream beside; the tap is the blocks' own, and so are the caches."""
    model, feed = carrying(accelerators), decoder_feed(VOCABULARY)
    streams = streams_of(model)
    cut = model.clone()
    cut.meta.update(model.meta)
    Pipeline.parse(CUT, GRAFTS).run(cut)
    report = Pipeline.parse(EXIT, GRAFTS).run(model, feed)[-1]
    assert {"accelerated", "plain-exit"} <= {row.law for row in report.laws}
    assert [p.name for p in read_ports(model)] == [p.name for p in read_ports(cut)]
    (norm,) = with_role(model.graph, "final_norm")
    assert norm.inputs[0] is not block_outputs(model.graph)[-1]
    fed = feed
    for graft in Pipeline.parse(EXIT, GRAFTS).grafts:
        fed = graft.neutral(fed, model)
    got, plain = run(model, fed), run(cut, fed)
    np.testing.assert_array_equal(got["hidden.1"], plain["hidden.1"])
    np.testing.assert_array_equal(got["cache.1.key.out"], plain["cache.1.key.out"])
    assert np.abs(got["logits"] - plain["logits"]).max() > 0.1
    bare = carrying(None)
    upper = bare.clone()
    stream = block_outputs(upper.graph)[-1]
    stream.producer().replace_input_with(0, _given(upper))  # type: ignore[union-attr]
    stream.producer().replace_input_with(1, _zero(upper))  # type: ignore[union-attr]
    wanted = run(upper, {**feed, "given": in_torch(streams[: BLOCKS + 1])})["logits"]
    np.testing.assert_allclose(got["logits"], wanted, rtol=1e-4, atol=1e-4)


def _given(model: ir.Model) -> ir.Value:
    from graftline.passes.graph.emit import new_input

    return new_input(model.graph, "given", ir.DataType.FLOAT, ["B", "N", HIDDEN])


def _zero(model: ir.Model) -> ir.Value:
    from graftline.passes.graph.emit import Emit

    return Emit(model.graph, "test").const("nothing", 0.0, np.float32)


def test_accelerators_that_add_nothing_are_the_plain_exit(accelerators: ir.Model) -> None:
    neutral = accelerators.clone()
    neutral.metadata_props.update(accelerators.metadata_props)
    assert neutralise(neutral) == 2 * BLOCKS
    model, cut, feed = carrying(neutral), carrying(None), decoder_feed(VOCABULARY)
    Pipeline.parse(EXIT, GRAFTS).run(model)
    Pipeline.parse(CUT, GRAFTS).run(cut)
    for graft in Pipeline.parse(EXIT, GRAFTS).grafts:
        feed = graft.neutral(feed, model)
    got, plain = run(model, feed), run(cut, feed)
    assert {name: array.tobytes() for name, array in got.items()} == {
        name: array.tobytes() for name, array in plain.items()
    }


def test_what_it_adds_to_the_exits_work(accelerators: ir.Model) -> None:
    """Two thin products a block, no attention, no cache: of the exit's numbers a small share."""
    model, cut = carrying(accelerators), carrying(None)
    Pipeline.parse(EXIT, GRAFTS).run(model)
    Pipeline.parse(CUT, GRAFTS).run(cut)

    def count(of: ir.Model, op: str) -> int:
        return sum(node.op_type == op for node in of.graph)

    assert count(model, "Attention") == count(cut, "Attention") == BLOCKS
    assert count(model, "MatMul") - count(cut, "MatMul") == 2 * BLOCKS
    added = decoder_facts(model).parameters - decoder_facts(cut).parameters
    assert added == BLOCKS * 2 * 4 * HIDDEN + HIDDEN  # the norms' ones too


def test_a_stream_of_another_block_is_caught(
    accelerators: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = accelerated_exit._wide

    def spoiled(emit: object, value: ir.Value) -> ir.Value:
        found = spans(value.graph if value.graph is not None else value.producer().graph)  # type: ignore[union-attr,arg-type]
        assert isinstance(found, list)
        first: Span = found[0]
        return real(emit, first.end if value is found[1].end else value)  # type: ignore[arg-type]

    monkeypatch.setattr(accelerated_exit, "_wide", spoiled)
    with pytest.raises(LawBroken, match=r"accelerated"):
        Pipeline.parse(EXIT, GRAFTS).run(carrying(accelerators), decoder_feed(VOCABULARY))


REFUSED = [
    (EXIT, None, "needs accelerators that were trained for this host's first blocks"),
    (f"{CACHED} | accelerated-exit", 2, "of 2 blocks, and this graph has 4; put cut-depth"),
    (EXIT, 3, "accelerators of 3 blocks, and this graph has 2; put cut-depth{blocks=3} before it"),
    (EXIT, "narrow", "read 16 numbers, and the host's hidden states have 32"),
]


@pytest.mark.parametrize(("text", "given", "message"), REFUSED, ids=lambda v: str(v)[-40:])
def test_refusals(tmp_path: Path, text: str, given: int | str | None, message: str) -> None:
    made = None
    if given is not None:
        made = opened(tmp_path, 2, 16) if given == "narrow" else opened(tmp_path, int(given))
    with pytest.raises(NotApplicable, match=message) as caught:
        Pipeline.parse(text, GRAFTS).run(carrying(made))
    assert "\n" not in str(caught.value)


def test_a_stream_of_two_widths_is_refused_by_its_block() -> None:
    model = carrying(None)
    found = spans(model.graph)
    assert isinstance(found, list)
    values = [found[0].start, *(span.end for span in found)]
    values[1].shape = ir.Shape(["B", "N", 48])
    with pytest.raises(NotApplicable, match="leaves block 0 48 wide, and the host's hidden states"):
        accelerated_exit._check_widths(values, HIDDEN)
