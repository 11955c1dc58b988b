"""A small recogniser over a graph of vertices, and a decoder of its states, as ONNX text."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from tests.kinds.latent_decoders import model_of

DAG = """
<ir_version: 10, opset_import: ["" : 20]>
dag (float[B,T,6] speech, int32[B] speech_lengths, float[6,8] enter, float[8,8] read,
     float[8,8] from, float[8,8] to, float[8,11] leave)
  => (float[B,L,11] word_ins, float[B,L,L] links, float[B,L,8] features, int64[B] graph_sizes)
{
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  two = Constant <value_ints = [2]> ()
  axis_0 = Constant <value_ints = [0]> ()
  axis_1 = Constant <value_ints = [1]> ()
  axis_2 = Constant <value_ints = [2]> ()
  all = Constant <value_ints = [9223372036854775807]> ()
  sharp = Constant <value_float = 4.0> ()
  less = Constant <value_float = 0.7> ()
  never = Constant <value_float = -inf> ()
  entered = MatMul (speech, enter)
  h = Tanh (entered)
  every = Slice (h, axis_0, all, axis_1, two)
  mixed = MatMul (every, read)
  louder = Mul (mixed, sharp)
  features = Sin (louder)
  scored = MatMul (features, leave)
  word_ins = Mul (scored, sharp)
  lengths = Cast <to = 7> (speech_lengths)
  halved = Div (lengths, two)
  graph_sizes = Max (halved, two)
  shape = Shape <start = 1, end = 2> (every)
  long = Squeeze (shape)
  place = Range (zero, long, one)
  column = Unsqueeze (place, axis_1)
  later = Greater (place, column)
  sizes = Unsqueeze (graph_sizes, axis_1)
  inside = Less (place, sizes)
  there = Unsqueeze (inside, axis_1)
  allowed = And (later, there)
  queries = MatMul (features, from)
  keys = MatMul (features, to)
  turned = Transpose <perm = [0, 2, 1]> (keys)
  alike = MatMul (queries, turned)
  apart = Sub (place, column)
  distance = Cast <to = 1> (apart)
  farther = Mul (distance, less)
  products = Sub (alike, farther)
  hidden = Where (allowed, products, never)
  counted = Cast <to = 7> (allowed)
  ways = ReduceSum <keepdims = 1> (counted, axis_2)
  dead = Equal (ways, zero)
  safe = Where (dead, products, hidden)
  logs = LogSoftmax <axis = -1> (safe)
  links = Where (dead, never, logs)
}
"""
"""DA-Transformer (arXiv 2205.07459): half as many vertices as a row has places, and
transitions to later ones alone; the last has none, nor have those beyond a row's own."""
FIXED = DAG.replace("[B,T,6]", "[B,40,6]").replace("[B,L,L]", "[B,20,20]").replace("B,L", "B,20")
"""The same for signals of 40 places."""
ACOUSTIC = """
<ir_version: 10, opset_import: ["" : 20]>
acoustic (float[N,U,8] x, int64[N] sizes, float[8,8] enter, float[8,1] long, float[8,5] leave)
  => (float[N,F,5] mel, int64[N] mel_lengths)
{
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  axis_1 = Constant <value_ints = [1]> ()
  axis_2 = Constant <value_ints = [2]> ()
  most = Constant <value_float = 3.0> ()
  times = Shape <start = 1, end = 2> (x)
  count = Squeeze (times)
  place = Range (zero, count, one)
  ends = Unsqueeze (sizes, axis_1)
  own = Less (place, ends)
  kept = Cast <to = 7> (own)
  entered = MatMul (x, enter)
  h = Tanh (entered)
  weighed = MatMul (h, long)
  weights = Squeeze (weighed, axis_2)
  share = Sigmoid (weights)
  scaled = Mul (share, most)
  rounded = Round (scaled)
  whole = Cast <to = 7> (rounded)
  durations = Mul (whole, kept)
  mel_lengths = ReduceSum <keepdims = 0> (durations, axis_1)
  longest = ReduceMax <keepdims = 0> (mel_lengths)
  frame = Range (zero, longest, one)
  frames = Unsqueeze (frame, axis_1)
  ahead = CumSum (durations, one)
  behind = Sub (ahead, durations)
  upto = Unsqueeze (ahead, axis_1)
  since = Unsqueeze (behind, axis_1)
  begun = GreaterOrEqual (frames, since)
  open = Less (frames, upto)
  within = And (begun, open)
  spread = Cast <to = 1> (within)
  regulated = MatMul (spread, h)
  mel = MatMul (regulated, leave)
}
"""
"""FastSpeech 2 (arXiv 2006.04558), its length regulator: every position is as many frames long as
its duration says."""
SPEC = '[decoder]\ngraph = "acoustic.onnx"\n'


def write_dag(folder: Path, text: str = DAG, acoustic: str = ACOUSTIC) -> tuple[Path, Path]:
    """Write a recogniser, a decoder of its states and their spec; the paths of the graph and of
    the spec."""
    folder.mkdir(parents=True, exist_ok=True)
    ir.save(model_of(text, seed=1), folder / "dag.onnx")
    ir.save(model_of(acoustic, seed=2), folder / "acoustic.onnx")
    (folder / "spec.toml").write_text(SPEC, encoding="utf-8")
    return folder / "dag.onnx", folder / "spec.toml"
