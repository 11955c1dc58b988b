"""A diffusion decoder trained here, and its one-step student, on images that scikit-learn ships: a
KL autoencoder, a flow-matching decoder of its latents, `graftline distill one-step`, and what each
costs and gives on images that nobody was trained on.

    OMP_NUM_THREADS=1 python tests/bench/one_step.py --out tests/bench/results/2026-11-28-one-step
    OMP_NUM_THREADS=1 python tests/bench/one_step.py --images photographs --out OUT
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from one_step_images import IMAGES, Data
from one_step_networks import BATCH, Classifier, autoencoder, classifier, diffusion
from PIL import Image
from torch import nn
from torch.nn import functional
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from torchmetrics.image.fid import FrechetInceptionDistance

from graftline import load_decoder, optimize
from graftline.commands.peak import peak_of
from graftline.runtimes.machine import machine

RUNS, SHOWN, WIDE = 5, 16, 800
"""How often each runs, how many images are shown, and the least width of the picture."""
SPEC = """
[inputs]
sample = "x"
timestep = "t"
conditions = ["z"]

[sampling]
prediction = "flow"
scheduler = "flow-match"
"""


def export(model: nn.Module, given: Mapping[str, torch.Tensor], out: Path, name: str,
           free: tuple[str, ...] = ("batch",)) -> None:  # fmt: skip
    """Write a module as a graph that is `free` along axes by name: "" for those that are not."""
    sizes = {axis: torch.export.Dim(word) for axis, word in enumerate(free) if word}
    program = torch.onnx.export(
        model.eval(), tuple(given.values()), dynamo=True, opset_version=20, verbose=False,
        input_names=list(given), output_names=[name], dynamic_shapes=tuple(sizes for _ in given),
    )  # fmt: skip
    assert program is not None
    program.save(str(out))


def graftline(*words: object) -> None:
    """Run a command of graftline and wait for it."""
    subprocess.run([sys.executable, "-m", "graftline", *map(str, words)], check=True)


@dataclass(frozen=True)
class Way:
    """An engine, the number of steps that it is asked for, and what it takes in the first place."""

    bundle: Path
    steps: int | None
    first: np.ndarray

    def arguments(self, z: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return (z, {}) if self.steps is None else (self.first, {"z": z})


def quality(
    images: torch.Tensor, made: torch.Tensor, features: Classifier, deviation: float
) -> list[str]:
    """PSNR, SSIM and the Frechet distance of images, all from 0 to 1."""
    psnr = peak_signal_noise_ratio(made, images, data_range=1.0)
    ssim: Any = structural_similarity_index_measure(made, images, sigma=deviation, data_range=1.0)
    size: Any = tuple(images.shape[1:])
    distance = FrechetInceptionDistance(features, normalize=True, input_img_size=size)
    distance.update(images, real=True)
    distance.update(made, real=False)
    return [f"{psnr:.2f} dB", f"{ssim:.3f}", f"{float(distance.compute()):.2f}"]


def grid(rows: list[torch.Tensor], out: Path) -> None:
    """A row of images for each way, of the most varied among the first row's."""
    shown = rows[0].flatten(1).var(1).argsort(descending=True)[:SHOWN]
    framed = [functional.pad(row[shown], (1, 1, 1, 1), value=0.4) for row in rows]
    joined = torch.cat([torch.cat(list(row), 2) for row in framed], 1)
    zoom = -(-WIDE // joined.shape[2])
    pixels = (joined * 255).round().byte().permute(1, 2, 0).numpy().repeat(zoom, 0).repeat(zoom, 1)
    Image.fromarray(pixels.squeeze()).save(out, optimize=True)


def main() -> None:
    """Train, distil, measure; print a table and write it with its picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="without its ending")
    parser.add_argument("--images", choices=IMAGES, default="digits")
    parser.add_argument("--loop", type=int, default=8, help="steps of the teacher's loop")
    parser.add_argument("--autoencoder", type=int, default=800)
    parser.add_argument("--diffusion", type=int, default=700)
    parser.add_argument("--pairs", type=int, default=2048)
    parser.add_argument("--distill", type=int, default=500)
    given = parser.parse_args()
    torch.manual_seed(0)
    began, data = time.perf_counter(), IMAGES[given.images]()
    features = classifier(data, 800)
    encoder, made = autoencoder(data, given.autoencoder)
    unet = diffusion(data, encoder, given.diffusion)
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        z = encoder(data.held_out)[0].numpy()
        learned = encoder(data.images)[0].numpy()
        np.save(folder / "z.npy", learned)
        sample = {"x": data.held_out[:2], "t": torch.tensor([1.0, 9.0]), "z": torch.tensor(z[:2])}
        export(unet, sample, folder / "unet.onnx", "flow")
        sizes, wide = ("batch", "", "height", "width"), torch.zeros(2, data.latents, 4, 6)
        export(made, {"z": wide}, folder / "decoder.onnx", "image", sizes)
        spec = folder / "spec.toml"
        spec.write_text(f"{SPEC}steps = {given.loop}\n", encoding="utf-8")
        at = time.perf_counter()
        graftline("distill", "one-step", folder / "unet.onnx", "--spec", spec, "--condition",
                  f"z={folder / 'z.npy'}", "-o", folder / "student", "--steps", given.distill,
                  "--pairs", given.pairs, "--batch", BATCH, "-q")  # fmt: skip
        print(f"distilled in {time.perf_counter() - at:.0f} s", flush=True)
        passes = "collapse-loop"
        loop = optimize(folder / "unet.onnx", folder / "loop.graft", passes=passes, spec=spec,
                        steps=(given.loop, 1)).path  # fmt: skip
        one = optimize(folder / "student" / "student.onnx", folder / "one.graft", passes=passes,
                       spec=folder / "student" / "spec.toml").path  # fmt: skip
        plain = optimize(folder / "decoder.onnx", folder / "decoder.graft").path
        noise = np.random.default_rng(1).standard_normal(data.held_out.shape).astype(np.float32)
        ways = {
            "autoencoder's decoder": Way(plain, None, z),
            f"diffusion, {given.loop} steps": Way(loop, given.loop, noise),
            "diffusion, 1 step (naive)": Way(loop, 1, noise),
            "diffusion, 1 step distilled": Way(one, 1, noise),
        }
        lines, rows = measured(ways, data, z, features, given.loop)
    grid([(data.held_out + 1) / 2, *rows], given.out.with_suffix(".png"))
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in (
        "torch", "onnxruntime", "scikit-learn", "torchmetrics"))  # fmt: skip
    head = (
        f"{machine()}, one thread, Python {platform.python_version()}, {versions}; "
        f"{time.perf_counter() - began:.0f} s in all; {vars(given) | {'out': given.out.name}}"
    )
    text = "\n".join([head, "", *lines, ""])
    given.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


def measured(
    ways: Mapping[str, Way], data: Data, z: np.ndarray, features: Classifier, loop: int
) -> tuple[list[str], list[torch.Tensor]]:
    """The rows of the table, and the images of each way."""
    engines: dict[str, Any] = {
        name: load_decoder(way.bundle, threads=1, steps=way.steps) for name, way in ways.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    images: dict[str, torch.Tensor] = {}
    for turn in range(RUNS + 1):
        for name, engine in engines.items():
            first, told = ways[name].arguments(z)
            at = time.perf_counter()
            found = engine.decode(first, **told)
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - at)
            images[name] = ((torch.tensor(found) + 1) / 2).clamp(0, 1)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    teacher = next(name for name, way in ways.items() if way.steps == loop)
    original = (data.held_out + 1) / 2
    lines = [
        "| decoder | PSNR | SSIM | Frechet distance | PSNR to the loop's own sample | "
        f"{len(z)} images | times as fast as the loop | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, way in ways.items():
        near = peak_signal_noise_ratio(images[name], images[teacher], data_range=1.0)
        first, told = way.arguments(z)
        options = {} if way.steps is None else {"steps": way.steps}
        peak = peak_of(way.bundle, 1, False, first, told, options)
        cells = [
            name, *quality(original, images[name], features, data.deviation),
            "-" if name == teacher or way.steps is None else f"{near:.2f} dB",
            f"{medians[name] * 1e3:.1f} ms", f"{medians[teacher] / medians[name]:.2f}x",
            "-" if peak is None else f"{peak.run / 2**20:.0f} MB",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines, list(images.values())


if __name__ == "__main__":
    main()
