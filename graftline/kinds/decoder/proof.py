"""The proof of a finished bundle: its graphs against the unmodified export, with the real weights;
and the export against the checkpoint's own model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graftline.build.engines import is_engine
from graftline.bundle.manifest import Exactness
from graftline.bundle.store import load_graph
from graftline.errors import LawBroken
from graftline.exits import ADAPTER
from graftline.facts import DecoderFacts, as_decoder
from graftline.kinds.decoder.probe import MOST_ROWS, Probe, make_probe, make_tokens
from graftline.kinds.decoder.whole import Taps, taps_law, whole
from graftline.kinds.kind import NO_BF16, Parts, Proof
from graftline.law import Evidence, LawRow
from graftline.memory import free_memory
from graftline.nearness import NEARBY, OF_FACTS, coarser, few_rows, gaps, limit, spread_gaps
from graftline.passes.grafts.head_parts import HEADS
from graftline.passes.graph.constants import constants
from graftline.ports import Port
from graftline.raw_ports import raw_feed
from graftline.targets import CUDA

if TYPE_CHECKING:
    from graftline.models.reference import Own, OwnModel
    from graftline.runtimes.ort.session import OrtSession
    from graftline.runtimes.row_invariance import RowInvariance

Array = npt.NDArray[Any]
Watch = Callable[[str], None]
HELD_OUT_TOKENS = 500
ENGINE_COPIES, PAIR_COPIES = 1.75, 2.5
"""Memory of the proof over that of the host's weights, with some to spare: of an fp32 engine alone
(1.4 and 1.5 were the most seen: its weights in a layout of its own, and logits), and where the fp32
graph stands beside the engine."""


def host_rounding(parts: Parts) -> str:
    """The precision of the host's activations."""
    return OF_FACTS.get(parts.facts.dtype, "fp32")


def rounding(parts: Parts) -> str:
    """The coarsest precision between the export and the engine; of quantized weights, theirs."""
    if parts.dtype in NEARBY:
        return parts.dtype
    return coarser(parts.dtype, host_rounding(parts))


def facts_of(parts: Parts) -> DecoderFacts:
    """What is known of the engine."""
    return as_decoder(parts.facts)


def canonical_of(parts: Parts) -> ir.Model:
    """The canonical graph, which carries the small graph of a head that its passes read, where
    there is one."""
    model = load_graph(parts.graph(parts.canonical))
    if ADAPTER in parts.stages:
        model.meta[HEADS] = load_graph(parts.graph(ADAPTER))
    return model


def canonical_session(parts: Parts, rows: int) -> OrtSession:
    """The canonical graph, fp32 unless the host itself is not, with room for `rows` rows."""
    from graftline.runtimes.ort.session import OrtSession

    facts, ports = facts_of(parts), parts.ports(parts.canonical)
    return OrtSession(parts.graph(parts.canonical), facts, ports, capacity=_capacity(facts, rows))


def prove(parts: Parts, own: OwnModel | Path | None, gone: str, say: Watch) -> Proof:
    """Compare the checkpoint's own model with the export, the export with the engine, and the
    engine's rows with one another. `gone` says why there is no checkpoint to compare with, "" where
    the export was compared with it already."""
    if short := too_large(parts):
        say(f"proof: the engine not run: {short}")
        rows = _checkpoint_by_block(parts, own, gone, say) if own is not None or gone else []
        return Proof([*rows, LawRow(parts.engine, "whole", "not_run", short)])
    say("proof: the unmodified export, with the real weights")
    probe = _probe(parts)
    if own is not None:
        say("proof: the export against the checkpoint's own model")
    rows, stream = _checkpoint(parts, own, gone, probe, say)
    found = _prove_engine(parts, probe, stream, say)
    return replace(found, laws=[*rows, *found.laws])


def too_large(parts: Parts) -> str:
    """Why no session can hold the weights here, "" when one can."""
    graph = load_graph(parts.graph(parts.export)).graph
    size = sum(v.const_value.nbytes for v in graph.initializers.values() if v.const_value)
    free = free_memory()
    single = parts.dtype == "fp32" and not _tapped(parts) and not _elsewhere(parts)
    if (ENGINE_COPIES if single else PAIR_COPIES) * size <= free:
        return ""
    return f"the weights are {size / 1e9:.1f} GB, of memory {free / 1e9:.1f} GB are free"


def _tapped(parts: Parts) -> bool:
    """Whether the engine brings out hidden states."""
    return any(p.role == "hidden" for p in parts.ports(parts.engine))


def _elsewhere(parts: Parts) -> bool:
    """Whether the engine runs on a GPU that is not here."""
    from graftline.runtimes.ort.provider import cuda_missing

    return is_engine(parts.target) or (parts.target == CUDA and bool(cuda_missing()))


