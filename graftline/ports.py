"""Ports: the named inputs and outputs of a graph, each with a role. They travel in the graph.

Symbols in shapes: B batch, N new positions (tree nodes), S cache capacity, T cache length in use,
H hidden, V vocabulary, D head size, K KV heads, M nodes of the next step's tree.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import onnx_ir as ir

from graftline.errors import BundleError
from graftline.owners import TARGET

Direction = Literal["in", "out"]
State = Literal["", "slots", "running"]
Compare = Literal["equal", "close", "written"]
PORTS_KEY = "graftline.ports"
ASSUMPTIONS_KEY = "graftline.assumptions"
FEATURES = "features"
"""The initializer [places, H] that stands for the features which a head reads, until the pass
features makes them an input: row i % places for the token i. Also the role of that input, and of
an output [B, N, H]: what a target makes for its head, or a head that foretells its next feature
apart from what it scores."""
STREAM = "stream"
"""Role of an input [B, N, H]: the hidden states that leave block `layer`, from which a graph of the
blocks behind it starts in place of tokens."""
SKIPPED = "skipped"
"""Role and name of an output [B, N]: how many MLPs each row passed by, where they are gated."""
SIMILARITY = "gate.similarity"
"""The initializer of gated MLPs: the cosine from which on a row passes by those that follow."""
GATE = "graftline.gate"
"""The stamp of the node that ends a gated block: its inputs are which rows pass by its MLP, the
stream without it and the stream with it."""
REFRESHED, HELD = "refreshed", "held"
"""Roles and names of what blocks that a route passes by leave to it: what each gave at the last
token that all blocks computed, [B, L, 1, H], a running state; and of every slot [B, 1, S, 1]
whether they have keys and values there (1) or not (0)."""
ROUTERS = "routers"
"""Role and name of an output [B, R, L]: for the rows that are asked for, the chance that each block
is needed; `layer` is the last block whose stream it reads."""
DRAFTS, CONFIDENCE = "drafts", "confidence"
"""Outputs of a head that walks its block (`markov`): tokens [B, R], and the chance of each."""


@dataclass(frozen=True)
class Port:
    """One graph input or output. `role` is what it means, `shape` mixes symbols and sizes.

    Roles: tokens, positions, mask, write_index, cache.key, cache.value (with `layer`), logits,
    argmax, topk_ids, topk_logits, top_gap, entropy, hidden and stream (both with
    `layer` and `tap`), keep, rows, skipped, refreshed, held, routers.
    Of draft heads: heads.logits, heads.topk_ids, heads.topk_logits.
    Of a draft block in a fused step, which owns caches: draft.logits.
    Of an adapter, an exit's or one in front of draft heads: adapter.key and adapter.value, its
    cache, with the `layer` that it is behind.
    Of a fused step: parents, accepted, count, path, temperature, min_p, seed, ordinal, table,
    template.parents, template.ranks, and next.X or X.out, what the next step takes as X.
    """

    name: str
    role: str
    direction: Direction
    dtype: str
    shape: tuple[str | int, ...]
    layer: int | None = None
    tap: str | None = None
    mirror: str | None = None
    """For an output that is the next step's value of an input (a cache, in place): its name."""
    owner: str = TARGET
    """Whose it is: the host's, or "head.0", a part with tokens, lengths and caches of its own."""
    state: State = ""
    """What a step keeps for the next: `slots` [B, K, S, D], rolled back by position, or `running`,
    a state that only goes on."""
    valid_by: str | None = None
    """Of a state: the port that says how many slots of each sequence hold something."""
    compare: Compare = "close"
    """How two graphs' values of it are compared: `equal` (integers), `close`, or `written`: close,
    in the slots that hold something."""


@dataclass(frozen=True)
class Assumption:
    """What the compiler put in place of an input of the exported graph, in words.

    `input` is its name there, `role` what it was recognised as, `value` what stands in its place
    from now on ("all ones: no padding"), and `why` that is sound. `owner` is whose export it is.
    """

    input: str
    role: str
    value: str
    why: str
    owner: str = TARGET


