"""`graftline run --latents`: files in, files out, and what does not go together."""

from __future__ import annotations

import os
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from graftline import load_decoder, optimize
from graftline.commands.media import write_png, write_wave
from graftline.errors import RequestError
from graftline.files import replacing
from tests.commands.calling import call, refused
from tests.kinds.latent_decoders import UPSCALER, VOCODER, write
from tests.kinds.recognisers import CPPD


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("decode")
    for name, text in (("voice", VOCODER), ("sharp", UPSCALER)):
        optimize(write(text, place / f"{name}.onnx"), place / f"{name}.graft")
    random = np.random.default_rng(0)
    np.save(place / "mel.npy", random.standard_normal((1, 6, 30)).astype(np.float32))
    np.save(place / "who.npy", random.standard_normal((1, 4, 1)).astype(np.float32))
    np.save(place / "low.npy", random.random((1, 3, 12, 10)).astype(np.float32))
    return place


def decoded(folder: Path, name: str) -> np.ndarray:
    engine = load_decoder(folder / f"{name}.graft")
    if name == "sharp":
        return engine.decode(np.load(folder / "low.npy"))
    return engine.decode(np.load(folder / "mel.npy"), speaker=np.load(folder / "who.npy"))


def test_a_waveform(folder: Path, tmp_path: Path) -> None:
    told = ("--latents", folder / "mel.npy", "--condition", f"speaker={folder / 'who.npy'}")
    for name in ("x.npy", "x.wav"):
        more = ("--sample-rate", "8000") if name.endswith("wav") else ()
        result = call("run", folder / "voice.graft", *told, "-o", tmp_path / name, *more)
        assert result.exit_code == 0, result.output
    expected = decoded(folder, "voice")
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected)
    with wave.open(str(tmp_path / "x.wav")) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (1, 8000, 240)
        samples = np.frombuffer(file.readframes(240), "<i2")
    np.testing.assert_allclose(samples / 32767, expected[0, 0], atol=2e-5)


def test_an_image(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    told = ("--latents", folder / "low.npy", "-o", out, "--range", "-2,2")
    assert call("run", folder / "sharp.graft", *told).exit_code == 0
    with Image.open(out) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (20, 24))
        pixels = np.asarray(image)
    expected = np.clip(decoded(folder, "sharp")[0] / 4 + 0.5, 0, 1) * 255
    np.testing.assert_allclose(pixels, expected.transpose(1, 2, 0), atol=0.51)


def test_images_of_one_to_four_channels(tmp_path: Path) -> None:
    image = np.arange(5 * 4 * 6, dtype=np.uint8).reshape(5, 4, 6)
    for count, mode in enumerate(("L", "LA", "RGB", "RGBA"), 1):
        write_png(tmp_path / "x.png", image[:count])
        with Image.open(tmp_path / "x.png") as read:
            assert read.mode == mode
            pixels = np.asarray(read).reshape(4, 6, count)
        np.testing.assert_array_equal(pixels, image[:count].transpose(1, 2, 0))
    with pytest.raises(RequestError, match="5 channels"):
        write_png(tmp_path / "five.png", image)


def test_what_was_there_stays_where_writing_fails(tmp_path: Path) -> None:
    """A disk that is full, Ctrl-C: neither half a file nor one beside it."""
    out = tmp_path / "x.wav"
    write_wave(out, [np.zeros((1, 8))], 8000)
    before = out.read_bytes()

    def interrupted() -> Iterator[np.ndarray]:
        yield np.ones((1, 8))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_wave(out, interrupted(), 8000)
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]
    gone = tmp_path / "gone" / "x.wav"
    with pytest.raises(FileNotFoundError) as caught:
        write_wave(gone, [np.zeros((1, 8))], 8000)
    assert caught.value.filename == str(gone), "what was asked for, not what is written first"


def test_a_link_stays_one_and_what_is_no_file_is_written_to(tmp_path: Path) -> None:
    link, there = tmp_path / "link.png", tmp_path / "there.png"
    link.symlink_to(there)
    write_png(link, np.zeros((1, 4, 6), np.uint8))
    assert link.is_symlink()
    assert there.is_file()
    with replacing(Path(os.devnull)) as path:
        path.write_bytes(b"x")
    assert Path(os.devnull).is_char_device()


def test_what_does_not_go_together(folder: Path, tmp_path: Path) -> None:
    voice, mel = folder / "voice.graft", folder / "mel.npy"
    run = ("run", voice, "--latents", mel)
    assert "--temperature is for decoders of text" in refused(*run, "--temperature", "0.5")
    assert "a prompt is for decoders of text" in refused("run", voice, "hi", "--latents", mel)
    assert "--out needs --latents" in refused("run", voice, "-o", "x.npy")
    assert "--range needs --latents" in refused("run", voice, "hi", "--range", "0,1")
    assert "is a latent-decoder, which takes no prompt" in refused("run", voice, "hi")
    assert "give a prompt" in refused("run", voice)
    assert "name a file" in refused(*run)
    assert "--guidance is of filling a canvas" in refused(*run, "--guidance", "2")
    assert "--guidance needs --latents" in refused("run", voice, "hi", "--guidance", "2")
    wav = tmp_path / "x.wav"
    assert "say its --sample-rate" in refused(*run, "-o", wav)
    assert "makes waveforms" in refused(*run, "-o", tmp_path / "x.png")
    assert "name a file of .npy, .wav, .png" in refused(*run, "-o", tmp_path / "x.flac")
    assert "use LOW,HIGH" in refused(*run, "-o", tmp_path / "x.npy", "--range", "1,0")
    assert "use NAME=FILE.npy" in refused(*run, "-o", tmp_path / "x.npy", "--condition", "who")
    assert "not a .npy file" in refused(
        "run", voice, "--latents", __file__, "-o", tmp_path / "x.npy"
    )
    np.save(tmp_path / "two.npy", np.zeros((2, 3, 4, 4), np.float32))
    two = ("run", folder / "sharp.graft", "--latents", tmp_path / "two.npy")
    assert "holds one row of 2" in refused(*two, "-o", tmp_path / "x.png")
    assert not list(tmp_path.glob("x.*"))


def test_a_recogniser_prints_ids(tmp_path: Path) -> None:
    optimize(write(CPPD, tmp_path / "x.onnx"), tmp_path / "x.graft", recipe="cppd")
    image = np.random.default_rng(1).standard_normal((2, 3, 32, 40)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    engine = load_decoder(tmp_path / "x.graft")
    texts = engine.recognise(image)
    result = call("run", tmp_path / "x.graft", "--latents", tmp_path / "image.npy")
    assert result.exit_code == 0, result.output
    assert [[int(n) for n in line.split()] for line in result.stdout.splitlines()] == texts
    told = ("run", tmp_path / "x.graft", "--latents", tmp_path / "image.npy")
    assert call(*told, "-o", tmp_path / "scores.npy").exit_code == 0
    assert np.load(tmp_path / "scores.npy").shape == (2, 5, 11)
