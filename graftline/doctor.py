"""What is installed here, which targets can be built and run, and what the others need."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata

from graftline.passes.tensorrt_target import FLAVOURS, Flavour, gpu_capability

PACKAGES = (
    "numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", "networkx",
    "tokenizers", "safetensors", "jinja2", "torch", "transformers", "accelerate", "gguf",
    "tensorrt-rtx-cu13", "tensorrt", "triton",
)  # fmt: skip
NO_GPU = "no NVIDIA GPU or driver here"
EXPORT = ("torch", "transformers", "accelerate", "gguf")


@dataclass(frozen=True)
class Package:
    """One library, with the version that is installed or None."""

    name: str
    version: str | None


@dataclass(frozen=True)
class Ability:
    """One thing graftline may be able to do here.

    `builds` and `runs` say whether it works now; `reason` what stands in the way; `install` the
    command that changes it ("" when nothing needs installing, or no installation would help).
    """

    name: str
    builds: bool
    runs: bool
    reason: str = ""
    install: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All of it."""

    machine: dict[str, str]
    packages: tuple[Package, ...]
    abilities: tuple[Ability, ...]


def diagnose() -> Diagnosis:
    """Look at this machine; imports no heavy library but ONNX Runtime."""
    packages = tuple(Package(name, _version(name)) for name in PACKAGES)
    versions = {p.name: p.version for p in packages}
    return Diagnosis(_machine(), packages, _abilities(versions, nvidia_gpus()))


def nvidia_gpus() -> int:
    """NVIDIA GPUs the driver offers; 0 without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _abilities(versions: dict[str, str | None], gpus: int) -> tuple[Ability, ...]:
    lacking = [name for name in EXPORT if not versions[name]]
    install = 'pip install "graftline[export]"' if lacking else ""
    reason = f"not installed: {', '.join(lacking)}" if lacking else ""
    readers = Ability(
        "read checkpoints (HF, GGUF, .pt2)", not lacking, not lacking, reason, install
    )
    cpu = bool(versions["onnxruntime"] or versions["onnxruntime-gpu"])
    return (
        readers,
        Ability("ort-cpu", cpu, cpu, "" if cpu else "no ONNX Runtime", _pip("onnxruntime", cpu)),
        _cuda(bool(versions["onnxruntime-gpu"]), gpus),
        *(_engines(flavour, gpus) for flavour in FLAVOURS.values()),
    )


def _cuda(installed: bool, gpus: int) -> Ability:
    """ONNX Runtime on a GPU."""
    reasons = [
        "this version of graftline has no builder for it yet",
        "" if installed else "its library is not installed",
        "" if gpus else NO_GPU,
    ]
    reason = "; ".join(filter(None, reasons))
    return Ability("ort-cuda", False, False, reason, _pip('"graftline[gpu]"', installed))


def _engines(flavour: Flavour, gpus: int) -> Ability:
    """Engines of one TensorRT: which GPUs it builds for, and whether it can here."""
    installed = importlib.util.find_spec(flavour.module) is not None
    here = gpu_capability() if gpus else None
    makes = ", ".join(f"sm{n}" for n in flavour.capabilities)
    where = "without a GPU" if flavour.ahead_of_time else "on a machine with that GPU"
    reasons = [
        f"builds for {makes}, {where}",
        "" if installed else "its library is not installed",
        "this version of graftline has no session to run it yet",
        "" if gpus else NO_GPU,
    ]
    builds = installed and (flavour.ahead_of_time or here in flavour.capabilities)
    reason = "; ".join(filter(None, reasons))
    return Ability(flavour.name, builds, False, reason, _pip(flavour.package, installed))


def _pip(package: str, installed: bool) -> str:
    return "" if installed else f"pip install {package}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> dict[str, str]:
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / (1 << 30):.1f} GiB"
    return {
        "graftline": _version("graftline") or "not installed (run from its folder)",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": str(os.cpu_count()),
        "memory": memory,
        "free disk here": f"{shutil.disk_usage('.').free / (1 << 30):.1f} GiB",
    }
