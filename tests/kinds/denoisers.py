"""A small convolutional denoiser, exported by torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def export_denoiser(path: Path, opset: int = 20, conditioned: bool = False) -> Path:
    """Write a UNet of two scales with random weights, of any height and width."""
    import torch
    from torch import nn

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16))
            self.enter = nn.Conv2d(4, 16, 3, padding=1)
            self.down = nn.Conv2d(16, 16, 3, stride=2, padding=1)
            self.norm = nn.GroupNorm(4, 16)
            self.middle = nn.Conv2d(16, 16, 3, padding=1)
            self.attend = nn.MultiheadAttention(16, 2, kdim=12, vdim=12, batch_first=True)
            self.leave = nn.Conv2d(32, 4, 3, padding=1)

        def forward(self, x: Any, step: Any, context: Any = None) -> Any:
            rates = torch.exp(-torch.arange(4, dtype=torch.float32))
            angles = step[:, None].to(torch.float32) * rates
            time = self.time(torch.cat([angles.sin(), angles.cos()], -1))
            first = self.enter(x)
            y = self.down(first) + time[:, :, None, None]
            y = self.middle(nn.functional.silu(self.norm(y)))
            if context is not None:
                flat = y.flatten(2).transpose(1, 2)
                seen = self.attend(flat, context, context, need_weights=False)[0]
                y = y + seen.transpose(1, 2).reshape(y.shape)
            y = nn.functional.interpolate(y, scale_factor=2, mode="nearest")
            return self.leave(torch.cat([y, first], 1))

    torch.manual_seed(0)
    batch, height, width = (torch.export.Dim(n) for n in ("batch", "height", "width"))
    given: tuple[Any, ...] = (torch.randn(2, 4, 16, 32), torch.tensor([3, 500]))
    shapes: list[Any] = [{0: batch, 2: 2 * height, 3: 2 * width}, {0: batch}]
    if conditioned:
        given, shapes = (*given, torch.randn(2, 5, 12)), [*shapes, {0: batch}]
    program = torch.onnx.export(
        UNet().eval(), given, dynamo=True, opset_version=opset, dynamic_shapes=tuple(shapes),
        input_names=["latent", "t", "text"][: len(given)], output_names=["noise"], verbose=False,
    )  # fmt: skip
    program.save(str(path))
    return path


def export_branching(path: Path) -> Path:
    """Write a network of one convolution, another one from time step 500 on: an If that only the
    feed decides."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    random = np.random.default_rng(0)

    def branch(name: str) -> onnx.GraphProto:
        weight = random.standard_normal((4, 4, 3, 3)).astype(np.float32) / 6
        held = numpy_helper.from_array(weight, f"{name}.weight")
        node = helper.make_node("Conv", ["x", f"{name}.weight"], [f"{name}.y"], pads=[1, 1, 1, 1])
        out = helper.make_tensor_value_info(f"{name}.y", onnx.TensorProto.FLOAT, None)
        return helper.make_graph([node], name, [], [out], [held])

    limit = numpy_helper.from_array(np.asarray(500, np.int64), "limit")
    first = numpy_helper.from_array(np.asarray(0, np.int64), "first")
    nodes = [
        helper.make_node("Gather", ["t", "first"], ["step"]),
        helper.make_node("Less", ["step", "limit"], ["early"]),
        helper.make_node(
            "If", ["early"], ["made"], then_branch=branch("early"), else_branch=branch("late")
        ),
        helper.make_node("Tanh", ["made"], ["noise"]),
    ]
    shape = ["B", 4, "H", "W"]
    graph = helper.make_graph(
        nodes, "branching",
        [
            helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("t", onnx.TensorProto.INT64, ["B"]),
        ],
        [helper.make_tensor_value_info("noise", onnx.TensorProto.FLOAT, shape)],
        [limit, first],
    )  # fmt: skip
    opset = helper.make_opsetid("", 20)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), str(path))
    return path
