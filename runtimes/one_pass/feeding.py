"""What a caller gives a host that runs once, as its inputs: checked, completed and typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.errors import RequestError, nearest
from graftline.owners import TARGET
from graftline.ports import Port
from graftline.roles import CHOSEN, FRESH, LENGTHS, MAIN, NOISE, SEED, SIGNAL

Array = npt.NDArray[Any]
Sizes = dict[str, int]
"""What the symbols of shapes stand for in a call."""


def main_port(ports: Sequence[Port]) -> Port:
    """The input that the output is made of."""
    own = [p for p in ports if p.direction == "in" and p.owner == TARGET and p.role in MAIN]
    return min(own, key=lambda port: MAIN.index(port.role))


def keyword(port: str) -> str:
    """What a caller calls a port by: its name, as an argument of a Python function may be."""
    return port.replace(".", "_")


def by_port(
    first: str, names: Mapping[str, str], main: Array | None, conditions: Mapping[str, Any]
) -> dict[str, Any]:
    """What is given, by the names of ports: the input `first`, and conditions. `names` are the
    ports' names by what callers call them. Raises RequestError for a condition of no such name."""
    given: dict[str, Any] = {} if main is None else {first: main}
    for name, value in conditions.items():
        if names.get(name) in (None, first):
            known = [n for n, port in names.items() if port != first]
            raise RequestError(f"no condition '{name}'{nearest(name, known)}")
        given[names[name]] = value
    return given


def feed_of(
    ports: Sequence[Port],
    names: Mapping[str, str],
    main: Array,
    conditions: Mapping[str, Any],
    seed: int,
) -> dict[str, Array]:
    """Values for every input, by name (see `by_port`).

    Lengths that are not given are the whole rows; noise that is not given is drawn from a standard
    normal distribution with `seed`, which also is that of the noise that the graph itself draws.
    Raises RequestError for an unknown name, and for a value whose shape or type does not fit.
    """
    first = main_port(ports)
    given = by_port(first.name, names, main, conditions)
    sizes: Sizes = {}
    feed: dict[str, Array] = {}
    random = np.random.default_rng(seed)
    inputs = [p for p in ports if p.direction == "in"]
    for port in sorted(inputs, key=lambda p: p.name not in given):
        if port.name in given:
            feed[port.name] = fitted(port, given[port.name], sizes)
        elif port.role == LENGTHS:
            long = feed[first.name].shape[1 if first.role == SIGNAL else -1]
            feed[port.name] = np.full(_dims(port, sizes), long, port.dtype)
        elif port.state == "running":  # nothing before: zeros, as the whole is padded with
            feed[port.name] = np.zeros(_dims(port, sizes), port.dtype)
        elif port.role == CHOSEN:  # all positions, as the canvas has them
            rows, positions = feed[first.name].shape
            feed[port.name] = np.tile(np.arange(positions, dtype=port.dtype), (rows, 1))
        elif port.role == SEED:
            feed[port.name] = np.full(_dims(port, sizes), seed, port.dtype)
        elif port.role in (NOISE, FRESH):
            feed[port.name] = random.standard_normal(_dims(port, sizes)).astype(port.dtype)
        else:
            called = next(n for n, of in names.items() if of == port.name)
            raise RequestError(f"the condition '{called}' {told(port)} is missing; give it by name")
    return feed


def fitted(port: Port, value: Any, sizes: Sizes) -> Array:
    """The value in the port's type. `sizes` of symbols are noted, and must be the same in all
    inputs. Raises RequestError."""
    array = np.asarray(value)
    wanted = np.dtype(port.dtype)
    numbers = "fiu" if wanted.kind == "f" else "iu"
    shape = ", ".join(map(str, array.shape))
    if array.dtype.kind not in numbers:
        raise RequestError(f"{port.role} '{port.name}' takes {told(port)}, not {array.dtype}")
    if array.ndim != len(port.shape) or not array.size:
        raise RequestError(f"{port.role} '{port.name}' takes {told(port)}, not [{shape}]")
    for want, have in zip(port.shape, array.shape, strict=True):
        known = want if isinstance(want, int) else sizes.setdefault(want, have)
        if known != have:
            of = "" if want == known else f", where {want} is {known}"
            raise RequestError(f"{port.role} '{port.name}' takes {told(port)}{of}, not [{shape}]")
    return array.astype(wanted, copy=False)


def told(port: Port) -> str:
    """A port's shape and type, as an error says them."""
    return f"[{', '.join(map(str, port.shape))}] {port.dtype}"


def _dims(port: Port, sizes: Sizes) -> list[int]:
    """The sizes of an input that is not given. Raises RequestError where a symbol is open."""
    if odd := [d for d in port.shape if isinstance(d, str) and d not in sizes]:
        raise RequestError(
            f"{port.role} '{port.name}' {told(port)} must be given: nothing else says {odd[0]}"
        )
    return [d if isinstance(d, int) else sizes[d] for d in port.shape]