def _probe(parts: Parts) -> Probe:
    """The sequences to compare, and the export's logits of them."""
    from graftline.runtimes.ort.graph import open_reference, run_export

    export = parts.graph(parts.export)
    session = open_reference(export)
    return make_probe(
        lambda tokens: run_export(session, tokens[None])[0],
        constants(load_graph(export)),
        facts_of(parts),
        _slots(parts),
    )


def _slots(parts: Parts) -> int:
    """Most rows of a sequence that the target's graph can hold."""
    from graftline.runtimes.ort.calls import MOST_ROWS as STEP

    sizes = [p.shape[2] for p in parts.ports(parts.engine) if p.mirror is not None]
    fixed = [size - STEP for size in sizes if isinstance(size, int) and size > STEP]
    return min([MOST_ROWS, *fixed])


def _capacity(facts: DecoderFacts, rows: int) -> int:
    return min(facts.positions or 1 << 30, max(512, rows))


def _checkpoint(
    parts: Parts, own: OwnModel | Path | None, gone: str, probe: Probe, say: Watch
) -> tuple[list[LawRow], Mapping[int, Array] | None]:
    """Law `checkpoint`: the export answers as the checkpoint's own model does; and the residual
    stream that this one shows."""
    if own is None:
        return [LawRow(parts.export, "checkpoint", "not_run", gone)] if gone else [], None
    raw, tokens = parts.ports(parts.export), probe.main.tokens[None]
    if isinstance(own, Path):
        found: Own | str = _file_model(own, raw, tokens)
    else:
        found = own(raw_feed(raw, tokens), say)
    if isinstance(found, str):
        return [LawRow(parts.export, "checkpoint", "not_run", found)], None
    count, given = len(probe.main.tokens), len(found.logits)
    rows = probe.main.rows[probe.main.rows >= count - given]
    few = (rows[part] for part in few_rows(len(rows), found.logits.shape[-1]))
    pairs = ((probe.main.of(part)[1], found.logits[part - count + given]) for part in few)
    most = limit(host_rounding(parts), facts_of(parts))
    evidence = equal_rows(parts.export, "checkpoint", pairs, most, "the checkpoint's own model")
    return [LawRow.of(parts.export, "checkpoint", evidence)], found.stream


def _checkpoint_by_block(
    parts: Parts, own: OwnModel | Path | None, gone: str, say: Watch
) -> list[LawRow]:
    """Law `checkpoint` of a host that does not fit in memory, where its own model can be run."""
    from graftline.kinds.decoder.by_block import GRAFT, by_block

    if own is None or isinstance(own, Path):
        why = gone if own is None else "the checkpoint is a graph as large as the export"
        return [LawRow(parts.export, "checkpoint", "not_run", why)]
    canonical = load_graph(parts.graph(parts.canonical))
    tokens = make_tokens(constants(canonical), facts_of(parts), _slots(parts))
    say(f"proof: the checkpoint's own model, block by block, {len(tokens)} rows")
    found = own(raw_feed(parts.ports(parts.export), tokens[None]), say)
    if isinstance(found, str):
        return [LawRow(GRAFT, "checkpoint", "not_run", found)]
    most = limit(host_rounding(parts), replace(facts_of(parts), layers=1))
    return [by_block(canonical, tokens, found, most, say)]


def _file_model(file: Path, raw: tuple[Port, ...], tokens: Array) -> Own:
    """The user's own file in ONNX Runtime, under its own names and types."""
    from graftline.models.reference import Own
    from graftline.runtimes.ort.graph import open_reference, run_raw

    return Own(run_raw(open_reference(file), raw, tokens)[0])


def equal_rows(
    graft: str, law: str, pairs: Iterable[tuple[Array, Array]], most: float, reference: str
) -> Evidence:
    """Rows of logits [R, V], a few at a time beside those of a reference, equal them within `most`.
    Raises LawBroken."""
    off, agree = np.zeros(0), 0
    for got, expected in pairs:
        off = np.append(off, gaps(got, expected))
        agree += int(np.sum(got.argmax(-1) == expected.argmax(-1)))
    if not len(off):
        raise LawBroken(graft, law, "logits", "nothing was compared")
    worst, at = float(off.max()), int(off.argmax())
    if not worst <= most:
        by = f"{worst:.2g} of the largest logit from {reference}, above {most:.2g}"
        raise LawBroken(graft, law, f"row {at} of {len(off)}", by)
    what = f"{len(off)} rows against {reference}, argmax equal in {agree}"
    return Evidence(what, worst, most)


