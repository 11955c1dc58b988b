"""Small decoders of latents, written as ONNX text: a vocoder and a super-resolution net."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tests.passes.tiny_hosts import filled

VOCODER = """
<ir_version: 10, opset_import: ["" : 20]>
vocoder (float[B,6,N] mel, float[B,4,1] speaker, float[8,6,7] enter, float[8,4,1] told,
         float[8,8,4] up1, float[8,8,3] res1, float[8,8,3] res2, float[8,4,8] up2,
         float[1,4,5] leave) => (float[B,1,T] wave)
{
  entered = Conv <pads = [3, 3]> (mel, enter)
  who = Conv (speaker, told)
  h0 = Add (entered, who)
  a0 = LeakyRelu <alpha = 0.1> (h0)
  h1 = ConvTranspose <strides = [2], pads = [1, 1]> (a0, up1)
  r1 = LeakyRelu <alpha = 0.1> (h1)
  r2 = Conv <pads = [3, 3], dilations = [3]> (r1, res1)
  r3 = LeakyRelu <alpha = 0.1> (r2)
  r4 = Conv <pads = [1, 1]> (r3, res2)
  h2 = Add (h1, r4)
  a2 = LeakyRelu <alpha = 0.1> (h2)
  h3 = ConvTranspose <strides = [4], pads = [2, 2]> (a2, up2)
  last = Conv <pads = [2, 2]> (h3, leave)
  wave = Tanh (last)
}
"""
"""8 samples of each frame of a mel spectrogram, in the manner of HiFi-GAN."""
UPSCALER = """
<ir_version: 10, opset_import: ["" : 20]>
upscaler (float[B,3,H,W] low, float[8,3,3,3] enter, float[8,8,3,3] body, float[12,8,3,3] spread,
          float[3,3,3,3] leave) => (float[B,3,H2,W2] high)
{
  h0 = Conv <pads = [1, 1, 1, 1]> (low, enter)
  a0 = Relu (h0)
  h1 = Conv <pads = [1, 1, 1, 1]> (a0, body)
  h2 = Add (h0, h1)
  many = Conv <pads = [1, 1, 1, 1]> (h2, spread)
  shuffled = DepthToSpace <blocksize = 2, mode = "CRD"> (many)
  high = Conv <pads = [1, 1, 1, 1]> (shuffled, leave)
}
"""
"""Two pixels of each, along both axes."""
CODEC = """
<ir_version: 10, opset_import: ["" : 20]>
codec (int64[B,N] codes, float[11,8] table, float[8,8,8] up, float[1,8,3] leave)
  => (float[B,1,T] wave)
{
  rows = Gather (table, codes)
  h0 = Transpose <perm = [0, 2, 1]> (rows)
  h1 = ConvTranspose <strides = [4], pads = [2, 2]> (h0, up)
  a1 = Elu (h1)
  wave = Conv <pads = [1, 1]> (a1, leave)
}
"""
"""4 samples of each id of a codebook."""


CONVERTER = """
<ir_version: 10, opset_import: ["" : 20]>
converter (float[B,6,N] codes, float[B,2,N] frames, float[B,4,1] speaker, float[8,6,5] enter,
           float[8,2,1] told, float[8,4,1] scale, float[8,8,8] up, float[1,8,3] leave)
  => (float[B,1,T] wave)
{
  axis = Constant <value_ints = [2]> ()
  small = Constant <value_float = 1e-5> ()
  entered = Conv <pads = [2, 2]> (codes, enter)
  frame = Conv (frames, told)
  h0 = Add (entered, frame)
  mean = ReduceMean (h0, axis)
  apart = Sub (h0, mean)
  square = Mul (apart, apart)
  variance = ReduceMean (square, axis)
  more = Add (variance, small)
  spread = Sqrt (more)
  even = Div (apart, spread)
  who = Conv (speaker, scale)
  h1 = Mul (even, who)
  a1 = Tanh (h1)
  h2 = ConvTranspose <strides = [4], pads = [2, 2]> (a1, up)
  wave = Conv <pads = [1, 1]> (h2, leave)
}
"""
"""In the manner of X-VC: latents and a condition for each frame, a speaker who scales channels that
were made even over the whole, and a codec's decoder: 4 samples of each latent."""


CAUSAL = """
<ir_version: 10, opset_import: ["" : 20]>
causal (float[B,6,N] codes, float[8,6,7] enter, float[8,8,4] up1, float[8,8,3] res1,
        float[8,8,1] res2, float[8,4,8] up2, float[1,4,5] leave) => (float[B,1,T] wave)
{
  front = Constant <value_ints = [0, 0, 6, 0, 0, 0]> ()
  first = Constant <value_ints = [0]> ()
  end = Constant <value_ints = [-4]> ()
  axis = Constant <value_ints = [2]> ()
  padded = Pad (codes, front)
  h0 = Conv (padded, enter)
  a0 = Elu (h0)
  h1 = ConvTranspose <strides = [2], pads = [0, 2]> (a0, up1)
  r1 = Elu (h1)
  r2 = Conv <pads = [6, 0], dilations = [3]> (r1, res1)
  r3 = Elu (r2)
  r4 = Conv (r3, res2)
  h2 = Add (h1, r4)
  a2 = Elu (h2)
  long = ConvTranspose <strides = [4]> (a2, up2)
  h3 = Slice (long, first, end, axis)
  said = Conv <pads = [4, 0]> (h3, leave)
  wave = Tanh (said)
}
"""
"""In the manner of EnCodec's streamable decoder (arXiv 2210.13438): 8 samples of each latent, none
of which depends on latents to come."""


def model_of(
    text: str,
    fixed: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    dtype: str = "float32",
) -> ir.Model:
    """A model of ONNX text, whose inputs of fixed sizes are seeded weights."""
    random = np.random.default_rng(seed)
    model = ir.from_onnx_text(text)
    values: dict[str, np.ndarray] = dict(fixed or {})
    for value in model.graph.inputs:
        dims = [d for d in value.shape or () if isinstance(d, int)]
        if value.shape is not None and len(dims) == len(value.shape) and value.name not in values:
            spread = np.sqrt(np.prod(dims[1:]))
            values[value.name or ""] = (random.standard_normal(dims) / spread).astype(dtype)
    return filled(text, values)


def write(text: str, path: Path) -> Path:
    """The same, as a file."""
    ir.save(model_of(text), path)
    return path
