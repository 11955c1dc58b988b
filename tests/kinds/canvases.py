"""A small masked generator, as ONNX text: a class token, a table of positions, two blocks whose
queries, keys and values are one product, and no scores of the mask."""

from __future__ import annotations

_BLOCK = """
  a{i} = LayerNormalization <axis = -1> (x{i}, norm)
  qkv{i} = MatMul (a{i}, wqkv{i})
  heads{i} = Reshape (qkv{i}, split)
  three{i} = Transpose <perm = [2, 0, 3, 1, 4]> (heads{i})
  q{i} = Gather <axis = 0> (three{i}, n0)
  k{i} = Gather <axis = 0> (three{i}, n1)
  v{i} = Gather <axis = 0> (three{i}, n2)
  kt{i} = Transpose <perm = [0, 1, 3, 2]> (k{i})
  products{i} = MatMul (q{i}, kt{i})
  scaled{i} = Mul (products{i}, scale)
  shares{i} = Softmax <axis = -1> (scaled{i})
  read{i} = MatMul (shares{i}, v{i})
  side{i} = Transpose <perm = [0, 2, 1, 3]> (read{i})
  merged{i} = Reshape (side{i}, merge)
  told{i} = MatMul (merged{i}, wo{i})
  y{i} = Add (x{i}, told{i})
  b{i} = LayerNormalization <axis = -1> (y{i}, norm)
  wide{i} = MatMul (b{i}, up{i})
  bent{i} = Gelu (wide{i})
  narrow{i} = MatMul (bent{i}, down{i})
  x{j} = Add (y{i}, narrow{i})
"""


def maskgit(blocks: int = 2, positions: int = 6) -> str:
    """`positions` of 5 tokens, of 3 classes; the mask is id 5."""
    rows = positions + 1
    weights = "".join(
        f", float[8,24] wqkv{i}, float[8,8] wo{i}, float[8,16] up{i}, float[16,8] down{i}"
        for i in range(blocks)
    )
    body = "".join(_BLOCK.format(i=i, j=i + 1) for i in range(blocks))
    return f"""
<ir_version: 10, opset_import: ["" : 20]>
maskgit (int64[B,{positions}] ids, int64[B] label, float[6,8] table, float[{positions},8] places,
         float[3,8] classes, float[8] norm, float[8,5] leave{weights})
  => (float[B,{positions},5] logits)
{{
  n0 = Constant <value_int = 0> ()
  n1 = Constant <value_int = 1> ()
  n2 = Constant <value_int = 2> ()
  one = Constant <value_ints = [1]> ()
  far = Constant <value_ints = [{rows}]> ()
  scale = Constant <value_float = 0.5> ()
  split = Constant <value_ints = [-1, {rows}, 3, 2, 4]> ()
  merge = Constant <value_ints = [-1, {rows}, 8]> ()
  words = Gather (table, ids)
  placed = Add (words, places)
  kind = Gather (classes, label)
  first = Unsqueeze (kind, one)
  x0 = Concat <axis = 1> (first, placed)
{body}
  left = Slice (x{blocks}, one, far, one)
  last = LayerNormalization <axis = -1> (left, norm)
  logits = MatMul (last, leave)
}}
"""


BARE = """
<ir_version: 10, opset_import: ["" : 20]>
bare (int64[B,6] ids, float[4,4] table, float[6,4] places, float[4,3] leave)
  => (float[B,6,3] logits)
{
  x = Gather (table, ids)
  y = Add (x, places)
  kt = Transpose <perm = [0, 2, 1]> (y)
  products = MatMul (y, kt)
  shares = Softmax <axis = -1> (products)
  read = MatMul (shares, y)
  logits = MatMul (read, leave)
}
"""
"""6 positions of 3 tokens and a mask, and one attention without weights."""
