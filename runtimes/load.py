"""`load`: open a bundle for an app. Everything that could fail later fails here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import cast

from graftline.bundle.reader import Bundle
from graftline.errors import BackendError, RequestError
from graftline.facts import as_decoder
from graftline.recipe import FUSED, Recipe, check_fusable, check_step, is_fusable
from graftline.recipe import recipe as find_recipe
from graftline.runtimes.chances.calibration import USUAL
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.control.measure import costs_key, measure_costs
from graftline.runtimes.engine import Engine
from graftline.runtimes.fused import FusedStep
from graftline.runtimes.ort.cuda import SESSIONS
from graftline.runtimes.ort.fused import OrtFusedStep
from graftline.runtimes.ort.provider import version
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.resources import Resources
from graftline.runtimes.scheduler import SEATS
from graftline.runtimes.study.perplexity import HELD_OUT
from graftline.runtimes.study.tuned import read_tuned
from graftline.runtimes.surroundings import (
    Match,
    Opened,
    agreement,
    corpus_of,
    depths_opener,
    draft_opener,
    embedding_of,
    step_ratio,
)
from graftline.runtimes.text.tokenizer import Tokenizer, end_tokens
from graftline.runtimes.trt.fused import TrtFusedStep
from graftline.runtimes.trt.load import has_engine, open_engine
from graftline.runtimes.trt.session import TrtSession

DEFAULT_CAPACITY = 4096
"""Cache slots unless the host has fewer positions or the caller asks for another number."""


def load(
    path: str | Path,
    *,
    recipe: str | Recipe | None = None,
    threads: int | None = None,
    capacity: int | None = None,
    exact: bool = False,
    corpus: str | Path | None = None,
    verify: bool = True,
    step: str | None = None,
    watch: Callable[[str], None] | None = None,
    max_batch: int = SEATS,
) -> Engine:
    """Open the bundle at `path`: hashes checked, engine built, step costs measured once per
    machine.

    `recipe` replaces the bundle's own runtime policy, `capacity` is the most tokens of prompt and
    output together, `exact` keeps every step to one kernel family where the precision needs it,
    `corpus` is a file or folder of texts for the recipes that retrieve from one. `step` says what
    calls use that do not say: "host", or "fused" where the bundle has a fused step; unless given,
    "host" on a processor, and on a GPU what the engine was built for. `max_batch` is the most
    requests that decode together; others wait.
    Raises RequestError for a number of threads or a capacity that cannot be, BundleError,
    BackendError or GraftlineError.
    """
    _check_sizes(threads, capacity, max_batch)
    if step is not None:
        check_step(step)
    bundle = Bundle.open(path, verify=verify)
    as_decoder(bundle.manifest.facts)
    session = _session(bundle, threads, capacity, exact)
    chosen = (
        find_recipe(recipe or bundle.manifest.recipe) if not isinstance(recipe, Recipe) else recipe
    )
    listed = [Path(name).name for name in bundle.manifest.tokenizer]
    place = bundle.path / "tokenizer"  # without its tokenizer.json it takes ids
    tokenizer = Tokenizer.from_folder(place) if "tokenizer.json" in listed else None
    costs = step_costs(bundle, session, watch)
    host = session if isinstance(session, OrtSession) else None  # what only ONNX Runtime does yet
    fused, step = _fused(bundle, session, chosen, step)
    generation = bundle.manifest.generation
    opened = None if host is None else _opener(bundle, host, costs, tokenizer, threads, watch)
    resources = Resources(
        corpus=None if corpus is None else corpus_of(corpus, tokenizer),
        embedding=embedding_of(bundle),
        tuned=read_tuned(bundle, _key(session)),
        decode=None if tokenizer is None else tokenizer.decode,
        encode=None if tokenizer is None else tokenizer.encode_part,
        vocabulary=bundle.manifest.decoder.vocabulary,
        ends=end_tokens(generation, tokenizer),
    )

    def drafting(target: OrtSession) -> Resources:
        if opened is None:
            return resources
        draft, depths = (make(bundle, target, opened) for make in (draft_opener, depths_opener))
        return replace(resources, draft=draft, depths=depths)

    def twin(original: OrtSession) -> tuple[OrtSession, Resources]:
        session = original.twin()
        return session, drafting(session)

    return Engine(
        session, tokenizer, generation, chosen, costs, exact,
        resources if host is None else drafting(host), fused, step,
        None if host is None else partial(twin, host), max_batch,
    )  # fmt: skip


def _session(
    bundle: Bundle, threads: int | None, capacity: int | None, exact: bool
) -> OrtSession | TrtSession:
    """The session of a bundle's target, as large and as exact as was asked for."""
    session: OrtSession | TrtSession
    if has_engine(bundle):
        session = open_engine(bundle, capacity)
    else:
        company = bundle.draft() is not None
        session = open_session(bundle, threads=threads, capacity=capacity, company=company)
    if capacity is not None and capacity > session.largest:
        raise RequestError(
            f"capacity={capacity}: {bundle.path} holds at most {session.largest} positions; use at "
            "most that, or leave it out"
        )
    if exact and session.exact_rows is None:
        raise BackendError(
            f"{bundle.path}: at {bundle.manifest.dtype} a row's result depends on the rows beside "
            "it, so it cannot be exact; rebuild with --dtype fp32"
        )
    return session


