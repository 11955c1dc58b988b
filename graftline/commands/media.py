"""Waveforms, images and arrays as files: .wav, .png and .npy."""

from __future__ import annotations

import struct
import wave
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.errors import RequestError

Array = npt.NDArray[Any]
KINDS = (".npy", ".wav", ".png")
FULL = 32767
"""The sample of a wave file that 1.0 becomes."""
_COLORS = {1: 0, 2: 4, 3: 2, 4: 6}
"""PNG's color type by channels: grey, grey and alpha, RGB, RGB and alpha."""


def check_out(out: Path, rate: int | None, axes: int) -> None:
    """Raise RequestError where `out` is not a file that can hold what a decoder makes: waveforms
    (`axes` 1), which need a sampling rate as .wav, or images (2)."""
    if out.suffix not in KINDS:
        raise RequestError(f"--out {out}: name a file of {', '.join(KINDS)}")
    if not out.absolute().parent.is_dir():
        raise RequestError(f"--out {out}: its folder does not exist")
    if out.suffix == ".wav" and axes != 1:
        raise RequestError(f"--out {out}: the bundle makes images; name a .png or .npy file")
    if out.suffix == ".png" and axes != 2:
        raise RequestError(f"--out {out}: the bundle makes waveforms; name a .wav or .npy file")
    if out.suffix == ".wav" and rate is None:
        raise RequestError(f"--out {out}: say its --sample-rate, which no graph knows")


def write_media(out: Path, made: Array, rate: int | None, lowest: float, highest: float) -> None:
    """Write what a decoder made; numbers from `lowest` to `highest` span the range of a .png or
    .wav file, and others are clipped. Raises RequestError for several rows in one such file."""
    if out.suffix == ".npy":
        np.save(out, made)
        return
    if len(made) != 1:
        raise RequestError(f"--out {out} holds one row of {len(made)}; name a .npy file")
    unit = np.clip((made[0].astype(np.float64) - lowest) / (highest - lowest), 0, 1)
    if out.suffix == ".png":
        out.write_bytes(png(np.round(unit * 255).astype(np.uint8)))
    else:
        assert rate is not None
        write_wave(out, [unit * 2 - 1], rate)


def write_wave(out: Path, chunks: Iterable[Array], rate: int) -> None:
    """Write chunks [C, T] of numbers in -1..1 as 16-bit samples, as they come."""
    with wave.open(str(out), "wb") as file:
        for place, chunk in enumerate(chunks):
            if not place:
                file.setnchannels(len(chunk))
                file.setsampwidth(2)
                file.setframerate(rate)
            samples = np.round(np.clip(chunk, -1, 1) * FULL).astype("<i2")
            file.writeframes(np.ascontiguousarray(samples.T).tobytes())


def png(image: npt.NDArray[np.uint8]) -> bytes:
    """An image [C, H, W] as a PNG file (W3C, third edition). Raises RequestError for channels that
    PNG has no colors of."""
    channels, height, width = image.shape
    if channels not in _COLORS:
        raise RequestError(f"an image of {channels} channels is no PNG; name a .npy file")
    rows = image.transpose(1, 2, 0).reshape(height, width * channels)
    lines = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)  # filter 0: as it is
    head = struct.pack(">IIBBBBB", width, height, 8, _COLORS[channels], 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(b"".join(_chunk(*part)) for part in parts)


def _chunk(kind: bytes, data: bytes) -> Iterator[bytes]:
    yield struct.pack(">I", len(data))
    yield kind + data
    yield struct.pack(">I", zlib.crc32(kind + data))
