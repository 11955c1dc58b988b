"""A recogniser goes the way of every other host, and writes texts in one pass."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from graftline import load_decoder, optimize
from graftline.build.check import check
from graftline.bundle.reader import Bundle
from graftline.errors import LawBroken, NotApplicable, RequestError
from graftline.evaluate import run
from graftline.facts import RecogniserFacts, read_facts, write_facts
from graftline.kinds.kind import Parts
from graftline.kinds.recogniser import Recogniser
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.recogniser import find_recogniser
from graftline.passes.anchors.roles import OnePass
from graftline.passes.graph.mismatch import Mismatch
from graftline.ports import read_ports
from graftline.runtimes.one_pass.engine import DecodeEngine
from tests.kinds.latent_decoders import UPSCALER, model_of, write
from tests.kinds.recognisers import CPPD, PARAFORMER

RANDOM = np.random.default_rng(3)
NUMBERED = PARAFORMER.replace("float[B,U,11] logits, int64[B] token_num", "float[B,U,11] logits")
"""The same without its count as an output."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("paraformer")
    return optimize(write(PARAFORMER, folder / "host.onnx"), folder / "host.graft")


def engine_of(bundle: Bundle) -> DecodeEngine:
    engine = load_decoder(bundle.path)
    return engine


def texts(file: Path, feed: dict[str, Any], counted: bool = True) -> list[list[int]]:
    """What the file itself writes."""
    scores, *counts = onnxruntime.InferenceSession(str(file)).run(None, feed)
    best = np.asarray(scores).argmax(-1).tolist()
    return [ids[:n] for ids, n in zip(best, counts[0], strict=True)] if counted else best


def heard(rows: int, places: int) -> dict[str, Any]:
    return {
        "speech": RANDOM.standard_normal((rows, places, 6)).astype(np.float32),
        "speech_lengths": np.linspace(places // 2, places, rows).astype(np.int32),
    }


def canonical(text: str) -> ir.Model:
    model = model_of(text)
    found = find_recogniser(model.graph)
    assert isinstance(found, OnePass)
    write_facts(model, found.facts)
    Pipeline.parse("canonicalize-one-pass", GRAFTS).run(model)
    return model


@pytest.mark.parametrize(
    ("text", "facts"), [(PARAFORMER, RecogniserFacts(11, 6)), (CPPD, RecogniserFacts(11, 3, 5))]
)
def test_it_is_known_by_what_its_positions_follow_from(text: str, facts: RecogniserFacts) -> None:
    found = find_recogniser(model_of(text).graph)
    assert isinstance(found, OnePass)
    assert found.facts == facts
    assert [role.role for role in (found.output, *found.others)] == ["scores", "counts"]


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ("Range (zero, most, one)", "Range (zero, long, one)", "more places of a longer signal"),
        ("float[B,T,6] speech,", "float[B,T,6] speech, float[B,T,6] other,", "not one signal"),
        ("float[B,T,6] speech", "float[B,T,F] speech", "the signal's channels is not fixed"),
        ("float[B,U,11] logits, ", "", "not the scores"),
    ],
)
def test_other_graphs_are_none(was: str, now: str, message: str) -> None:
    found = find_recogniser(model_of(PARAFORMER.replace(was, now)).graph)
    assert isinstance(found, Mismatch)
    assert message in found.reason


def test_it_writes_what_the_file_does(bundle: Bundle) -> None:
    laws = {(w.graft.partition("{")[0], w.law): w.status for w in bundle.manifest.laws}
    owed = [("canonicalize-one-pass", "neutral"), ("ort-cpu", "whole"), ("export", "checkpoint")]
    assert {laws[row] for row in owed} == {"held"}
    feed, engine = heard(3, 31), engine_of(bundle)
    expected = texts(bundle.path.parent / "host.onnx", feed)
    assert len({len(ids) for ids in expected}) > 1, "texts of several lengths"
    assert engine.recognise(feed["speech"], lengths=feed["speech_lengths"]) == expected
    alone = [engine.recognise(feed["speech"][n : n + 1, :size])[0]
             for n, size in enumerate(feed["speech_lengths"])]  # fmt: skip
    assert alone == expected, "whoever is beside a row"
    assert check(bundle.path).holds


