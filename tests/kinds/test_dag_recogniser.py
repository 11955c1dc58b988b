"""A recogniser over a graph of vertices: its path and what is spoken of it, in one call."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from graftline import load_decoder, optimize
from graftline.best_path import best_paths
from graftline.build.check import check
from graftline.bundle.reader import Bundle
from graftline.errors import CheckpointError, LawBroken, NotApplicable, RequestError
from graftline.facts import DagRecogniserFacts
from graftline.kinds.dag_recogniser import DagRecogniser
from graftline.kinds.kind import Parts
from graftline.passes.anchors.dag_recogniser import find_dag_recogniser
from graftline.passes.anchors.one_pass import ONE_PASS
from graftline.passes.anchors.roles import OnePass
from graftline.passes.graph.mismatch import Mismatch
from graftline.path_search import PathSearch
from graftline.runtimes.one_pass.engine import DecodeEngine
from tests.commands.calling import call, refused
from tests.kinds.dags import ACOUSTIC, DAG, SPEC, write_dag
from tests.kinds.latent_decoders import model_of

RANDOM = np.random.default_rng(3)
SPEECH = RANDOM.standard_normal((3, 40, 6)).astype(np.float32)
SIZES = np.asarray([40, 4, 22], np.int32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    graph, spec = write_dag(tmp_path_factory.mktemp("daspeech"))
    return optimize(graph, graph.parent / "host.graft", recipe="daspeech", spec=spec)


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> DecodeEngine:
    return load_decoder(bundle.path, threads=1)


def published(folder: Path, speech: np.ndarray, sizes: np.ndarray) -> tuple[Any, ...]:
    """The two files, called as the system is published, a path in plain loops between them."""
    host = onnxruntime.InferenceSession(str(folder / "dag.onnx"))
    decoder = onnxruntime.InferenceSession(str(folder / "acoustic.onnx"))
    made = host.run(None, {"speech": speech, "speech_lengths": sizes})
    scores, links, features, vertices = (np.asarray(one) for one in made)
    found = best_paths(scores, links, features, vertices, PathSearch())
    mel, frames = decoder.run(None, {"x": found.states, "sizes": found.counts})
    texts = [row[:n].tolist() for row, n in zip(found.scores.argmax(-1), found.counts, strict=True)]
    return texts, np.asarray(mel), np.asarray(frames)


def test_it_is_known_by_what_is_made_of_what() -> None:
    graph = model_of(DAG).graph
    assert [name for name, find in ONE_PASS.items() if isinstance(find(graph), OnePass)] == [
        "dag-recogniser"
    ]
    found = find_dag_recogniser(graph)
    assert isinstance(found, OnePass)
    assert found.facts == DagRecogniserFacts(11, 6, states=8)
    assert [(role.value.name, role.role) for role in (found.output, *found.others)] == [
        ("word_ins", "scores"), ("links", "transitions"), ("features", "states"),
        ("graph_sizes", "vertices"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ("float[B,L,11] word_ins, ", "", "not scores .* transitions .* and states"),
        ("scored = MatMul (features, leave)", "scored = MatMul (every, leave6)",
         "none of them is the states"),
        ("float[B,L,11] word_ins", "float[B,L,V] word_ins", "which of them are transitions"),
        ("float[B,L,L] links", "float[B,L,9] links", "which of them are transitions"),
        ("float[B,L,8] features", "float[B,L,H] features", "width of the states is not fixed"),
        ("float[B,T,6] speech,", "float[B,T,6] speech, float[B,T,6] other,", "not one signal"),
    ],
)  # fmt: skip
def test_other_graphs_are_none(was: str, now: str, message: str) -> None:
    text = DAG.replace(was, now).replace(
        "float[8,11] leave", "float[8,11] leave, float[6,11] leave6"
    )
    found = find_dag_recogniser(model_of(text).graph)
    assert isinstance(found, Mismatch)
    assert re.search(message, found.reason), found.reason


def test_a_text_and_its_speech_in_one_call(bundle: Bundle, engine: DecodeEngine) -> None:
    texts, mel, frames = published(bundle.path.parent, SPEECH, SIZES)
    assert len({len(text) for text in texts}) == 3, "texts of several lengths"
    assert engine.recognise(SPEECH, lengths=SIZES) == texts
    decoded = engine.decode(SPEECH, speech_lengths=SIZES)
    np.testing.assert_allclose(decoded, mel, rtol=1e-5, atol=1e-5)
    spoken = engine.speak(SPEECH, lengths=SIZES)
    assert [one.tokens for one in spoken] == texts
    assert [one.decoded.shape for one in spoken] == [(n, 5) for n in frames]
    for row, one in enumerate(spoken):
        np.testing.assert_array_equal(one.decoded, decoded[row, : frames[row]])
        (alone,) = engine.speak(SPEECH[row : row + 1, : SIZES[row]])
        assert alone.tokens == one.tokens, "whoever is beside a row"
        np.testing.assert_allclose(alone.decoded, one.decoded, rtol=1e-5, atol=1e-5)


def test_the_laws_are_held_and_travel(bundle: Bundle) -> None:
    laws = {(w.graft.partition("{")[0], w.law): w.status for w in bundle.manifest.laws}
    owed = [("best-path", "neutral"), ("best-path", "paths"), ("join", "neutral"),
            ("ort-cpu", "whole"), ("export", "checkpoint")]  # fmt: skip
    assert {laws[row] for row in owed} == {"held"}
    told = "the positions of a path by lookahead, of 11 tokens, in one pass"
    assert bundle.manifest.facts.told() == told
    assert check(bundle.path).holds


def test_the_proof_sees_an_engine_that_walks_otherwise(bundle: Bundle, tmp_path: Path) -> None:
    parts = Parts(bundle.path, bundle.manifest.stages, "ort-cpu", "ort-cpu")
    assert DagRecogniser()._whole(parts, "ort-cpu").status == "held"
    wrong = ir.load(bundle.path / "ort-cpu.onnx")
    name = next(n for n in wrong.graph.initializers if n.startswith("beta"))
    wrong.graph.initializers[name].const_value = ir.tensor(np.asarray(9, np.float32), name=name)
    ir.save(wrong, tmp_path / "ort-cpu.onnx")
    for file in ("export.onnx", "weights.bin", "source"):
        if (bundle.path / file).exists():
            (tmp_path / file).symlink_to(bundle.path / file)
    parts = Parts(tmp_path, bundle.manifest.stages, "ort-cpu", "ort-cpu")
    with pytest.raises(LawBroken, match="ort-cpu breaks the law 'whole'"):
        DagRecogniser().prove(parts, None, "", lambda line: None)


def test_files(bundle: Bundle, engine: DecodeEngine, tmp_path: Path) -> None:
    np.save(tmp_path / "speech.npy", SPEECH[:1])
    told = ("run", bundle.path, "--latents", tmp_path / "speech.npy")
    (ids,) = engine.recognise(SPEECH[:1])
    assert call(*told).stdout == " ".join(map(str, ids)) + "\n"
    assert call(*told, "-o", tmp_path / "mel.npy").exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "mel.npy"), engine.decode(SPEECH[:1]))
    said = refused(*told, "-o", tmp_path / "mel.wav", "--sample-rate", "8000")
    assert "the bundle makes spectrograms; name a .npy file" in said


def test_a_decoder_with_lengths_of_32_bits_and_without_frames(
    tmp_path: Path, engine: DecodeEngine
) -> None:
    acoustic = ACOUSTIC.replace("int64[N] sizes", "int32[N] sizes").replace(
        "ends = Unsqueeze (sizes, axis_1)",
        "wide = Cast <to = 7> (sizes)\n  ends = Unsqueeze (wide, axis_1)",
    )
    graph, spec = write_dag(tmp_path, acoustic=acoustic.replace(", int64[N] mel_lengths)", ")"))
    made = optimize(graph, tmp_path / "x.graft", recipe="daspeech", spec=spec)
    other = load_decoder(made.path)
    np.testing.assert_array_equal(other.decode(SPEECH), engine.decode(SPEECH))
    with pytest.raises(RequestError, match="does not say how many frames"):
        other.speak(SPEECH)


def test_vertices_are_no_text(tmp_path: Path) -> None:
    graph, _ = write_dag(tmp_path)
    made = optimize(graph, tmp_path / "bare.graft")
    with pytest.raises(RequestError, match=r"no path is found through them; .*best-path"):
        load_decoder(made.path).recognise(SPEECH)


def test_a_path_alone_speaks_not(tmp_path: Path) -> None:
    graph, _ = write_dag(tmp_path)
    made = optimize(graph, tmp_path / "path.graft", passes="best-path")
    engine = load_decoder(made.path)
    texts, *_ = published(tmp_path, SPEECH, SIZES)
    assert engine.recognise(SPEECH, lengths=SIZES) == texts
    with pytest.raises(RequestError, match="does not speak its texts"):
        engine.speak(SPEECH)


@pytest.mark.parametrize(
    ("spec", "acoustic", "error", "message"),
    [
        (SPEC + "scale = 2.0\n", ACOUSTIC, CheckpointError, "decoder.scale of the spec is for den"),
        ('[outputs]\nprediction = "x"\n' + SPEC, ACOUSTIC, CheckpointError, "outputs of the spec"),
        (SPEC + 'latents = "y"\n', ACOUSTIC, CheckpointError, "decoder.latents of the spec is 'y'"),
        (SPEC, ACOUSTIC.replace("float[N,U,8] x", "float[N,U,7] x").replace("[8,8]", "[7,8]"),
         NotApplicable, "the decoder takes other states than the graph's, of 8"),
        (SPEC, ACOUSTIC.replace("int64[N] sizes", "float[N] sizes"), NotApplicable,
         "decoder's inputs are not states .* how many"),
        (SPEC, ACOUSTIC.replace(", int64[N] mel_lengths", ", float[N,F,8] regulated"),
         NotApplicable, "decoder's outputs are not a spectrogram"),
    ],
)  # fmt: skip
def test_specs_that_do_not_fit(
    spec: str, acoustic: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    graph, told = write_dag(tmp_path, acoustic=acoustic)
    told.write_text(spec, encoding="utf-8")
    with pytest.raises(error, match=message):
        optimize(graph, tmp_path / "x.graft", recipe="daspeech", spec=told)
