"""A graph in two: what runs once, and the decoder behind it whose receptive field is finite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common

from graftline.errors import CheckpointError, NotApplicable
from graftline.models.onnx_file import OnnxCheckpoint
from graftline.passes.anchors.fields.find import LENGTHS, Part, cuts, measured, part_from
from graftline.passes.anchors.fields.find import receptive_fields as fields_of
from graftline.passes.anchors.fields.span import Blocked
from graftline.passes.anchors.roles import dims_of, inputs_of
from graftline.passes.anchors.upsampling import opened
from graftline.passes.grafts.window import infinite
from graftline.passes.graph.meaning import label_value
from graftline.passes.laws.common import infer_shapes
from graftline.receptive_field import ReceptiveField
from graftline.roles import LATENTS

BEFORE, DECODER = "before.onnx", "decoder.onnx"
_AXES = {3: (2,), 4: (2, 3)}
"""Axes that latents of so many dimensions have windows along."""
_INLINE = 1 << 30
"""Bytes of weights that an ONNX file holds in itself."""


@dataclass(frozen=True)
class Split:
    """Both files, the value between them in words, its shape, and the decoder's fields."""

    before: Path
    decoder: Path
    value: str
    shape: tuple[int | str, ...]
    fields: tuple[ReceptiveField, ...]


@dataclass(frozen=True)
class _Cut:
    part: Part
    fields: tuple[ReceptiveField, ...]


def split(file: Path, folder: Path) -> Split:
    """Split an ONNX file where its receptive field becomes finite: at the value farthest from the
    output through which everything goes and behind which each element depends on a stretch alone.

    `folder` gets before.onnx, whose output `latents` is decoder.onnx's input; each node of the file
    is in one of the two. Noise that the graph draws stays where it is drawn. Raises NotApplicable,
    naming the node that makes the field infinite, where no such decoder upsamples; CheckpointError
    where the folder has these files already.
    """
    if taken := [n for n in (BEFORE, DECODER) if (folder / n).exists()]:
        raise CheckpointError(f"{folder / taken[0]} exists; name another folder")
    host = OnnxCheckpoint(file).host()
    model = opened(host.model.graph)
    infer_shapes(model, "split")
    if len(model.graph.outputs) != 1:
        raise NotApplicable(f"the graph has {len(model.graph.outputs)} outputs; split takes one")
    output = model.graph.outputs[0]
    cut = _earliest(output)
    latents = cut.part.source
    shape = _shape(latents, cut, "N")
    told, own = label_value(latents), latents.name or ""
    latents.shape = ir.Shape(shape)
    output.shape = ir.Shape(_made(cut, output))
    folder.mkdir(parents=True, exist_ok=True)
    _save(_before(host.model, own, shape, latents.type), folder / BEFORE)
    _save(_decoder(model, own), folder / DECODER)
    return Split(folder / BEFORE, folder / DECODER, told, tuple(shape), cut.fields)


def _earliest(output: ir.Value) -> _Cut:
    """The cut farthest from the output. Raises NotApplicable."""
    first: Blocked | None = None
    for value in list(cuts(output))[::-1]:
        dims = dims_of(value)
        axes = _AXES.get(len(dims), ())
        known = {i: d for i, d in enumerate(dims) if isinstance(d, int) and i not in axes}
        if not axes or 1 not in known:
            continue
        part = part_from(value, output)
        found = part if isinstance(part, Blocked) else fields_of(part, output, axes, {0: 1} | known)
        if isinstance(found, Blocked) or isinstance(part, Blocked):
            first = first or (found if isinstance(found, Blocked) else None)
        elif min(f.ratio for f in found) > 1:
            return _Cut(part, found)
    if first is not None:
        raise infinite(first)
    why = "no decoder that upsamples is behind a value that everything goes through"
    raise NotApplicable(why)


def _shape(value: ir.Value, cut: _Cut, name: str) -> list[int | str]:
    """The shape of the latents: a batch, fixed channels, and a symbol for each axis."""
    axes = [f.axis for f in cut.fields]
    symbols = dict(zip(axes, [name] if len(axes) == 1 else ["H", "W"], strict=True))
    dims = dims_of(value)
    return ["B", *(symbols.get(i, d if isinstance(d, int) else f"d{i}")
                   for i, d in enumerate(dims) if i)]  # fmt: skip


def _made(cut: _Cut, output: ir.Value) -> list[int | str]:
    """The shape of the output, as it is measured."""
    known = {i: d for i, d in enumerate(dims_of(cut.part.source)) if isinstance(d, int)}
    first, axis = LENGTHS[0], cut.fields[0].axis
    found = measured(cut.part, axis, first, {0: 1} | known).of(output)
    assert found is not None, "its field was found by it"
    axes = [f.out_axis for f in cut.fields]
    names = dict(zip(axes, ["T"] if len(axes) == 1 else ["H2", "W2"], strict=True))
    return ["B", *(names.get(i, n) for i, n in enumerate(found) if i)]


def _before(
    raw: ir.Model, value: str, shape: list[int | str], dtype: ir.TypeProtocol | None
) -> ir.Model:
    """What makes the value of that name, as its one output; as it was exported, because runtimes
    draw noise at the opsets that they know."""
    part = raw.clone()
    found = [v for node in part.graph for v in node.outputs if v.name == value]
    if not found:
        raise NotApplicable(f"'{value}' is made within a function of the file; inline it first")
    (made,) = found
    part.graph.outputs.clear()
    part.graph.outputs.append(made)
    made.name, made.shape = LATENTS, ir.Shape(shape)
    made.type = made.type or dtype
    return _tidied(part)


def _decoder(model: ir.Model, value: str) -> ir.Model:
    """What is made of the value of that name, which is its first input."""
    part = model.clone()
    old = next(v for node in part.graph for v in node.outputs if v.name == value)
    new = ir.Value(name=LATENTS, shape=old.shape, type=old.type)
    old.replace_all_uses_with(new)
    part.graph.inputs.insert(0, new)
    return _tidied(part)


def _tidied(model: ir.Model) -> ir.Model:
    common.RemoveUnusedNodesPass()(model)
    for value in [v for v in inputs_of(model.graph) if not v.uses()]:
        model.graph.inputs.remove(value)
    return model


def _save(model: ir.Model, file: Path) -> None:
    tensors = [v.const_value for v in model.graph.initializers.values()]
    size = sum(t.nbytes for t in tensors if t is not None)
    ir.save(model, file, external_data=f"{file.name}.data" if size > _INLINE else None)
