"""carry-context: every chunk of a causal decoder costs its own rows alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graftline import load_decoder, optimize
from graftline.commands.once import feed_for, run
from graftline.errors import GraftlineError, LawBroken, NotApplicable, RequestError
from graftline.evaluate import Feed
from graftline.facts import read_facts, write_facts
from graftline.kinds.latent_decoder import LatentDecoder
from graftline.models.graph_facts import facts_of_graph
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.carry_context import CarryContext
from graftline.ports import read_ports
from graftline.runtimes.one_pass.engine import DecodeEngine
from tests.kinds.latent_decoders import CAUSAL, UPSCALER, VOCODER, model_of, write
from tests.kinds.samplers import lines
from tests.rounding import assert_same_sums

SMALL = """
<ir_version: 10, opset_import: ["" : 20]>
small (float[B,2,N] codes, float[B,1,N] pitch, float[3,2,3] enter, float[3,1,1] told,
       float[3,1,4] up) => (float[B,1,T] wave)
{
  h0 = Conv <pads = [2, 0]> (codes, enter)
  p0 = Conv (pitch, told)
  h1 = Add (h0, p0)
  wave = ConvTranspose <strides = [2], pads = [0, 2]> (h1, up)
}
"""
TERMS = 6 * 7 + 8 * 2 + 8 * 3 + 8 + 8 * 2 + 4 * 5
"""Additions on the way through CAUSAL, more than through `SMALL`."""
AFTER = [
    "val_0 = Concat(context.0, latents)",
    "context.0.next = Slice(val_0, context.last.2, context.end, context.axis.2)",
    "h0 = Conv(val_0, enter)",
    "p0 = Conv(condition.0, told)",
    "h1 = Add(h0, p0)",
    "val_2 = Concat(context.1, h1)",
    "context.1.next = Slice(val_2, context.last.1, context.end, context.axis.2)",
    "decoded = ConvTranspose(val_2, up)",
]


def canonical(text: str) -> tuple[ir.Model, Feed]:
    model = model_of(text)
    write_facts(model, facts_of_graph(model, ""))
    Pipeline.parse("canonicalize-one-pass", GRAFTS).run(model)
    return model, LatentDecoder().feed(read_ports(model), read_facts(model), 0)


def grafted(text: str) -> ir.Model:
    model, feed = canonical(text)
    Pipeline.parse("carry-context", GRAFTS).run(model, feed)
    return model


def test_each_convolution_reads_rows_before_its_own() -> None:
    after = grafted(SMALL)
    assert lines(after) == AFTER
    pads = [n.attributes.get_ints("pads") for n in after.graph if n.op_type.startswith("Conv")]
    assert pads == [(0, 0), None, (2, 2)]
    held = [(p.name, p.shape, p.mirror) for p in read_ports(after) if p.state == "running"]
    assert held == [
        ("context.0", ("B", 2, 2), None), ("context.0.next", ("B", 2, 2), "context.0"),
        ("context.1", ("B", 3, 1), None), ("context.1.next", ("B", 3, 1), "context.1"),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> DecodeEngine:
    folder = tmp_path_factory.mktemp("causal")
    host = write(CAUSAL, folder / "host.onnx")
    bundle = optimize(host, folder / "a.graft", passes="carry-context")
    held = {row.law: row for row in bundle.manifest.laws}
    assert held["carried-on"].status == held["carried"].status == "held"
    assert held["carried"].limit == 1e-5
    return load_decoder(bundle.path)


def counted(engine: DecodeEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The latents of each run."""
    runs, real = list[int](), engine._asked

    def asked(feed: dict[str, Any], names: Any) -> Any:
        runs.append(feed[engine.main.name].shape[-1])
        return real(feed, names)

    monkeypatch.setattr(engine, "_asked", asked)
    return runs


