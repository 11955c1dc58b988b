"""What a P-EAGLE head has in place of a target's feature where a token is not known yet."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graftline.models.heads.eagle3 import Eagle3Settings
from graftline.models.heads.head import Head
from graftline.tensors import numbers

Doubles = npt.NDArray[np.float64]


def mask_feature(head: Head) -> ir.TensorProtocol:
    """[H]: fc of `mask_hidden`, which stands for the taps, normed as taps are; made when read."""
    settings = head.settings
    assert isinstance(settings, Eagle3Settings)

    def make() -> ir.TensorProtocol:
        return ir.tensor(_entry(settings, head.tensors).astype(np.float32), name="mask_feature")

    shape = ir.Shape([settings.block.hidden])
    return ir.LazyTensor(make, dtype=ir.DataType.FLOAT, shape=shape, name="mask_feature")


def _entry(settings: Eagle3Settings, tensors: Mapping[str, ir.TensorProtocol]) -> Doubles:
    def weight(name: str) -> Doubles:
        return np.asarray(numbers(tensors[name]), np.float64)

    def normed(x: Doubles, name: str) -> Doubles:
        return x / np.sqrt(np.mean(x * x) + settings.block.epsilon) * weight(f"{name}.weight")

    taps = weight("mask_hidden").reshape(settings.taps, settings.host_hidden)
    if settings.fc_norm:
        taps = np.stack([normed(tap, f"fc_norm.{i}") for i, tap in enumerate(taps)])
    both = taps.reshape(-1)
    if settings.norm_before_fc:
        both = normed(both, "fc_norm")
    made = weight("fc.weight") @ both
    return made + weight("fc.bias") if "fc.bias" in tensors else made
