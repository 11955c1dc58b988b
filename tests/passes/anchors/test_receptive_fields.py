"""Receptive fields are exact: a window is right where the field says so, and nowhere else."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime
import pytest

from graftline.passes.anchors.fields.find import part_from, receptive_fields
from graftline.passes.anchors.fields.span import Blocked
from graftline.receptive_field import ReceptiveField
from tests.kinds.latent_decoders import model_of

HEAD = '<ir_version: 10, opset_import: ["" : 24]>'
WEIGHTS = (
    "float[3,3,3] k3, float[3,3,5] k5, float[3,3,4] t4, float[3,3,7] t7, float[6,3,1] wide, "
    "float[3,3] square, float[3] scale"
)
BODIES: dict[str, str] = {
    "conv": "y = Conv <pads = [1, 1]> (x, k3)",
    "dilated, uneven pads": "y = Conv <dilations = [3], pads = [4, 2]> (x, k3)",
    "no pads": "y = Conv (x, k5)",
    "same": 'y = Conv <auto_pad = "SAME_LOWER"> (x, k5)',
    "down and up": """h = Conv <strides = [2], pads = [1, 1]> (x, k3)
        y = ConvTranspose <strides = [2], pads = [1, 1]> (h, t4)""",
    "transposed": "y = ConvTranspose <strides = [3], pads = [2, 2]> (x, t7)",
    "transposed, cropped and padded": """y = ConvTranspose <strides = [3], pads = [3, 1],
        output_padding = [1], dilations = [2]> (x, t4)""",
    "two branches": """a = Conv <pads = [1, 1]> (x, k3)
        b = Conv <pads = [2, 2]> (a, k5)
        y = Add (a, b)""",
    "causal": """front = Constant <value = int64[6] {0, 0, 4, 0, 0, 0}> ()
        h = Pad (x, front)
        y = Conv (h, k5)""",
    "reflected": """ends = Constant <value = int64[6] {0, 0, 2, 0, 0, 2}> ()
        h = Pad <mode = "reflect"> (x, ends)
        g = Conv (h, k5)
        again = Pad <mode = "edge"> (g, ends)
        y = Conv (again, k5)""",
    "cropped": """h = Conv <pads = [4, 4]> (x, k5)
        zero = Constant <value = int64[1] {0}> ()
        back = Constant <value = int64[1] {-4}> ()
        two = Constant <value = int64[1] {2}> ()
        y = Slice (h, zero, back, two)""",
    "zeros in front": """z = Constant <value = float[1,3,2] {0, 0, 0, 0, 0, 0}> ()
        h = Concat <axis = 2> (z, x)
        y = Conv (h, k3)""",
    "nearest": """s = Constant <value = float[3] {1, 1, 3}> ()
        h = Resize (x, , s)
        y = Conv <pads = [1, 1]> (h, k3)""",
    "linear": """s = Constant <value = float[3] {1, 1, 2}> ()
        y = Resize <mode = "linear"> (x, , s)""",
    "cubic, asymmetric": """s = Constant <value = float[4] {1, 1, 1, 4}> ()
        row = Constant <value = int64[1] {2}> ()
        h = Unsqueeze (x, row)
        g = Resize <mode = "cubic", coordinate_transformation_mode = "asymmetric"> (h, , s)
        y = Squeeze (g, row)""",
    "shrunk": """s = Constant <value = float[3] {1, 1, 0.5}> ()
        h = Resize <mode = "linear"> (x, , s)
        back = Constant <value = float[3] {1, 1, 2}> ()
        g = Resize (h, , back)
        y = Conv <pads = [1, 1]> (g, k3)""",
    "pools": """h = AveragePool <kernel_shape = [3], strides = [2], pads = [1, 1]> (x)
        g = MaxPool <kernel_shape = [2]> (h)
        y = ConvTranspose <strides = [4]> (g, t4)""",
    "subpixels": """h = Conv (x, wide)
        shape = Constant <value = int64[4] {0, 3, 2, -1}> ()
        g = Reshape (h, shape)
        f = Transpose <perm = [0, 1, 3, 2]> (g)
        flat = Constant <value = int64[3] {0, 3, -1}> ()
        e = Reshape (f, flat)
        y = Conv <pads = [1, 1]> (e, k3)""",
    "rows": """h = Transpose <perm = [0, 2, 1]> (x)
        n = LayerNormalization (h, scale)
        g = MatMul (n, square)
        s = Softmax <axis = -1> (g)
        f = Transpose <perm = [0, 2, 1]> (s)
        y = Conv <pads = [1, 1]> (f, k3)""",
    "grown by one": "y = Conv <pads = [1, 2]> (x, k3)",
}  # fmt: skip
INFINITE: dict[str, tuple[str, str]] = {
    "y = InstanceNormalization (x, scale, scale)": ("InstanceNormalization", "statistics of"),
    """shape = Constant <value = int64[3] {0, 1, -1}> ()
       one = Constant <value = float[1] {1}> ()
       h = Reshape (x, shape)
       n = InstanceNormalization (h, one, one)
       back = Shape (x)
       y = Reshape (n, back)""": ("InstanceNormalization", "statistics of the whole"),
    """t = Transpose <perm = [0, 2, 1]> (x)
       m = MatMul (t, x)
       w = Softmax <axis = -1> (m)
       v = MatMul (w, t)
       y = Transpose <perm = [0, 2, 1]> (v)""": ("MatMul", "attention"),
    """axes = Constant <value = int64[1] {2}> ()
       m = ReduceMean (x, axes)
       y = Sub (x, m)""": ("ReduceMean", "statistic of the whole"),
    """last = Constant <value = int64 {2}> ()
       y = CumSum (x, last)""": ("CumSum", "adds up the whole"),
    """s = Constant <value = float[3] {1, 1, 2}> ()
       y = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (x, , s)""": (
        "Resize", "align_corners"),
    "y = Softmax <axis = 2> (x)": ("Softmax", "softmax over the whole"),
    """n = RandomNormalLike (x)
       y = Add (x, n)""": ("RandomNormalLike", "draws noise"),
    """s = Shape (x)
       f = Cast <to = 1> (s)
       i = Constant <value = int64[1] {2}> ()
       l = Gather (f, i)
       y = Div (x, l)""": ("Div", "how long the whole is"),
    """a = Constant <value = int64[1] {-8}> ()
       b = Constant <value = int64[1] {9223372036854775807}> ()
       c = Constant <value = int64[1] {2}> ()
       y = Slice (x, a, b, c)""": ("Slice", "a stretch of the whole"),
    """e = Constant <value = int64[6] {0, 0, 1, 0, 0, 1}> ()
       y = Pad <mode = "wrap"> (x, e)""": ("Pad", "depend on the whole"),
}  # fmt: skip


def field_of(body: str) -> tuple[ir.Model, ReceptiveField | Blocked]:
    text = f"{HEAD} host (float[B,3,N] x, {WEIGHTS}) => (float[B,C,T] y) {{\n{body}\n}}"
    model = model_of(text)
    graph = model.graph
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    part = part_from(graph.inputs[0], graph.outputs[0])
    assert not isinstance(part, Blocked)
    found = receptive_fields(part, graph.outputs[0], (2,), {0: 1, 1: 3})
    return model, found if isinstance(found, Blocked) else found[0]


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_field_is_exact(body: str) -> None:
    model, field = field_of(body)
    assert isinstance(field, ReceptiveField), field
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    random, step = np.random.default_rng(1), field.step

    def run(x: np.ndarray) -> Any:
        return session.run(None, {"x": x})[0]

    whole, begin, stop = 30 * step, 8 * step, 20 * step
    right: np.ndarray | None = None
    for _ in range(4):  # a wrong element may be right by chance, behind a pool
        x = random.standard_normal((1, 3, whole)).astype(np.float32)
        made, tile = run(x), run(x[:, :, begin:stop])
        assert made.shape[2] == field.ratio * whole + field.extra
        there = made[:, :, field.ratio * begin : field.ratio * begin + tile.shape[2]]
        same = np.isclose(there, tile[:, :, : there.shape[2]], rtol=1e-4, atol=1e-6).all((0, 1))
        right = same if right is None else right & same
    assert right is not None
    last = field.ratio * (stop - begin) + field.right
    assert right[field.left : last].all()
    assert not right[: field.left][-1:].any(), "the field is larger than it needs to be in front"
    assert not right[last : last + 1].any(), "the field is larger than it needs to be behind"


@pytest.mark.parametrize(("body", "told"), INFINITE.items())
def test_what_reads_the_whole_is_named(body: str, told: tuple[str, str]) -> None:
    found = field_of(body)[1]
    assert isinstance(found, Blocked), found
    assert re.match(told[0], found.node), found
    assert told[1] in found.reason
