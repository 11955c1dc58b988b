"""The proof of a step's other forms: each is the target's own step, with the real weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.errors import LawBroken
from graftline.exits import rest_stage
from graftline.facts import DecoderFacts
from graftline.kinds.decoder.proof import equal_rows, facts_of, rounding, too_large
from graftline.kinds.kind import Parts, Watch
from graftline.law import Evidence, LawRow
from graftline.nearness import NEARBY, limit, spread_gaps
from graftline.ports import STREAM, Port, by_role, slot_ports
from graftline.runtimes.ort.caches import HostCaches
from graftline.runtimes.ort.graph import open_graph, open_reference
from graftline.runtimes.ort.packed import PackedCall, PackedGraph
from graftline.runtimes.ort.rest import RestSession
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.ort.step_arrays import OutputMemory

Array = npt.NDArray[Any]
STEPS, THREADS, SLOTS = 2, 2, 64
LONGEST = 4
"""Rows of a sequence in one step; sequences have one to so many, in turn."""


class ProofSession(OrtSession):
    """A stage whose weights are read where they lie, unless its kernels take no others."""

    def __init__(self, parts: Parts, stage: str) -> None:
        self._parts = parts
        graph, ports = parts.graph(stage), parts.ports(stage)
        super().__init__(graph, facts_of(parts), ports, capacity=SLOTS, threads=THREADS)

    def _open(self) -> Any:
        return _opened(self._parts, self._graph)


class ProofRest(ProofSession, RestSession):
    """The same of the blocks behind an exit."""


def _opened(parts: Parts, graph: Path) -> Any:
    return open_graph(graph, THREADS) if parts.dtype in NEARBY else open_reference(graph)


def prove_forms(parts: Parts, say: Watch) -> list[LawRow]:
    """Law `form` of every form: steps of several rows, two one behind the other, of one sequence or
    of as many as it takes, are what the graph that it is a form of, the target's own or that of the
    blocks behind an exit, makes of each sequence alone."""
    forms = [name for name, stage in parts.stages.items() if stage.role == "form"]
    if not forms:
        return []
    if short := too_large(parts):
        return [LawRow(name, "form", "not_run", short) for name in forms]
    say("proof: the other forms of a step against the target's own")
    sources: dict[str, list[str]] = {}
    for name in forms:
        sources.setdefault(_source(parts, name), []).append(name)
    return [row for source, some in sources.items() for row in _prove(parts, source, some)]


def _source(parts: Parts, form: str) -> str:
    """The stage that a form is one of."""
    begins = by_role(parts.ports(form), STREAM, "in")
    return rest_stage(1 + (begins[0].layer or 0)) if begins else parts.engine


def _prove(parts: Parts, source: str, forms: list[str]) -> list[LawRow]:
    """Law `form` of the forms of one stage."""
    counts = {name: _sequences(parts, name) for name in forms}
    texts = _texts(max(counts.values()), facts_of(parts))
    if begins := by_role(parts.ports(source), STREAM, "in"):
        texts = _states(texts, facts_of(parts).vocabulary, int(begins[0].shape[-1]))
    expected = _answers(parts, source, texts)
    rows: list[LawRow] = []
    for name, many in counts.items():  # one is open at a time
        some = texts if many == 1 else texts[:many]
        got = _answers(parts, name, some) if many == 1 else _together(parts, source, name, some)
        pairs = list(zip(got, expected[: len(got)], strict=True))
        for cache in expected[0].unread:
            both = [(one.unread[cache], other.unread[cache]) for one, other in pairs]
            _equal(parts, name, both, f"the target's own {cache}")
        logits = [(one.logits, other.logits) for one, other in pairs]
        rows.append(LawRow.of(name, "form", _equal(parts, name, logits, "the target's own step")))
    return rows


@dataclass(frozen=True)
class Answer:
    """The logits [rows, V] of one sequence's steps; and the slots that they wrote in caches which
    nothing attends to, so that no logits show them, [rows, numbers] each."""

    logits: Array
    unread: dict[str, Array]

    @classmethod
    def of(
        cls, logits: list[Array], caches: Mapping[str, Array], length: int, ports: Sequence[Port]
    ) -> Answer:
        """`caches` [1, K, S, D] by the names of their inputs, `length` slots of them written."""
        own = [p.name for p in slot_ports(ports, "in") if p.role.startswith("adapter.")]
        rows = {n: caches[n][0, :, :length].swapaxes(0, 1).reshape(length, -1) for n in own}
        return cls(np.concatenate(logits), {n: values.copy() for n, values in rows.items()})


def _answers(parts: Parts, stage: str, texts: list[list[Array]]) -> list[Answer]:
    """What is answered to each sequence, alone."""
    if by_role(parts.ports(stage), STREAM, "in"):
        rest = ProofRest(parts, stage)
        return [_resumed(rest, text) for text in texts]
    session = ProofSession(parts, stage)
    return [_alone(session, text) for text in texts]


def _sequences(parts: Parts, form: str) -> int:
    ports = by_role(parts.ports(form), "counts", "in")
    return int(ports[0].shape[0]) if ports else 1


def _texts(count: int, facts: DecoderFacts) -> list[list[Array]]:
    """Of each sequence a prompt, and the rows of each step, which end with placeholders where the
    graph has some."""
    random = np.random.default_rng(11)
    made: list[list[Array]] = []
    for place in range(count):
        sizes = [3 + 2 * place, *[1 + place % LONGEST] * STEPS]
        text = [random.integers(0, facts.vocabulary, size, dtype=np.int64) for size in sizes]
        for step in text[1:]:
            ends = step[1:][: facts.placeholders]
            step[len(step) - len(ends) :] = facts.vocabulary + np.arange(len(ends))
        made.append(text)
    return made


def _states(texts: list[list[Array]], vocabulary: int, width: int) -> list[list[Array]]:
    """The same texts, without placeholders, as hidden states [N, H] of random numbers."""
    table = np.random.default_rng(12).standard_normal((vocabulary, width)).astype(np.float32)
    return [[table[tokens] for tokens in text] for text in texts]


def _resumed(session: RestSession, text: list[Array]) -> Answer:
    """One sequence's steps, from hidden states."""
    session.reset(1)
    found: list[Array] = []
    for step, states in enumerate(text):
        logits = session.resume(0, session.lengths.tolist(), [states]).logits[0]
        found.append(logits[-1:].copy() if step == 0 else logits.copy())
        session.advance(0, len(states))
    return _answer(session, found)


