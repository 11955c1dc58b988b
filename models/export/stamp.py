"""Stamp out a decoder's layers from an export of the first few: clone a block, rename weights."""

from __future__ import annotations

from collections.abc import Hashable

import onnx_ir as ir

from graftline.models.export.blocks import Block, Irregular, Layers, blocks, form


def stamp(model: ir.Model, path: str, of: list[int], exported: int) -> list[str] | Irregular:
    """Extend a graph of the first `exported` layers to len(of) layers; `of` gives their kinds.

    Returns the names of the added initializers, which have no data yet; or, with nothing changed,
    why the layers cannot be copied: two exported blocks of one kind are not isomorphic, say.
    """
    found = blocks(model, path, exported)
    if isinstance(found, Irregular):
        return found
    template: dict[int, Block] = {}
    forms: dict[int, list[Hashable]] = {}
    for block in found:
        kind, shape = of[block.layer], form(block, path)
        if forms.setdefault(kind, shape) != shape:
            pair = f"layers {template[kind].layer} and {block.layer}"
            return Irregular(f"{pair} look alike but compute different things")
        template[kind] = block
    tail = [use for use in found[-1].exit.uses()]
    stream, after, added = found[-1].exit, found[-1].exit.producer(), list[str]()
    assert after is not None
    for layer in range(exported, len(of)):
        stream, nodes = _clone(model, template[of[layer]], path, layer, stream, added)
        model.graph.insert_after(after, nodes)
        after = nodes[-1]
    for node, index in tail:
        node.replace_input_with(index, stream)
    return added


def _clone(
    model: ir.Model, block: Block, path: str, layer: int, entry: ir.Value, added: list[str]
) -> tuple[ir.Value, list[ir.Node]]:
    """A copy of a block's nodes that reads `entry` and the weights of `layer`; and its exit."""
    names = Layers(path)
    at: dict[ir.Value, ir.Value] = {block.entry: entry}

    def mapped(value: ir.Value | None) -> ir.Value | None:
        if value is None or value in at:
            return value if value is None else at[value]
        if value.is_initializer() and names.of(value.name) is not None:
            at[value] = _weight(model, value, names.rename(str(value.name), layer), added)
            return at[value]
        return value

    nodes: list[ir.Node] = []
    for node in block.nodes:
        copy = ir.Node(
            node.domain,
            node.op_type,
            [mapped(v) for v in node.inputs],
            list(node.attributes.values()),
            overload=node.overload,
            num_outputs=len(node.outputs),
            version=node.version,
            name=f"{node.name}.layer{layer}",
        )
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name, new.shape, new.type = f"{old.name}.layer{layer}", old.shape, old.type
            at[old] = new
        nodes.append(copy)
    return at[block.exit], nodes


def _weight(model: ir.Model, like: ir.Value, name: str, added: list[str]) -> ir.Value:
    known = model.graph.initializers.get(name)
    if known is not None:
        return known
    assert like.dtype is not None
    assert like.shape is not None
    value = ir.Value(name=name, shape=like.shape, type=like.type)
    value.const_value = ir.LazyTensor(_empty, dtype=like.dtype, shape=like.shape, name=name)
    model.graph.register_initializer(value)
    added.append(name)
    return value


def _empty() -> ir.TensorProtocol:
    raise AssertionError("a stamped weight was read before the checkpoint filled it in")
