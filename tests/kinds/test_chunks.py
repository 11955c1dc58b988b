"""A denoiser of two chunks walks a sequence of latents, at once and piece by piece."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graftline import load_decoder, optimize
from graftline.build.check import check
from graftline.bundle.reader import Bundle
from graftline.errors import CheckpointError, LawBroken, RequestError
from graftline.models.spec import read_spec
from graftline.runtimes.one_pass.chunked import Chunked
from graftline.runtimes.one_pass.engine import DecodeEngine
from tests.kinds.chunks import CHUNKED, CHUNKS, CLEAN
from tests.kinds.samplers import write_sampler

LATENTS = np.random.default_rng(1).standard_normal((2, 12, 6)).astype(np.float32)
"""Of three chunks."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("chunks")
    graph, spec = write_sampler(folder, CHUNKED, CHUNKS)
    return optimize(
        graph, folder / "out.graft", recipe="music2latent2", spec=spec, steps=(1, 2)
    )


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> DecodeEngine:
    return load_decoder(bundle.path, steps=2)


def test_it_is_held_to_the_export(bundle: Bundle) -> None:
    laws = {(w.graft.partition("{")[0], w.law): w.status for w in bundle.manifest.laws}
    owed = [("carry-chunk", "neutral"), ("carry-chunk", "causal"), ("collapse-loop", "neutral"),
            ("ort-cpu", "whole"), ("ort-cpu", "chunks"), ("steps-2", "form")]  # fmt: skip
    assert {laws[row] for row in owed} == {"held"}
    assert check(bundle.path).holds


def test_pieces_are_the_whole_of_the_same_seed(bundle: Bundle, engine: DecodeEngine) -> None:
    whole = engine.decode(LATENTS, seed=3)
    assert whole.shape == (2, 2, 4, 24)
    one, two = LATENTS[:, :4], LATENTS[:, 4:]
    for pieces in (LATENTS, [one, two], iter([one, two[:, :4], two[:, 4:]])):
        made = list(engine.stream_decode(pieces, seed=3))
        np.testing.assert_array_equal(np.concatenate(made, axis=-1), whole)
    np.testing.assert_array_equal(load_decoder(bundle.path).decode(LATENTS, seed=3, steps=2), whole)
    assert np.abs(engine.decode(LATENTS, seed=4) - whole).max() > 1e-3


def test_a_chunk_is_drawn_behind_the_one_before_with_noise_of_its_own(engine: DecodeEngine) -> None:
    whole = engine.decode(LATENTS, seed=3)
    other = engine.decode(np.concatenate([-LATENTS[:, :4], LATENTS[:, 4:]], 1), seed=3)
    gaps = np.abs(other - whole).max((0, 1, 2)).reshape(3, 8).max(1)
    assert (gaps > 1e-4).all(), gaps
    other = engine.decode(np.concatenate([LATENTS[:, :8], -LATENTS[:, 8:]], 1), seed=3)
    np.testing.assert_array_equal(other[..., :16], whole[..., :16])
    same = engine.decode(np.tile(LATENTS[:, :4], (1, 3, 1)), seed=3)
    assert np.abs(same[..., 8:16] - same[..., 16:]).max() > 1e-3, "the noise is another one"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"latents": LATENTS[:, :10]}, r"latents .2, 10, 6. are no whole chunks: .B, 4, 6. f"),
        ({"latents": LATENTS[:, :0]}, "are no whole chunks"),
        ({"latents": LATENTS[0, :, 0]}, "are no whole chunks"),
        ({"latents": LATENTS[..., :5]}, "'latents' takes .B, 4, 6. float32, not .2, 4, 5."),
        ({"latents": LATENTS, "window": 4}, "window=4: chunks are as long as the bundle has them"),
        ({"latents": LATENTS, "noise": LATENTS}, "'noise' is of one chunk; noise of all is drawn"),
        ({"latents": LATENTS, "past": LATENTS}, "no condition 'past'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(
    engine: DecodeEngine, asked: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        engine.decode(**asked)  # type: ignore[arg-type]


def test_rows_stay_as_many(engine: DecodeEngine) -> None:
    stream = engine.stream_decode([LATENTS[:, :4], LATENTS[:1, :4]])
    next(stream)
    with pytest.raises(RequestError, match="a chunk has 1 rows, those before 2"):
        next(stream)


def test_a_call_alone_draws_no_chunk(tmp_path: Path) -> None:
    graph, spec = write_sampler(tmp_path, CHUNKED, CLEAN)
    made = optimize(graph, tmp_path / "x.graft", passes="carry-chunk", spec=spec)
    with pytest.raises(RequestError, match="draws none; rebuild it with --recipe music2latent2"):
        load_decoder(made.path).decode(LATENTS)


def test_a_stream_that_begins_anew_breaks_the_law(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Chunked.stream
    monkeypatch.setattr(
        Chunked, "stream", lambda self, pieces: (p for x in pieces for p in real(self, [x]))
    )
    graph, spec = write_sampler(tmp_path, CHUNKED, CHUNKS)
    with pytest.raises(LawBroken, match="breaks the law 'chunks'"):
        optimize(graph, tmp_path / "x.graft", recipe="music2latent2", spec=spec)


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ("width = 8", "width = 0", "chunks.width is 0; it must be 1 or more"),
        ('timestep = "earlier"', "", "chunks.noise is 0.4; it must be 0 without chunks.timestep"),
        ("noise = 0.4", "noise = -1.0", "chunks.noise is -1.0; it must be 0 or more"),
        ("[8.0, 0.7]", "[0.7, 8.0]", "sampling.sigmas is .0.7, 8.0.; it must be falling numbers"),
        ("[8.0, 0.7]", "[8.0]", "sampling.steps is 2; it must be at most 1, as many as sampling"),
        ("sigmas = [8.0, 0.7]", "", "sampling.sigmas is ..; it must be said for the scheduler con"),
        ('"x0"', '"epsilon"', "sampling.prediction is epsilon; it must be 'x0' for the schedul"),
    ],
)  # fmt: skip
def test_a_wrong_spec_is_refused_by_its_field(
    tmp_path: Path, was: str, now: str, message: str
) -> None:
    file = tmp_path / "spec.toml"
    file.write_text(CHUNKS.replace(was, now), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        read_spec(file)
