"""tests/bench/layers_model.py: a layers model of TensorFlow.js as an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from graftline.errors import CheckpointError
from tests.bench.layers_model import converted

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(0)
WEIGHTS: dict[str, Array] = {
    name: RANDOM.standard_normal(shape).astype(np.float32)
    for name, shape in {
        "wide/kernel": (3, 2, 3, 4), "wide/bias": (4,),
        "last/kernel": (1, 1, 7, 3), "last/bias": (3,),
    }.items()
}  # fmt: skip


def layer(kind: str, name: str, inputs: list[str], **options: Any) -> dict[str, Any]:
    config = {"name": name, "trainable": True, "dtype": "float32", **options}
    calls = [[[one, 0, 0, {}] for one in inputs]] if inputs else []
    return {"class_name": kind, "name": name, "config": config, "inbound_nodes": calls}


def convolution(name: str, given: str, filters: int, sides: list[int], pad: str) -> dict[str, Any]:
    return layer(
        "Conv2D", name, [given], filters=filters, kernel_size=sides, padding=pad, strides=[1, 1],
        data_format="channels_last", dilation_rate=[1, 1], groups=1, activation="linear",
        use_bias=True, kernel_initializer={"class_name": "Zeros"},
    )  # fmt: skip


TOPOLOGY: dict[str, Any] = {"model_config": {"config": {
    "name": "tiny", "input_layers": [["image", 0, 0]], "output_layers": [["large", 0, 0]],
    "layers": [
        layer("InputLayer", "image", [], batch_input_shape=[None, None, None, 3], sparse=False,
              ragged=False),
        convolution("wide", "image", 4, [3, 2], "same"),
        layer("Activation", "cut", ["wide"], activation="relu"),
        layer("Concatenate", "both", ["image", "cut"], axis=3),
        convolution("last", "both", 3, [1, 1], "valid"),
        layer("Add", "sum", ["last", "image"]),
        layer("UpSampling2D", "large", ["sum"], size=[2, 3], data_format="channels_last",
              interpolation="nearest"),
    ],
}}}  # fmt: skip
MANIFEST: list[dict[str, Any]] = [
    {
        "paths": ["one.bin", "two.bin"],
        "weights": [
            {"name": n, "shape": list(v.shape), "dtype": "float32"} for n, v in WEIGHTS.items()
        ],
    }
]
DATA = b"".join(value.tobytes() for value in WEIGHTS.values())
SHARDS = [DATA[:50], DATA[50:]]


def expected(image: Array) -> Array:
    """The net on [B, H, W, C], by its layers' definitions in TensorFlow: a kernel of two columns
    padded with `same` looks to the right."""
    padded = np.pad(image, ((0, 0), (1, 1), (0, 1), (0, 0)))
    windows = sliding_window_view(padded, (3, 2), axis=(1, 2))
    wide = np.einsum("bhwcij,ijco->bhwo", windows, WEIGHTS["wide/kernel"]) + WEIGHTS["wide/bias"]
    both = np.concatenate([image, np.maximum(wide, 0)], 3)
    summed = both @ WEIGHTS["last/kernel"][0, 0] + WEIGHTS["last/bias"] + image
    return summed.repeat(2, 1).repeat(3, 2)


def test_the_graph_computes_what_the_layers_say() -> None:
    model = converted(TOPOLOGY, MANIFEST, SHARDS)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    image = RANDOM.standard_normal((2, 5, 4, 3)).astype(np.float32)
    made: Any = session.run(None, {"image": image.transpose(0, 3, 1, 2)})[0]
    np.testing.assert_allclose(made.transpose(0, 2, 3, 1), expected(image), rtol=0, atol=1e-5)


def changed(change: Callable[[dict[str, Any]], None], at: int) -> dict[str, Any]:
    topology = deepcopy(TOPOLOGY)
    change(topology["model_config"]["config"]["layers"][at])
    return topology


@pytest.mark.parametrize(
    ("at", "change", "reason"),
    [
        (2, lambda one: one.update(class_name="PReLU"), "cut: PReLU is not known"),
        (1, lambda one: one["config"].update(strides=[2, 2]), r"strides \[2, 2\]; only \[1, 1"),
        (1, lambda one: one["config"].update(depth=2), "wide: the option depth is not known"),
        (1, lambda one: one["config"].pop("use_bias"), "wide: the option use_bias is missing"),
        (3, lambda one: one.update(shared=True), "both: shared is not known"),
        (1, lambda one: one["config"].update(padding="causal"), "wide: padding causal; same and"),
        (1, lambda one: one["config"].update(filters=8), "weight 'wide/kernel' is"),
        (4, lambda one: one.update(name="other"), "other: name last; only other is known"),
        (0, lambda one: one["config"].update(batch_input_shape=[1, 8, 8, 3]), "is not .B, H, W, C"),
        (5, lambda one: one["inbound_nodes"].append([]), "sum: inbound_nodes .*called once"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_named(
    at: int, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        converted(changed(change, at), MANIFEST, SHARDS)


def test_weights_are_read_whole_or_refused() -> None:
    with pytest.raises(CheckpointError, match="'last/bias' goes beyond the end"):
        converted(TOPOLOGY, MANIFEST, [SHARDS[0], SHARDS[1][:-4]])
    with pytest.raises(CheckpointError, match=r"4 bytes of .* belong to no weight"):
        converted(TOPOLOGY, MANIFEST, [*SHARDS[:1], SHARDS[1] + bytes(4)])
    quantized = deepcopy(MANIFEST)
    quantized[0]["weights"][0]["quantization"] = {"dtype": "uint8"}
    with pytest.raises(CheckpointError, match=r"'wide/kernel': .*quantization.* is not known"):
        converted(TOPOLOGY, quantized, SHARDS)
