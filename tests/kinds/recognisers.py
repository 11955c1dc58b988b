"""Small recognisers that write a text in one pass, as ONNX text."""

from __future__ import annotations

PARAFORMER = """
<ir_version: 10, opset_import: ["" : 20]>
paraformer (float[B,T,6] speech, int32[B] speech_lengths, float[6,8] enter, float[8,1] weigh,
            float[8,8] wq, float[8,8] wk, float[8,8] wv, float[8,11] leave)
  => (float[B,U,11] logits, int64[B] token_num)
{
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  axis_1 = Constant <value_ints = [1]> ()
  axis_2 = Constant <value_ints = [2]> ()
  half = Constant <value_float = 0.5> ()
  none = Constant <value_float = 0.0> ()
  unit = Constant <value_float = 1.0> ()
  far = Constant <value_float = -10000.0> ()
  times = Shape <start = 1, end = 2> (speech)
  long = Squeeze (times)
  time = Range (zero, long, one)
  lengths = Cast <to = 7> (speech_lengths)
  ends = Unsqueeze (lengths, axis_1)
  heard = Less (time, ends)
  kept = Cast <to = 1> (heard)
  entered = MatMul (speech, enter)
  h = Tanh (entered)
  weighed = MatMul (h, weigh)
  weights = Squeeze (weighed, axis_2)
  chance = Sigmoid (weights)
  alpha = Mul (chance, kept)
  total = ReduceSum <keepdims = 0> (alpha, axis_1)
  more = Add (total, half)
  whole = Floor (more)
  token_num = Cast <to = 7> (whole)
  most = ReduceMax <keepdims = 0> (token_num)
  place = Range (zero, most, one)
  places = Cast <to = 1> (place)
  start = Unsqueeze (places, axis_1)
  end = Add (start, unit)
  ahead = CumSum (alpha, one)
  behind = Sub (ahead, alpha)
  upto = Unsqueeze (ahead, axis_1)
  from = Unsqueeze (behind, axis_1)
  high = Min (upto, end)
  low = Max (from, start)
  between = Sub (high, low)
  fired = Max (between, none)
  tokens = MatMul (fired, h)
  q = MatMul (tokens, wq)
  k = MatMul (h, wk)
  v = MatMul (h, wv)
  turned = Transpose <perm = [0, 2, 1]> (k)
  products = MatMul (q, turned)
  missing = Sub (unit, kept)
  hidden = Mul (missing, far)
  unheard = Unsqueeze (hidden, axis_1)
  seen = Add (products, unheard)
  shares = Softmax <axis = -1> (seen)
  read = MatMul (shares, v)
  said = Add (read, tokens)
  logits = MatMul (said, leave)
}
"""
"""Paraformer (arXiv 2206.08317): weights of the places are summed up, and where the sum passes a
whole number a token fires; all tokens are then decoded together. The sum is taken by CumSum, so
that place t gives to token u what of [u, u + 1] lies between the sums before and behind t."""
CPPD = """
<ir_version: 10, opset_import: ["" : 20]>
cppd (float[B,3,32,W] image, float[8,3,4,4] patch, float[5,8] slots, float[8,8] wk, float[8,8] wv,
      float[8,2] exists, float[8,11] leave)
  => (float[B,5,11] logits, int64[B] length)
{
  axis_1 = Constant <value_ints = [1]> ()
  flat = Constant <value_ints = [0, 8, -1]> ()
  patches = Conv <strides = [4, 4]> (image, patch)
  acted = Relu (patches)
  rows = Reshape (acted, flat)
  h = Transpose <perm = [0, 2, 1]> (rows)
  k = MatMul (h, wk)
  v = MatMul (h, wv)
  turned = Transpose <perm = [0, 2, 1]> (k)
  products = MatMul (slots, turned)
  shares = Softmax <axis = -1> (products)
  read = MatMul (shares, v)
  said = Add (read, slots)
  there = MatMul (said, exists)
  is = ArgMax <axis = 2, keepdims = 0> (there)
  length = ReduceSum <keepdims = 0> (is, axis_1)
  logits = MatMul (said, leave)
}
"""
"""CPPD (arXiv 2307.12270): placeholders read the image together, and each says whether it holds a
character."""
