"""The inputs and the logits of an unmodified export, by role: how to feed it and how to read it.

Roles of a raw graph's inputs, and what a prefill of [B, N] tokens without padding feeds them:

    tokens       the ids                          positions    0, 1, 2, ... (or those given)
    padding      ones: no token is padding        order        0 .. N-1, without a batch
    causal       the lower triangle, as bias or   cache        nothing yet: one size is 0
                 as a boolean mask                past_length  0
    length       N                                last         N - 1
    all_rows     0: logits of every row           off, on      a flag
    unused       zeros: the graph does not read it

Shapes mix the symbols B and N with sizes. Nothing here goes by the name of an input.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graftline.errors import BackendError
from graftline.evaluate import Array, Feed
from graftline.ports import PORTS_KEY, Port, by_role, ports_from_json

RAW_KEY = "graftline.raw_ports"
"""Metadata of every graph made from an export: the export's own ports. The export itself, once it
lies in a bundle, carries them as its ports."""

Shape = tuple[int, ...]
Fill = Callable[[Array, Array, Shape], Array]
"""fill(tokens, positions, shape of the input) -> its values."""


def write_raw(model: ir.Model, ports: Iterable[Port]) -> None:
    """Stamp the ports of the export that `model` was made from."""
    model.metadata_props[RAW_KEY] = json.dumps([asdict(p) for p in ports])


def read_raw(metadata: Mapping[str, str]) -> tuple[Port, ...]:
    """The export's ports, from the metadata of the export in a bundle, or of what was made from it.

    Raises BackendError where they are not there.
    """
    text = metadata.get(RAW_KEY) or metadata.get(PORTS_KEY)
    if text is None:
        raise BackendError(
            "the graph does not say what its inputs are; it was not written by `graftline optimize`"
        )
    return ports_from_json(json.loads(text))


def raw_feed(
    ports: Iterable[Port], tokens: npt.NDArray[np.integer], positions: Array | None = None
) -> Feed:
    """A feed of the unmodified export, in its own names, types and shapes, for tokens [B, N].

    `positions` [B, N] are 0, 1, 2, ... unless given. Raises BackendError for an unknown role.
    """
    batch, rows = tokens.shape
    if positions is None:
        positions = np.broadcast_to(np.arange(rows, dtype=np.int64), tokens.shape)
    feed: Feed = {}
    for port in ports:
        if port.direction == "out":
            continue
        if port.role not in _FILLS:
            raise BackendError(f"input '{port.name}' has the unknown role '{port.role}'; rebuild")
        shape = tuple({"B": batch, "N": rows}.get(str(d), d) for d in port.shape)
        sizes = tuple(int(d) for d in shape)
        filled = _FILLS[port.role](tokens, positions, sizes)
        feed[port.name] = _typed(filled, port)
    return feed


def raw_logits(ports: Iterable[Port], outputs: Mapping[str, Array]) -> Array:
    """The logits [B, rows, V] among an export's outputs; one row where it gives the last alone."""
    (port,) = by_role(ports, "logits", "out")
    logits = outputs[port.name]
    return logits[:, None] if logits.ndim == 2 else logits


def _typed(values: Array, port: Port) -> Array:
    """Values in the input's type; of an additive mask, the lowest number for what is hidden."""
    kind = np.dtype(port.dtype)
    if port.role == "causal" and kind.kind != "b" and kind.kind not in "iu":
        lowest = np.finfo(np.float16 if port.dtype == "float16" else np.float32).min
        return np.where(values, 0.0, lowest).astype(kind)
    return np.array(values, kind, order="C")  # ascontiguousarray would make a scalar a vector


def _number(number: int) -> Fill:
    return lambda tokens, positions, shape: np.full(shape, number, np.int64)


def _length(less: int) -> Fill:
    return lambda tokens, positions, shape: np.full(shape, tokens.shape[1] - less, np.int64)


def _order(tokens: Array, positions: Array, shape: Shape) -> Array:
    return np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int64), shape)


def _causal(tokens: Array, positions: Array, shape: Shape) -> Array:
    return np.broadcast_to(np.tri(tokens.shape[1], dtype=np.bool_), shape)


_FILLS: dict[str, Fill] = {
    "tokens": lambda tokens, positions, shape: tokens.reshape(shape),
    "positions": lambda tokens, positions, shape: np.broadcast_to(positions, shape),
    "padding": _number(1), "order": _order, "causal": _causal, "cache": _number(0),
    "past_length": _number(0), "length": _length(0), "last": _length(1), "all_rows": _number(0),
    "off": _number(0), "on": _number(1), "unused": _number(0),
}  # fmt: skip
