"""ONNX's operators in torch, as opset 24 defines them: what a graph's gradients are taken of."""

from __future__ import annotations

from graftline.models.training.operators.arithmetic import ARITHMETIC
from graftline.models.training.operators.moves import MOVES
from graftline.models.training.operators.norms import NORMS
from graftline.models.training.operators.operator import Operator
from graftline.models.training.operators.products import PRODUCTS
from graftline.models.training.operators.resize import resize

OPERATORS: dict[str, Operator] = {
    **ARITHMETIC, **MOVES, **NORMS, **PRODUCTS, "Resize": resize,
}  # fmt: skip
"""By ONNX's name."""
