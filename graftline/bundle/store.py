"""The weights of a bundle: every content once, in files that all of its graphs point into.

What an engine reads is in `engine.weights`, or in a file of the checkpoint that was linked in. What
only the export and the canonical graph read is below `source/`, as the checkpoint has it: bf16 and
fp16 stay so, behind a Cast that `load_graph` takes away again.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path

import onnx_ir as ir

from graftline.bundle.weight_file import Place, WeightFile
from graftline.errors import BundleError
from graftline.files import inside
from graftline.tensors import Widened, file_of, numbers, origin, static_shape

INLINE = 1024
"""Tensors of fewer bytes stay inside the graph file."""
WIDENED = "graftline.widened"
"""On a Cast: it stands for an initializer that `load_graph` makes of its input."""


def load_graph(path: Path) -> ir.Model:
    """Read a graph of a bundle, without reading the weights.

    onnx_ir refuses external data with several hard links, which is what `--weights link` makes; so
    the containment rule is applied here, and the tensors then point at absolute paths. What was
    stored behind a Cast is one initializer again.
    """
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf and onnx_ir raise what they like on damaged files
        raise BundleError(f"{path}: not an ONNX file that can be read ({error})") from error
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            file, name = inside(path.parent, str(tensor.location)), value.name or ""
            value.const_value = _external(tensor, file, tensor.offset or 0, name)
    casts = [n for n in model.graph if WIDENED in n.metadata_props]
    widened = {_narrow(node, path): node for node in casts}
    _exchange(model.graph, {source: _joined(cast) for source, cast in widened.items()})
    model.graph.remove(casts)
    return model


def _narrow(node: ir.Node, path: Path) -> ir.Value:
    """The initializer behind a Cast of `save_graph`'s."""
    source = node.inputs[0] if node.op_type == "Cast" and len(node.inputs) == 1 else None
    if source is None or not isinstance(source.const_value, ir.ExternalTensor):
        raise BundleError(f"{path}: '{node.name}' stands for no stored tensor; do not trust it")
    return source


def _joined(node: ir.Node) -> ir.Value:
    """An initializer in place of a Cast and what it reads, for everybody who reads the Cast."""
    out, source = node.outputs[0], node.inputs[0]
    assert source is not None
    narrow, dtype = source.const_value, ir.DataType(node.attributes["to"].as_int())
    assert isinstance(narrow, ir.ExternalTensor)
    tensor, name = Widened(narrow, dtype, out.name or ""), out.name
    out.name = f"{name}.cast"
    value = ir.Value(
        name=name, shape=tensor.shape, type=ir.TensorType(dtype), const_value=tensor
    )
    out.replace_all_uses_with(value, replace_graph_outputs=True)
    return value


def _exchange(graph: ir.Graph, by: dict[ir.Value, ir.Value]) -> None:
    """Put other initializers in place of some, in the order of the graph's own."""
    values = list(graph.initializers.values())
    graph.initializers.clear()
    for value in values:
        graph.register_initializer(by.get(value, value))


def save_graph(model: ir.Model, path: Path, weights: WeightFile, linked: dict[Path, str]) -> None:
    """Write `model` at `path`, in the folder of `weights`.

    Tensors that lie in a file of `linked` (checkpoint file -> its relative path in the folder) keep
    pointing there; every other tensor of size goes to `weights`. The model in memory is left as it
    was.
    """
    copy = model.clone()
    narrow: dict[ir.Value, ir.Value] = {}
    casts: list[ir.Node] = []
    for value in list(copy.graph.initializers.values()):
        tensor, name = value.const_value, value.name or ""
        assert tensor is not None
        if not (weights.widens and isinstance(tensor, Widened) and _large(tensor.narrow)):
            value.const_value = _placed(tensor, name, weights, linked)
        elif (place := weights.find(tensor)) is not None:
            value.const_value = _pointer(tensor, place, weights, name)
        else:
            source, cast = _behind_cast(value, tensor)
            source.const_value = _placed(tensor.narrow, str(source.name), weights, linked)
            narrow[value] = source
            casts.append(cast)
    if casts:
        _exchange(copy.graph, narrow)
        copy.graph.insert_before(copy.graph[0], casts)
    try:
        ir.save(copy, path)
    except OSError as error:
        if error.errno is None:
            raise BundleError(f"cannot write {path}: {error}") from error
        raise


def _behind_cast(value: ir.Value, tensor: Widened) -> tuple[ir.Value, ir.Node]:
    """An initializer of the narrow tensor, and the Cast that stands for `value` from now on."""
    name, narrow = value.name or "", tensor.narrow
    source = ir.Value(
        name=f"{name}.{narrow.dtype.name.lower()}", shape=narrow.shape,
        type=ir.TensorType(narrow.dtype),
    )  # fmt: skip
    cast = ir.node("Cast", [source], {"to": int(tensor.dtype)}, name=f"{name}.widened")
    cast.metadata_props[WIDENED] = "1"
    out = cast.outputs[0]
    out.shape, out.type = value.shape, value.type
    value.name = f"{name}.initializer"
    out.name = name
    value.replace_all_uses_with(out, replace_graph_outputs=True)
    return source, cast


def _placed(
    tensor: ir.TensorProtocol, name: str, weights: WeightFile, linked: dict[Path, str]
) -> ir.TensorProtocol:
    if not _large(tensor):
        return tensor if not isinstance(tensor, ir.ExternalTensor) else ir.tensor(numbers(tensor))
    if isinstance(tensor, ir.ExternalTensor) and (rel := linked.get(file_of(tensor))) is not None:
        return _external(tensor, rel, tensor.offset or 0, name)
    return _pointer(tensor, weights.add(tensor), weights, name)


def _pointer(
    tensor: ir.TensorProtocol, place: Place, weights: WeightFile, name: str
) -> ir.ExternalTensor:
    rel = place.file.relative_to(weights.folder).as_posix()
    return _external(tensor, rel, place.offset, name)


def _external(
    tensor: ir.TensorProtocol, file: Path | str, offset: int, name: str
) -> ir.ExternalTensor:
    """A tensor of that dtype and shape in a file."""
    return ir.ExternalTensor(
        file, offset, tensor.nbytes, tensor.dtype, shape=static_shape(tensor), name=name
    )


def stored_bytes(models: Sequence[ir.Model], weights: WeightFile) -> dict[Path, int]:
    """How many bytes of each checkpoint file the graphs read as they lie there, and `weights` does
    not have yet."""
    seen: dict[Hashable, tuple[Path, int]] = {}
    for tensor in (t for model in models for t in _tensors(model)):
        if not _large(tensor) or weights.find(tensor) is not None:
            continue
        source = tensor.narrow if weights.widens and isinstance(tensor, Widened) else tensor
        if isinstance(source, ir.ExternalTensor) and _large(source):
            seen[origin(source)] = file_of(source), source.nbytes
    found: dict[Path, int] = {}
    for file, size in seen.values():
        found[file] = found.get(file, 0) + size
    return found


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            yield value.const_value


def _large(tensor: ir.TensorProtocol) -> bool:
    return tensor.nbytes >= INLINE


