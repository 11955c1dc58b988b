"""A diffusion decoder trained here, and its one-step student, on the 1,797 digits that scikit-learn
ships: a KL autoencoder, a flow-matching decoder of its latents, `graftline distill one-step`, and
what each costs and gives on digits that nobody was trained on.

    OMP_NUM_THREADS=1 python tests/bench/one_step.py --out tests/bench/results/2026-11-28-one-step
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from torchmetrics.image.fid import FrechetInceptionDistance

from graftline import load_decoder, optimize
from graftline.commands.peak import peak_of
from graftline.runtimes.control.measure import machine

HELD_OUT, LATENTS, WIDTH = 397, 2, 32
BATCH, RUNS, SHOWN, ZOOM = 64, 5, 16, 5
SIGMA = 0.86
"""Of SSIM's window: 7 of the 8 pixels along an axis."""
SPEC = """
[inputs]
sample = "x"
timestep = "t"
conditions = ["z"]

[sampling]
prediction = "flow"
scheduler = "flow-match"
"""


class Encoder(nn.Module):
    """Images [B, 1, 8, 8] to means and log-variances [B, 2, 2, 2] of latents: 8 numbers of 64."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.SiLU(),
            nn.Conv2d(32, 64, 3, 2, 1), nn.SiLU(), nn.Conv2d(64, 2 * LATENTS, 3, padding=1),
        )  # fmt: skip

    def forward(self, image: Any) -> Any:
        return self.layers(image).chunk(2, 1)


def decoder() -> nn.Module:
    """Latents back to images."""
    return nn.Sequential(
        nn.Conv2d(LATENTS, 64, 3, padding=1), nn.SiLU(), nn.ConvTranspose2d(64, 32, 4, 2, 1),
        nn.SiLU(), nn.ConvTranspose2d(32, 32, 4, 2, 1), nn.SiLU(), nn.Conv2d(32, 1, 3, padding=1),
    )  # fmt: skip


class Block(nn.Module):
    """A residual block whose channels the time scales and shifts."""

    def __init__(self, into: int, width: int, time: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(n, width, 3, padding=1) for n in (into, width))
        self.norms = nn.ModuleList([nn.GroupNorm(8, into), nn.GroupNorm(8, width)])
        self.time = nn.Linear(time, 2 * width)
        self.skip = nn.Conv2d(into, width, 1) if into != width else nn.Identity()

    def forward(self, x: Any, time: Any) -> Any:
        y = self.first(functional.silu(self.norms[0](x)))
        scale, shift = self.time(time)[:, :, None, None].chunk(2, 1)
        y = self.norms[1](y) * (1 + scale) + shift
        return self.skip(x) + self.second(functional.silu(y))


class UNet(nn.Module):
    """Noisy images [B, 1, 8, 8], time steps [B] of 1000 and latents: the flow to the noise."""

    def __init__(self) -> None:
        super().__init__()
        w, time = WIDTH, 4 * WIDTH
        self.register_buffer("rates", torch.exp(torch.linspace(0, 5, 16)))
        self.time = nn.Sequential(nn.Linear(32, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.told = nn.Conv2d(LATENTS, w, 3, padding=1)
        self.enter = nn.Conv2d(1, w, 3, padding=1)
        self.top = Block(2 * w, w, time)
        self.down = nn.Conv2d(w, w, 3, 2, 1)
        self.low = nn.ModuleList([Block(w, 2 * w, time), Block(2 * w, 2 * w, time)])
        self.up = nn.Conv2d(2 * w, w, 3, padding=1)
        self.last = Block(2 * w, w, time)
        self.leave = nn.Sequential(nn.GroupNorm(8, w), nn.SiLU(), nn.Conv2d(w, 1, 3, padding=1))

    def forward(self, x: Any, t: Any, z: Any) -> Any:
        angles = t[:, None] / 1000 * self.rates
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        told = functional.interpolate(self.told(z), scale_factor=4.0, mode="nearest")
        top = self.top(torch.cat([self.enter(x), told], 1), time)
        y = self.down(top)
        for block in self.low:
            y = block(y, time)
        y = self.up(functional.interpolate(y, scale_factor=2.0, mode="nearest"))
        return self.leave(self.last(torch.cat([y, top], 1), time))


def train(modules: Mapping[str, nn.Module], loss: Callable[[int], Any], steps: int, rate: float,
          what: str) -> None:  # fmt: skip
    """AdamW, its rate a cosine down to nothing."""
    parameters = [p for module in modules.values() for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=1e-4)
    slope = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    began, seen = time.perf_counter(), 0.0
    for step in range(steps):
        optimizer.zero_grad()
        value = loss(step)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        slope.step()
        seen += (float(value.detach()) - seen) / min(step + 1, 100)
    seconds = time.perf_counter() - began
    print(f"{what}: {steps} steps, loss {seen:.4f}, {seconds:.0f} s", flush=True)


@dataclass(frozen=True)
class Data:
    """Images [N, 1, 8, 8] from -1 to 1 and their digits, to learn from and held out."""

    images: torch.Tensor
    digits: torch.Tensor
    held_out: torch.Tensor
    held_digits: torch.Tensor

    @classmethod
    def read(cls) -> Data:
        found: Any = load_digits()
        images = torch.tensor(found.images[:, None] / 8 - 1, dtype=torch.float32)
        digits = torch.tensor(found.target)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        kept, out = order[HELD_OUT:], order[:HELD_OUT]
        return cls(images[kept], digits[kept], images[out], digits[out])

    def some(self) -> torch.Tensor:
        return self.images[torch.randint(len(self.images), (BATCH,))]


def autoencoder(data: Data, steps: int) -> tuple[Encoder, nn.Module]:
    """A KL autoencoder."""
    encoder, made = Encoder(), decoder()

    def loss(step: int) -> Any:
        images = data.some()
        mean, logs = encoder(images)
        z = mean + torch.randn_like(mean) * (logs / 2).exp()
        kl = (mean.square() + logs.exp() - 1 - logs).sum((1, 2, 3)).mean() / 2
        return (made(z) - images).square().sum((1, 2, 3)).mean() / 64 + 1e-3 * kl

    train({"encoder": encoder, "decoder": made}, loss, steps, 2e-3, "KL autoencoder")
    return encoder, made


def diffusion(data: Data, encoder: Encoder, steps: int) -> UNet:
    """A decoder that denoises pixels by latents (flow matching, Lipman et al., 2210.02747)."""
    unet = UNet()

    def loss(step: int) -> Any:
        images = data.some()
        with torch.no_grad():
            z = encoder(images)[0]
        noise, share = torch.randn_like(images), torch.rand(len(images))
        at = share[:, None, None, None]
        said = unet((1 - at) * images + at * noise, 1000 * share, z)
        return (said - (noise - images)).square().mean()

    train({"unet": unet}, loss, steps, 1e-3, "diffusion decoder")
    return unet


class Classifier(nn.Module):
    """Tells the digit; `features` [B, 32] are what it tells it by."""

    num_features = 32

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 32), nn.ReLU(),
        )  # fmt: skip
        self.last = nn.Linear(32, 10)

    def forward(self, image: Any) -> Any:
        """The features of images from 0 to 1, which torchmetrics hands to a model as they are."""
        return self.layers(image.float() * 2 - 1)


def classifier(data: Data, steps: int) -> Classifier:
    """Trained on the images."""
    made = Classifier()

    def loss(step: int) -> Any:
        some = torch.randint(len(data.images), (BATCH,))
        said = made.last(made.layers(data.images[some]))
        return functional.cross_entropy(said, data.digits[some])

    train({"classifier": made}, loss, steps, 1e-3, "classifier")
    with torch.no_grad():
        right = made.last(made.layers(data.held_out)).argmax(1) == data.held_digits
    print(f"classifier: {right.float().mean():.3f} of the held-out digits", flush=True)
    return made.eval()


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


def quality(images: torch.Tensor, made: torch.Tensor, features: Classifier) -> list[str]:
    """PSNR, SSIM and the Frechet distance of images, all from 0 to 1."""
    psnr = peak_signal_noise_ratio(made, images, data_range=1.0)
    ssim: Any = structural_similarity_index_measure(made, images, sigma=SIGMA, data_range=1.0)
    distance = FrechetInceptionDistance(features, normalize=True, input_img_size=(1, 8, 8))
    distance.update(images, real=True)
    distance.update(made, real=False)
    return [f"{psnr:.2f} dB", f"{ssim:.3f}", f"{float(distance.compute()):.2f}"]


def grid(rows: list[torch.Tensor], out: Path) -> None:
    """A row of images for each way."""
    framed = [functional.pad(row[:SHOWN, 0], (1, 1, 1, 1), value=0.4) for row in rows]
    joined = torch.cat([torch.cat(list(row), 1) for row in framed])
    pixels = (joined * 255).round().byte().numpy().repeat(ZOOM, 0).repeat(ZOOM, 1)
    Image.fromarray(pixels).save(out, optimize=True)


def main() -> None:
    """Train, distil, measure; print a table and write it with its picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="without its ending")
    parser.add_argument("--loop", type=int, default=8, help="steps of the teacher's loop")
    parser.add_argument("--autoencoder", type=int, default=800)
    parser.add_argument("--diffusion", type=int, default=700)
    parser.add_argument("--pairs", type=int, default=2048)
    parser.add_argument("--distill", type=int, default=500)
    given = parser.parse_args()
    torch.manual_seed(0)
    began, data = time.perf_counter(), Data.read()
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
        sizes, wide = ("batch", "", "height", "width"), torch.zeros(2, LATENTS, 4, 6)
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
            name, *quality(original, images[name], features),
            "-" if name == teacher or way.steps is None else f"{near:.2f} dB",
            f"{medians[name] * 1e3:.1f} ms", f"{medians[teacher] / medians[name]:.2f}x",
            "-" if peak is None else f"{peak.run / 2**20:.0f} MB",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines, list(images.values())


if __name__ == "__main__":
    main()
