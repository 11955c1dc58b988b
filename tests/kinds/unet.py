"""A small UNet, written as ONNX text: two skip connections, a residual middle, adaptive scales."""

from __future__ import annotations

UNET = """
<ir_version: 10, opset_import: ["" : 20]>
unet (float[B,4,H,W] x, float[B] t, float[B,3,6] text, float[8] rates, float[16,8] time1,
      float[8,8] time2, float[8,4,3,3] enter, float[8,8,3,3] down, float[6,8] told,
      float[8,8,3,3] middle, float[8,16,3,3] low, float[8,16,3,3] high, float[4,8,3,3] leave)
  => (float[B,4,H,W] noise)
{
  first = Constant <value_ints = [1]> ()
  places = Constant <value_ints = [2, 3]> ()
  twice = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> ()
  column = Unsqueeze (t, first)
  angles = Mul (column, rates)
  sine = Sin (angles)
  cosine = Cos (angles)
  waves = Concat <axis = 1> (sine, cosine)
  wide = MatMul (waves, time1)
  soft = Sigmoid (wide)
  scales = MatMul (soft, time2)
  scale = Unsqueeze (scales, places)
  meant = ReduceMean <keepdims = 0> (text, first)
  shifts = MatMul (meant, told)
  shift = Unsqueeze (shifts, places)
  e0 = Conv <pads = [1, 1, 1, 1]> (x, enter)
  e1 = Mul (e0, scale)
  skip1 = Tanh (e1)
  e2 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (skip1, down)
  e3 = Add (e2, shift)
  skip2 = Tanh (e3)
  m0 = Conv <pads = [1, 1, 1, 1]> (skip2, middle)
  m1 = Tanh (m0)
  m2 = Add (skip2, m1)
  joined2 = Concat <axis = 1> (m2, skip2)
  d0 = Conv <pads = [1, 1, 1, 1]> (joined2, low)
  d1 = Mul (d0, scale)
  d2 = Tanh (d1)
  up = Resize <mode = "nearest"> (d2, , twice)
  joined1 = Concat <axis = 1> (up, skip1)
  d3 = Conv <pads = [1, 1, 1, 1]> (joined1, high)
  d4 = Mul (d3, scale)
  d5 = Tanh (d4)
  noise = Conv <pads = [1, 1, 1, 1]> (d5, leave)
}
"""
"""Of its six convolutions three are the encoder's and the middle's."""
ENCODER, DECODER = 3, 3
"""Convolutions of either side."""