def told(assumptions: Iterable[Assumption]) -> list[str]:
    """One line per kind of assumption: what is true of many inputs alike is said once."""
    kinds: dict[Assumption, list[Assumption]] = {}
    for assumption in assumptions:
        kinds.setdefault(replace(assumption, input=""), []).append(assumption)
    lines: list[str] = []
    for same in kinds.values():
        first = same[0]
        more = f" and {len(same) - 1} like it" if len(same) > 1 else ""
        verb = "are" if more else "is"
        whose = "" if first.owner == TARGET else f"{first.owner}: "
        what = f"{whose}input '{first.input}'{more} ({first.role})"
        lines.append(f"{what} {verb} taken as {first.value}; {first.why}")
    return lines


def write_ports(model: ir.Model, ports: Iterable[Port]) -> None:
    """Stamp the ports into the model; they survive save and load."""
    model.metadata_props[PORTS_KEY] = json.dumps([asdict(p) for p in ports])


def read_ports(model: ir.Model) -> tuple[Port, ...]:
    """Return the ports stamped in the model, in order; an unstamped model has none."""
    return _read(model.metadata_props.get(PORTS_KEY, "[]"))


@functools.lru_cache(maxsize=64)
def _read(text: str) -> tuple[Port, ...]:
    return ports_from_json(json.loads(text))


def ports_from_json(rows: list[dict[str, Any]]) -> tuple[Port, ...]:
    """Build ports from their JSON rows. Raises BundleError when a row does not fit."""
    try:
        return tuple(_port(r) for r in rows)
    except (TypeError, KeyError) as error:
        raise BundleError(f"ports: a row cannot be read ({error}); rebuild the bundle") from error


def by_role(ports: Iterable[Port], role: str, direction: Direction | None = None) -> list[Port]:
    """All ports of a role, in order."""
    return [p for p in ports if p.role == role and direction in (None, p.direction)]


def state_port(ports: Iterable[Port], normed: bool) -> Port:
    """The output of a draft head's graph that stands for the next feature: what it makes for that
    alone, or else what its last norm gives (`normed`), or what leaves its last block."""
    tap = "postnorm" if normed else "prenorm"
    hidden = (p for p in by_role(ports, "hidden", "out") if p.tap == tap)
    return next(iter([*by_role(ports, FEATURES, "out"), *hidden]))


def slot_ports(
    ports: Iterable[Port], direction: Direction | None = None, owner: str | None = None
) -> list[Port]:
    """The ports that hold slots of positions: caches of keys and values, and what is written to
    them; of one owner, or of all."""
    kept = [p for p in ports if p.state == "slots" and direction in (None, p.direction)]
    return [p for p in kept if owner in (None, p.owner)]


def step_port(ports: Iterable[Port], owner: str = TARGET) -> Port | None:
    """An input [B, N, ...] of an owner that has a row for each new position of a step; None where
    it takes none."""
    for port in ports:
        if (port.owner, port.direction, port.state) == (owner, "in", "") and len(port.shape) > 1:
            first, rows = port.shape[:2]
            if first == "B" and isinstance(rows, str):
                return port
    return None


def _port(row: dict[str, Any]) -> Port:
    values: dict[str, Any] = {**row, "shape": tuple(row["shape"])}
    return Port(**values)


def write_assumptions(model: ir.Model, assumptions: Iterable[Assumption]) -> None:
    """Stamp the assumptions into the model."""
    model.metadata_props[ASSUMPTIONS_KEY] = json.dumps([asdict(a) for a in assumptions])


def read_assumptions(model: ir.Model) -> tuple[Assumption, ...]:
    """Return the assumptions stamped in the model, in order of its inputs."""
    return assumptions_from_json(json.loads(model.metadata_props.get(ASSUMPTIONS_KEY, "[]")))


def assumptions_from_json(rows: list[dict[str, Any]]) -> tuple[Assumption, ...]:
    """Build assumptions from their JSON rows. Raises BundleError when a row does not fit."""
    try:
        return tuple(Assumption(**row) for row in rows)
    except TypeError as error:
        raise BundleError(f"assumptions cannot be read ({error}); rebuild the bundle") from error
