"""`load`: open a bundle for an app. Everything that could fail later fails here."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from graftline.bundle.reader import Bundle
from graftline.errors import BackendError, RequestError
from graftline.facts import DecoderFacts
from graftline.recipe import FUSED, Recipe, check_fusable, check_step, is_fusable
from graftline.recipe import recipe as find_recipe
from graftline.runtimes.defaults import ANSWER_PREFIX, read_defaults
from graftline.runtimes.engine import Engine
from graftline.runtimes.fused import FusedStep, check_drafter
from graftline.runtimes.fused_heads import drafter_of
from graftline.runtimes.head_opener import head_opener
from graftline.runtimes.measured import key_of, measured_opener, step_costs
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.prefix_cache import DEFAULT_BYTES, PrefixCache
from graftline.runtimes.resources import Resources
from graftline.runtimes.scheduler import SEATS
from graftline.runtimes.sessions import open_fused, open_session
from graftline.runtimes.study.tuned import read_tuned
from graftline.runtimes.surroundings import (
    corpus_of,
    depths_opener,
    draft_opener,
    embedding_of,
    exits_opener,
    route_opener,
    routes_opener,
)
from graftline.runtimes.text.tokenizer import Tokenizer, end_tokens
from graftline.runtimes.trt.load import has_engine, open_engine
from graftline.runtimes.trt.load import head_opener as trt_heads
from graftline.runtimes.trt.load import open_fused as open_trt_fused
from graftline.runtimes.trt.session import TrtSession


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
    max_batch: int | None = None,
    prefix_cache: int | None = DEFAULT_BYTES,
    defaults: bool = True,
    costs: bool = True,
) -> Engine:
    """Open the bundle at `path`: hashes checked, engine built, step costs measured once per
    machine. Hosts that run once (a decoder of latents, a denoiser) are for `load_decoder`.

    `recipe` replaces the bundle's own runtime policy, `capacity` is the most tokens of prompt and
    output together, `exact` keeps every step to one kernel family where the precision needs it,
    `corpus` is a file or folder of texts for the recipes that retrieve from one. `step` says what
    calls use that do not say: "host", or "fused" where the bundle has a fused step; unless given,
    "host" on a processor, and on a GPU what the engine was built for. `max_batch` is the most
    requests that decode together (None: 32); others wait. Where it is given, what several requests
    need is opened here, else when they first decode together. `prefix_cache`: bytes of the keys and
    values that are kept of earlier requests, for prompts that begin like one of them; 0 or None:
    none.
    `defaults`: whether requests take what they do not say from the checkpoint's own
    generation_config.json (`Engine.defaults` has what that is).
    `costs`: whether step costs are read or measured; an engine without is for recipes that draft
    nothing.
    Raises RequestError for a number of threads or a capacity that cannot be, BundleError,
    BackendError or GraftlineError.
    """
    origin = partial(
        load, Path(path).absolute(), recipe=recipe, threads=threads, capacity=capacity, exact=exact,
        corpus=None if corpus is None else Path(corpus).absolute(), verify=verify, step=step,
        max_batch=max_batch, prefix_cache=prefix_cache, defaults=defaults, costs=costs,
    )  # fmt: skip
    _check_sizes(threads, capacity, max_batch, prefix_cache)
    if step is not None:
        check_step(step)
    bundle = Bundle.open(path, verify=verify)
    facts = bundle.manifest.facts
    if not isinstance(facts, DecoderFacts):
        raise RequestError(
            f"{path} is a {facts.kind}, which takes no prompt; use graftline.load_decoder, or "
            "graftline run --latents FILE.npy"
        )
    session = _session(bundle, threads, capacity, exact, watch)
    if isinstance(session, OrtSession):
        session.open_forms(max_batch or 1)
    chosen = _chosen(recipe or bundle.manifest.recipe, costs)
    engine = _engine(
        bundle, session, chosen, threads, exact, corpus, step, watch, max_batch or SEATS, costs,
        prefixes=PrefixCache(prefix_cache) if prefix_cache else None,
        defaults=read_defaults(bundle.manifest.generation) if defaults else None,
        origin=origin,
    )  # fmt: skip
    gc.collect()
    gc.freeze()  # a full collection of all that is loaded takes as long as ten steps
    _unfreeze_at_exit()
    return engine


def _chosen(given: str | Recipe, costs: bool) -> Recipe:
    """The recipe. Raises RequestError for one that drafts, without `costs`."""
    chosen = given if isinstance(given, Recipe) else find_recipe(given)
    if not costs and chosen.drafter != "none":
        raise RequestError(
            f"costs=False: the recipe {chosen.name} drafts by what steps cost; leave costs out, or "
            "use the recipe plain"
        )
    return chosen


@cache
def _unfreeze_at_exit() -> None:
    """Libraries look for what they leak when the interpreter ends."""
    atexit.register(gc.unfreeze)


def _engine(
    bundle: Bundle,
    session: OrtSession | TrtSession,
    chosen: Recipe,
    threads: int | None,
    exact: bool,
    corpus: str | Path | None,
    step: str | None,
    watch: Callable[[str], None] | None,
    max_batch: int,
    measured: bool,
    **given: Any,
) -> Engine:
    """The engine over a bundle's session, with its draft engines and its fused step; `given` goes
    to the engine as it is."""
    listed = [Path(name).name for name in bundle.manifest.tokenizer]
    place = bundle.path / "tokenizer"  # without its tokenizer.json it takes ids
    tokenizer = Tokenizer.from_folder(place) if "tokenizer.json" in listed else None
    costs = step_costs(bundle, session, watch) if measured else None
    host = session if isinstance(session, OrtSession) else None  # what only ONNX Runtime does yet
    opened, head = None, None
    if host is not None and costs is not None:
        opened = measured_opener(bundle, host, costs, tokenizer, threads, watch)
        head = head_opener(bundle, host, key_of(host), costs, watch)
    elif isinstance(session, TrtSession):
        head = trt_heads(bundle, session)
    fused, step = _fused(bundle, session, chosen, step, head)
    resources = replace(_resources(bundle, session, tokenizer, corpus), head=head)

    @cache
    def scheduled(stage: str) -> OrtSession:
        return open_session(bundle, threads=threads, capacity=session.capacity, stage=stage)

    def drafting(target: OrtSession) -> Resources:
        around = replace(resources, routes=routes_opener(bundle, target, scheduled))
        if opened is None:
            return around
        draft, depths, route = (
            make(bundle, target, opened) for make in (draft_opener, depths_opener, route_opener)
        )
        exits = exits_opener(bundle, target, opened)
        return replace(around, draft=draft, depths=depths, route=route, exits=exits)

    def twin(original: OrtSession) -> tuple[OrtSession, Resources]:
        session = original.sibling()
        return session, drafting(session)

    return Engine(
        session, tokenizer, bundle.manifest.generation, chosen, costs, exact,
        resources if host is None else drafting(host), fused, step,
        None if host is None else partial(twin, host), max_batch, **given,
    )  # fmt: skip


def _resources(
    bundle: Bundle,
    session: OrtSession | TrtSession,
    tokenizer: Tokenizer | None,
    corpus: str | Path | None,
) -> Resources:
    """What drafters and rules may use, draft engines aside."""
    return Resources(
        corpus=None if corpus is None else corpus_of(corpus, tokenizer),
        embedding=embedding_of(bundle),
        tuned=read_tuned(bundle, key_of(session)),
        decode=None if tokenizer is None else tokenizer.decode,
        encode=None if tokenizer is None else tokenizer.encode_part,
        vocabulary=bundle.manifest.decoder.vocabulary,
        placeholders=bundle.manifest.decoder.placeholders,
        answer_prefix=bundle.manifest.generation.get(ANSWER_PREFIX, ""),
        ends=end_tokens(bundle.manifest.generation, tokenizer),
    )


def _session(
    bundle: Bundle,
    threads: int | None,
    capacity: int | None,
    exact: bool,
    watch: Callable[[str], None] | None,
) -> OrtSession | TrtSession:
    """The session of a bundle's target, as large and as exact as was asked for."""
    session: OrtSession | TrtSession
    if has_engine(bundle):
        session = open_engine(bundle, capacity)
    else:
        session = open_session(bundle, threads=threads, capacity=capacity, watch=watch)
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
    bundle: Bundle,
    session: OrtSession | TrtSession,
    chosen: Recipe,
    step: str | None,
    head: Callable[[], object] | None,
) -> tuple[Callable[[], FusedStep] | None, str]:
    """What opens the bundle's fused step, if it has one, and what calls use that do not say. `head`
    opens its draft head."""
    fused: Callable[[], FusedStep] | None = None
    if isinstance(session, TrtSession):
        if session.steps_fused:
            drafts = drafter_of(session.ports) == chosen.drafter
            step = FUSED if step is None and drafts and is_fusable(chosen) else step
            fused = cache(lambda: open_trt_fused(bundle, session, head))
    elif FUSED in bundle.manifest.stages:
        fused = cache(lambda: open_fused(bundle, session, head))
    if step == FUSED:
        if fused is None:
            again = f"{bundle.manifest.rebuild} --step fused"
            raise BackendError(f"{bundle.path} has no fused step; rebuild: {again}")
        check_fusable(chosen)
        check_drafter(chosen, fused())
    return fused, step or "host"


def _check_sizes(
    threads: int | None, capacity: int | None, max_batch: int | None, prefix_cache: int | None
) -> None:
    """Each thread spins while a step runs: with more threads than processors a step never ends."""
    most = os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= most:
        raise RequestError(
            f"threads={threads}: this machine has {most} processors; use 1 to {most}, or leave it "
            "out to use all"
        )
    if max_batch is not None and max_batch < 1:
        raise RequestError(f"max_batch={max_batch} lets nobody in; use at least 1")
    if prefix_cache is not None and prefix_cache < 0:
        raise RequestError(f"prefix_cache={prefix_cache}: use bytes, or 0 to keep nothing")
    if capacity is not None and capacity < 1:
        raise RequestError(
            f"capacity={capacity} holds no token; use at least 1, or leave it out for the default"
        )