def test_placeholders_are_scored_together(tmp_path: Path) -> None:
    made = optimize(write(CPPD, tmp_path / "host.onnx"), tmp_path / "host.graft")
    image = RANDOM.standard_normal((4, 3, 32, 64)).astype(np.float32)
    assert engine_of(made).recognise(image) == texts(tmp_path / "host.onnx", {"image": image})


def test_other_hosts_write_no_texts(tmp_path: Path) -> None:
    made = optimize(write(UPSCALER, tmp_path / "host.onnx"), tmp_path / "host.graft")
    with pytest.raises(RequestError, match="is a latent-decoder, which writes no texts"):
        engine_of(made).recognise(np.zeros((1, 3, 8, 8), np.float32))


@pytest.mark.parametrize("text", [PARAFORMER, NUMBERED])
def test_positions_are_padded(text: str, tmp_path: Path) -> None:
    file = write(text, tmp_path / "host.onnx")
    made = optimize(file, tmp_path / "host.graft", passes="pad-positions{positions=32}")
    facts = made.manifest.facts
    assert isinstance(facts, RecogniserFacts)
    assert facts.positions == 32
    assert {(w.graft.partition("{")[0], w.law): w.status for w in made.manifest.laws}[
        "pad-positions", "sized"
    ] == "held"
    feed, engine = heard(2, 40), engine_of(made)
    write(PARAFORMER, counting := tmp_path / "counting.onnx")
    assert engine.recognise(feed["speech"], lengths=feed["speech_lengths"]) == texts(counting, feed)
    longer = heard(1, 200)
    count = len(texts(counting, longer)[0])
    assert count > 32
    words = rf"a text of {count} positions, .* scores 32; .*pad-positions\{{positions={count}\}}"
    with pytest.raises(RequestError, match=words):
        engine.recognise(longer["speech"], lengths=longer["speech_lengths"])


def test_the_graph_before_and_after() -> None:
    before = canonical(NUMBERED)
    after = before.clone()
    Pipeline.parse("pad-positions{positions=9}", GRAFTS).run(after)
    assert [n.op_type for n in after.graph].count("ReduceMax") == 0
    assert [n.op_type for n in before.graph].count("ReduceMax") == 1
    ports = {p.role: p.shape for p in read_ports(after) if p.direction == "out"}
    assert ports == {"scores": ("B", 9, 11), "counts": ("B",)}
    feed = Recogniser().feed(read_ports(after), read_facts(after), 1)
    assert run(after, feed)["scores"].shape[1] == 9


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ("ReduceMax <keepdims = 0> (token_num)", "ReduceSum <keepdims = 0> (token_num)",
         "nothing says how many positions each row has; .*ReduceSum"),
        ("places = Cast <to = 1> (place)",
         "fewest = ReduceMin <keepdims = 0> (token_num)\n  second = Range (zero, fewest, one)\n  "
         "summed = ReduceSum <keepdims = 0> (second)\n  moved = Add (place, summed)\n  "
         "places = Cast <to = 1> (moved)",
         "one number that the positions are counted by, and finds 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_padded_is_refused(was: str, now: str, message: str) -> None:
    model = canonical(NUMBERED.replace(was, now))
    with pytest.raises(NotApplicable, match=message):
        Pipeline.parse("pad-positions", GRAFTS).run(model)


def test_hosts_with_fixed_positions_need_none() -> None:
    with pytest.raises(NotApplicable, match="scores 5 positions whatever it counts"):
        Pipeline.parse("pad-positions", GRAFTS).run(canonical(CPPD))


def test_the_proof_sees_an_engine_that_counts_otherwise(tmp_path: Path) -> None:
    file = write(NUMBERED, tmp_path / "host.onnx")
    made = optimize(file, tmp_path / "host.graft", recipe="paraformer")
    assert made.manifest.recipe == "paraformer"
    wrong = ir.load(made.path / "ort-cpu.onnx")
    next(n for n in wrong.graph if n.op_type == "Floor").op_type = "Ceil"
    ir.save(wrong, made.path / "ort-cpu.onnx")
    parts = Parts(made.path, made.manifest.stages, "ort-cpu", "ort-cpu")
    with pytest.raises(LawBroken, match=re.compile("ort-cpu breaks the law 'whole' at 'counts'")):
        Recogniser().prove(parts, None, "", lambda line: None)
