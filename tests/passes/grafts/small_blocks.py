"""Small hosts as text, whose blocks add attention and an MLP to the stream in several ways."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graftline.facts import DecoderFacts, write_facts
from graftline.passes.laws.common import infer_shapes
from graftline.ports import Port, write_ports
from tests.passes.tiny_hosts import filled

HEAD = """
<ir_version: 11, opset_import: ["" : 24]>
small (int64[B,N] tokens, float[9,16] table, float[16] scale, int64[1] one, float[16,16] up,
       float[16] bias, float[16,9] head{more})
  => (float[B,N,9] logits)
{
  x0 = Gather (table, tokens)
"""
ONE_BY_ONE = """
  normed{i} = RMSNormalization <axis = -1> (x{i}, scale)
  heads{i} = Unsqueeze (normed{i}, one)
  mixed{i} = Attention <is_causal = 1> (heads{i}, heads{i}, heads{i})
  added{i} = Squeeze (mixed{i}, one)
  m{i} = Add (x{i}, added{i})
  again{i} = RMSNormalization <axis = -1> (m{i}, scale)
  wide{i} = MatMul (again{i}, up)
  mlp{i} = Add (wide{i}, bias)
  x{j} = Add (m{i}, mlp{i})
"""
SIDE_BY_SIDE = """
  normed{i} = RMSNormalization <axis = -1> (x{i}, scale)
  heads{i} = Unsqueeze (normed{i}, one)
  mixed{i} = Attention <is_causal = 1> (heads{i}, heads{i}, heads{i})
  added{i} = Squeeze (mixed{i}, one)
  wide{i} = MatMul (normed{i}, up)
  mlp{i} = Add (wide{i}, bias)
  both{i} = Add (added{i}, mlp{i})
  x{j} = Add (both{i}, x{i})
"""
BEHIND_A_NORM = """
  heads{i} = Unsqueeze (x{i}, one)
  mixed{i} = Attention <is_causal = 1> (heads{i}, heads{i}, heads{i})
  added{i} = Squeeze (mixed{i}, one)
  m{i} = Add (x{i}, added{i})
  normed{i} = RMSNormalization <axis = -1> (m{i}, scale)
  wide{i} = MatMul (normed{i}, up)
  sum{i} = Add (normed{i}, wide{i})
  x{j} = RMSNormalization <axis = -1> (sum{i}, scale)
"""
EXPERTS = """
  normed{i} = RMSNormalization <axis = -1> (x{i}, scale)
  heads{i} = Unsqueeze (normed{i}, one)
  mixed{i} = Attention <is_causal = 1> (heads{i}, heads{i}, heads{i})
  added{i} = Squeeze (mixed{i}, one)
  m{i} = Add (x{i}, added{i})
  again{i} = RMSNormalization <axis = -1> (m{i}, scale)
  scored{i} = MatMul (again{i}, router)
  best{i}, chosen{i} = TopK (scored{i}, chosen)
  shares{i} = Softmax (best{i})
  index{i} = Unsqueeze (chosen{i}, end)
  own{i} = GatherND (experts, index{i})
  row{i} = Unsqueeze (again{i}, behind)
  made{i} = MatMul (row{i}, own{i})
  each{i} = Squeeze (made{i}, three)
  share{i} = Unsqueeze (shares{i}, end)
  weighed{i} = Mul (each{i}, share{i})
  mlp{i} = ReduceSum <keepdims = 0> (weighed{i}, two)
  x{j} = Add (m{i}, mlp{i})
"""
"""As exported: of three experts a row gathers the matrices of two."""
EXPERTS_IN_ONE_AXIS = """
  normed{i} = RMSNormalization <axis = -1> (x{i}, scale)
  heads{i} = Unsqueeze (normed{i}, one)
  mixed{i} = Attention <is_causal = 1> (heads{i}, heads{i}, heads{i})
  squeezed{i} = Squeeze (mixed{i}, one)
  sizes{i} = Shape (normed{i})
  added{i} = Reshape (squeezed{i}, sizes{i})
  m{i} = Add (x{i}, added{i})
  again{i} = RMSNormalization <axis = -1> (m{i}, scale)
  rows{i} = Reshape (again{i}, flat)
  scored{i} = MatMul (rows{i}, router)
  best{i}, chosen{i} = TopK (scored{i}, chosen)
  shares{i} = Softmax (best{i})
  index{i} = Unsqueeze (chosen{i}, end)
  own{i} = GatherND (experts, index{i})
  row{i} = Unsqueeze (rows{i}, ahead)
  made{i} = MatMul (row{i}, own{i})
  each{i} = Squeeze (made{i}, two)
  share{i} = Unsqueeze (shares{i}, end)
  weighed{i} = Mul (each{i}, share{i})
  summed{i} = ReduceSum <keepdims = 0> (weighed{i}, one)
  mlp{i} = Reshape (summed{i}, sizes{i})
  x{j} = Add (m{i}, mlp{i})
"""
"""The same over the rows of all sequences in one axis, and back by the shape of all rows."""
EXPERT_NUMBERS: dict[str, np.ndarray] = {
    "router": np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32),
    "experts": np.random.default_rng(2).normal(size=(3, 16, 16)).astype(np.float32),
    "chosen": np.asarray([2]), "end": np.asarray([-1]), "behind": np.asarray([2, 3]),
    "three": np.asarray([3]), "two": np.asarray([2]), "flat": np.asarray([-1, 16]),
    "ahead": np.asarray([1, 2]),
}  # fmt: skip
TAIL = """
  last = RMSNormalization <axis = -1> (x{j}, scale)
  logits = MatMul (last, head)
}
"""
FEED = {"tokens": np.asarray([[3, 1, 4, 1]])}


def small(
    block: str = ONE_BY_ONE, blocks: int = 2, more: Mapping[str, np.ndarray] | None = None
) -> ir.Model:
    """A host of such blocks; `more` are weights that these have besides."""
    own = dict(more or {})
    rng = np.random.default_rng(0)
    numbers: dict[str, np.ndarray] = {
        "table": rng.normal(size=(9, 16)).astype(np.float32),
        "scale": rng.normal(size=16).astype(np.float32),
        "one": np.ones(1, np.int64),
        "up": rng.normal(size=(16, 16)).astype(np.float32),
        "bias": rng.normal(size=16).astype(np.float32),
        "head": rng.normal(size=(16, 9)).astype(np.float32),
    }
    parts = [block.replace("{i}", str(i)).replace("{j}", str(i + 1)) for i in range(blocks)]
    types = {"float32": "float", "int64": "int64"}
    said = [f", {types[a.dtype.name]}{list(a.shape)} {name}" for name, a in own.items()]
    head = HEAD.replace("{more}", "".join(said))
    model = filled(head + "".join(parts) + TAIL.replace("{j}", str(blocks)), numbers | own)
    ports = [
        Port("tokens", "tokens", "in", "int64", ("B", "N")),
        Port("logits", "logits", "out", "float32", ("B", "N", 9)),
    ]
    write_ports(model, ports)
    write_facts(model, DecoderFacts(9, 16, blocks, 1, 1, 16, 64))
    infer_shapes(model)
    return model
