"""The ESRGAN-type x2 net of the npm package @upscalerjs/default-model, whole and in windows.

    npm pack @upscalerjs/default-model && tar xf upscalerjs-default-model-*.tgz
    pip download --no-deps scikit-image && unzip scikit_image-*.whl
    python tests/bench/upscale.py package/models skimage/data/astronaut.png upscaled

Needs pillow. Writes upscaled/model.onnx, a bundle and the picture.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graftline import load, optimize
from graftline.commands.media import png
from graftline.runtimes.one_pass.engine import DecodeEngine

WINDOWS = (0, 96, 128)
PART = (90, 0, 346, 256)
"""Left, upper, right and lower edge of what is scaled up."""
TIMES = 2


def convert(folder: Path, file: Path) -> None:
    """Write a TensorFlow.js layers model of convolutions, sums, joins and nearest up-sampling as
    ONNX: channels first, and padding that keeps the size."""
    made = json.loads((folder / "model.json").read_text())
    weights = read_weights(folder, made["weightsManifest"])
    layers = made["modelTopology"]["model_config"]["config"]["layers"]
    nodes: list[onnx.NodeProto] = []
    held: list[onnx.TensorProto] = []
    for layer in layers:
        name, config, kind = layer["name"], layer["config"], layer["class_name"]
        given = [row[0] for row in layer["inbound_nodes"][0]] if layer["inbound_nodes"] else []
        if kind == "InputLayer":
            first = name
            continue
        if kind == "Conv2D":
            assert config["activation"] == "linear", config
            assert config["padding"] == "same" or max(config["kernel_size"]) == 1, config
            kernel = weights[f"{name}/kernel"].transpose(3, 2, 0, 1)
            held.append(numpy_helper.from_array(np.ascontiguousarray(kernel), f"{name}.w"))
            held.append(numpy_helper.from_array(weights[f"{name}/bias"], f"{name}.b"))
            pads = [(n - 1) // 2 for n in kernel.shape[2:]] * 2
            node = helper.make_node("Conv", [*given, f"{name}.w", f"{name}.b"], [name], pads=pads)
        elif kind == "Activation":
            assert config["activation"] == "relu", config
            node = helper.make_node("Relu", given, [name])
        elif kind == "Concatenate":
            node = helper.make_node("Concat", given, [name], axis=1)
        elif kind == "Add":
            node = helper.make_node("Add", given, [name])
        elif kind == "UpSampling2D":
            assert config["interpolation"] == "nearest", config
            scales = np.asarray([1, 1, *config["size"]], np.float32)
            held.append(numpy_helper.from_array(scales, f"{name}.s"))
            node = helper.make_node(
                "Resize", [*given, "", f"{name}.s"], [name], mode="nearest",
                coordinate_transformation_mode="asymmetric", nearest_mode="floor",
            )  # fmt: skip
        else:
            raise SystemExit(f"{name}: no layer {kind} is known here")
        nodes.append(node)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", 3, h, w])
            for n, h, w in ((first, "H", "W"), (layers[-1]["name"], "H2", "W2"))]  # fmt: skip
    graph = helper.make_graph(nodes, "upscaler", ends[:1], ends[1:], held)
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), file)


def read_weights(folder: Path, manifest: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Every weight by its name."""
    found: dict[str, np.ndarray] = {}
    for group in manifest:
        data, at = b"".join((folder / p).read_bytes() for p in group["paths"]), 0
        for row in group["weights"]:
            assert row["dtype"] == "float32", row
            assert "quantization" not in row, row
            count = int(np.prod(row["shape"]))
            numbers = np.frombuffer(data, np.float32, count, at).reshape(row["shape"])
            found[row["name"]], at = numbers, at + 4 * count
    return found


def peak() -> float:
    """MB at most in use by this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(ln for ln in lines if ln.startswith("VmHWM")).split()[1]) / 1024


def main(weights: Path, photograph: Path, out: Path) -> None:
    from PIL import Image

    out.mkdir(exist_ok=True)
    convert(weights, out / "model.onnx")
    made = optimize(out / "model.onnx", out / "bundle.graft", passes="window")
    print([law.text for law in made.manifest.laws if law.law == "windowed"])
    picture = Image.open(photograph).convert("RGB").crop(PART)
    pixels = np.asarray(picture, np.float32)
    np.save(out / "low.npy", pixels.transpose(2, 0, 1)[None])
    engine = load(made.path, threads=1)
    assert isinstance(engine, DecodeEngine)
    low = np.load(out / "low.npy")
    whole = engine.decode(low, window=0)
    image = np.clip(np.round(whole[0]), 0, 255).astype(np.uint8)
    (out / "high.png").write_bytes(png(image))
    for size in WINDOWS:
        seconds: list[float] = []
        for _ in range(TIMES):
            began = time.process_time()
            tiles = engine.decode(low, window=size)
            seconds.append(time.process_time() - began)
        gap = float(np.max(np.abs(tiles - whole))) / 255
        command = [sys.executable, __file__, "--peak", made.path, out / "low.npy", str(size)]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        print(
            f"window {size or 'none'}: {min(seconds):.2f} CPU s, "
            f"difference {gap:.2g} of the range, "
            f"peak {float(done.stdout):.0f} MB above the opened engine"
        )


def show_peak(bundle: Path, low: Path, size: int) -> None:
    """Print the MB that decoding takes above what the opened engine does."""
    engine = load(bundle, verify=False, threads=1)
    assert isinstance(engine, DecodeEngine)
    pixels = np.load(low)
    began = peak()
    engine.decode(pixels, window=size)
    print(peak() - began)


if __name__ == "__main__":
    if sys.argv[1] == "--peak":
        show_peak(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    else:
        main(*map(Path, sys.argv[1:4]))