def _fused(
    bundle: Bundle, session: OrtSession | TrtSession, chosen: Recipe, step: str | None
) -> tuple[Callable[[], FusedStep] | None, str]:
    """What opens the bundle's fused step, if it has one, and what calls use that do not say."""
    fused: Callable[[], FusedStep] | None = None
    if isinstance(session, TrtSession):
        if session.table is not None:
            step = FUSED if step is None and is_fusable(chosen) else step
            fused = cache(lambda: TrtFusedStep(session))
    elif FUSED in bundle.manifest.stages:
        fused = cache(lambda: open_fused(bundle, session))
    if step == FUSED:
        if fused is None:
            again = f"{bundle.manifest.rebuild} --step fused"
            raise BackendError(f"{bundle.path} has no fused step; rebuild: {again}")
        check_fusable(chosen)
        fused()
    return fused, step or "host"


def _check_sizes(threads: int | None, capacity: int | None, max_batch: int) -> None:
    """Each thread spins while a step runs: with more threads than processors a step never ends."""
    most = os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= most:
        raise RequestError(
            f"threads={threads}: this machine has {most} processors; use 1 to {most}, or leave it "
            "out to use all"
        )
    if max_batch < 1:
        raise RequestError(f"max_batch={max_batch} lets nobody in; use at least 1")
    if capacity is not None and capacity < 1:
        raise RequestError(
            f"capacity={capacity} holds no token; use at least 1, or leave it out for the default"
        )


def _opener(
    bundle: Bundle,
    session: OrtSession,
    costs: Costs,
    tokenizer: Tokenizer | None,
    threads: int | None,
    watch: Callable[[str], None] | None,
) -> Opened | None:
    """Opens each graph of the draft's bundle once, and measures it beside the target; None without
    a draft."""
    draft = bundle.draft()
    if draft is None:
        return None

    @cache
    def opened(stage: str) -> tuple[OrtSession, Match]:
        whole = stage == draft.manifest.target
        name = "the draft engine" if whole else f"the draft engine's {stage}"
        if watch is not None:
            watch(f"opening {name}")
        engine = open_session(
            draft, threads=threads, capacity=session.capacity, company=True, stage=stage
        )
        key = f"{_key(session)} beside {bundle.manifest.dtype}" + ("" if whole else f", {stage}")
        known = draft.read_costs(key)
        if known is None:
            known = {"ratio": step_ratio(engine, session), "agreement": USUAL}
            if tokenizer is not None:
                text = tokenizer.encode_part(HELD_OUT.read_text(encoding="utf-8"))
                known["agreement"] = agreement(engine, session, text)
            draft.write_costs(key, known)
        step = float(known["ratio"]) * costs.of(1)
        table = cache(lambda: step_costs(draft, engine.sibling(), watch, name, stage))

        def rows_cost(rows: int) -> float:
            return table().of(rows) / table().of(1)

        return engine, Match(step, float(known.get("agreement", USUAL)), rows_cost)

    return opened


def open_session(
    bundle: Bundle,
    *,
    threads: int | None = None,
    capacity: int | None = None,
    company: bool = False,
    stage: str = "",
) -> OrtSession:
    """The session of a bundle's own target; with `company`, another engine works between its calls.
    `stage` names another of its graphs, lowered for that target.

    Raises BackendError for a target not runnable here.
    """
    manifest = bundle.manifest
    kind = SESSIONS.get(manifest.target)
    if kind is None:
        raise BackendError(
            f"{bundle.path}: built for {manifest.target}, which this version cannot run; "
            "rebuild with --target ort-cpu"
        )
    opened = manifest.stages[stage or manifest.target]
    session = kind(
        bundle.graph(stage or manifest.target),
        as_decoder(opened.facts),
        opened.ports,
        capacity=capacity or DEFAULT_CAPACITY,
        threads=threads,
        company=company,
    )
    session.row_invariant = manifest.exactness is not None and manifest.exactness.row_invariant
    least = cast("int | None", manifest.extra.get("min_rows"))
    session.exact_rows = 1 if session.row_invariant else least
    return session


def open_fused(bundle: Bundle, session: OrtSession) -> FusedStep:
    """The fused step of a bundle, over the caches of its session."""
    return OrtFusedStep(bundle.graph(FUSED), bundle.manifest.stages[FUSED].ports, session)


def step_costs(
    bundle: Bundle,
    session: OrtSession | TrtSession,
    watch: Callable[[str], None] | None = None,
    what: str = "a step",
    stage: str = "",
) -> Costs:
    """Costs of this machine and number of threads: from the bundle, else measured and kept there.
    `stage` is the graph that `session` runs, where that is not the one of the bundle's target, and
    `what` its name.
    """
    key = _key(session) + (f", {stage}" if stage not in ("", bundle.manifest.target) else "")
    known = bundle.read_costs(key)
    if known is None or "batch" not in known:  # an older table knows nothing of batches
        if watch is not None:
            watch(f"measuring what {what} costs on this machine (once)")
        known = measure_costs(session, _beside(session))
        bundle.write_costs(key, known)
    return Costs.from_json(known, partial(bundle.write_costs, key))


def _beside(session: OrtSession | TrtSession) -> Callable[[int], OrtSession] | None:
    """Opens the same engine with caches of its own, where it can be."""
    if isinstance(session, TrtSession):
        return None
    return lambda capacity: session.sibling(capacity=capacity)


def _key(session: OrtSession | TrtSession) -> str:
    """Key of what was measured on this machine: with that many threads, or on that GPU."""
    if isinstance(session, TrtSession):
        return session.costs_key
    key = costs_key(session.threads, version())
    return key if session.device == "cpu" else f"{key}, {session.device}"
