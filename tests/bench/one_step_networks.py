"""The networks of tests/bench/one_step.py, and how they are trained: a KL autoencoder, a decoder
that denoises pixels by its latents, and a classifier by whose features images are compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from one_step_images import Data
from torch import nn
from torch.nn import functional

WIDTH, BATCH = 32, 64


class Encoder(nn.Module):
    """Images [B, C, S, S] to means and log-variances [B, latents, S / 4, S / 4] of latents."""

    def __init__(self, channels: int, latents: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.SiLU(),
            nn.Conv2d(32, 64, 3, 2, 1), nn.SiLU(), nn.Conv2d(64, 2 * latents, 3, padding=1),
        )  # fmt: skip

    def forward(self, image: Any) -> Any:
        return self.layers(image).chunk(2, 1)


def decoder(channels: int, latents: int) -> nn.Module:
    """Latents back to images."""
    return nn.Sequential(
        nn.Conv2d(latents, 64, 3, padding=1), nn.SiLU(), nn.ConvTranspose2d(64, 32, 4, 2, 1),
        nn.SiLU(), nn.ConvTranspose2d(32, 32, 4, 2, 1), nn.SiLU(),
        nn.Conv2d(32, channels, 3, padding=1),
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
    """Noisy images [B, C, S, S], time steps [B] of 1000 and latents: the flow to the noise."""

    def __init__(self, channels: int, latents: int) -> None:
        super().__init__()
        w, time = WIDTH, 4 * WIDTH
        self.register_buffer("rates", torch.exp(torch.linspace(0, 5, 16)))
        self.time = nn.Sequential(nn.Linear(32, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.told = nn.Conv2d(latents, w, 3, padding=1)
        self.enter = nn.Conv2d(channels, w, 3, padding=1)
        self.top = Block(2 * w, w, time)
        self.down = nn.Conv2d(w, w, 3, 2, 1)
        self.low = nn.ModuleList([Block(w, 2 * w, time), Block(2 * w, 2 * w, time)])
        self.up = nn.Conv2d(2 * w, w, 3, padding=1)
        self.last = Block(2 * w, w, time)
        last = nn.Conv2d(w, channels, 3, padding=1)
        self.leave = nn.Sequential(nn.GroupNorm(8, w), nn.SiLU(), last)

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


def autoencoder(data: Data, steps: int) -> tuple[Encoder, nn.Module]:
    """A KL autoencoder."""
    encoder, made = Encoder(data.channels, data.latents), decoder(data.channels, data.latents)
    share = 64 / data.images[0].numel()  # of the KL term beside a squared error per number

    def loss(step: int) -> Any:
        images = data.images[data.some(BATCH)]
        mean, logs = encoder(images)
        z = mean + torch.randn_like(mean) * (logs / 2).exp()
        kl = (mean.square() + logs.exp() - 1 - logs).sum((1, 2, 3)).mean() / 2
        return (made(z) - images).square().mean() + 1e-3 * kl * share

    train({"encoder": encoder, "decoder": made}, loss, steps, 2e-3, "KL autoencoder")
    return encoder, made


def diffusion(data: Data, encoder: Encoder, steps: int) -> UNet:
    """A decoder that denoises pixels by latents (flow matching, Lipman et al., 2210.02747)."""
    unet = UNet(data.channels, data.latents)

    def loss(step: int) -> Any:
        images = data.images[data.some(BATCH)]
        with torch.no_grad():
            z = encoder(images)[0]
        noise, share = torch.randn_like(images), torch.rand(len(images))
        at = share[:, None, None, None]
        said = unet((1 - at) * images + at * noise, 1000 * share, z)
        return (said - (noise - images)).square().mean()

    train({"unet": unet}, loss, steps, 1e-3, "diffusion decoder")
    return unet


class Classifier(nn.Module):
    """Tells the class of images [B, C, S, S]; 32 features are what it tells it by."""

    num_features = 32

    def __init__(self, channels: int, side: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(2 * side**2, 32), nn.ReLU(),
        )  # fmt: skip
        self.last = nn.Linear(32, classes)

    def forward(self, image: Any) -> Any:
        """The features of images from 0 to 1, which torchmetrics hands to a model as they are."""
        return self.layers(image.float() * 2 - 1)


def classifier(data: Data, steps: int) -> Classifier:
    """Trained on the images."""
    made = Classifier(data.channels, data.side, int(data.classes.max()) + 1)

    def loss(step: int) -> Any:
        some = data.some(BATCH)
        said = made.last(made.layers(data.images[some]))
        return functional.cross_entropy(said, data.classes[some])

    train({"classifier": made}, loss, steps, 1e-3, "classifier")
    with torch.no_grad():
        right = made.last(made.layers(data.held_out)).argmax(1) == data.held_classes
    print(f"classifier: {right.float().mean():.3f} of the held-out {data.words}", flush=True)
    return made.eval()
