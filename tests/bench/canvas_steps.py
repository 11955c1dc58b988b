"""ReCAP's steps (arXiv 2505.19089) on a U-ViT-shaped masked generator with random weights: 16 steps
over the whole canvas, and with light ones behind full ones. In turn, medians.

    python tests/bench/canvas_steps.py --width 384 --blocks 13 --positions 256
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from graftline import load_decoder, optimize
from graftline.filling import Filling
from graftline.runtimes.machine import machine


class Block(nn.Module):
    """Attention and an MLP; one of the second half also reads a block of the first."""

    def __init__(self, width: int, heads: int, skips: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.skip = nn.Linear(2 * width, width) if skips else None

    def forward(self, x: Any, skipped: Any) -> Any:
        if self.skip is not None:
            x = self.skip(torch.cat([x, skipped], dim=-1))
        first, second = self.norms
        size = x.shape[-1] // self.heads
        q, k, v = self.qkv(first(x)).unflatten(-1, (3, self.heads, size)).permute(2, 0, 3, 1, 4)
        read = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(read.transpose(1, 2).flatten(2))
        return x + self.mlp(second(x))


class UVit(nn.Module):
    """U-ViT (Bao et al., arXiv 2209.12152) over a canvas of tokens, with a class token."""

    def __init__(self, width: int, blocks: int, positions: int, tokens: int) -> None:
        super().__init__()
        self.tokens, self.classes = nn.Embedding(tokens + 1, width), nn.Embedding(1001, width)
        self.places = nn.Parameter(torch.randn(1, positions + 1, width) * 0.02)
        heads, half = max(width // 64, 1), blocks // 2
        self.into = nn.ModuleList(Block(width, heads, False) for _ in range(half))
        self.middle = Block(width, heads, False)
        self.out = nn.ModuleList(Block(width, heads, True) for _ in range(half))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens)

    def forward(self, canvas: Any, label: Any) -> Any:
        x = torch.cat([self.classes(label)[:, None], self.tokens(canvas)], dim=1) + self.places
        skipped: list[Any] = []
        for block in self.into:
            x = block(x, None)
            skipped.append(x)
        x = self.middle(x, None)
        for block in self.out:
            x = block(x, skipped.pop())
        return self.head(self.norm(x[:, 1:]))


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser()
    for name, usual in (("width", 384), ("blocks", 13), ("positions", 256), ("tokens", 1024),
                        ("batch", 1), ("steps", 16), ("runs", 5), ("threads", 2)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=usual)
    given = parser.parse_args()
    print(f"{machine()}, {given.threads} threads, onnxruntime {onnxruntime.__version__}, {given}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = export(folder / "uvit.onnx", given)
        passes = f"canvas-cache{{steps={given.steps},full={given.steps // 2}}}"
        made = optimize(folder / "uvit.onnx", folder / "uvit.graft", passes=passes)
        print(f"{count / 1e6:.1f}M parameters, {len(made.manifest.laws)} laws")
        engine = load_decoder(made.path, threads=given.threads)
        ways = [{"full": given.steps // part, "light": light}
                for part, light in ((1, 0), (2, 1), (4, 1), (4, 3), (16, 3))]  # fmt: skip
        label, times = np.zeros(given.batch, np.int64), [list[float]() for _ in ways]
        for turn in range(given.runs + 1):
            for way, seconds in zip(ways, times, strict=True):
                began = time.perf_counter()
                engine.fill(given.batch, label=label, seed=turn, steps=given.steps, **way)
                if turn:  # the first warms up
                    seconds.append(time.perf_counter() - began)
    print("| full | light behind each | rows computed | median | speed-up |\n|---|---|---|---|---|")
    whole = statistics.median(times[0])
    for way, seconds in zip(ways, times, strict=True):
        groups = Filling(steps=given.steps, **way).groups(given.positions)
        rows = sum(given.positions + (len(g) - 1) * sum(g) for g in groups)
        median = statistics.median(seconds)
        print(f"| {len(groups)} | {way['light']} | {rows} | {median * 1e3:.0f} ms "
              f"| {whole / median:.2f}x |")  # fmt: skip


def export(path: Path, given: argparse.Namespace) -> int:
    """Write the network, and count its weights."""
    torch.manual_seed(0)
    network = UVit(given.width, given.blocks, given.positions, given.tokens).eval()
    canvas = torch.full((2, given.positions), given.tokens)
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        network, (canvas, torch.tensor([0, 1])), dynamo=True, opset_version=20, verbose=False,
        dynamic_shapes=({0: batch}, {0: batch}), input_names=["ids", "label"],
        output_names=["logits"],
    )  # fmt: skip
    assert program is not None
    program.save(str(path))
    return sum(parameter.numel() for parameter in network.parameters())


if __name__ == "__main__":
    main()
