"""Opening a bundle's TensorRT engine: everything that can be told without the engine comes first.
"""

from __future__ import annotations

from graftline.bundle.reader import Bundle
from graftline.facts import as_decoder
from graftline.plugins import PLUGINS
from graftline.plugins.fingerprint import fingerprint
from graftline.runtimes.control.measure import machine
from graftline.runtimes.trt.cuda import CudaDevice, look
from graftline.runtimes.trt.engine import TrtEngine
from graftline.runtimes.trt.plan import EnginePlan
from graftline.runtimes.trt.session import TrtSession


def has_engine(bundle: Bundle) -> bool:
    """Whether the bundle's target is run by TensorRT."""
    return "engine" in bundle.manifest.extra


def open_engine(bundle: Bundle, capacity: int | None = None) -> TrtSession:
    """The session of a bundle's engine. Raises BackendError, before the engine is read, for a
    machine, a library or a size it was not built for; the message has the rebuild command."""
    manifest = bundle.manifest
    plan = EnginePlan.read(manifest)
    plan.check(look(plan.flavour))
    plan.check_plugins({n: fingerprint(PLUGINS[n]) for n in plan.plugins if n in PLUGINS})
    stage, graph = manifest.stages[plan.graph], bundle.graph(plan.graph)
    plan.check_capacity(stage.ports, capacity)
    device = CudaDevice(TrtEngine(plan, bundle.file(plan.file), graph))
    session = TrtSession(device, plan, as_decoder(stage.facts), stage.ports, graph, capacity)
    session.costs_key = f"{machine()} {device.name}"
    return session
