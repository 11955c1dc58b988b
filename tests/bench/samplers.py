"""A UNet of SD-Turbo's shape with random weights through a spec and all passes of a sampler:
seconds, memory, and what folding the time step takes away.

    python tests/bench/samplers.py --width 64 --size 32
    python tests/bench/samplers.py --width 320 --size 64     # SD-Turbo's own sizes: 866M parameters
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graftline import load_decoder
from graftline.build.optimize import optimize

SPEC = """
[sampling]
prediction = "epsilon"
scheduler = "euler"
steps = 4
spacing = "trailing"
betas = "scaled-linear"
beta_start = 0.00085
beta_end = 0.012
guidance = 2.0

[decoder]
graph = "decoder.onnx"
scale = 0.18215
"""
PASSES = "fold-guidance | collapse-loop | join"


class Block(nn.Module):
    """A residual block told the time, and attention over the image and the text."""

    def __init__(self, into: int, width: int, time: int, text: int, attends: bool) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(32, into), nn.SiLU(), nn.Conv2d(into, width, 3, padding=1)
        )
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(time, width))
        self.second = nn.Sequential(
            nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.skip = nn.Conv2d(into, width, 1) if into != width else nn.Identity()
        self.attends = attends
        if attends:
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
            heads = {"num_heads": max(width // 64, 1), "batch_first": True}
            self.own = nn.MultiheadAttention(width, **heads)
            self.other = nn.MultiheadAttention(width, kdim=text, vdim=text, **heads)
            self.wide = nn.Sequential(
                nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )

    def forward(self, x: Any, time: Any, text: Any) -> Any:
        y = self.first(x) + self.time(time)[:, :, None, None]
        y = self.second(y) + self.skip(x)
        if not self.attends:
            return y
        rows = y.flatten(2).transpose(1, 2)
        a, b, c = (norm for norm in self.norms)
        rows = rows + self.own(a(rows), a(rows), a(rows), need_weights=False)[0]
        rows = rows + self.other(b(rows), text, text, need_weights=False)[0]
        rows = rows + self.wide(c(rows))
        return rows.transpose(1, 2).reshape(y.shape)


class UNet(nn.Module):
    """Four scales of two blocks each, with skip connections, as UNet2DConditionModel has them."""

    def __init__(self, width: int, text: int) -> None:
        super().__init__()
        time, widths = 4 * width, [width, 2 * width, 4 * width, 4 * width]
        self.rates = torch.exp(-torch.arange(width // 2) * 2 * 9.2103 / width)
        self.time = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.enter = nn.Conv2d(4, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        kept, at = [width], width
        for place, own in enumerate(widths):
            for _ in range(2):
                self.down.append(Block(at, own, time, text, place < 3))
                kept.append(at := own)
            if place < 3:
                self.down.append(nn.Conv2d(at, at, 3, stride=2, padding=1))
                kept.append(at)
        self.middle = Block(at, at, time, text, True)
        for place, own in reversed(list(enumerate(widths))):
            for _ in range(3):
                self.up.append(Block(at + kept.pop(), own, time, text, place < 3))
                at = own
            if place:
                self.up.append(nn.Conv2d(at, at, 3, padding=1))
        self.leave = nn.Sequential(nn.GroupNorm(32, at), nn.SiLU(), nn.Conv2d(at, 4, 3, padding=1))

    def forward(self, sample: Any, timestep: Any, text: Any) -> Any:
        angles = timestep[:, None].to(torch.float32) * self.rates
        time = self.time(torch.cat([angles.cos(), angles.sin()], -1))
        y = self.enter(sample)
        kept = [y]
        for block in self.down:
            y = block(y, time, text) if isinstance(block, Block) else block(y)
            kept.append(y)
        y = self.middle(y, time, text)
        for block in self.up:
            if isinstance(block, Block):
                y = block(torch.cat([y, kept.pop()], 1), time, text)
            else:
                y = block(nn.functional.interpolate(y, scale_factor=2.0, mode="nearest"))
        return self.leave(y)


def decoder(width: int) -> nn.Module:
    """Eight pixels of each latent along both axes."""
    layers: list[nn.Module] = [nn.Conv2d(4, width, 3, padding=1)]
    for _ in range(3):
        layers += [nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1)]
    return nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))


def export(folder: Path, width: int, size: int, text: int) -> int:
    """Write both graphs and the spec; the UNet's parameters."""
    torch.manual_seed(0)
    batch = torch.export.Dim("batch")
    unet = UNet(width, text).eval()
    x, t, c = torch.randn(2, 4, size, size), torch.tensor([1, 9]), torch.randn(2, 77, text)
    for name, model, given in (("unet", unet, (x, t, c)), ("decoder", decoder(width).eval(), (x,))):
        program = torch.onnx.export(
            model, given, dynamo=True, opset_version=20, verbose=False,
            dynamic_shapes=tuple({0: batch} for _ in given),
        )  # fmt: skip
        assert program is not None
        program.save(str(folder / f"{name}.onnx"), external_data=True)
    (folder / "spec.toml").write_text(SPEC, encoding="utf-8")
    return sum(p.numel() for p in unet.parameters())


def main() -> None:
    """Print what each part takes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--text", type=int, default=128)
    parser.add_argument("--steps", default="1,4")
    given = parser.parse_args()
    steps = [int(n) for n in given.steps.split(",")]
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.perf_counter()
        count = export(folder, given.width, given.size, given.text)
        print(f"{count / 1e6:.1f}M parameters, exported by torch in {_since(began)}")
        began = time.perf_counter()
        bundle = optimize(
            folder / "unet.onnx", folder / "out.graft", passes=PASSES, spec=folder / "spec.toml",
            steps=steps, watch=print,
        )  # fmt: skip
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"all passes, laws and proofs: {_since(began)}, {peak:.1f} GB at the peak")
        began = time.perf_counter()
        optimize(folder / "unet.onnx", folder / "t.graft", passes="fold-time{t=999}", watch=print)
        print(f"fold-time alone: {_since(began)}")
        for row in bundle.manifest.laws:
            if row.law in ("whole", "form", "folded"):
                print(f"{row.graft}: {row.law}: {row.text}")
        engine: Any = load_decoder(bundle.path)
        noise = torch.randn(1, 4, given.size, given.size).numpy()
        text = torch.randn(1, 77, given.text).numpy()
        for n in steps:
            conditions = {"condition_0": text, "unconditional_0": text * 0}
            engine.decode(noise, steps=n, **conditions)
            began = time.perf_counter()
            made = engine.decode(noise, steps=n, **conditions)
            print(f"{n} steps: {list(noise.shape)} -> {list(made.shape)} in {_since(began)}")


def _since(began: float) -> str:
    return f"{time.perf_counter() - began:.2f} s"


if __name__ == "__main__":
    main()
