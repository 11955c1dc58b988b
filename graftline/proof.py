"""The proof of a finished bundle: its graphs against the unmodified export, with the real weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graftline.engines import is_engine
from graftline.errors import LawBroken
from graftline.evaluate import Feed, oracle_limit, run
from graftline.law import Evidence, LawRow
from graftline.manifest import Exactness
from graftline.passes.compare import TOLERANCE
from graftline.passes.cut_depth import CutDepth, prefix, prefix_outputs
from graftline.passes.kv_cache import empty_caches
from graftline.ports import Facts, Port
from graftline.recipe import FUSED, Recipe
from graftline.store import load_graph
from graftline.targets import CUDA

if TYPE_CHECKING:
    from graftline.runtimes.ort.session import OrtSession

Watch = Callable[[str], None]
HELD_OUT_TOKENS = 500


@dataclass
class Proof:
    """What was measured on the finished engine, with the real weights."""

    laws: list[LawRow]
    exactness: Exactness | None
    """None where it cannot be measured here: on the GPU of an engine."""
    min_rows: int | None
    per_rows: dict[str, float]
    quality: dict[str, float]


def prove(
    folder: Path,
    files: dict[str, str],
    facts: Facts,
    ports: tuple[Port, ...],
    canonical: tuple[Port, ...],
    target: str,
    dtype: str,
    say: Watch,
) -> Proof:
    """Compare the engine with the unmodified export, and measure its rows against one another."""
    from graftline.runtimes.ort.cuda import SESSIONS
    from graftline.runtimes.ort.provider import cuda_missing
    from graftline.runtimes.ort.session import OrtSession
    from graftline.runtimes.row_invariance import row_invariance

    if is_engine(target) or (target == CUDA and cuda_missing()):
        return _prove_graph(folder, files, facts, ports, canonical, target, dtype, say)
    say("proof: the engine against the unmodified export, with the real weights")
    capacity = min(facts.positions or 512, 512)
    session = SESSIONS[target](folder / files[target], facts, ports, capacity=capacity)
    laws = [LawRow.of(target, "whole", whole(folder / files["export"], session, facts, dtype))]
    random = np.random.default_rng(1)
    prompt = random.integers(0, facts.vocabulary, min(24, capacity - 20), dtype=np.int64)
    session.reset(1)
    rows = row_invariance(session, prompt)
    least = rows.min_rows
    words = (
        "rows do not depend on one another"
        if rows.row_invariant
        else (
            f"one row alone is rounded otherwise than several; from {least} rows on they agree"
            if least
            else "a row's result depends on the rows beside it: never lossless"
        )
    )
    found = Evidence(words, rows.worst, status="measured")
    laws.append(LawRow.of(target, "row-invariant", found))
    quality: dict[str, float] = {}
    if dtype != "fp32":  # the engine is close by design only; what it was made from must be equal
        fp32 = OrtSession(folder / files["canonical"], facts, canonical, capacity=capacity)
        equal = whole(folder / files["export"], fp32, facts, "fp32")
        laws.append(LawRow.of("canonical", "whole", equal))
        if (folder / "tokenizer" / "tokenizer.json").is_file():
            quality = _quality(folder, fp32, session, dtype, say)
    return Proof(
        laws,
        Exactness(rows.row_invariant, rows.worst),
        least,
        {str(k): float(v) for k, v in rows.per_rows.items()},
        quality,
    )


def prove_fused(
    folder: Path,
    files: Mapping[str, str],
    facts: Facts,
    ports: Mapping[str, tuple[Port, ...]],
    target: str,
    chosen: Recipe,
    say: Watch,
) -> LawRow:
    """Law of the fused step, with the real weights: step by step it is the host's."""
    from graftline.runtimes.fused_law import fused_is_host
    from graftline.runtimes.ort.fused import OrtFusedStep
    from graftline.runtimes.ort.session import OrtSession

    if is_engine(target):
        why = "the engine runs on its GPU; the reduced host was held to the same law"
        return LawRow(FUSED, "fused", "not_run", why)
    say("proof: the fused step against the host's own, with the real weights")
    capacity = min(facts.positions or 512, 512)
    session = OrtSession(folder / files[target], facts, ports[target], capacity=capacity)
    fused = OrtFusedStep(folder / files[FUSED], ports[FUSED], session)
    return LawRow(FUSED, "fused", "held", fused_is_host(session, fused, chosen.options))


