"""A second device without one: tensors that are on it hold numbers in the CPU's memory, and no
operation takes them together with the CPU's.

To torch they are on `meta`, which every build has; what would be made there is made whole. So a
training on a device can be run to its end, numbers and all, where there is no GPU. What draws
random numbers draws those of the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from graftline.models.training.crew import Crew

DEVICE = torch.device("meta")
COPY, CONVERT = torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default
"""What takes numbers from one device to another."""


class Elsewhere(torch.Tensor):
    """A tensor of the device; `held` has its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=DEVICE,
        )  # fmt: skip
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        """As any tensor's, which torch refuses of subclasses."""
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Refused, as a GPU's."""
        raise TypeError("can't convert a tensor of another device to numpy; use Tensor.cpu()")


class FromPython(TorchFunctionMode):
    """Lists and arrays become tensors on the CPU first: torch keeps no numbers of those that are to
    be on `meta`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if func not in (torch.tensor, torch.as_tensor) or "device" not in named:
            return func(*args, **named)
        device = named.pop("device")
        return func(*args, **named, device="cpu").to(device)


class PretendDevice(TorchDispatchMode):
    """While this holds, the device is there."""

    def __enter__(self) -> PretendDevice:
        self.functions = FromPython()
        self.functions.__enter__()
        return super().__enter__()

    def __exit__(self, *given: Any) -> None:
        super().__exit__(*given)
        self.functions.__exit__(*given)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class PretendCrew(Crew):
    """One process on the device."""

    def __init__(self) -> None:
        super().__init__(DEVICE)

    def random(self, seed: int) -> torch.Generator:
        """The CPU's: there is none of `meta`."""
        return torch.Generator().manual_seed(seed)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on what is held; its results are where its operands are, or where it says."""
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    here = [x for x in given if not isinstance(x, Elsewhere)]
    wanted, named = kwargs.get("device"), dict(kwargs)
    there = len(here) < len(given)
    if there and func not in (COPY, CONVERT) and any(x.ndim for x in here):
        raise RuntimeError(f"{func}: tensors on two devices")
    if wanted is not None:
        there, named["device"] = torch.device(wanted).type == DEVICE.type, "cpu"
    out = func(*tree_map(_held, args), **tree_map(_held, named))
    if func is COPY:
        return args[0]
    if not there:
        return out
    out = tree_map(lambda x: Elsewhere(x) if isinstance(x, torch.Tensor) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if given else out


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value