def test_a_stream_computes_every_row_once(
    engine: DecodeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = np.random.default_rng(0).standard_normal((2, 6, 80)).astype("f4")
    whole = engine.decode(latents)
    windows = load_decoder(
        optimize(write(CAUSAL, tmp_path / "h.onnx"), tmp_path / "w.graft", passes="window").path
    )
    cost = dict[str, int]()
    for name, one in (("carried", engine), ("windows", windows)):
        runs = counted(one, monkeypatch)
        pieces = list(one.stream_decode(np.array_split(latents, 10, axis=2)))
        cost[name] = sum(runs)
        assert_same_sums(np.concatenate(pieces, axis=2), whole, TERMS)
    assert cost["carried"] == 80
    assert cost["windows"] > 2 * 80, "11 latents in front of every chunk of 8"


def test_pieces_of_an_array(engine: DecodeEngine) -> None:
    latents = np.random.default_rng(1).standard_normal((1, 6, 37)).astype("f4")
    whole = engine.decode(latents)
    pieces = list(engine.stream_decode(latents, window=5))
    assert [p.shape[2] for p in pieces] == [40] * 7 + [16]
    assert_same_sums(np.concatenate(pieces, axis=2), whole, TERMS)
    assert_same_sums(engine.decode(latents, window=1), whole, TERMS)
    with pytest.raises(RequestError, match="say window=, how many latents a piece is made of"):
        list(engine.stream_decode(latents))
    with pytest.raises(RequestError, match="no condition 'context_0'"):
        engine.decode(latents, context_0=np.zeros((1, 6, 6), "f4"))


def test_bench_gives_no_contexts(engine: DecodeEngine) -> None:
    feed = feed_for(engine, None, {}, 12, 0)
    assert not feed.conditions
    assert run(engine, feed, 0, {}).shape == (1, 1, 96)


def test_what_goes_along_the_latents_is_cut_with_them(tmp_path: Path) -> None:
    host = write(SMALL, tmp_path / "h.onnx")
    engine = load_decoder(optimize(host, tmp_path / "a.graft", passes="carry-context").path)
    random = np.random.default_rng(2)
    codes, pitch = (random.standard_normal((2, c, 21)).astype("f4") for c in (2, 1))
    whole = engine.decode(codes, pitch=pitch)
    assert_same_sums(engine.decode(codes, pitch=pitch, window=4), whole, TERMS)


NOTHING_BEFORE = (
    SMALL.replace("[2, 0]", "[0, 0]").replace("float[3,2,3]", "float[3,2,1]")
    .replace("[0, 2]", "[0, 0]").replace("float[3,1,4]", "float[3,1,2]")
)  # fmt: skip
REFUSED = [
    (VOCODER, "it reads rows that come later .looked at: Conv entered"),
    (UPSCALER, "carry-context is for decoders of waveforms"),
    (CAUSAL.replace("[6, 0], dilations", "[3, 3], dilations"), "come later .*Conv r2"),
    (CAUSAL.replace("Slice (long, first, end, axis)", "Elu (long)"), "ConvTranspose long"),
    (CAUSAL.replace("= Pad (", '= Pad <mode = "edge"> ('), "pads with other numbers than zeros"),
    (CAUSAL.replace("a0 = Elu (h0)", "a0 = Softmax <axis = 2> (h0)"), "Softmax a0"),
    (NOTHING_BEFORE, "no element depends on latents before its own"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_is_not_causal_is_refused(text: str, message: str) -> None:
    model, _ = canonical(text)
    with pytest.raises(NotApplicable, match=message):
        CarryContext().requires(model)


def test_a_graph_is_streamed_in_one_way() -> None:
    model, feed = canonical(CAUSAL)
    for text in ("window | carry-context", "carry-context | carry-context"):
        with pytest.raises(GraftlineError, match="streamed already; name carry-context alone"):
            Pipeline.parse(text, GRAFTS).run(model.clone(), feed)


def test_a_context_that_is_not_carried_on_breaks_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    real = CarryContext.apply

    def zeros(graft: CarryContext, model: ir.Model) -> None:
        real(graft, model)
        last = next(n for n in model.graph if n.op_type == "Slice")
        last.replace_input_with(0, last.inputs[0].producer().inputs[0])  # type: ignore[union-attr]

    monkeypatch.setattr(CarryContext, "apply", zeros)
    with pytest.raises(LawBroken, match="breaks the law 'carried-on' at 'decoded'"):
        grafted(CAUSAL)
