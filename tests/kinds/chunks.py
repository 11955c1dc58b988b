"""Small denoisers of two consecutive chunks, as ONNX text, with their spec."""

from __future__ import annotations

CHUNKED = """
<ir_version: 10, opset_import: ["" : 20]>
chunked (float[B,2,4,16] x, float[B] t, float[B] earlier, float[B,8,6] z, float[1,8] rate,
         float[6,8] read, float[8,2,3,3] enter, float[2,8,3,3] leave)
  => (float[B,2,4,16] clean)
{
  first = Constant <value_ints = [1]> ()
  second = Constant <value_ints = [2]> ()
  wide = Constant <value_floats = [1.0, 1.0, 8.0]> ()
  twice = Constant <value_floats = [1.0, 1.0, 2.0]> ()
  columns = Unsqueeze (t, first)
  waves = MatMul (columns, rate)
  here = Unsqueeze (waves, second)
  columns0 = Unsqueeze (earlier, first)
  waves0 = MatMul (columns0, rate)
  there = Unsqueeze (waves0, second)
  levels = Concat <axis = 2> (there, here)
  sines = Sin (levels)
  each = Resize <mode = "nearest"> (sines, , wide)
  scale = Unsqueeze (each, second)
  told = MatMul (z, read)
  turned = Transpose <perm = [0, 2, 1]> (told)
  spread = Resize <mode = "nearest"> (turned, , twice)
  shift = Unsqueeze (spread, second)
  h0 = Conv <pads = [1, 2, 1, 0]> (x, enter)
  h1 = Mul (h0, scale)
  h2 = Add (h1, shift)
  h3 = Tanh (h2)
  clean = Conv <pads = [1, 2, 1, 0]> (h3, leave)
}
"""
"""Chunks of 8 columns and 4 latents; convolutions see columns before alone. Each chunk has its own
level of noise."""
ONE_LEVEL = CHUNKED.replace("float[B] earlier, ", "").replace("(earlier, first)", "(t, first)")
"""Both are as noisy."""
SEEING = CHUNKED.replace("pads = [1, 2, 1, 0]> (h3", "pads = [1, 1, 1, 1]> (h3")
"""The first chunk sees the second."""
SAMPLING = """
[sampling]
prediction = "x0"
scheduler = "consistency"
steps = 2
sigmas = [8.0, 0.7]
"""
CHUNKS = f"""{SAMPLING}
[chunks]
width = 8
latents = "z"
timestep = "earlier"
noise = 0.4
"""
CLEAN = CHUNKS.replace("noise = 0.4\n", "")
AS_NOISY = CLEAN.replace('timestep = "earlier"\n', "")
