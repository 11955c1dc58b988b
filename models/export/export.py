"""Export a decoder of transformers to ONNX without its weights. torch lives here."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import bound_sympy

from graftline.errors import NotApplicable
from graftline.models.export.decomposed import decomposed_in_place
from graftline.models.export.host_model import first_line, first_position
from graftline.models.export.simplify import simplify

OPSET = 23
"""The exporter fuses norms and rotary embeddings at this opset only."""

INPUTS = ("tokens", "positions", "attention_mask")


class _Decoder(torch.nn.Module):
    """tokens, positions, attention_mask -> logits, by the keywords the model's forward accepts."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.host = model
        accepted = inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.first = first_position(model) if self.takes_positions else 0
        self.options = {"use_cache": False} if "use_cache" in accepted else {}

    def forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        where = {"position_ids": positions + self.first} if self.takes_positions else {}
        out = self.host(input_ids=tokens, attention_mask=attention_mask, **where, **self.options)
        return out.logits


def untouched(model: Any) -> None:
    """Replace meta parameters by CPU memory that no one touches: no pages, no resident memory."""
    fresh: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, old in list(module._parameters.items()):
            if old is None:
                continue
            if id(old) not in fresh:
                new = torch.empty(old.shape, dtype=old.dtype)
                fresh[id(old)] = torch.nn.Parameter(new, requires_grad=False)
            module._parameters[name] = fresh[id(old)]


@dataclass(frozen=True)
class Exported:
    """A graph at the raw stage whose `weights` (initializer names) still have no data."""

    model: ir.Model
    weights: frozenset[str]


def export(model: Any, watch: Callable[[str], None]) -> Exported:
    """Export an `empty_model` to ONNX; initializers carry the model's own parameter names.

    Inputs tokens, positions and attention_mask [B, N] int64, those the graph does not read left
    out; output logits [B, N, V]. Raises NotApplicable when torch cannot export the model.
    """
    untouched(model)
    rows = {0: "B", 1: "N"}
    example = (
        torch.zeros(2, 6, dtype=torch.int64),
        torch.arange(6).repeat(2, 1),
        torch.ones(2, 6, dtype=torch.int64),
    )
    watch(f"torch.export of {type(model).__name__}")
    program = _export(
        _Decoder(model).eval(),
        example,
        dynamic_shapes={name: dict(rows) for name in INPUTS},
        input_names=list(INPUTS),
        output_names=["logits"],
    )
    _refuse_other_code(model, program.exported_program)
    _one_size(program.model)
    watch("simplifying the graph")
    parameters = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    return _finish(program.model, parameters, True)


def translate(program: Any, parameters: Iterable[str]) -> Exported:
    """A program torch.export made, as ONNX under its own input and output names."""
    return _finish(_export(program).model, set(parameters), False)


def _refuse_other_code(model: Any, program: Any) -> None:
    """Raise NotApplicable where the model runs other code on longer texts than those torch traced:
    the graph holds one of the two, and torch notes up to which length."""
    longest = traced_lengths(program, INPUTS)[1]
    held = int(getattr(model.config, "max_position_embeddings", None) or 0)
    if longest is not None and not 0 < held <= longest:
        raise NotApplicable(
            f"{type(model).__name__} runs other code on texts of more than {longest} tokens, and a "
            "graph holds one of the two: set what switches it in config.json, or "
            f"max_position_embeddings (now {held or 'none'}) to at most {longest}"
        )


def traced_lengths(program: Any, names: Collection[str]) -> tuple[int, int | None]:
    """The fewest and the most tokens for which a program of torch.export holds, by the second size
    of these inputs; None: any number."""
    least, limits = 0, list[int]()
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in names:
            continue
        length = node.meta["val"].shape[1]
        if isinstance(length, int):
            limits.append(length)
            continue
        # torch writes a size that can be only one number as that number
        found = bound_sympy(length.node.expr, program.range_constraints)
        least = max(least, int(found.lower))
        limits += [] if found.upper == int_oo else [int(found.upper)]
    return least, min(limits, default=None)


def _export(
    what: Any, example: tuple[torch.Tensor, ...] = (), **options: Any
) -> torch.onnx.ONNXProgram:
    """torch.onnx.export, unoptimised. Raises NotApplicable with torch's first line."""
    name = type(getattr(what, "host", what)).__name__
    try:
        with quiet(), torch.no_grad(), decomposed_in_place():
            program = torch.onnx.export(
                what,
                example,
                dynamo=True,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
                **options,
            )
    except Exception as error:
        raise failed(name, error) from error
    assert program is not None
    return program


def _finish(graph: ir.Model, parameters: set[str], own_interface: bool) -> Exported:
    weights = _rename(graph, parameters)
    graph = simplify(graph, weights)
    if own_interface:
        _name_interface(graph)
    _forget_notes(graph)
    return Exported(graph, frozenset(n for n in weights if n in graph.graph.initializers))


def _rename(model: ir.Model, parameters: set[str]) -> frozenset[str]:
    """Name initializers as the model does (without the wrapper); returns those that are weights."""
    values = list(model.graph.initializers.values())
    model.graph.initializers.clear()
    for value in values:
        assert value.name is not None
        value.name = value.name.removeprefix("host.")
        if value.const_value is not None:
            value.const_value.name = value.name
        model.graph.initializers[value.name] = value
    return frozenset(parameters & set(model.graph.initializers))


def _one_size(model: ir.Model) -> None:
    """All inputs are [B, N]: take every size from the first, so one read for its size can go."""
    first = model.graph.inputs[0]
    for value in model.graph.inputs[1:]:
        for node, index in value.uses():
            if node.op_type == "Shape":
                node.replace_input_with(index, first)


def _name_interface(model: ir.Model) -> None:
    """Drop the inputs nothing reads; B and N are the only symbols left in the interface."""
    for value in [v for v in model.graph.inputs if not v.uses()]:
        model.graph.inputs.remove(value)
    for value in model.graph.inputs:
        value.shape = ir.Shape(["B", "N"])
    logits = model.graph.outputs[0]
    assert logits.shape is not None
    logits.shape = ir.Shape(["B", "N", logits.shape[2]])


def _forget_notes(model: ir.Model) -> None:
    """The exporter's stack traces are larger than the graph and name files of this machine."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for out in node.outputs:
            out.metadata_props.clear()


def failed(name: str, error: BaseException) -> NotApplicable:
    """Why torch cannot export a module of that name, in its own first line."""
    return NotApplicable(f"{name}: {_reason(error)}")


def _reason(error: BaseException) -> str:
    """The most telling line: a NotApplicable torch wrapped, else the innermost cause."""
    cause: BaseException = error
    while True:
        if isinstance(cause, NotApplicable):
            return str(cause)
        inner = cause.__cause__ or cause.__context__
        if inner is None:
            return f"torch cannot export it ({type(cause).__name__}: {first_line(str(cause))})"
        cause = inner


@contextmanager
def quiet() -> Generator[None]:
    """Silence the exporter's own chatter; errors still raise."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
