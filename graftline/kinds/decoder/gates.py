"""What an engine with gated MLPs owes: the rows that it lets pass are those of the method, and its
answer is that of the host without what they pass by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from graftline.bundle.store import load_graph
from graftline.errors import LawBroken
from graftline.evaluate import Array, oracle_limit, run
from graftline.kinds.decoder.probe import first_rows
from graftline.kinds.decoder.proof import facts_of, near_rows, rounding
from graftline.kinds.kind import Parts, Watch
from graftline.law import Evidence, LawRow
from graftline.passes.anchors.reduce import weight_bytes
from graftline.passes.grafts.gate_mlp import GateMlp
from graftline.passes.graph.ports import roles_of
from graftline.passes.laws.gated import passed_by, similarity_of
from graftline.targets import CPU

if TYPE_CHECKING:
    from graftline.runtimes.ort.session import OrtSession

LAW = "passed-by"
ROWS, PROMPT = 32, 8
"""Rows that are compared, and how many of them are read as a prompt."""
TIE = 1e-4
"""How far the cosine of a row may be from where the method decides and fall the other way: its sums
are rounded in another order."""


def prove_gates(parts: Parts, stage: str, graft: GateMlp, say: Watch) -> LawRow:
    """Law `passed-by`, with the real weights: the engine says how many MLPs each row passed by; in
    fp32 that is what the method says by the host's own cosines; and without these MLPs the host
    answers what the engine does. Raises LawBroken."""
    from graftline.runtimes.ort.session import OrtSession

    if parts.target != CPU:
        return LawRow(stage, LAW, "not_run", f"rows that pass by are counted on {CPU} only")
    facts, canonical = facts_of(parts), load_graph(parts.graph(parts.canonical))
    if (size := weight_bytes(canonical)) > (most := oracle_limit()):
        why = f"the whole weighs {size / 1e9:.1f} GB, the oracle takes {most / 1e9:.1f} GB here"
        return LawRow(stage, LAW, "not_run", why)
    say("proof: the gated MLPs against the host without what rows pass by, with the real weights")
    tokens = np.random.default_rng(4).integers(0, facts.vocabulary, (1, ROWS), dtype=np.int64)
    session = OrtSession(parts.graph(stage), facts, parts.ports(stage), capacity=2 * ROWS)
    parted = [session.follow(0, 0, tokens[0, :PROMPT].tolist(), PROMPT).logits[0].copy()]
    counts = [_counts(session)]
    session.advance(0, PROMPT)
    for token in tokens[0, PROMPT:]:  # row by row, as a text is decoded
        parted.append(session.follow(0, int(session.lengths[0]), [int(token)]).logits[0].copy())
        counts.append(_counts(session))
        session.advance(0, 1)
    skipped, region = np.concatenate(counts), graft.region(canonical)
    similarity = similarity_of(load_graph(parts.graph(stage)))
    saturates = len(region) - 1 - skipped  # the place of the first MLP behind which rows pass by
    found = passed_by(
        canonical, region, lambda place, _: place >= saturates[None], first_rows(canonical, tokens),
        run,
    )  # fmt: skip
    if judged := rounding(parts) == "fp32":
        _check(stage, similarity, saturates, found.cosines[:, 0])
    expected = found.outputs[roles_of(canonical).outputs["logits"]][0]
    reference = "the host without the MLPs that it passes by"
    near = near_rows(stage, LAW, np.concatenate(parted), expected, facts, parts.dtype, reference)
    share = skipped.mean() / (len(region) - 1)
    where = "" if judged else " (where, is not compared: its cosines are those of rounded weights)"
    what = f"{ROWS} rows pass by {share:.0%} of {len(region) - 1} MLPs{where}; {near.what}"
    return LawRow.of(stage, LAW, Evidence(what, near.value, near.limit))


def _counts(session: OrtSession) -> npt.NDArray[np.int64]:
    assert session.skipped is not None, "a gated graph says how many MLPs rows pass by"
    return session.skipped[0].copy()


def _check(
    stage: str, similarity: float, saturates: npt.NDArray[np.int64], cosines: Array
) -> None:
    """Raise LawBroken where the first MLP that saturates a row is another than its cosines
    [places, rows] say, and none was near."""
    last = len(cosines) - 1  # its MLP is judged by nobody: none follows
    for row, place in enumerate(saturates.tolist()):
        before = cosines[:place, row]
        if place < last and cosines[place, row] < similarity - TIE:
            by = f"passes by MLPs behind a cosine of {cosines[place, row]:.6f}"
        elif (before >= similarity + TIE).any():
            by = f"does not pass by MLPs behind a cosine of {before.max():.6f}"
        else:
            continue
        raise LawBroken(stage, LAW, f"row {row}", f"{by}, for a similarity of {similarity:g}")
