"""Graph mathematics as ONNX text, as the functions of plugins are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import onnx.parser
import onnx_ir as ir

from graftline.passes.graph.emit import Emit
from graftline.plugins.onnx_text import written_out

HEADER = '<opset_import: ["" : 24], domain: "graftline">'


def write(
    emit: Emit,
    text: str,
    inputs: Mapping[str, ir.Value],
    outputs: Sequence[str],
    names: Sequence[str] = (),
) -> list[ir.Value]:
    """Write the nodes of `text` and return its values `outputs`.

    `inputs` are the values that it reads by their names in the text; `names` are those that outputs
    get in the graph ("" lets the graph choose). A `Constant` becomes an initializer, once for equal
    numbers.
    """
    body = written_out(text)
    given, made = ", ".join(inputs), ", ".join(outputs)
    function = onnx.parser.parse_function(f"{HEADER} text ({given}) => ({made}) {{{body}}}")
    known: dict[str, ir.Value] = dict(inputs)
    wanted = dict(zip(outputs, names, strict=False))
    for node in function.node:
        if node.op_type == "Constant":
            known[node.output[0]] = _constant(emit, node)
            continue
        attributes = {a.name: ir.from_proto(a).value for a in node.attribute}
        read = [known[name] if name else None for name in node.input]
        named = [wanted.get(name, "") for name in node.output]
        written = emit.node(node.op_type, read, named, node.domain, **attributes)
        known |= dict(zip(node.output, written.outputs, strict=True))
    return [known[name] for name in outputs]


def _constant(emit: Emit, node: onnx.NodeProto) -> ir.Value:
    """An initializer, named after its numbers."""
    (attribute,) = node.attribute
    held = ir.from_proto(attribute).value
    array = held.numpy() if isinstance(held, ir.TensorProtocol) else ir.tensor(held).numpy()
    numbers = "_".join(str(n) for n in array.reshape(-1).tolist())
    return emit.const(f"{array.dtype.name}.{array.ndim}d.{numbers}", array)
