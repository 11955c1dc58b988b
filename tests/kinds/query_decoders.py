"""Small decoders of queries: prototypes of voxels as ONNX text and by torch, masks of pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PROTOOCC = """
<ir_version: 10, opset_import: ["" : 20]>
protoocc (float[B,6,X,Y,Z] voxels, float[8,6,3,3,3] enter, float[5,8,1,1,1] first,
          float[5,8] prototypes, float[8] norm, float[8,8] project, float[8,8] adapt,
          float[8,6] leave, float[8,8] embed)
  => (float[B,5,X,Y,Z] semantics, float[B,5,X,Y,Z] voxelwise, float[B,10,6] said,
      float[B,5,X,Y,Z] noisy)
{
  flat = Constant <value_ints = [0, 8, -1]> ()
  few = Constant <value_ints = [0, 5, -1]> ()
  axis_0 = Constant <value_ints = [0]> ()
  axis_2 = Constant <value_ints = [2]> ()
  five = Constant <value_ints = [5]> ()
  wide = Constant <value_ints = [5, 8]> ()
  h = Conv <pads = [1, 1, 1, 1, 1, 1]> (voxels, enter)
  features = Tanh (h)
  voxelwise = Conv (features, first)
  rows = Reshape (features, flat)
  guessed = Reshape (voxelwise, few)
  shares = Softmax <axis = 1> (guessed)
  total = ReduceSum <keepdims = 1> (shares, axis_2)
  weights = Div (shares, total)
  places = Transpose <perm = [0, 2, 1]> (rows)
  means = MatMul (weights, places)
  adaptive = MatMul (means, adapt)
  normed = LayerNormalization <axis = -1> (prototypes, norm)
  projected = MatMul (normed, project)
  agnostic = Tanh (projected)
  batch = Shape <start = 0, end = 1> (voxels)
  all = Concat <axis = 0> (batch, wide)
  spread = Expand (agnostic, all)
  queries = Concat <axis = 1> (adaptive, spread)
  lively = Constant <value_float = 6.0> ()
  called = MatMul (queries, leave)
  said = Mul (called, lively)
  chances = Softmax <axis = -1> (said)
  known = Slice (chances, axis_0, five, axis_2)
  classes = Transpose <perm = [0, 2, 1]> (known)
  asked = MatMul (queries, embed)
  embedded = Mul (asked, lively)
  masks = MatMul (embedded, rows)
  inside = Sigmoid (masks)
  scored = MatMul (classes, inside)
  sizes = Shape <start = 2> (voxels)
  shape = Concat <axis = 0> (batch, five, sizes)
  semantics = Reshape (scored, shape)
  noise = RandomNormalLike <seed = 7.0> (embedded)
  disturbed = Add (embedded, noise)
  other = MatMul (disturbed, rows)
  there = Sigmoid (other)
  weighed = MatMul (classes, there)
  noisy = Reshape (weighed, shape)
}
"""
"""ProtoOcc (arXiv 2412.08774): a first guess of every voxel averages a prototype of each class, and
stored ones go beside them. The guess, the queries' own scores and masks of disturbed queries were
trained on, and are outputs too."""
OUTPUTS = """float[B,5,X,Y,Z] semantics, float[B,5,X,Y,Z] voxelwise, float[B,10,6] said,
      float[B,5,X,Y,Z] noisy"""
ALONE = PROTOOCC.replace(OUTPUTS, "float[B,5,X,Y,Z] semantics")
"""The same without what was trained on beside it."""
MASKED = ALONE.replace(
    "(float[B,5,X,Y,Z] semantics", "(float[B,10,X,Y,Z] shapes, float[B,5,X,Y,Z] semantics"
).replace(
    "  scored = MatMul",
    """  ten = Constant <value_ints = [10]> ()
  bounds = Shape <start = 2> (voxels)
  asked_for = Concat <axis = 0> (batch, ten, bounds)
  shapes = Reshape (masks, asked_for)
  scored = MatMul""",
)
"""The same, with the mask of each query beside."""
BROADCAST = ALONE.replace("float[5,8] prototypes", "float[1,8] prototypes").replace(
    "  projected = MatMul (normed, project)",
    """  far = Constant <value_ints = [3000, 8]> ()
  spread_out = Expand (normed, far)
  none = Constant <value_ints = [0]> ()
  five_of = Constant <value_ints = [0, 1, 2, 3, 4]> ()
  rows_of = Shape <start = 0, end = 1> (voxels)
  nothing = Mul (rows_of, none)
  at = Add (nothing, five_of)
  few_rows = Gather (spread_out, at)
  projected = MatMul (few_rows, project)""",
)
"""One stored prototype is broadcast to many rows, of which five are read, by what
a size says."""
FLAT = (
    PROTOOCC.replace(OUTPUTS, "float[B,5,H,W] semantics, float[B,10,6] said")
    .replace("X,Y,Z", "H,W").replace("[8,6,3,3,3]", "[8,6,3,3]").replace("1,1,1]", "1,1]")
    .replace("1, 1, 1, 1, 1, 1]", "1, 1, 1, 1]")
)  # fmt: skip
"""The same for the pixels of a map, with its queries' own scores beside."""
PIXELS = """
<ir_version: 10, opset_import: ["" : 20]>
pixels (float[B,6,H,W] maps, float[B,4,3] told, float[8,6,3,3] enter, float[3,8] ask)
  => (float[B,4,H,W] scores)
{
  h = Conv <pads = [1, 1, 1, 1]> (maps, enter)
  features = Relu (h)
  queries = MatMul (told, ask)
  scores = Einsum <equation = "bqd,bdhw->bqhw"> (queries, features)
}
"""
"""A query for each class, which a condition says: their products with the features of all pixels
are the scores."""
CAMERAS = """
<ir_version: 10, opset_import: ["" : 20]>
cameras (float[B,2,3,4,8] images, float[B,2,4,4] poses, float[8,6] enter, float[8,8] ask)
  => (float[B,4,2,4,4] scores)
{
  flat = Constant <value_ints = [0, 6, 32]> ()
  joined = Constant <value_ints = [0, 4, 8]> ()
  voxels = Constant <value_ints = [0, 4, 2, 4, 4]> ()
  pixels = Reshape (images, flat)
  lifted = MatMul (enter, pixels)
  features = Tanh (lifted)
  seen = Reshape (poses, joined)
  queries = MatMul (seen, ask)
  made = MatMul (queries, features)
  scores = Reshape (made, voxels)
}
"""
"""Images of two cameras and where these are; a stand-in for lifting pixels to voxels."""
ATTENTION = """
<ir_version: 10, opset_import: ["" : 20]>
attention (float[B,6,H,W] maps, float[8,6,1,1] enter) => (float[B,8,H,W] out)
{
  flat = Constant <value_ints = [0, 8, -1]> ()
  h = Conv (maps, enter)
  rows = Reshape (h, flat)
  places = Transpose <perm = [0, 2, 1]> (rows)
  products = MatMul (places, rows)
  shares = Softmax <axis = 1> (products)
  read = MatMul (rows, shares)
  size = Shape (h)
  out = Reshape (read, size)
}
"""
"""Every pixel reads all others: a product, but over places."""
LINEAR = """
<ir_version: 10, opset_import: ["" : 20]>
linear (float[B,6,H,W] maps, float[6,5] leave) => (float[B,5,H,W] out)
{
  places = Transpose <perm = [0, 2, 3, 1]> (maps)
  made = MatMul (places, leave)
  out = Transpose <perm = [0, 3, 1, 2]> (made)
}
"""
"""A linear layer scores every pixel."""
CLASSES, WIDTH, LIVELY = 5, 8, 16.0
SIZE = (6, 4, 8)
"""Voxels along each axis of what torch exports."""


