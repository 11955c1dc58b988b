"""A decoder of latents goes the way of every other host, and its engine decodes arrays."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from graftline import load, load_decoder, optimize
from graftline.build.check import check
from graftline.bundle.reader import Bundle
from graftline.errors import GraftlineError, LawBroken, RequestError
from graftline.facts import LatentDecoderFacts
from graftline.kinds.kind import Parts
from graftline.kinds.latent_decoder import LatentDecoder
from graftline.passes.anchors.latent_decoder import find_latent_decoder
from graftline.passes.anchors.roles import OnePass
from graftline.passes.graph.mismatch import Mismatch
from graftline.runtimes.one_pass.engine import DecodeEngine
from tests.kinds.latent_decoders import CODEC, UPSCALER, VOCODER, model_of, write

RANDOM = np.random.default_rng(3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("vocoder")
    return optimize(write(VOCODER, folder / "vocoder.onnx"), folder / "vocoder.graft")


def engine_of(text: str, folder: Path) -> DecodeEngine:
    made = optimize(write(text, folder / "host.onnx"), folder / "host.graft")
    engine = load_decoder(made.path)
    return engine


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (VOCODER, LatentDecoderFacts(1, 8, 6, 1)), (UPSCALER, LatentDecoderFacts(2, 2, 3, 3)),
        (CODEC, LatentDecoderFacts(1, 4, 0, 1, codes=11)),
    ],
)  # fmt: skip
def test_it_is_known_by_its_shapes(text: str, facts: LatentDecoderFacts) -> None:
    found = find_latent_decoder(model_of(text).graph)
    assert isinstance(found, OnePass)
    assert found.facts == facts
    assert found.output.role == "decoded"


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ("ConvTranspose <strides = [4], pads = [2, 2]> (a2, up2)", "Conv (a2, res1)", "no longer"),
        ("float[B,6,N] mel, ", "float[B,6,N] mel, float[B,6,N] other, ", "which of the inputs"),
        ("float[B,6,N] mel", "float[B,C,N] mel", "channels of the latents is not fixed"),
        ("(float[B,1,T] wave)", "(float[B,1] wave)", "not one waveform"),
    ],
)
def test_other_graphs_are_none(was: str, now: str, message: str) -> None:
    text = VOCODER.replace(was, now)
    if message == "no longer":
        text = text.replace("ConvTranspose <strides = [2], pads = [1, 1]> (a0, up1)",
                            "ConvTranspose <pads = [1, 2]> (a0, up1)")  # fmt: skip
        text = text.replace("float[1,4,5]", "float[1,8,5]")
    found = find_latent_decoder(model_of(text).graph)
    assert isinstance(found, Mismatch)
    assert re.search(message, found.reason), found.reason


def test_no_operator_upsamples() -> None:
    text = VOCODER.replace("ConvTranspose <strides = [2], pads = [1, 1]> (a0, up1)",
                           "Conv <pads = [1, 1]> (a0, res1)")  # fmt: skip
    text = text.replace("ConvTranspose <strides = [4], pads = [2, 2]> (a2, up2)", "Relu (a2)")
    found = find_latent_decoder(model_of(text).graph)
    assert isinstance(found, Mismatch)
    assert "no node upsamples" in found.reason


def test_it_decodes_what_the_file_does(bundle: Bundle) -> None:
    laws = {(w.graft.partition("{")[0], w.law): w.status for w in bundle.manifest.laws}
    owed = [("canonicalize-one-pass", "neutral"), ("lower-ort", "neutral"), ("ort-cpu", "whole")]
    assert {laws[row] for row in [*owed, ("export", "checkpoint")]} == {"held"}
    mel = RANDOM.standard_normal((3, 6, 17)).astype(np.float32)
    who = RANDOM.standard_normal((3, 4, 1)).astype(np.float32)
    file = bundle.path.parent / "vocoder.onnx"
    theirs: Any = onnxruntime.InferenceSession(str(file)).run(None, {"mel": mel, "speaker": who})
    engine = load_decoder(bundle.path)
    for named in ({"speaker": who}, {"condition_0": who}):
        np.testing.assert_allclose(engine.decode(mel, **named), theirs[0], atol=1e-6)
    assert check(bundle.path).holds


def test_ids_are_latents_too(tmp_path: Path) -> None:
    engine = engine_of(CODEC, tmp_path)
    made = engine.decode(RANDOM.integers(0, 11, (2, 9)))
    assert made.shape == (2, 1, 36)
    with pytest.raises(RequestError, match=r"latents 'latents' takes \[B, N\] int64, not float"):
        engine.decode(np.zeros((2, 9)))


@pytest.mark.parametrize(
    ("mel", "given", "message"),
    [
        ((2, 5, 9), {}, r"latents 'latents' takes \[B, 6, N\] float32, not \[2, 5, 9\]"),
        ((6, 9), {}, r"takes \[B, 6, N\] float32, not \[6, 9\]"),
        ((2, 6, 9), {"speaker": (3, 4, 1)}, r"'condition.0' .* where B is 2, not \[3, 4, 1\]"),
        ((2, 6, 9), {}, r"the condition 'condition_0' \[B, 4, 1\] float32 is missing"),
        ((2, 6, 9), {"speakr": (2, 4, 1)}, "no condition 'speakr'; did you mean 'speaker'"),
    ],
)
def test_what_does_not_fit_is_refused(
    bundle: Bundle, mel: tuple[int, ...], given: dict[str, tuple[int, ...]], message: str
) -> None:
    engine = load_decoder(bundle.path)
    with pytest.raises(RequestError, match=message):
        engine.decode(np.zeros(mel), **{n: np.zeros(shape) for n, shape in given.items()})


def test_options_of_text_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"latent-decoder, .* use graftline\.load_decoder"):
        load(bundle.path)
    with pytest.raises(GraftlineError, match="--recipe is for decoders"):
        optimize(bundle.path.parent / "vocoder.onnx", tmp_path / "x.graft", recipe="suffix")


def test_the_proof_sees_an_engine_that_decodes_something_else(
    bundle: Bundle, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bundle.path, tmp_path / "copy"))
    wrong = ir.load(copy / "ort-cpu.onnx")
    next(n for n in wrong.graph if n.op_type == "Tanh").op_type = "Sigmoid"
    ir.save(wrong, copy / "ort-cpu.onnx")
    parts = Parts(copy, bundle.manifest.stages, "ort-cpu", "ort-cpu")
    with pytest.raises(LawBroken, match="ort-cpu breaks the law 'whole' at 'decoded'"):
        LatentDecoder().prove(parts, None, "", lambda line: None)
