"""A UNet's loop with its encoder at every step, at the published key steps, and at every second.

    python tests/bench/encoder_reuse.py [WIDTH] [SIZE] [STEPS]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import onnx_ir as ir

from graftline import load_decoder, optimize
from graftline.bundle.store import load_graph
from graftline.commands import once
from graftline.passes.anchors.skips import SkipCut, skip_cut
from graftline.runtimes.one_pass.engine import DecodeEngine
from tests.bench.samplers import export

TEXT = 128
SPEC = """
[sampling]
prediction = "epsilon"
scheduler = "ddim"
spacing = "trailing"
betas = "scaled-linear"
beta_start = 0.00085
beta_end = 0.012
"""
RUNS = 5


def main(width: int, size: int, steps: int) -> None:
    half = "+".join(str(step) for step in range(0, steps, 2))
    ways = {
        "every step": "collapse-loop",
        "published keys": "encoder-reuse",
        "every second": f"encoder-reuse{{keys={half}}}",
    }
    engines: dict[str, DecodeEngine] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = export(folder, width, size, TEXT)
        model = ir.load(folder / "unet.onnx")
        cut = skip_cut(model.graph, model.graph.inputs[0], model.graph.outputs[0])
        assert isinstance(cut, SkipCut), cut
        print(
            f"{count / 1e6:.1f}M parameters: {len(cut.features)} features, {cut.encoder} nodes of "
            f"the encoder and {cut.decoder} of the decoder"
        )
        (folder / "spec.toml").write_text(f"{SPEC}steps = {steps}\n", encoding="utf-8")
        for name, passes in ways.items():
            place = folder / f"{name}.graft"
            made = optimize(
                folder / "unet.onnx", place, passes=passes, spec=folder / "spec.toml"
            )
            nodes = load_graph(made.graph("ort-cpu")).graph
            apart = [f", apart {r.value:.3f}" for r in made.manifest.laws if r.law == "reuse"]
            convolutions = sum(n.op_type == "Conv" for n in nodes)
            print(f"{name}: {convolutions} of {len(nodes)} nodes convolve{''.join(apart)}")
            engines[name] = load_decoder(place, threads=1)
        feed = once.feed_for(engines["every step"], None, {}, size, 0)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(RUNS + 1):
            for name, engine in engines.items():
                began = time.process_time()
                once.run(engine, feed, 0, {})
                seconds[name] += [time.process_time() - began] * bool(turn)
        every = statistics.median(seconds["every step"])
        for name in ways:
            took = statistics.median(seconds[name])
            print(f"{name}: {took * 1e3:.0f} ms of CPU, {every / took:.2f}x")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:4] or (32, 32, 20)))