def _alone(session: OrtSession, text: list[Array]) -> Answer:
    """One sequence's steps."""
    prompt, *steps = text
    session.reset(1)
    found = [session.prefill([prompt]).logits[0].copy()]
    for tokens in steps:
        found.append(session.score(tokens[None]).logits[0].copy())
        session.commit([range(len(tokens))])
    return _answer(session, found)


def _answer(session: OrtSession, logits: list[Array]) -> Answer:
    return Answer.of(logits, session.caches(0), int(session.lengths[0]), session.ports)


def _together(parts: Parts, source: str, form: str, texts: list[list[Array]]) -> list[Answer]:
    """The same of several sequences: their prompts in one call, then each of their steps."""
    own = parts.ports(source)
    memory = HostCaches([p for p in own if p.mirror is not None])
    memory.make_room(len(texts), SLOTS, [])
    graph = PackedGraph(_opened(parts, parts.graph(form)), parts.ports(form))
    caches = [memory.of(row, 1) for row in range(len(texts))]
    call = PackedCall(graph, own, caches, OutputMemory())
    found: list[list[Array]] = [[] for _ in texts]
    lengths = [0] * len(texts)
    for step in range(1 + STEPS):
        tokens = [text[step] for text in texts]
        logits, start = call(tokens, lengths)["logits"][0], 0
        for row, part in enumerate(tokens):
            rows = logits[start : start + len(part)]
            found[row].append(rows[-1:].copy() if step == 0 else rows.copy())
            start += len(part)
            lengths[row] += len(part)
    written = {p.name: p.mirror or "" for p in own if p.mirror is not None}
    held = [{written[name]: view for name, view in views.items()} for views in caches]
    each = zip(found, held, lengths, strict=True)
    return [Answer.of(rows, views, length, own) for rows, views, length in each]


def _equal(
    parts: Parts, form: str, pairs: list[tuple[Array, Array]], reference: str
) -> Evidence:
    """Within rounding; where activations are quantized, a row's scale may be that of all rows."""
    count = len(pairs)
    if parts.dtype not in NEARBY:
        most = limit(rounding(parts), facts_of(parts))
        found = equal_rows(form, "form", pairs, most, reference)
        what = f"{count} sequences, {found.what}"
        return Evidence(what, found.value, found.limit)
    off = float(np.mean([np.mean(spread_gaps(got, want)) for got, want in pairs]))
    if not off <= (most := NEARBY[parts.dtype]):
        by = f"{off:.2g} of their spread from {reference}, above {most:g}"
        raise LawBroken(form, "form", f"{parts.dtype} logits", by)
    return Evidence(f"{count} sequences near {reference}, as {parts.dtype} weights are", off, most)
