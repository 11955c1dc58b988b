"""Targets of TensorRT by name: which library builds for which GPUs, and where."""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass

from graftline.errors import BackendError, nearest

BF16_FROM = 80


@dataclass(frozen=True)
class Flavour:
    """What differs between the two libraries; nothing else branches on them."""

    name: str
    module: str
    package: str
    capabilities: tuple[int, ...]
    """Compute capabilities, as 89 for 8.9, it makes engines for."""
    ahead_of_time: bool
    """Builds for other GPUs than the one in the machine, and without any."""
    times_kernels: bool
    """Times kernels on the GPU while it builds, and keeps the times in a cache."""
    plugins: bool
    """Takes plugins; where it does not, the functions of custom ops are inlined."""
    flags: tuple[str, ...] = ()
    """Builder flags it needs so that a step allocates nothing and can be captured as a CUDA graph.
    """


FLAVOURS = {
    f.name: f
    for f in (
        Flavour(
            name="trt-rtx",
            module="tensorrt_rtx",
            package="tensorrt-rtx-cu13",
            capabilities=(75, 80, 86, 89, 120, 121),
            ahead_of_time=True,
            times_kernels=False,
            plugins=False,
            flags=("REQUIRE_USER_ALLOCATION",),
        ),
        Flavour(
            name="trt",
            module="tensorrt",
            package="tensorrt-cu13",
            capabilities=(75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121),
            ahead_of_time=False,
            times_kernels=True,
            plugins=True,
        ),
    )
}


@dataclass(frozen=True)
class Target:
    """One flavour and the GPUs an engine is for. `str` and `parse` are inverses."""

    flavour: Flavour
    capabilities: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.flavour.name}:{'+'.join(f'sm{n}' for n in self.capabilities)}"

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read "trt-rtx:sm89+sm120" or "trt:sm90". Raises BackendError for what cannot be built."""
        name, _, gpus = text.partition(":")
        if name not in FLAVOURS:
            raise BackendError(f"unknown TensorRT flavour '{name}'{nearest(name, FLAVOURS)}")
        flavour = FLAVOURS[name]
        known = {f"sm{n}": n for n in flavour.capabilities}
        words = gpus.split("+")
        for word in words:
            if word not in known:
                raise BackendError(f"{name} builds for no GPU '{word}'{_elsewhere(name, word)}")
        numbers = tuple(known[w] for w in words)
        if len(set(numbers)) < len(numbers):
            raise BackendError(f"{text} names a GPU twice")
        if not flavour.ahead_of_time and len(numbers) > 1:
            raise BackendError(f"{text}: {name} builds for the GPU in the machine, one at a time")
        return cls(flavour, numbers)

    def check_dtype(self, dtype: str) -> None:
        """Raise BackendError where a GPU of this target has no arithmetic for `dtype`."""
        if dtype == "bf16" and min(self.capabilities) < BF16_FROM:
            raise BackendError(f"{self}: sm75 has no bf16; use --dtype fp16, or leave it out")

    def check_machine(self) -> None:
        """Raise BackendError where this flavour needs a GPU that is not in this machine."""
        if self.flavour.ahead_of_time:
            return
        found = gpu_capability()
        if found != self.capabilities[0]:
            here = f"this machine has sm{found}" if found else "this machine has no GPU"
            raise BackendError(
                f"{self} is built on a machine with that GPU, and {here}; run the same command "
                "there, or use a trt-rtx target"
            )


def _elsewhere(name: str, word: str) -> str:
    """`; did you mean`, or the flavour that does build for that GPU."""
    number = re.fullmatch(r"sm(\d+)", word)
    others = [f for f in FLAVOURS.values() if number and int(number[1]) in f.capabilities]
    if others:
        return f"; {others[0].name}:{word} does"
    return nearest(word, [f"sm{n}" for n in FLAVOURS[name].capabilities])


def gpu_capability() -> int | None:
    """Compute capability of the first NVIDIA GPU, as 89 for 8.9; None without a driver or a GPU."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    for value, attribute in ((major, 75), (minor, 76)):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) != 0:
            return None
    return 10 * major.value + minor.value
