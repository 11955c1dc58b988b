"""A super-resolution net that people use, decoded in windows: ESRGAN x2 of UpscalerJS (npm package
@upscalerjs/default-model, MIT) on a photograph that scikit-learn ships.

    OMP_NUM_THREADS=1 python tests/bench/super_resolution.py \
        --out tests/bench/results/2026-11-28-super-resolution

The package is downloaded once, into graftline's cache. Windows are compared with the whole in time,
memory and numbers; the net with the package's own sample of what TensorFlow.js makes of it, and
with bicubic interpolation.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from layers_model import converted
from PIL import Image
from sklearn.datasets import load_sample_image

from graftline import load_decoder
from graftline.bundle.reader import Bundle
from graftline.commands.peak import Peak, peak_of
from graftline.errors import CheckpointError
from graftline.models.cache import cached
from graftline.receptive_field import ReceptiveField
from graftline.runtimes.machine import machine

Array = npt.NDArray[Any]
VERSION = "1.0.0"
URL = f"https://registry.npmjs.org/@upscalerjs/default-model/-/default-model-{VERSION}.tgz"
INTEGRITY = (
    "D17cokQBpciTBrlFuY5WtS7TH0WE3h5m44PYiPPCSq1jlWjG9BvH5/rnm9AhQPV6TT3Bqbg5GAPV8/qpR47/hQ=="
)
"""sha512 of the file, as the registry gives it."""
FILE = "package.tgz"
SAMPLE, EXPECTED = "assets/fixture.png", "assets/samples/2x/result.png"
"""An image of the package, and what UpscalerJS made of it."""
WHITE = 255.0
"""The net takes and gives numbers from 0 to 255."""
RUNS = 3
CROP = (150, 260, 120, 160)
"""Top, left, height and width of the part of the photograph that is shown, in its own pixels."""


class Package:
    """The files of the npm package."""

    def __init__(self) -> None:
        folder = cached("bench", f"upscalerjs-default-model-{VERSION}", _download)
        self._files = tarfile.open(folder / FILE)  # noqa: SIM115

    def read(self, name: str) -> bytes:
        file = self._files.extractfile(f"package/{name}")
        if file is None:
            raise CheckpointError(f"{URL} holds no file {name}")
        return file.read()

    def image(self, name: str) -> Array:
        """[1, 3, H, W] from 0 to 255."""
        return planes(Image.open(io.BytesIO(self.read(name))).convert("RGB"))

    def network(self) -> onnx.ModelProto:
        model = json.loads(self.read("models/model.json"))
        manifest = model["weightsManifest"]
        shards = [self.read(f"models/{path}") for group in manifest for path in group["paths"]]
        return converted(model["modelTopology"], manifest, shards)


def _download(folder: Path) -> None:
    with urllib.request.urlopen(URL) as answer:
        data = answer.read()
    if (found := base64.b64encode(hashlib.sha512(data).digest()).decode()) != INTEGRITY:
        raise CheckpointError(f"{URL}: sha512 is {found}, not {INTEGRITY}")
    (folder / FILE).write_bytes(data)


def planes(image: Image.Image) -> Array:
    """[1, 3, H, W] from 0 to 255."""
    return np.asarray(image, np.float32).transpose(2, 0, 1)[None]


def picture(values: Array) -> Image.Image:
    """Of [1, 3, H, W]."""
    pixels = values[0].clip(0, WHITE).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def psnr(one: Array, two: Array) -> float:
    """In decibels, of images as they are shown."""
    error = np.square(one.clip(0, WHITE).round() - two.clip(0, WHITE).round()).mean()
    return float(10 * np.log10(WHITE**2 / error)) if error else float("inf")


def graftline(*words: object) -> None:
    """Run a command of graftline and wait for it."""
    subprocess.run([sys.executable, "-m", "graftline", *map(str, words)], check=True)


def main() -> None:
    """Convert, optimize, compare; write a table and a picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="without its ending")
    parser.add_argument("--windows", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--photo", default="china.jpg")
    given = parser.parse_args()
    package = Package()
    photo = Image.fromarray(load_sample_image(given.photo))
    with tempfile.TemporaryDirectory() as name:
        folder, bundle = Path(name), Path(name) / "net.graft"
        onnx.save(package.network(), folder / "net.onnx")
        passes = f"window{{size={given.windows[0]}}}"
        graftline("optimize", folder / "net.onnx", "-o", bundle, "--passes", passes, "-q")
        engine = load_decoder(bundle, threads=1)
        lines = [*header(given.photo, photo, engine.fields, bundle), ""]
        lines += ways(engine, bundle, planes(photo), given.windows)
        sample = engine.decode(package.image(SAMPLE))
        lines += ["", sample_line(sample, package.image(EXPECTED))]
        lines += ["", *pictures(engine, photo, folder, bundle, given.out.with_suffix(".png"))]
    text = "\n".join([*lines, ""])
    given.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def header(
    name: str, photo: Image.Image, fields: tuple[ReceptiveField, ...], bundle: Path
) -> list[str]:
    """What ran, and the receptive field that was found."""
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("onnxruntime", "scikit-learn"))
    spans = "; ".join(f"axis {f.axis}: {f.before} in front, {f.behind} behind" for f in fields)
    laws = [row for row in Bundle.open(bundle).manifest.laws if row.law == "windowed"]
    return [
        f"{machine()}, one thread, Python {platform.python_version()}, {versions}.",
        f"{name}, {photo.width} x {photo.height}; pixels that a pixel depends on: {spans}.",
        *(f"Law {row.law}: {row.status}, {row.text}" for row in laws),
    ]


