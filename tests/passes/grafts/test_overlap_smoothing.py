"""overlap-smoothing: windows of a decoder that reads the whole, cross-faded where they overlap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graftline import load_decoder, optimize
from graftline.build.check import check
from graftline.errors import GraftlineError, NotApplicable, RequestError
from graftline.passes import GRAFTS, Pipeline
from graftline.ports import Port
from graftline.runtimes.one_pass.engine import DecodeEngine
from graftline.runtimes.one_pass.smoothing import Smoothed
from graftline.smoothing import Smoothing
from tests.kinds.latent_decoders import CONVERTER, UPSCALER, VOCODER, write
from tests.kinds.samplers import SAMPLING, canonical

HOW = Smoothing(2, 2, 4, 12, 4)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> DecodeEngine:
    folder = tmp_path_factory.mktemp("converter")
    passes = "overlap-smoothing{size=12,overlap=4}"
    made = optimize(write(CONVERTER, folder / "x.onnx"), folder / "x.graft", passes=passes)
    assert made.manifest.main.smoothing == HOW
    rows = {w.law: w for w in made.manifest.laws}
    assert rows["smoothed"].status == "held"
    assert rows["smoothed-whole"].status == "measured"
    assert check(made.path).holds
    return load_decoder(made.path, threads=1)


def given(count: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(count)
    shapes = {"codes": (2, 6, count), "frames": (2, 2, count), "speaker": (2, 4, 1)}
    return {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def test_windows() -> None:
    assert list(HOW.windows(12)) == [(0, 12)]
    assert list(HOW.windows(5)) == [(0, 5)]
    assert list(HOW.windows(13)) == [(0, 12), (8, 13)]
    assert list(HOW.windows(28)) == [(0, 12), (8, 20), (16, 28)]
    assert list(HOW.windows(3)) == [(0, 3)]


def test_two_windows_by_hand(engine: DecodeEngine) -> None:
    feed = given(18)
    parts = [
        engine.decode(f.pop("codes"), **f)
        for stretch in (slice(0, 12), slice(8, 18))
        for f in [{n: v[:, :, stretch] if n != "speaker" else v for n, v in feed.items()}]
    ]
    share = (np.arange(16) + 0.5) / 16
    middle = parts[0][:, :, 32:] * (1 - share) + parts[1][:, :, :16] * share
    expected = np.concatenate([parts[0][:, :, :32], middle, parts[1][:, :, 16:]], axis=2)
    latents = feed.pop("codes")
    pieces = list(engine.stream_decode(latents, **feed))
    assert [p.shape[2] for p in pieces] == [32, 40]
    np.testing.assert_allclose(np.concatenate(pieces, axis=2), expected, rtol=0, atol=1e-6)
    windowed = engine.decode(latents, window=12, **feed)
    np.testing.assert_allclose(windowed, expected, rtol=0, atol=1e-6)
    assert np.abs(windowed - engine.decode(latents, **feed)).max() > 1e-3  # the whole is another


@pytest.mark.parametrize("sizes", [(5,), (12,), (28,), (3, 9, 1, 16), (30, 1), (1,) * 21])
def test_chunks_of_any_size_are_the_array(sizes: tuple[int, ...]) -> None:
    """With a runner on paper, whose windows all differ: each adds its first latent's number."""
    port = Port("latents", "latents", "in", "float32", ("B", 1, "N"))

    def run(feed: dict[str, np.ndarray]) -> np.ndarray:
        return np.repeat(feed["latents"] + 10 * feed["latents"][:, :, :1], 4, axis=2)

    smoothed = Smoothed(run, port, (port,), HOW)
    latents = np.arange(sum(sizes), dtype=np.float64).reshape(1, 1, -1)
    whole = smoothed.decode({"latents": latents})
    assert whole.shape == (1, 1, 4 * sum(sizes))
    chunks = np.split(latents, np.cumsum(sizes)[:-1], axis=2)
    pieces = list(smoothed.stream(iter(chunks), lambda some: {"latents": some}))
    np.testing.assert_array_equal(np.concatenate(pieces, axis=2), whole)


def test_what_a_caller_cannot_ask(engine: DecodeEngine) -> None:
    feed = given(20)
    latents = feed.pop("codes")
    with pytest.raises(RequestError, match=r"windows of 7 latents are too short.* at least 8"):
        engine.decode(latents, window=7, **feed)
    with pytest.raises(RequestError, match=r"'condition\.0' goes along the latents"):
        engine.stream_decode(iter([latents]), **feed)


@pytest.mark.parametrize(
    ("passes", "text", "message"),
    [
        ("window", CONVERTER, "an element depends on all latents"),
        ("overlap-smoothing", UPSCALER, "a stream has one axis, and an image has two"),
        ("overlap-smoothing{overlap=40}", VOCODER, "windows of 64 may overlap by 1 to 32 latents"),
        ("window | overlap-smoothing", VOCODER, "this graph has windows already"),
        ("overlap-smoothing", VOCODER.replace("pads = [2, 2]> (h3", "pads = [2, 3]> (h3"),
         "24 latents make 193 elements, not 192"),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, passes: str, text: str, message: str) -> None:
    with pytest.raises(GraftlineError, match=message):
        optimize(write(text, tmp_path / "x.onnx"), tmp_path / "x.graft", passes=passes)


def test_the_recipes_of_decoders_of_latents_run(tmp_path: Path) -> None:
    for name, text in (("x-vc", CONVERTER), ("demon-window", VOCODER)):
        graph = write(text, tmp_path / f"{name}.onnx")
        made = optimize(graph, tmp_path / f"{name}.graft", recipe=name)
        assert made.manifest.recipe == name
        law = "smoothed" if name == "x-vc" else "windowed"
        assert {w.status for w in made.manifest.laws if w.law in (law, "whole")} == {"held"}


def test_only_decoders_of_latents_are_smoothed(tmp_path: Path) -> None:
    model, _ = canonical(tmp_path, "collapse-loop", spec=SAMPLING)
    with pytest.raises(NotApplicable, match="is for decoders of latents, not a denoiser"):
        Pipeline.parse("overlap-smoothing", GRAFTS).run(model)