def prove_depth(
    folder: Path,
    files: Mapping[str, str],
    facts: Facts,
    ports: Mapping[str, tuple[Port, ...]],
    stage: str,
    blocks: int,
    target: str,
    dtype: str,
    say: Watch,
) -> list[LawRow]:
    """Laws of a sub-model, with the real weights: the law `prefix` of its cut, on the canonical
    graph of the whole; and its engine against what that graph gives where it is cut."""
    from graftline.runtimes.ort.cuda import SESSIONS
    from graftline.runtimes.ort.provider import cuda_missing

    say(f"proof: the first {blocks} blocks against the whole draft, with the real weights")
    canonical = load_graph(folder / files["canonical"])
    size = sum(v.const_value.nbytes for v in canonical.graph.initializers.values() if v.const_value)
    if size > (most := oracle_limit()):
        why = f"the draft weighs {size / 1e9:.1f} GB, the oracle takes {most / 1e9:.1f} GB here"
        return [LawRow(stage, "prefix", "not_run", why)]
    tokens = np.random.default_rng(4).integers(0, facts.vocabulary, (1, 8), dtype=np.int64)
    feed: Feed = {"tokens": tokens, "positions": np.arange(8)[None], "rows": np.arange(8)[None]}
    feed |= {"write_index": np.zeros(1, np.int64), **empty_caches(canonical, 1, 10)}
    cut, graft = canonical.clone(), CutDepth(blocks)
    graft.apply(cut)
    laws = [LawRow.of(stage, "prefix", prefix(graft, canonical, cut, feed, run))]
    if target == CUDA and cuda_missing():
        return laws
    session = SESSIONS[target](folder / files[stage], facts, ports[stage], capacity=64)
    expected = prefix_outputs(canonical, blocks, feed, run)["logits"][0]
    session.reset(1)
    first = session.prefill([tokens[0, :4]]).logits[0].copy()
    got = np.concatenate([first, session.score(tokens[:, 4:]).logits[0]])
    checked = _close("depth", got, expected[3:], dtype, "the host cut there")
    return [*laws, LawRow.of(stage, "depth", checked)]


def _prove_graph(
    folder: Path,
    files: dict[str, str],
    facts: Facts,
    ports: tuple[Port, ...],
    canonical: tuple[Port, ...],
    target: str,
    dtype: str,
    say: Watch,
) -> Proof:
    """Compare the graph an engine is built from with the unmodified export, on this machine."""
    from graftline.runtimes.ort.session import MOST_ROWS, OrtSession

    say("proof: the engine's graph against the unmodified export, with the real weights")
    capacity = min(facts.positions or 512, 512)
    fp32 = OrtSession(folder / files["canonical"], facts, canonical, capacity=capacity)
    laws = [LawRow.of("canonical", "whole", whole(folder / files["export"], fp32, facts, "fp32"))]
    slots = next((p.shape[2] for p in ports if p.mirror is not None), 0)
    slots = slots if isinstance(slots, int) else capacity + MOST_ROWS
    if dtype == "bf16" or slots <= MOST_ROWS:
        why = "ONNX Runtime's CPU has no bf16" if dtype == "bf16" else "too few slots for a step"
        why += "; the oracle ran the reduced host"
        laws.append(LawRow(target, "whole", "not_run", why))
        return Proof(laws, None, None, {}, {})
    session = OrtSession(folder / files[target], facts, ports, capacity=slots - MOST_ROWS)
    laws.append(LawRow.of(target, "whole", whole(folder / files["export"], session, facts, dtype)))
    quality: dict[str, float] = {}
    if dtype != "fp32" and (folder / "tokenizer" / "tokenizer.json").is_file():
        quality = _quality(folder, fp32, session, dtype, say)
    return Proof(laws, None, None, {}, quality)


def _quality(
    folder: Path, fp32: OrtSession, session: OrtSession, dtype: str, say: Watch
) -> dict[str, float]:
    """Perplexity on held-out English, in this precision and in fp32 (the canonical graph)."""
    from graftline.runtimes.study.perplexity import HELD_OUT, perplexity
    from graftline.runtimes.text.tokenizer import Tokenizer

    text = HELD_OUT.read_text(encoding="utf-8")
    ids = np.asarray(Tokenizer.from_folder(folder / "tokenizer").encode(text, raw=True), np.int64)
    ids = ids[: min(HELD_OUT_TOKENS, session.capacity)]
    found = {dtype: perplexity(session, [ids]), "fp32": perplexity(fp32, [ids])}
    say(
        f"perplexity on {len(ids)} held-out tokens: {dtype} {found[dtype]:.2f}, "
        f"fp32 {found['fp32']:.2f}"
    )
    return {f"perplexity {name}": value for name, value in found.items()}


def whole(export: Path, session: Any, facts: Facts, dtype: str) -> Evidence:
    """Law of the whole: the engine's logits, prompt in chunks and cache, are the unmodified
    export's."""
    from graftline.runtimes.ort.graph import export_logits

    rows = min(24, facts.positions or 24)
    tokens = np.random.default_rng(2).integers(0, facts.vocabulary, (1, rows), dtype=np.int64)
    expected = export_logits(export, tokens)[0]
    session.reset(1)
    first = session.prefill([tokens[0, : rows // 2]]).logits[0].copy()
    rest = session.score(tokens[:, rows // 2 :]).logits[0]
    both = min(rows - rows // 2 + 1, len(expected))  # an export may give the last row only
    got, expected = np.concatenate([first, rest])[-both:], expected[-both:]
    return _close("whole", got, expected, dtype, "the export")


def _close(
    law: str, got: npt.NDArray[Any], expected: npt.NDArray[Any], dtype: str, reference: str
) -> Evidence:
    """Rows of logits [R, V] against those of a reference, as near as the precision allows."""
    gap = float(np.max(np.abs(got - expected)))
    agree = int(np.sum(got.argmax(-1) == expected.argmax(-1)))
    largest = float(np.max(np.abs(expected), initial=1.0))
    limit = {"fp32": 1e-3, "fp16": TOLERANCE["float16"] * largest}.get(dtype, np.inf)
    if not gap <= limit:
        raise LawBroken("pipeline", law, "logits", f"{gap:.3g} > {limit:.3g} from {reference}")
    what = f"{len(got)} rows against {reference}, argmax equal in {agree}"
    bounded = np.isfinite(limit)
    return Evidence(what, gap, limit if bounded else None, "held" if bounded else "measured")
