"""window: a decoder in windows is the whole, in less memory; a stream is its pieces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from graftline import load_decoder, optimize
from graftline.errors import GraftlineError, NotApplicable, RequestError
from graftline.models.checkpoint import open_checkpoint
from graftline.passes import GRAFTS, Pipeline
from graftline.receptive_field import ReceptiveField, read_fields
from graftline.runtimes.one_pass.engine import DecodeEngine
from tests.kinds.latent_decoders import CODEC, UPSCALER, VOCODER, model_of, write

FRONT = "canonicalize-one-pass"
RANDOM = np.random.default_rng(2)


def engine_of(text: str, folder: Path, passes: str = "window") -> DecodeEngine:
    made = optimize(write(text, folder / "host.onnx"), folder / "host.graft", passes=passes)
    assert "windowed" in {law.law for law in made.manifest.laws if law.status == "held"}
    engine = load_decoder(made.path)
    return engine


@pytest.fixture(scope="module")
def vocoder(tmp_path_factory: pytest.TempPathFactory) -> DecodeEngine:
    return engine_of(VOCODER, tmp_path_factory.mktemp("vocoder"))


def test_before_and_after(tmp_path: Path) -> None:
    """Not a node changes; the graph says its receptive field, in elements and in latents."""
    model = open_checkpoint(write(VOCODER, tmp_path / "v.onnx")).host().model
    Pipeline.parse(FRONT, GRAFTS).run(model)
    before = [(n.op_type, n.name) for n in model.graph]
    reports = Pipeline.parse("window{size=20}", GRAFTS).run(model)
    assert [(n.op_type, n.name) for n in model.graph] == before
    assert {law.law for law in reports[0].laws} >= {"typed", "wellformed", "interface"}
    (field,) = read_fields(model)
    assert field == ReceptiveField(2, 2, 8, 0, 48, -48, 1, 20)
    assert (field.before, field.behind) == (6, 6)


@pytest.mark.parametrize(
    ("text", "passes", "message"),
    [
        (VOCODER, "window{size=9}", "size=9: 6 latents in front and 6 behind .* at least 14"),
        (VOCODER, "window | window", "windows already"),
        (VOCODER.replace("[B,6,N]", "[B,6,40]"), "window", "40 long in this graph"),
        (VOCODER.replace("h3 = ", "n = Softmax <axis = 2> (a2)\n  h3 = ").replace("(a2, up2)",
                                                                              "(n, up2)"),
         "window", "depends on all latents.* softmax over the whole .*Softmax"),
    ],
)  # fmt: skip
def test_refused(text: str, passes: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(NotApplicable, match=message):
        optimize(write(text, tmp_path / "host.onnx"), tmp_path / "x.graft", passes=passes)


def test_windows_are_for_decoders_of_latents(tmp_path: Path) -> None:
    from graftline.models.decoder import TinyDecoder

    with pytest.raises(NotApplicable, match="window is for decoders of latents, not a decoder"):
        Pipeline.parse("window", GRAFTS).run(TinyDecoder().build())


@pytest.mark.parametrize("count", [1, 2, 13, 14, 15, 27, 40, 41, 97])
def test_windows_are_the_whole_at_every_length(vocoder: DecodeEngine, count: int) -> None:
    mel = RANDOM.standard_normal((2, 6, count)).astype(np.float32)
    who = RANDOM.standard_normal((2, 4, 1)).astype(np.float32)
    whole = vocoder.decode(mel, speaker=who, window=0)
    for size in (None, 14, 15, 23, 1000):
        np.testing.assert_allclose(vocoder.decode(mel, speaker=who, window=size), whole, atol=1e-5)
    pieces = list(vocoder.stream_decode(mel, speaker=who, window=14))
    np.testing.assert_allclose(np.concatenate(pieces, axis=2), whole, atol=1e-5)


@pytest.mark.parametrize("sizes", [(40,), (1,) * 30, (3, 20, 1, 1, 9), (14, 14, 14)])
def test_a_stream_gives_what_is_certain(vocoder: DecodeEngine, sizes: tuple[int, ...]) -> None:
    """Every element as soon as the latents behind it that it depends on are there."""
    mel = RANDOM.standard_normal((1, 6, sum(sizes))).astype(np.float32)
    who = RANDOM.standard_normal((1, 4, 1)).astype(np.float32)
    whole, read = vocoder.decode(mel, speaker=who, window=0), 0

    def chunks() -> Iterator[np.ndarray]:
        nonlocal read
        for part in np.split(mel, np.cumsum(sizes)[:-1], axis=2):
            read += part.shape[2]
            yield part

    made: list[np.ndarray] = []
    for piece in vocoder.stream_decode(chunks(), speaker=who):
        made.append(piece)
        done = sum(p.shape[2] for p in made)
        assert done in (8 * (read - 6), whole.shape[2])
    np.testing.assert_allclose(np.concatenate(made, axis=2), whole, atol=1e-5)


def test_a_stream_holds_no_more_than_it_needs(vocoder: DecodeEngine) -> None:
    """The longest run of 200 latents that come ten at a time is one of their overlap and ten."""
    runs: list[int] = []
    real = vocoder._run

    def counted(feed: dict[str, np.ndarray]) -> np.ndarray:
        runs.append(feed["latents"].shape[2])
        return real(feed)

    vocoder._run = counted  # type: ignore[method-assign]
    mel, who = np.zeros((1, 6, 200), np.float32), np.zeros((1, 4, 1), np.float32)
    list(vocoder.stream_decode(np.array_split(mel, 20, axis=2).__iter__(), speaker=who))
    vocoder.decode(mel, speaker=who)
    vocoder._run = real  # type: ignore[method-assign]
    assert max(runs[:20]) <= 6 + 6 + 10
    assert max(runs[21:]) == vocoder.fields[0].size < 200


def test_images_have_windows_of_two_axes(tmp_path: Path) -> None:
    engine = engine_of(UPSCALER, tmp_path)
    low = RANDOM.random((1, 3, 31, 44)).astype(np.float32)
    whole = engine.decode(low, window=0)
    assert whole.shape == (1, 3, 62, 88)
    for size in (None, 10, 16):
        np.testing.assert_allclose(engine.decode(low, window=size), whole, atol=1e-5)
    with pytest.raises(RequestError, match="a stream has one axis"):
        list(engine.stream_decode(low))
    with pytest.raises(RequestError, match="windows of 5 latents are too short: 4 in front"):
        engine.decode(low, window=5)


def test_what_a_stream_does_not_take(vocoder: DecodeEngine, tmp_path: Path) -> None:
    who = np.zeros((1, 4, 1))
    parts = iter([np.zeros((1, 6, 3)), np.zeros((1, 5, 3))])
    with pytest.raises(RequestError, match=r"a chunk is \[1, 5, 3\], those before are \[1, 6, 3\]"):
        list(vocoder.stream_decode(parts, speaker=who))
    with pytest.raises(RequestError, match="takes an array or chunks, not 5"):
        vocoder.stream_decode(5, speaker=who)
    plain = optimize(write(CODEC, tmp_path / "c.onnx"), tmp_path / "c.graft")
    with pytest.raises(GraftlineError, match="no windows; rebuild it with --passes window"):
        load_decoder(plain.path).stream_decode(np.zeros((1, 9), np.int64))


def test_conditions_go_along_their_latents(tmp_path: Path) -> None:
    """A value for each latent, as a fundamental frequency, is cut with them."""
    text = VOCODER.replace("float[B,4,1] speaker", "float[B,4,N] pitch")
    text = text.replace("(speaker,", "(pitch,")
    engine = engine_of(text, tmp_path)
    mel = RANDOM.standard_normal((1, 6, 50)).astype(np.float32)
    pitch = RANDOM.standard_normal((1, 4, 50)).astype(np.float32)
    whole = engine.decode(mel, pitch=pitch, window=0)
    np.testing.assert_allclose(engine.decode(mel, pitch=pitch), whole, atol=1e-5)
    with pytest.raises(RequestError, match=r"'condition.0' goes along the latents"):
        engine.stream_decode(iter([mel]), pitch=pitch)


def test_model_of_is_seeded() -> None:
    """Windows are compared on weights that are not all alike."""
    weights = model_of(VOCODER).graph.initializers["up1"].const_value
    assert weights is not None
    assert len(np.unique(weights.numpy())) > 200
