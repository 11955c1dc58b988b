"""The proof of a step's other forms: each is the target's own step, with the real weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.errors import LawBroken
from graftline.kinds.decoder.proof import equal_rows, facts_of, rounding, too_large
from graftline.kinds.kind import Parts, Watch
from graftline.law import Evidence, LawRow
from graftline.nearness import NEARBY, limit, spread_gaps
from graftline.ports import by_role
from graftline.runtimes.ort.forms import Form, Forms
from graftline.runtimes.ort.graph import open_graph, open_reference
from graftline.runtimes.ort.session import OrtSession

Array = npt.NDArray[Any]
STEPS, THREADS = 2, 2
LONGEST = 4
"""Rows of a sequence in one step; sequences have one to so many, in turn."""


class ProofSession(OrtSession):
    """One that reads its weights where they lie, unless its kernels take no others."""

    def __init__(self, parts: Parts, **options: Any) -> None:
        self._quantized = parts.dtype in NEARBY
        stage = parts.graph(parts.engine), facts_of(parts), parts.ports(parts.engine)
        super().__init__(*stage, **options)

    def _open(self) -> Any:
        return self.opened(self._graph, self.threads)

    def opened(self, graph: Path, threads: int) -> Any:
        """The engine of a graph."""
        return open_graph(graph, threads) if self._quantized else open_reference(graph)


def prove_forms(parts: Parts, say: Watch) -> list[LawRow]:
    """Law `form` of every form: steps of several rows, two one behind the other, of one sequence or
    of as many as it takes, are what the target's own graph makes of each sequence alone."""
    forms = [name for name, stage in parts.stages.items() if stage.role == "form"]
    if not forms:
        return []
    if short := too_large(parts):
        return [LawRow(name, "form", "not_run", short) for name in forms]
    say("proof: the other forms of a step against the target's own")
    session = ProofSession(parts, capacity=64, threads=THREADS)
    counts = {name: _sequences(parts, name) for name in forms}
    texts = _texts(max(counts.values()), facts_of(parts).vocabulary)
    expected = [_alone(session, text) for text in texts]
    rows: list[LawRow] = []
    for name in forms:
        form, many = Form(parts.graph(name), parts.ports(name)), counts[name]
        if many == 1:
            other = session.sibling(forms=Forms(form, {}, THREADS, session.opened))
            got = [_alone(other, text) for text in texts]
        else:
            other = session.sibling(forms=Forms(None, {many: form}, THREADS, session.opened))
            got = _together(other, texts[:many])
        pairs = list(zip(got, expected[: len(got)], strict=True))
        rows.append(LawRow.of(name, "form", _equal(parts, name, pairs)))
    return rows


def _sequences(parts: Parts, form: str) -> int:
    ports = by_role(parts.ports(form), "counts", "in")
    return int(ports[0].shape[0]) if ports else 1


def _texts(count: int, vocabulary: int) -> list[list[Array]]:
    """Of each sequence a prompt, and the rows of each step."""
    random = np.random.default_rng(11)
    made: list[list[Array]] = []
    for place in range(count):
        sizes = [3 + 2 * place, *[1 + place % LONGEST] * STEPS]
        made.append([random.integers(0, vocabulary, size, dtype=np.int64) for size in sizes])
    return made


def _alone(session: OrtSession, text: list[Array]) -> Array:
    """Logits [rows, V] of one sequence's steps."""
    prompt, *steps = text
    session.reset(1)
    found = [session.prefill([prompt]).logits[0].copy()]
    for tokens in steps:
        found.append(session.score(tokens[None]).logits[0].copy())
        session.commit([range(len(tokens))])
    return np.concatenate(found)


def _together(session: OrtSession, texts: list[list[Array]]) -> list[Array]:
    """The same of several sequences, whose steps go together."""
    session.reset(0)
    found = [[session.read(session.seat(), text[0]).logits[0].copy()] for text in texts]
    for step in range(1, STEPS + 1):
        counts = [len(text[step]) for text in texts]
        tokens = np.zeros((len(texts), max(counts)), np.int64)
        for row, text in enumerate(texts):
            tokens[row, : counts[row]] = text[step]
        logits = session.score(tokens, counts=counts).logits
        for row, count in enumerate(counts):
            found[row].append(logits[row, :count].copy())
        session.commit([range(count) for count in counts])
    return [np.concatenate(rows) for rows in found]


def _equal(parts: Parts, form: str, pairs: list[tuple[Array, Array]]) -> Evidence:
    """Within rounding; where activations are quantized, a row's scale may be that of all rows."""
    reference, count = "the target's own step", len(pairs)
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
