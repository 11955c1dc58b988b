"""Waveforms, images and arrays as files: .wav, .png and .npy."""

from __future__ import annotations

import wave
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.errors import RequestError
from graftline.files import replacing
from graftline.ports import Port
from graftline.roles import CLASSES

Array = npt.NDArray[Any]
KINDS = (".npy", ".wav", ".png")
FULL = 32767
"""The sample of a wave file that 1.0 becomes."""
_CHANNELS = range(1, 5)
"""Of a .png: grey, grey and alpha, RGB, RGB and alpha."""


def check_out(out: Path, rate: int | None, axes: int) -> None:
    """Raise RequestError where `out` is not a file that can hold what a decoder makes: waveforms
    (`axes` 1), which need a sampling rate as .wav, images (2), or spectrograms (0)."""
    _check_file(out)
    if out.suffix != ".npy" and axes == 0:
        raise RequestError(f"--out {out}: the bundle makes spectrograms; name a .npy file")
    if out.suffix == ".wav" and axes != 1:
        raise RequestError(f"--out {out}: the bundle makes images; name a .png or .npy file")
    if out.suffix == ".png" and axes != 2:
        raise RequestError(f"--out {out}: the bundle makes waveforms; name a .wav or .npy file")
    if out.suffix == ".wav" and rate is None:
        raise RequestError(f"--out {out}: say its --sample-rate, which no graph knows")


def check_classes(out: Path, output: Port) -> None:
    """Raise RequestError where `out` cannot hold scores or classes of places: a .png holds the
    classes, up to 256, of an image's."""
    _check_file(out)
    if out.suffix == ".wav":
        raise RequestError(f"--out {out}: the bundle makes classes of places; name a .npy file")
    if out.suffix == ".png" and output.role != CLASSES:
        why = "the bundle makes scores; build it with --passes reduce-classes, or name a .npy file"
        raise RequestError(f"--out {out}: {why}")
    if out.suffix == ".png" and (len(output.shape) != 3 or output.dtype != "uint8"):
        why = "a .png holds up to 256 classes of the pixels of an image; name a .npy file"
        raise RequestError(f"--out {out}: {why}")


def _check_file(out: Path) -> None:
    if out.suffix not in KINDS:
        raise RequestError(f"--out {out}: name a file of {', '.join(KINDS)}")
    if not out.absolute().parent.is_dir():
        raise RequestError(f"--out {out}: its folder does not exist")


def write_classes(out: Path, made: Array) -> None:
    """Write classes [1, H, W] as a .png of a palette: its pixels are the classes, its colors ours.
    Raises RequestError for several rows."""
    from PIL import Image

    if len(made) != 1:
        raise RequestError(f"--out {out} holds one row of {len(made)}; name a .npy file")
    ids = np.arange(256)
    spread = [sum(((ids >> (3 * bit + place)) & 1) << (7 - bit) for bit in range(3))
              for place in range(3)]  # fmt: skip
    image = Image.fromarray(made[0].astype(np.uint8))
    image.putpalette(np.stack(spread, 1).astype(np.uint8).tobytes())
    with replacing(out) as rough:
        image.save(rough, "PNG")


def write_media(out: Path, made: Array, rate: int | None, lowest: float, highest: float) -> None:
    """Write what a decoder made, whole or not at all; numbers from `lowest` to `highest` span the
    range of a .png or .wav file, and others are clipped. Raises RequestError for several rows in
    one such file."""
    if out.suffix == ".npy":
        with replacing(out) as rough:
            np.save(rough, made)
        return
    if len(made) != 1:
        raise RequestError(f"--out {out} holds one row of {len(made)}; name a .npy file")
    unit = np.clip((made[0].astype(np.float64) - lowest) / (highest - lowest), 0, 1)
    if out.suffix == ".png":
        write_png(out, np.round(unit * 255).astype(np.uint8))
    else:
        assert rate is not None
        write_wave(out, [unit * 2 - 1], rate)


def write_wave(out: Path, chunks: Iterable[Array], rate: int) -> None:
    """Write chunks [C, T] of numbers in -1..1 as 16-bit samples, whole or not at all."""
    with replacing(out) as rough, wave.open(str(rough), "wb") as file:
        for place, chunk in enumerate(chunks):
            if not place:
                file.setnchannels(len(chunk))
                file.setsampwidth(2)
                file.setframerate(rate)
            samples = np.round(np.clip(chunk, -1, 1) * FULL).astype("<i2")
            file.writeframes(np.ascontiguousarray(samples.T).tobytes())


def write_png(out: Path, image: npt.NDArray[np.uint8]) -> None:
    """Write an image [C, H, W]. Raises RequestError for channels that PNG has no colors of."""
    from PIL import Image

    if len(image) not in _CHANNELS:
        raise RequestError(f"an image of {len(image)} channels is no PNG; name a .npy file")
    pixels = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
    with replacing(out) as rough:
        Image.fromarray(pixels).save(rough)
