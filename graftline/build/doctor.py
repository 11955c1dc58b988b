"""What is installed here, which targets can be built and run, and what the others need."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata

from graftline.build.tensorrt.target import FLAVOURS, Flavour, gpu_capability

PACKAGES = (
    "numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", "networkx",
    "tokenizers", "safetensors", "jinja2", "torch", "transformers", "accelerate", "gguf",
    "tensorrt-rtx-cu13", "tensorrt-cu13", "cuda-bindings", "triton",
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
        _cuda(cpu, bool(versions["onnxruntime-gpu"]), gpus),
        *(_engines(f, gpus, bool(versions["cuda-bindings"])) for f in FLAVOURS.values()),
    )


def _cuda(builds: bool, installed: bool, gpus: int) -> Ability:
    """ONNX Runtime on a GPU; its graphs are built without one."""
    hidden = installed and not _has_cuda()
    reasons = [
        "" if installed else "its library is not installed",
        "the package onnxruntime hides it" if hidden else "",
        "" if gpus else NO_GPU,
    ]
    reason = "; ".join(filter(None, reasons))
    install = _pip('"graftline[gpu]"', installed)
    if hidden:
        install = "pip uninstall -y onnxruntime && pip install --force-reinstall onnxruntime-gpu"
    return Ability("ort-cuda", builds, not reason, reason, install)


def _has_cuda() -> bool:
    """Whether the ONNX Runtime that is imported has its CUDA provider."""
    from graftline.runtimes.ort.provider import cuda_missing

    return not cuda_missing()


def _engines(flavour: Flavour, gpus: int, bindings: bool) -> Ability:
    """Engines of one TensorRT: which GPUs it builds for, whether it can here, and run them."""
    installed = importlib.util.find_spec(flavour.module) is not None
    here = gpu_capability() if gpus else None
    makes = ", ".join(f"sm{n}" for n in flavour.capabilities)
    where = "without a GPU" if flavour.ahead_of_time else "on a machine with that GPU"
    fits = here in flavour.capabilities
    lacking = [
        "" if installed else "its library is not installed",
        "" if bindings else "cuda-bindings, which runs engines, is not installed",
        "" if gpus else NO_GPU,
        "" if fits or not gpus else f"this machine's GPU is sm{here}",
    ]
    builds = installed and (flavour.ahead_of_time or fits)
    reason = "; ".join([f"builds for {makes}, {where}", *filter(None, lacking)])
    wanted = [flavour.package] * (not installed) + ['"graftline[trt]"'] * (not bindings)
    install = f"pip install {' '.join(wanted)}" if wanted else ""
    return Ability(flavour.name, builds, not any(lacking), reason, install)


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