def near_rows(
    stage: str,
    law: str,
    got: Array,
    expected: Array,
    facts: DecoderFacts,
    dtype: str,
    reference: str,
) -> Evidence:
    """Rows of an engine [R, V] equal a reference's; those of quantized weights must be near. Raises
    LawBroken."""
    if dtype not in NEARBY:
        most = limit(coarser(dtype, OF_FACTS.get(facts.dtype, "fp32")), facts)
        return equal_rows(stage, law, [(got, expected)], most, reference)
    off, most = float(np.mean(spread_gaps(got, expected))), NEARBY[dtype]
    if not off <= most:
        by = f"{off:.2g} of their spread from {reference}, above {most:g}"
        raise LawBroken(stage, law, f"{dtype} logits", by)
    return Evidence(f"{len(got)} rows near {reference}, as {dtype} weights are", off, most)


def _prove_engine(
    parts: Parts, probe: Probe, stream: Mapping[int, Array] | None, say: Watch
) -> Proof:
    """The engine where it runs here, else the graph that it is built from."""
    from graftline.runtimes.ort.cuda import SESSIONS
    from graftline.runtimes.ort.session import OrtSession

    target, rows, elsewhere = parts.target, len(probe.main.tokens), _elsewhere(parts)
    say(f"proof: {'the graph of the engine' if elsewhere else 'the engine'} against the export")
    laws: list[LawRow] = []
    known = None if stream is None else Taps.of_own(stream, parts.ports(parts.engine))
    fp32: OrtSession | None = None
    if parts.dtype != "fp32" or elsewhere or (_tapped(parts) and known is None):
        fp32 = canonical_session(parts, rows)
        laws += _held(parts.canonical, fp32, parts, probe, host_rounding(parts), known)
        known = known or _taps(fp32, probe)
    if elsewhere and (why := _unlike_cpu(parts)):
        return Proof([*laws, LawRow(parts.engine, "whole", "not_run", why)])
    kind = OrtSession if elsewhere else SESSIONS[target]
    graph = parts.graph(parts.engine)
    capacity = min(_slots(parts), _capacity(facts_of(parts), rows))
    session = kind(graph, facts_of(parts), parts.ports(parts.engine), capacity=capacity)
    laws += _held(parts.engine, session, parts, probe, rounding(parts), known)
    quality: dict[str, float] = {}
    worded = (parts.folder / "tokenizer" / "tokenizer.json").is_file()
    if fp32 is not None and parts.dtype != "fp32" and worded:
        quality = _quality(parts.folder, fp32, session, parts.dtype, say)
    if elsewhere:
        return Proof(laws, quality=quality)
    fp32 = None  # its weights are not needed beside the engine's any more
    say("proof: the engine's rows against one another")
    found, same = _rows(session, parts)
    laws.append(LawRow.of(parts.engine, "row-invariant", found.evidence))
    per_rows = {str(k): float(v) for k, v in found.per_rows.items()}
    exactness = Exactness(found.row_invariant, found.worst, found.min_rows, per_rows, same)
    return Proof(laws, exactness, quality)


def _held(
    graft: str, session: OrtSession, parts: Parts, probe: Probe, dtype: str, known: Taps | None
) -> list[LawRow]:
    """The laws `whole` and, where there are taps to compare with, `taps`."""
    seen = Taps(len(probe.main.tokens))
    rows = [whole(graft, session, probe, facts_of(parts), dtype, seen)]
    if seen.streams and known is not None:
        rows.append(taps_law(graft, seen, known, facts_of(parts), dtype))
    return rows


def _taps(session: OrtSession, probe: Probe) -> Taps:
    """The taps of a graph that was proven, row by row of the main sequence."""
    from graftline.kinds.decoder.whole import answers

    seen = Taps(len(probe.main.tokens))
    for answer in answers(session, probe):
        seen.note(answer, probe.main)
    return seen


def _unlike_cpu(parts: Parts) -> str:
    """Why the graph of an engine cannot be run on this machine's processor, "" when it can."""
    from graftline.runtimes.ort.calls import MOST_ROWS as STEP

    sizes = [p.shape[2] for p in parts.ports(parts.engine) if p.mirror is not None]
    few = any(isinstance(size, int) and size <= STEP for size in sizes)
    why = "too few slots for a step" if few else ""
    why = NO_BF16 if parts.dtype == "bf16" else why
    return f"{why}; the oracle ran the reduced host" if why else ""


def _rows(session: OrtSession, parts: Parts) -> tuple[RowInvariance, int | None]:
    """How far the engine's rows depend on one another, and `same_rows`, both measured."""
    from graftline.runtimes.prompt_cuts import same_rows
    from graftline.runtimes.row_invariance import row_invariance

    random = np.random.default_rng(1)
    prompt = random.integers(0, facts_of(parts).vocabulary, 24, dtype=np.int64)
    found = row_invariance(session, prompt)
    return found, same_rows(session, prompt, found)


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
