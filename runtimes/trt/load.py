"""Opening a bundle's TensorRT engine: everything that can be told without the engine comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from graftline.bundle.reader import Bundle
from graftline.errors import BackendError
from graftline.facts import DraftBlockFacts, as_decoder
from graftline.plugins import PLUGINS
from graftline.plugins.fingerprint import fingerprint
from graftline.ports import FEATURES, by_role
from graftline.runtimes.feature_engine import FeatureEngine
from graftline.runtimes.head_reader import Heads
from graftline.runtimes.machine import machine
from graftline.runtimes.session import FINAL, MADE
from graftline.runtimes.trt.cuda import CudaDevice, look
from graftline.runtimes.trt.engine import TrtEngine
from graftline.runtimes.trt.features import LentCaches, TrtFeatureSession, feature_engine
from graftline.runtimes.trt.fused import TrtFusedStep
from graftline.runtimes.trt.heads import TrtHead, TrtHeads
from graftline.runtimes.trt.once import TrtOnce
from graftline.runtimes.trt.plan import EnginePlan
from graftline.runtimes.trt.session import TrtSession


def has_engine(bundle: Bundle) -> bool:
    """Whether the bundle's target is run by TensorRT."""
    return "engine" in bundle.manifest.extra


def open_engine(bundle: Bundle, capacity: int | None = None) -> TrtSession:
    """The session of a bundle's engine. Raises BackendError, before the engine is read, for a
    machine, a library or a size it was not built for; the message has the rebuild command."""
    plan = _checked(EnginePlan.read(bundle.manifest))
    stage, graph = bundle.manifest.stages[plan.graph], bundle.graph(plan.graph)
    plan.check_capacity(stage.ports, capacity)
    device = _opened(bundle, plan)
    session = TrtSession(device, plan, as_decoder(stage.facts), stage.ports, graph, capacity)
    session.costs_key = f"{machine()} {device.name}"
    return session


def head_opener(bundle: Bundle, session: TrtSession) -> Callable[[], Heads | FeatureEngine] | None:
    """Opens the bundle's draft heads, once: those within its fused steps, or their engines. None
    without any."""
    if (within := session.heads) is not None:
        return lambda: within
    rows = [row for where, row in bundle.manifest.built() if where == "heads"]
    if not rows:
        return None

    @cache
    def opened() -> TrtHeads | FeatureEngine:
        plans = [_checked(EnginePlan.read(bundle.manifest, row)) for row in rows]
        first = bundle.manifest.stages[plans[0].graph]
        if isinstance(first.facts, DraftBlockFacts):
            (plan,) = plans
            graph = bundle.graph(plan.graph)
            given = _opened(bundle, plan), plan, first.facts, first.ports, graph
            block = TrtFeatureSession(*given, capacity=session.capacity)
            made = by_role(session.ports, FEATURES, "out")
            return feature_engine(block, MADE if made else FINAL)
        ports = (bundle.manifest.stages[plan.graph].ports for plan in plans)
        pairs = zip(plans, ports, strict=True)
        return TrtHeads([TrtHead(_opened(bundle, plan), plan, given) for plan, given in pairs])

    return opened


def open_fused(
    bundle: Bundle, session: TrtSession, head: Callable[[], object] | None
) -> TrtFusedStep:
    """The fused step of a bundle's engine. `head` opens its draft head, by whose own engine a step
    that drafts by a block reads prompts."""
    if not session.depth:
        return TrtFusedStep(session)
    opened = None if head is None else head()
    if not isinstance(opened, FeatureEngine) or not isinstance(opened.head, TrtFeatureSession):
        raise BackendError(f"{bundle.path}: its fused step drafts by a head that it lacks")
    return TrtFusedStep(session, LentCaches(opened.head, session))


def open_once(bundle: Bundle, stage: str) -> TrtOnce:
    """The engine of a stage of a host that runs once. Raises BackendError as `open_engine` does."""
    row = next(row for _, row in bundle.manifest.built() if row["graph"] == stage)
    plan = _checked(EnginePlan.read(bundle.manifest, row))
    return TrtOnce(_opened(bundle, plan), plan, bundle.manifest.stages[stage].ports)


def _checked(plan: EnginePlan) -> EnginePlan:
    """A plan whose engine can run here. Raises BackendError for any other."""
    plan.check(look(plan.flavour))
    plan.check_plugins({n: fingerprint(PLUGINS[n]) for n in plan.plugins if n in PLUGINS})
    return plan


def _opened(bundle: Bundle, plan: EnginePlan) -> CudaDevice:
    return CudaDevice(TrtEngine(plan, bundle.file(plan.file), bundle.graph(plan.graph)))
