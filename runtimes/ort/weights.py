"""One copy of the weights for all graphs of a bundle, as this machine's kernels want them.

ONNX Runtime lays weights out anew for its kernels (prepacking), in memory of each session's own. It
can write them to a file in that layout and map the file, and graphs that name the same weights map
the same pages: those of one process, and of all processes that open the bundle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import onnxruntime
from onnx.external_data_helper import uses_external_data

from graftline.bundle.reader import MACHINE
from graftline.errors import BackendError
from graftline.files import inside
from graftline.runtimes.ort.provider import version

WEIGHTS, SAVED, SIZES = "weights.bin", "saved.onnx", "sizes.json"
COPIES = 2.5
"""Disk that the file takes, over the weights: as they are, and as the kernels want them."""
CONFIG = {
    "session.optimized_model_external_initializers_file_name": WEIGHTS,
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
    "session.save_external_prepacked_constant_initializers": "1",
}


def shared_graphs(
    bundle: Path,
    graphs: Mapping[str, Path],
    identity: str,
    watch: Callable[[str], None] | None = None,
) -> dict[str, Path]:
    """The same graphs over one file of weights, made below the bundle if they are not there yet;
    the first names all weights that any of them has. `identity` says which weights these are, and
    which processor this is: what was made for others is not used.

    Raises BackendError, in one line, where the disk is full or the bundle cannot be written.
    """
    parent = bundle / MACHINE
    folder = parent / hashlib.sha256(f"{identity}\n{version()}".encode()).hexdigest()[:16]
    if not _whole(folder):
        if watch is not None:
            watch("laying out the weights for this machine (once)")
        try:
            shutil.rmtree(folder, ignore_errors=True)
            _make(parent, folder, graphs)
        except OSError as error:
            why = f"{error.strerror or error}: {parent}"
            raise BackendError(f"weights cannot be laid out for this machine ({why})") from error
    return {name: folder / f"{name}.onnx" for name in graphs}


def _whole(folder: Path) -> bool:
    """Whether everything that was made is there, as long as it was. It is a cache: what is not
    whole is made again."""
    try:
        sizes = json.loads((folder / SIZES).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _make(parent: Path, folder: Path, graphs: Mapping[str, Path]) -> None:
    """Made under another name and renamed, so a folder that exists is whole."""
    parent.mkdir(exist_ok=True)
    first = next(iter(graphs.values()))
    _check_room(parent, first)
    rough = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
    try:
        rough.chmod(0o755)
        saved, weights = _save(first, rough), _weights(first)
        for name, graph in graphs.items():
            onnx.save(_moved(graph, saved, weights), rough / f"{name}.onnx")
        sizes = {file.name: file.stat().st_size for file in rough.iterdir()}
        (rough / SIZES).write_text(json.dumps(sizes), encoding="utf-8")
        os.rename(rough, folder)
    except OSError:
        if not _whole(folder):  # else another process was faster
            raise
    finally:
        shutil.rmtree(rough, ignore_errors=True)


def _check_room(parent: Path, graph: Path) -> None:
    model = onnx.load(graph, load_external_data=False)
    lengths = [
        int(entry.value)
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "length"
    ]
    needed, free = COPIES * sum(lengths), shutil.disk_usage(parent).free
    if needed > free:
        raise OSError(f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")


def _save(graph: Path, folder: Path) -> dict[str, onnx.TensorProto]:
    """Every weight of a graph, by name, pointing to the file in which it lies."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / SAVED)
    for key, value in CONFIG.items():
        options.add_session_config_entry(key, value)
    try:
        onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise OSError(f"onnxruntime cannot write the weights of {graph.name}: {error}") from error
    saved = onnx.load(folder / SAVED, load_external_data=False)
    (folder / SAVED).unlink()
    return {tensor.name: tensor for tensor in saved.graph.initializer}


def _weights(graph: Path) -> dict[str, bytes]:
    """Every weight of a graph, by name, as the graph says it: its numbers, or where they lie."""
    model = onnx.load(graph, load_external_data=False)
    return {tensor.name: tensor.SerializeToString() for tensor in model.graph.initializer}


def _moved(
    graph: Path, saved: Mapping[str, onnx.TensorProto], weights: Mapping[str, bytes]
) -> onnx.ModelProto:
    """A graph whose weights are those that were saved, where they are the very ones of that name in
    the graph that `weights` is of; what was not saved lies in the graph itself."""
    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        same = weights.get(tensor.name) == tensor.SerializeToString()
        if same and (known := saved.get(tensor.name)) is not None and _alike(tensor, known):
            tensor.CopyFrom(known)
        elif uses_external_data(tensor):
            tensor.raw_data = _bytes(tensor, graph.parent)
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    return model


def _bytes(tensor: onnx.TensorProto, folder: Path) -> bytes:
    """What a tensor holds that lies in a file of a bundle. onnx's own reader refuses files with a
    second hard link, as one of a checkpoint has here."""
    says = {entry.key: entry.value for entry in tensor.external_data}
    with inside(folder, says["location"]).open("rb") as file:
        file.seek(int(says.get("offset", "0")))
        return file.read(int(says["length"]))


def _alike(one: onnx.TensorProto, other: onnx.TensorProto) -> bool:
    return one.data_type == other.data_type and list(one.dims) == list(other.dims)
