"""What this machine takes for the steps of a bundle's engines: measured once, and kept in it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from graftline.bundle.reader import Bundle
from graftline.owners import DRAFT
from graftline.route import ROUTE
from graftline.runtimes.chances.calibration import USUAL
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.machine import costs_key
from graftline.runtimes.ort.provider import version
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.sessions import open_session
from graftline.runtimes.step_times import measure_costs
from graftline.runtimes.study.perplexity import HELD_OUT
from graftline.runtimes.surroundings import Match, Opened, agreement, step_ratio
from graftline.runtimes.text.tokenizer import Tokenizer
from graftline.runtimes.trt.session import TrtSession


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
    key = key_of(session) + (f", {stage}" if stage not in ("", bundle.manifest.target) else "")
    known = bundle.read_costs(key)
    if known is None or "far" not in known:  # tables of an older form
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


def key_of(session: OrtSession | TrtSession) -> str:
    """Key of what was measured on this machine: with that many threads, or on that GPU."""
    if isinstance(session, TrtSession):
        return session.costs_key
    key = costs_key(session.threads, version())
    return key if session.device == "cpu" else f"{key}, {session.device}"


def measured_opener(
    bundle: Bundle,
    session: OrtSession,
    costs: Costs,
    tokenizer: Tokenizer | None,
    threads: int | None,
    watch: Callable[[str], None] | None,
) -> Opened | None:
    """Opens each stage of the draft's, the target's route, and its exits, once, and measures it
    beside the target; None without any."""
    manifest = bundle.manifest
    whole = manifest.engines().get(DRAFT)
    names = {ROUTE: "the route"} if ROUTE in manifest.stages else {}
    rests = manifest.of_role("rest")
    names |= {name: name.replace("-", " ") for name in (*manifest.of_role("exit"), *rests)}
    if whole is None and not names:
        return None

    @cache
    def opened(stage: str) -> tuple[OrtSession, Match]:
        told = "the draft engine" if stage == whole else f"the draft engine's {stage}"
        name = names.get(stage, told)
        if watch is not None:
            watch(f"opening {name}")
        engine = open_session(bundle, threads=threads, capacity=session.capacity, stage=stage)
        key = f"{key_of(session)}, {stage} beside the target"
        known = bundle.read_costs(key)
        if known is None:
            known = {"ratio": step_ratio(engine, session), "agreement": USUAL}
            if tokenizer is not None and stage not in rests:
                text = tokenizer.encode_part(HELD_OUT.read_text(encoding="utf-8"))
                known["agreement"] = agreement(engine, session, text)
            bundle.write_costs(key, known)
        step = float(known["ratio"]) * costs.of(1)
        table = cache(lambda: step_costs(bundle, engine.sibling(), watch, name, stage))
        return engine, Match(step, float(known.get("agreement", USUAL)), table)

    return opened
