"""The loop of a UNet of SD's shape with random weights: its encoder at every step, at the published
key steps, and at every second. The three in turn, medians.

    python tests/bench/encoder_reuse.py --width 64 --size 32 --steps 10
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from graftline import load_decoder, optimize
from graftline.bundle.store import load_graph
from graftline.runtimes.machine import machine

sys.path.insert(0, str(Path(__file__).parent))
from samplers import export

SPEC = """
[sampling]
prediction = "epsilon"
scheduler = "ddim"
spacing = "trailing"
betas = "scaled-linear"
beta_start = 0.00085
beta_end = 0.012
"""


def main() -> None:
    """Print a row for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--text", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    print(f"{machine()}, {given.threads} threads, onnxruntime {onnxruntime.__version__}, {given}")
    half = "+".join(str(step) for step in range(0, given.steps, 2))
    ways = {
        "every step": "collapse-loop",
        "published key steps": "encoder-reuse",
        "every second step": f"encoder-reuse{{keys={half}}}",
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = export(folder, given.width, given.size, given.text)
        print(f"{count / 1e6:.1f}M parameters")
        (folder / "spec.toml").write_text(f"{SPEC}steps = {given.steps}\n", encoding="utf-8")
        engines: dict[str, Any] = {}
        told: dict[str, str] = {}
        for way, passes in ways.items():
            began, out = time.perf_counter(), folder / f"{passes.partition('{')[0]}.{len(told)}"
            made = optimize(folder / "unet.onnx", out, passes=passes, spec=folder / "spec.toml")
            kinds = [node.op_type for node in load_graph(made.graph("ort-cpu")).graph]
            apart = [f"{row.value:.4f}" for row in made.manifest.laws if row.law == "reuse"]
            told[way] = (
                f"{kinds.count('Conv')} convolutions of {len(kinds)} nodes, samples apart "
                f"{''.join(apart) or 0}, built in {time.perf_counter() - began:.0f} s"
            )
            engines[way] = load_decoder(out, threads=given.threads)
            print(f"{way}: {told[way]}", flush=True)
        random = np.random.default_rng(0)
        noise = random.standard_normal((1, 4, given.size, given.size)).astype(np.float32)
        text = random.standard_normal((1, 77, given.text)).astype(np.float32)
        times: dict[str, list[float]] = {way: [] for way in engines}
        for turn in range(given.runs + 1):
            for way, engine in engines.items():
                began = time.perf_counter()
                engine.decode(noise, text=text)
                if turn:  # the first warms up
                    times[way].append(time.perf_counter() - began)
        plain = statistics.median(times["every step"])
        for way, seconds in times.items():
            median = statistics.median(seconds)
            print(f"{way}: {median * 1e3:.0f} ms, {plain / median:.2f}x")


if __name__ == "__main__":
    main()
