"""Every operator in torch computes what ONNX's reference implementation does."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from graftline.errors import NotApplicable
from graftline.evaluate import run
from graftline.models.training.graph_module import GraphModule
from graftline.models.training.operators import OPERATORS
from tests.passes.tiny_hosts import filled

IMAGE = "float[B,4,6,6] x"
UNARY = [
    "Abs", "Ceil", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSwish", "Identity",
    "LeakyRelu", "LogSoftmax", "Mish", "Neg", "Relu", "Round", "Sigmoid", "Sin", "Softmax",
    "Softplus", "Swish", "Tanh",
]  # fmt: skip
BINARY = ["Add", "Div", "Max", "Min", "Mul", "Sub", "Sum"]
COMPARED = ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]
CASES: dict[str, tuple[str, str]] = {
    **{op: (IMAGE, f"y = {op} (x)") for op in UNARY},
    **{op: (IMAGE, f"s = Sin (x)\n y = {op} (x, s)") for op in BINARY},
    **{
        op: (IMAGE, f"s = Round (x)\n b = {op} (x, s)\n y = Cast <to = 1> (b)") for op in COMPARED
    },
    "Elu alpha": (IMAGE, "y = Elu <alpha = 0.3> (x)"),
    "Gelu tanh": (IMAGE, 'y = Gelu <approximate = "tanh"> (x)'),
    "Log": (IMAGE, "e = Exp (x)\n y = Log (e)"),
    "Sqrt": (IMAGE, "e = Abs (x)\n y = Sqrt (e)"),
    "Reciprocal": (IMAGE, "e = Exp (x)\n y = Reciprocal (e)"),
    "And Or Not": (
        IMAGE,
        "s = Sin (x)\n a = Less (x, s)\n n = Not (a)\n c = Less (s, x)\n o = Or (n, c)\n"
        " b = And (o, c)\n y = Where (b, x, s)",
    ),
    "Pow": (IMAGE, "two = Constant <value_float = 2.0> ()\n y = Pow (x, two)"),
    "Mod": (IMAGE, "two = Constant <value_float = 0.7> ()\n y = Mod <fmod = 1> (x, two)"),
    "whole Div": (
        IMAGE,
        "k = Constant <value_ints = [-7, 7, 8]> ()\n d = Constant <value_ints = [2]> ()\n"
        " q = Div (k, d)\n f = CastLike (q, x)\n r = ReduceSum (f)\n y = Add (x, r)",
    ),
    "Clip": (
        IMAGE,
        "a = Constant <value_float = -0.5> ()\n b = Constant <value_float = 0.7> ()\n"
        " y = Clip (x, a, b)",
    ),
    "PRelu": (f"{IMAGE}, float[4,1,1] w", "y = PRelu (x, w)"),
    "MatMul": (f"{IMAGE}, float[6,5] w", "y = MatMul (x, w)"),
    "Gemm": (
        f"{IMAGE}, float[5,144] w, float[5] c",
        "f = Flatten (x)\n y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (f, w, c)",
    ),
    "Einsum": (f"{IMAGE}, float[6,5] w", 'y = Einsum <equation = "bchw,wk->bckh"> (x, w)'),
    "Conv": (
        f"{IMAGE}, float[6,2,3,3] w, float[6] c",
        "y = Conv <group = 2, strides = [2, 1], pads = [1, 0, 2, 1], dilations = [1, 2]> (x, w, c)",
    ),
    "ConvTranspose": (
        f"{IMAGE}, float[4,3,4,4] w, float[3] c",
        "y = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1],"
        " output_padding = [1, 0]> (x, w, c)",
    ),
    "AveragePool": (
        IMAGE, "y = AveragePool <kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 1, 0]> (x)",
    ),
    "MaxPool": (
        IMAGE, "y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [0, 0, 1, 1]> (x)",
    ),
    "GlobalAveragePool": (IMAGE, "y = GlobalAveragePool (x)"),
    "LayerNormalization": (
        f"{IMAGE}, float[6] w, float[6] c", "y = LayerNormalization <epsilon = 0.01> (x, w, c)",
    ),
    "RMSNormalization": (f"{IMAGE}, float[6] w", "y = RMSNormalization (x, w)"),
    "GroupNormalization": (
        f"{IMAGE}, float[4] w, float[4] c", "y = GroupNormalization <num_groups = 2> (x, w, c)",
    ),
    "InstanceNormalization": (
        f"{IMAGE}, float[4] w, float[4] c", "y = InstanceNormalization (x, w, c)",
    ),
    "BatchNormalization": (
        f"{IMAGE}, float[4] w, float[4] c, float[4] m",
        "v = Exp (m)\n y = BatchNormalization (x, w, c, m, v)",
    ),
    **{
        op: (IMAGE, f"a = Constant <value_ints = [-1, 1]> ()\n y = {op} <keepdims = 0> (x, a)")
        for op in ("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum")
    },
    "ReduceSum of all": (IMAGE, "y = ReduceSum (x)"),
    "Transpose": (IMAGE, "y = Transpose <perm = [0, 2, 3, 1]> (x)"),
    "Shape Reshape": (
        IMAGE,
        "s = Shape <end = 2> (x)\n r = Constant <value_ints = [-1]> ()\n"
        " to = Concat <axis = 0> (s, r)\n y = Reshape (x, to)",
    ),
    "Reshape of zeros": (IMAGE, "s = Constant <value_ints = [0, 2, -1, 0]> ()\n"
                         " y = Reshape (x, s)"),
    "Size Range Gather": (
        IMAGE,
        "n = Constant <value_int = 4> ()\n z = Constant <value_int = 0> ()\n"
        " two = Constant <value_int = 2> ()\n r = Range (z, n, two)\n c = Size (r)\n"
        " m = Neg (c)\n one = Unsqueeze (m, z)\n all = Concat <axis = 0> (r, one)\n"
        " y = Gather <axis = 2> (x, all)",
    ),
    "Slice": (
        IMAGE,
        "a = Constant <value_ints = [-1, 1]> ()\n b = Constant <value_ints = [-99, 99]> ()\n"
        " c = Constant <value_ints = [3, 1]> ()\n d = Constant <value_ints = [-2, 2]> ()\n"
        " y = Slice (x, a, b, c, d)",
    ),
    "Split Concat": (IMAGE, "a, b = Split <axis = 1, num_outputs = 2> (x)\n"
                     " y = Concat <axis = -1> (b, a)"),
    "Split sizes": (
        IMAGE,
        "s = Constant <value_ints = [1, 3]> ()\n a, b = Split <axis = 1> (x, s)\n"
        " y = Mul (a, b)",
    ),
    "Unsqueeze Squeeze": (
        IMAGE,
        "a = Constant <value_ints = [1, -1]> ()\n u = Unsqueeze (x, a)\n"
        " b = Constant <value_ints = [1]> ()\n y = Squeeze (u, b)",
    ),
    "Expand Tile": (
        f"{IMAGE}, float[4,1,1] w",
        "s = Constant <value_ints = [1, 6, 6]> ()\n e = Expand (w, s)\n"
        " t = Constant <value_ints = [1, 1, 2, 1]> ()\n z = Tile (x, t)\n"
        " h = Tile (e, r)\n r0 = Add (z, h)\n y = Neg (r0)".replace(
            " h = Tile (e, r)", " r = Constant <value_ints = [1, 2, 1]> ()\n h = Tile (e, r)"
        ),
    ),
    "ConstantOfShape": (
        IMAGE, "s = Shape (x)\n z = ConstantOfShape <value = float[1] {2.5}> (s)\n y = Mul (x, z)",
    ),
    **{
        f"Pad {mode}": (
            IMAGE,
            f'p = Constant <value_ints = [1, 2, 0, 1]> ()\n y = Pad <mode = "{mode}"> (x, p, , a)'
            .replace("y =", "a = Constant <value_ints = [2, 3]> ()\n y ="),
        )
        for mode in ("constant", "reflect", "edge")
    },
    **{
        f"DepthToSpace {mode}": (IMAGE, f'y = DepthToSpace <blocksize = 2, mode = "{mode}"> (x)')
        for mode in ("DCR", "CRD")
    },
    "SpaceToDepth": (IMAGE, "y = SpaceToDepth <blocksize = 2> (x)"),
    "Attention": (IMAGE, "y = Attention <is_causal = 1> (x, x, x)"),
    "Attention of heads": (
        IMAGE,
        "s = Constant <value_ints = [0, 4, -1]> ()\n f = Reshape (x, s)\n"
        " y = Attention <q_num_heads = 6, kv_num_heads = 3, scale = 0.3> (f, h, h)".replace(
            "(f, h, h)", "(f, g, g)"
        ).replace(
            "y =", "a, b = Split <axis = 2, num_outputs = 2> (f)\n g = Add (a, b)\n y ="
        ),
    ),
}  # fmt: skip
RESIZED = [
    (mode, how, nearest)
    for mode, nearest in [
        ("linear", "floor"), *(("nearest", n) for n in (
            "floor", "ceil", "round_prefer_floor", "round_prefer_ceil")),
    ]
    for how in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
]  # fmt: skip


def compared(inputs: str, body: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, GraphModule]:
    """What torch and the reference make of one graph."""
    text = f'<ir_version: 11, opset_import: ["" : 24]> g ({inputs}) => (float[R] y) {{ {body} }}'
    random = np.random.default_rng(seed)
    weights: dict[str, Any] = {}
    for value in ir.from_onnx_text(text).graph.inputs:
        dims = [d for d in value.shape or () if isinstance(d, int)]
        if value.name != "x":
            weights[value.name or ""] = random.standard_normal(dims).astype(np.float32)
    model = filled(text, weights)
    ir.passes.common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    x = random.standard_normal((2, 4, 6, 6)).astype(np.float32)
    module = GraphModule(model)
    made = module({"x": torch.from_numpy(x)}, "y").detach().numpy()
    return made, run(model, {"x": x})["y"], module


@pytest.mark.parametrize("name", CASES)
def test_an_operator_is_onnxs(name: str) -> None:
    made, expected, _ = compared(*CASES[name])
    assert made.shape == expected.shape
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("mode", "how", "nearest"), RESIZED)
@pytest.mark.parametrize("scale", [2.0, 1.5, 0.5])
def test_resize_is_onnxs(mode: str, how: str, nearest: str, scale: float) -> None:
    body = (
        f"s = Constant <value_floats = [1.0, 1.0, {scale}, 2.0]> ()\n y = Resize <mode = "
        f'"{mode}", coordinate_transformation_mode = "{how}", nearest_mode = "{nearest}"> (x, , s)'
    )
    made, expected, _ = compared(IMAGE, body)
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)


def test_every_operator_has_a_case() -> None:
    bodies = " ".join(body for _, body in CASES.values()) + " Resize "
    assert [op for op in OPERATORS if f"= {op} " not in bodies and op != "Resize"] == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('s = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> ()\n y = Resize <mode = "cubic"> '
         "(x, , s)", "Resize '' has cubic"),
        ("y = Conv <auto_pad = \"SAME_UPPER\"> (x, w)", "Conv '' has auto_pad SAME_UPPER"),
        ("y = MaxPool <kernel_shape = [2, 2], ceil_mode = 1> (x)", "MaxPool '' has not two axes"),
        ("y = Attention <softcap = 2.0> (x, x, x)", "Attention '' has a past, a soft cap"),
        ("k = NonZero (x)\n y = Cast <to = 1> (k)", "no gradients here through NonZero"),
        ("h = Cast <to = 10> (x)\n y = Cast <to = 1> (h)", "Cast '' casts to FLOAT16"),
    ],
)  # fmt: skip
def test_what_nothing_is_trained_in_is_named(body: str, message: str) -> None:
    with pytest.raises(NotApplicable) as refusal:
        compared(f"{IMAGE}, float[4,4,3,3] w", body)
    assert message in str(refusal.value)


def test_weights_are_what_is_learned_and_no_sizes() -> None:
    body = (
        "s = Constant <value_floats = [1.0, 1.0, 2.0, 2.0]> ()\n r = Resize (x, , s)\n"
        " b = BatchNormalization (r, c, c, m, v)\n half = Constant <value_float = 0.5> ()\n"
        " h = Mul (b, half)\n y = Conv (h, w)"
    )
    inputs = f"{IMAGE}, float[5,4,3,3] w, float[4] c, float[4] m, float[4] v"
    with np.errstate(invalid="ignore"):
        _, _, module = compared(inputs, body)
    assert set(module.weights) == {"w", "c"}


def test_gradients_are_those_of_small_changes_and_weights_go_back() -> None:
    module = compared(*CASES["Conv"])[2]
    feed = {"x": torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))}
    weight = module.weights["w"]
    module(feed, "y").square().sum().backward()
    assert weight.grad is not None
    slope = float(weight.grad[1, 1, 2, 0])
    totals: list[float] = []
    for change in (1e-2, -2e-2):
        with torch.no_grad():
            weight[1, 1, 2, 0] += change
            totals.append(float(module(feed, "y").square().sum()))
    assert (totals[0] - totals[1]) / 2e-2 == pytest.approx(slope, rel=1e-2)
    changed = run(module.written(), {"x": feed["x"].numpy()})["y"]
    np.testing.assert_allclose(changed, module(feed, "y").detach().numpy(), rtol=1e-5, atol=1e-5)
    old = run(module.model, {"x": feed["x"].numpy()})["y"]
    assert np.abs(old - changed).max() > 1e-4, "the graph itself stays as it was"