def network() -> Any:
    """Prototypes of voxels in torch: seeded weights, and
    stored prototypes as buffers. Its outputs are the first guess, the scores, the queries' own
    and those of disturbed queries."""
    import torch
    from torch import nn

    class Prototypes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Conv3d(6, WIDTH, 3, padding=1)
            self.guess = nn.Conv3d(WIDTH, CLASSES, 1)
            self.register_buffer("stored", torch.randn(CLASSES, WIDTH))
            self.norm, self.project = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
            self.adapt = nn.Linear(WIDTH, WIDTH)
            self.leave = nn.Linear(WIDTH, CLASSES + 1)
            self.embed = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))

        def forward(self, voxels: Any) -> tuple[Any, Any, Any, Any]:
            features = torch.tanh(self.enter(voxels))
            guess = self.guess(features)
            shares = guess.softmax(1).flatten(2)
            weights = shares / shares.sum(-1, keepdim=True)
            means = torch.einsum("bkn,bcn->bkc", weights, features.flatten(2))
            agnostic = self.project(self.norm(self.stored))
            kept = agnostic[None].expand(voxels.shape[0], -1, -1)
            queries = torch.cat([self.adapt(means), kept], 1)
            said = LIVELY * self.leave(queries)
            asked = LIVELY * self.embed(queries)
            noisy = self.scored(said, asked + torch.randn_like(asked), features)
            return guess, self.scored(said, asked, features), said, noisy

        def scored(self, said: Any, asked: Any, features: Any) -> Any:
            masks = torch.einsum("bqd,bdxyz->bqxyz", asked, features)
            chances = said.softmax(-1)[..., :-1]
            return torch.einsum("bqk,bqxyz->bkxyz", chances, masks.sigmoid())

    torch.manual_seed(0)
    return Prototypes().eval()


def export(path: Path) -> Path:
    """Write the network, for any number of rows."""
    import torch

    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        network(), (torch.randn(2, 6, *SIZE),), dynamo=True, opset_version=20,
        dynamic_shapes=({0: batch},), input_names=["voxels"],
        output_names=["voxelwise", "semantics", "said", "noisy"], verbose=False,
    )  # fmt: skip
    program.save(str(path))
    return path
