"""Small denoisers and decoders of their samples, written as ONNX text, with their specs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graftline.build.composed import composed
from graftline.evaluate import Feed
from graftline.facts import read_facts
from graftline.kinds.denoiser import Denoiser
from graftline.models.checkpoint import open_checkpoint
from graftline.models.spec import read_spec
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.pipeline.pipeline import PassReport
from graftline.ports import read_ports
from tests.passes.tiny_hosts import filled

DENOISER = """
<ir_version: 10, opset_import: ["" : 20]>
denoiser (float[B,4,H,W] x, float[B] t, float[B,3,6] text, float[8] rates, float[16,12] time1,
          float[12,8] time2, float[8,4,3,3] enter, float[6,8] told, float[4,8,3,3] leave)
  => (float[B,4,H,W] noise)
{
  first = Constant <value_ints = [1]> ()
  places = Constant <value_ints = [2, 3]> ()
  column = Unsqueeze (t, first)
  angles = Mul (column, rates)
  sine = Sin (angles)
  cosine = Cos (angles)
  waves = Concat <axis = 1> (sine, cosine)
  wide = MatMul (waves, time1)
  soft = Sigmoid (wide)
  kept = Mul (wide, soft)
  scales = MatMul (kept, time2)
  scale = Unsqueeze (scales, places)
  meant = ReduceMean <keepdims = 0> (text, first)
  shifts = MatMul (meant, told)
  shift = Unsqueeze (shifts, places)
  h0 = Conv <pads = [1, 1, 1, 1]> (x, enter)
  h1 = Mul (h0, scale)
  h2 = Add (h1, shift)
  h3 = Tanh (h2)
  noise = Conv <pads = [1, 1, 1, 1]> (h3, leave)
}
"""
"""A time embedding that scales channels, and a text whose mean shifts them."""
TIMED = 10
"""Its nodes that depend on the time step alone."""
TWO_HEADS = DENOISER.replace(
    "=> (float[B,4,H,W] noise)", "=> (float[B,4,H,W] noise, float[B,2] depth)"
).replace(
    "  noise = Conv", "  flat = ReduceMean <keepdims = 0> (h3, places)\n"
    "  depth = MatMul (flat, more)\n  noise = Conv"
).replace("float[6,8] told", "float[6,8] told, float[8,2] more")  # fmt: skip
"""The same with an output beside the prediction."""
DECODER = """
<ir_version: 10, opset_import: ["" : 20]>
decoder (float[N,4,h,w] z, float[8,4,3,3] enter, float[12,8,3,3] spread, float[3,3,1,1] leave)
  => (float[N,3,H2,W2] pixels)
{
  a = Conv <pads = [1, 1, 1, 1]> (z, enter)
  b = Relu (a)
  c = Conv <pads = [1, 1, 1, 1]> (b, spread)
  d = DepthToSpace <blocksize = 2, mode = "CRD"> (c)
  pixels = Conv (d, leave)
}
"""
SMALLER = """
<ir_version: 10, opset_import: ["" : 20]>
smaller (float[N,4,h,w] z, float[12,4,1,1] spread) => (float[N,3,H2,W2] pixels)
{
  a = Conv (z, spread)
  pixels = DepthToSpace <blocksize = 2, mode = "CRD"> (a)
}
"""
SAMPLING = """
[sampling]
prediction = "epsilon"
scheduler = "ddim"
steps = 4
spacing = "trailing"
"""
PYRAMID = """
[sampling]
prediction = "flow"
scheduler = "pyramid"
steps = 6
scales = 3
"""
WHOLE = f"""{SAMPLING}guidance = 3.0

[decoder]
graph = "decoder.onnx"
scale = 0.5
shift = 0.1

[replacement]
graph = "smaller.onnx"
"""

FED = ("x", "t", "when", "text", "label", "hint", "z", "earlier")


def built(text: str, seed: int = 0) -> ir.Model:
    """The graph with seeded weights: every input is one but those that are FED."""
    random = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    for value in ir.from_onnx_text(text).graph.inputs:
        if value.name not in FED:
            sizes = [d for d in value.shape or () if isinstance(d, int)]
            fan = max(int(np.prod(sizes[1:])), 1)
            weights[value.name or ""] = random.normal(0, fan**-0.5, sizes).astype(np.float32)
    return filled(text, weights)


def write_sampler(folder: Path, text: str = DENOISER, spec: str = WHOLE) -> tuple[Path, Path]:
    """Write a denoiser, its decoders and its spec; the paths of the graph and of the spec."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: Mapping[str, str] = {"denoiser": text, "decoder": DECODER, "smaller": SMALLER}
    for seed, (name, graph) in enumerate(parts.items()):
        ir.save(built(graph, seed), folder / f"{name}.onnx")
    (folder / "spec.toml").write_text(spec, encoding="utf-8")
    return folder / "denoiser.onnx", folder / "spec.toml"


def canonical(
    folder: Path, passes: str, text: str = DENOISER, spec: str = WHOLE
) -> tuple[ir.Model, Feed]:
    """The denoiser as the front leaves it, with what the passes read beside it, and a feed."""
    graph, told = write_sampler(folder, text, spec)
    host = open_checkpoint(graph).host()
    wanted = Pipeline.parse(passes, GRAFTS)
    model = composed(host, read_spec(told), wanted, lambda line: None).model
    Pipeline.parse("canonicalize-one-pass", GRAFTS).run(model)
    return model, Denoiser().feed(read_ports(model), read_facts(model), 0)


def grafted(
    folder: Path, passes: str, text: str = DENOISER, spec: str = WHOLE
) -> tuple[ir.Model, list[PassReport]]:
    """The denoiser after passes, each held to its laws."""
    model, feed = canonical(folder, passes, text, spec)
    return model, Pipeline.parse(passes, GRAFTS).run(model, feed)


def lines(model: ir.Model) -> list[str]:
    """The graph, one node a line."""
    return [
        f"{', '.join(v.name or '' for v in n.outputs)} = {n.op_type}"
        f"({', '.join('' if v is None else v.name or '' for v in n.inputs)})"
        for n in model.graph
    ]
