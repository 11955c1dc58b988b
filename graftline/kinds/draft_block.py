"""The kind of host that drafts token by token: a small decoder over features of its target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graftline.facts import DraftBlockFacts
from graftline.kinds.decoder.kind import Decoder
from graftline.kinds.decoder.proof import near_rows
from graftline.kinds.kind import NO_BF16, Parts, Proof, Watch
from graftline.law import LawRow
from graftline.ports import FEATURES, Port, by_role, slot_ports, state_port
from graftline.roles import Roles

if TYPE_CHECKING:
    from graftline.models.reference import Original

Array = npt.NDArray[Any]
ROWS, CALLS = 40, (23, 1, 9, 7)
"""Rows that the proof looks at, and in which calls of the engine."""


@dataclass(frozen=True)
class DraftBlock(Decoder):
    """Tokens and features in, logits of the token after the next out, over a cache of its own."""

    name: str = "draft-block"

    def prove(self, parts: Parts, own: Original | None, gone: str, say: Watch) -> Proof:
        """The engine, call by call over its cache, against the published head run by torch on the
        same tokens and features: logits, and the state that stands for the next feature."""
        from graftline.models.reference import OwnNetwork

        if own is None or isinstance(own, Path | OwnNetwork):
            return Proof([LawRow(parts.engine, "whole", "not_run", gone)] if gone else [])
        if parts.dtype == "bf16":
            return Proof([LawRow(parts.engine, "whole", "not_run", NO_BF16)])
        if (slots := _slots(parts.ports(parts.engine))) < ROWS:
            why = f"the proof reads {ROWS} rows, and the cache has {slots} slots"
            return Proof([LawRow(parts.engine, "whole", "not_run", why)])
        say("proof: the draft head's engine against the head itself, with the real weights")
        ports, facts = parts.ports(parts.engine), parts.facts
        assert isinstance(facts, DraftBlockFacts)
        feed = _feed(ports, facts)
        expected = own(feed, say)
        if isinstance(expected, str):
            return Proof([LawRow(parts.engine, "whole", "not_run", expected)])
        state = state_port(ports, facts.normed_state).name
        logits, states = _answers(parts.graph(parts.engine), ports, feed, state)
        rows = {
            "whole": (logits[0], expected.logits, "the head itself, by torch"),
            "taps": (states[0], expected.stream[0], "the state of the head itself, by torch"),
        }
        return Proof([
            LawRow.of(parts.engine, law, near_rows(
                parts.engine, law, got, wanted, facts, parts.dtype, reference
            ))
            for law, (got, wanted, reference) in rows.items()
        ])  # fmt: skip


def _feed(ports: tuple[Port, ...], facts: DraftBlockFacts) -> dict[str, Array]:
    """Seeded tokens [1, N] and features [1, N, H]; zeros at every third row of a head that has
    masks."""
    random = np.random.default_rng(7)
    width = int(by_role(ports, FEATURES, "in")[0].shape[-1])
    tokens = random.integers(0, facts.vocabulary, (1, ROWS), dtype=np.int64)
    features = random.standard_normal((1, ROWS, width)).astype(np.float32)
    if facts.mask_token is not None:
        features[:, ::3] = 0.0
    return {"tokens": tokens, FEATURES: features, "mask": _seen(facts)[None, None]}


def _seen(facts: DraftBlockFacts) -> Array:
    """[N, N]: rows see those before them, and where they need not be causal as many of their call
    as a block has behind its first row."""
    last = np.arange(ROWS)
    if not facts.causal:
        last = np.minimum(np.repeat(np.cumsum(CALLS) - 1, CALLS), last + facts.block - 1)
    return np.arange(ROWS) <= last[:, None]


def _slots(ports: tuple[Port, ...]) -> int:
    """Of the head's caches: as many as its engine has, or as the proof needs."""
    fixed = (p.shape[2] for p in slot_ports(ports))
    return min((size for size in fixed if isinstance(size, int)), default=ROWS)


def _answers(
    graph: Path, ports: tuple[Port, ...], feed: dict[str, Array], state: str
) -> tuple[Array, Array]:
    """Logits [1, N, V] and states [1, N, H] of an engine that is called several times."""
    from graftline.runtimes.ort.graph import open_graph

    session, roles, slots = open_graph(graph, 0), Roles.of(ports), _slots(ports)
    unseen = np.zeros((1, 1, ROWS, slots - ROWS), np.bool_)
    mask = np.concatenate([feed["mask"], unseen], axis=-1)
    caches = {
        p.name: np.zeros([1 if d == "B" else slots if d == "S" else int(d) for d in p.shape],
                         np.dtype(p.dtype))
        for p in ports if p.state == "slots" and p.direction == "in"
    }  # fmt: skip
    names = [p.name for p in ports if p.direction == "out"]
    mirrors = {p.name: p.mirror for p in ports if p.mirror is not None}
    found: list[dict[str, Array]] = []
    for start, end in zip(np.cumsum([0, *CALLS[:-1]]), np.cumsum(CALLS), strict=True):
        given = roles.feed(
            tokens=feed["tokens"][:, start:end], features=feed[FEATURES][:, start:end],
            positions=np.arange(start, end, dtype=np.int64)[None],
            rows=np.arange(end - start, dtype=np.int64)[None],
            write_index=np.asarray([start], np.int64), mask=mask[:, :, start:end],
        )  # fmt: skip
        answer: Any = session.run(names, {**given, **caches})
        made = dict(zip(names, answer, strict=True))
        caches = {mirror: made[name] for name, mirror in mirrors.items()}
        found.append(made)

    def whole(name: str) -> Array:
        return np.concatenate([made[name] for made in found], axis=1)

    return whole(roles.outputs["logits"]), whole(state)