def ways(engine: Any, bundle: Path, latents: Array, windows: list[int]) -> list[str]:
    """The rows of the table: at once, and in windows of each size."""
    sizes = [0, *windows]
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    made: dict[int, Array] = {}
    for _ in range(RUNS):
        for size in sizes:
            began = time.process_time()
            made[size] = engine.decode(latents, window=size)
            seconds[size].append(time.process_time() - began)
    rows = [
        "| window | CPU time | largest difference to the whole, of 255 | relative to 255 | "
        "peak memory | above the opened engine |",
        "|---|---|---|---|---|---|",
    ]
    for size in sizes:
        gap = float(np.abs(made[size] - made[0]).max())
        told = ["-", "-"] if not size else [f"{gap:.2g}", f"{gap / WHITE:.2g}"]
        used = peak_of(bundle, 1, False, latents, {}, {"window": size})
        rows.append(
            " | ".join([
                f"| {f'{size} x {size}' if size else 'none'}",
                f"{1e3 * min(seconds[size]):.0f} ms", *told, *memory(used), ""]).rstrip()
        )  # fmt: skip
    return rows


def memory(used: Peak | None) -> list[str]:
    """Cells; the output itself is in both."""
    if used is None:
        return ["-", "-"]
    return [f"{used.run / 2**20:.0f} MB", f"{(used.run - used.opened) / 2**20:.0f} MB"]


def sample_line(made: Array, expected: Array) -> str:
    """How near the converted net is to TensorFlow.js's."""
    steps = np.abs(made.clip(0, WHITE).round() - expected)
    return (
        f"The package's own sample ({SAMPLE} to {EXPECTED}): {psnr(made, expected):.2f} dB, "
        f"{(steps == 0).mean():.2%} of the numbers equal, the furthest {steps.max():.0f} away."
    )


def pictures(engine: Any, photo: Image.Image, folder: Path, bundle: Path, out: Path) -> list[str]:
    """The photograph at half its size, doubled again by bicubic interpolation and by the net (the
    command line's own PNG), both beside the photograph."""
    photo = photo.crop((0, 0, photo.width // 2 * 2, photo.height // 2 * 2))
    half = photo.resize((photo.width // 2, photo.height // 2), Image.Resampling.BICUBIC)
    np.save(folder / "half.npy", planes(half))
    graftline("run", bundle, "--latents", folder / "half.npy", "-o", folder / "net.png",
              "--range", f"0,{WHITE:.0f}")  # fmt: skip
    net = Image.open(folder / "net.png")
    assert np.array_equal(planes(net), planes(picture(engine.decode(planes(half)))))
    bicubic = half.resize(photo.size, Image.Resampling.BICUBIC)
    top, left, height, width = CROP
    box = (left, top, left + width, top + height)
    joined = np.concatenate([np.asarray(one.crop(box)) for one in (bicubic, net, photo)], 1)
    Image.fromarray(joined.repeat(2, 0).repeat(2, 1)).save(out, optimize=True)
    scores = [f"{psnr(planes(one), planes(photo)):.2f} dB" for one in (bicubic, net)]
    return [
        "At half its size and doubled again, PSNR to the photograph: "
        f"bicubic {scores[0]}, the net {scores[1]}.",
        "", "From the left: bicubic, the net, the photograph.", "", f"![]({out.name})",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
