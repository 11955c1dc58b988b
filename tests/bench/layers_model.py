"""A TensorFlow.js layers model (`model.json` and its weight shards) as an ONNX graph.

Read are the layers of small convolutional nets on images, at stride 1 and in float32. Any other
layer, option or value is named and refused: nothing is guessed. The graph is channels-first, where
the file is channels-last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from graftline.errors import CheckpointError

Array = npt.NDArray[Any]
Config = Mapping[str, Any]
OPSET, IR_VERSION = 20, 10
TRAINING = frozenset({
    "trainable", "kernel_initializer", "bias_initializer", "kernel_regularizer",
    "bias_regularizer", "activity_regularizer", "kernel_constraint", "bias_constraint",
})  # fmt: skip
"""Options that only training reads."""


@dataclass(frozen=True)
class Layer:
    """What is known of a class of layers: options with the one value that is understood, options
    that `write` reads, and what writes the nodes and returns the name of the last one's output."""

    fixed: Config
    read: frozenset[str]
    write: Callable[[Network, str, Config, Sequence[str]], str]


@dataclass
class Network:
    """The graph so far. `weights` are by the file's names, kernels as [H, W, in, out]."""

    weights: dict[str, Array]
    nodes: list[onnx.NodeProto] = field(default_factory=list[onnx.NodeProto])
    constants: list[TensorProto] = field(default_factory=list[TensorProto])

    def op(self, kind: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        """One node; its output is called as the layer is."""
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def constant(self, name: str, value: Array) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weight(self, name: str, shape: Sequence[int]) -> Array:
        """One tensor of the file, of that shape, and each once. Raises CheckpointError."""
        if name not in self.weights:
            raise CheckpointError(f"weight '{name}' is not in the manifest, or is used twice")
        value = self.weights.pop(name)
        if value.shape != tuple(shape):
            raise CheckpointError(
                f"weight '{name}' is {list(value.shape)}; its layer says {list(shape)}"
            )
        return value


def converted(
    topology: Config, manifest: Sequence[Config], shards: Sequence[bytes]
) -> onnx.ModelProto:
    """The graph [B, C, H, W] to [B, C', H', W'] of a `model.json`'s "modelTopology" and
    "weightsManifest", with the bytes of the manifest's files in order. Raises CheckpointError for
    what is not known."""
    model = topology["model_config"]["config"]
    layers: Sequence[Config] = model["layers"]
    network, channels = Network(read_weights(manifest, shards)), dict[str, int]()
    for layer in layers:
        if layer["class_name"] == "InputLayer":
            channels[layer["name"]] = input_channels(layer)
        else:
            write_layer(network, layer)
    ends = [*model["input_layers"], *model["output_layers"]]
    if len(ends) != 2 or any(end[1:] != [0, 0] for end in ends):
        raise CheckpointError(f"inputs and outputs {ends}: one of each is known")
    if network.weights:
        raise CheckpointError(f"weight '{next(iter(network.weights))}' belongs to no layer")
    (first, *_), (last, *_) = ends
    float32 = TensorProto.FLOAT
    graph = helper.make_graph(
        network.nodes, str(model["name"]),
        [helper.make_tensor_value_info(first, float32, ["B", channels[first], "H", "W"])],
        [helper.make_tensor_value_info(last, float32, ["B", None, None, None])],
        network.constants,
    )  # fmt: skip
    opset = helper.make_opsetid("", OPSET)
    made = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    made = onnx.shape_inference.infer_shapes(made, check_type=True, strict_mode=True)
    onnx.checker.check_model(made, full_check=True)
    return made


def read_weights(manifest: Sequence[Config], shards: Sequence[bytes]) -> dict[str, Array]:
    """The tensors by name: those of a group follow one another in its files. Raises
    CheckpointError for other types than float32, and where sizes differ."""
    found: dict[str, Array] = {}
    rest = list(shards)
    for group in manifest:
        paths, entries = group["paths"], group["weights"]
        data, at = b"".join(rest[: len(paths)]), 0
        rest = rest[len(paths) :]
        for entry in entries:
            if entry["dtype"] != "float32" or (odd := set(entry) - {"name", "shape", "dtype"}):
                what = odd if entry["dtype"] == "float32" else entry["dtype"]
                raise CheckpointError(f"weight '{entry['name']}': {what} is not known")
            size = 4 * prod(entry["shape"])
            values = np.frombuffer(data[at : at + size], "<f4")
            if values.nbytes != size:
                raise CheckpointError(f"weight '{entry['name']}' goes beyond the end of {paths}")
            found[entry["name"]] = values.reshape(entry["shape"])
            at += size
        if at != len(data):
            raise CheckpointError(f"{len(data) - at} bytes of {paths} belong to no weight")
    return found


def input_channels(layer: Config) -> int:
    """Of an image [B, H, W, C] of any size. Raises CheckpointError for any other input."""
    config = layer["config"]
    check(layer, {"sparse": False, "ragged": False}, frozenset({"batch_input_shape"}))
    shape = config["batch_input_shape"]
    if len(shape) != 4 or shape[:3] != [None] * 3 or not shape[3]:
        raise CheckpointError(f"{layer['name']}: batch_input_shape {shape} is not [B, H, W, C]")
    return int(shape[3])


def write_layer(network: Network, layer: Config) -> None:
    """The nodes of a layer. Raises CheckpointError for one that is not known."""
    name, kind, calls = layer["name"], layer["class_name"], layer["inbound_nodes"]
    if kind not in LAYERS:
        raise CheckpointError(f"{name}: {kind} is not known; known are {', '.join(LAYERS)}")
    known = LAYERS[kind]
    check(layer, known.fixed, known.read)
    if len(calls) != 1 or any(call[1:] != [0, 0, {}] for call in calls[0]):
        raise CheckpointError(f"{name}: inbound_nodes {calls}: layers called once are known")
    known.write(network, name, layer["config"], [call[0] for call in calls[0]])


def check(layer: Config, fixed: Config, read: frozenset[str]) -> None:
    """Raise CheckpointError for an option of a layer that is not known, is missing, or has another
    value."""
    fixed = {"dtype": "float32", "name": layer["name"], **fixed}
    if more := set(layer) - {"class_name", "name", "config", "inbound_nodes"}:
        raise CheckpointError(f"{layer['name']}: {', '.join(sorted(more))} is not known")
    if missing := sorted((set(fixed) | read) - set(layer["config"])):
        raise CheckpointError(f"{layer['name']}: the option {missing[0]} is missing")
    for key, value in layer["config"].items():
        if key not in fixed and key not in read | TRAINING:
            raise CheckpointError(f"{layer['name']}: the option {key} is not known")
        if key in fixed and value != fixed[key]:
            raise CheckpointError(f"{layer['name']}: {key} {value}; only {fixed[key]} is known")


def _convolution(network: Network, name: str, config: Config, inputs: Sequence[str]) -> str:
    """`same` pads so that the output is as large; of an even kernel the more at the end."""
    sides, padding = list(config["kernel_size"]), config["padding"]
    if padding not in ("same", "valid"):
        raise CheckpointError(f"{name}: padding {padding}; same and valid are known")
    before = [(side - 1) // 2 if padding == "same" else 0 for side in sides]
    behind = [side // 2 if padding == "same" else 0 for side in sides]
    kernel = network.weights.get(f"{name}/kernel", np.zeros((0,) * 4))
    kernel = network.weight(f"{name}/kernel", [*sides, *kernel.shape[2:3], config["filters"]])
    bias = network.weight(f"{name}/bias", [config["filters"]])
    held = [
        network.constant(f"{name}/kernel", kernel.transpose(3, 2, 0, 1)),
        network.constant(f"{name}/bias", bias),
    ]
    return network.op("Conv", name, [*inputs, *held], pads=[*before, *behind], kernel_shape=sides)


def _upsampling(network: Network, name: str, config: Config, inputs: Sequence[str]) -> str:
    scales = network.constant(f"{name}/scales", np.asarray([1, 1, *config["size"]], np.float32))
    return network.op(
        "Resize", name, [*inputs, "", scales], mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )  # fmt: skip


LAYERS: Mapping[str, Layer] = {
    "Conv2D": Layer(
        {"data_format": "channels_last", "strides": [1, 1], "dilation_rate": [1, 1], "groups": 1,
         "activation": "linear", "use_bias": True},
        frozenset({"filters", "kernel_size", "padding"}), _convolution,
    ),
    "Activation": Layer(
        {"activation": "relu"}, frozenset(),
        lambda net, name, _, inputs: net.op("Relu", name, inputs),
    ),
    "Concatenate": Layer(
        {"axis": 3}, frozenset(),
        lambda net, name, _, inputs: net.op("Concat", name, inputs, axis=1),
    ),
    "Add": Layer({}, frozenset(), lambda net, name, _, inputs: net.op("Sum", name, inputs)),
    "UpSampling2D": Layer(
        {"data_format": "channels_last", "interpolation": "nearest"}, frozenset({"size"}),
        _upsampling,
    ),
}  # fmt: skip
