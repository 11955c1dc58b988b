"""The processes that train one thing together, and what they compute on.

`accelerate launch` or `torchrun` starts them; without either there is one, which has nothing to
share. Gradients and weights go between devices by the backend that accelerate chose (NCCL, or gloo
on CPUs), under its usual time limit, which a step never reaches. All else goes by a group of its
own over gloo, which may wait for days: one process answers prompts for hours while others wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

from graftline.errors import GraftlineError
from graftline.interrupts import uninterrupted
from graftline.memory import free_memory

T = TypeVar("T")
CPU = torch.device("cpu")
LONGEST = timedelta(days=30)
"""How long a process waits for the main one at most; one that has ended is noticed at once."""
POLL = 0.05
"""Seconds between two looks at whether the main process is done: Ctrl-C comes through between."""
DONE, FAILED, INTERRUPTED = range(3)
"""How the main process ended what the others wait for."""


class Ended(GraftlineError):
    """The main process of a crew has failed, and said why."""


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager[Any]:
    """Products in bfloat16 on a device, where they are asked for."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


@dataclass(frozen=True)
class Crew:
    """One of `count` processes, whose number is `rank` and who computes on `device`. Number 0 is
    the main one: it alone answers, judges, prints and writes. `control`: the group by which they
    agree, None of one alone."""

    device: torch.device = CPU
    rank: int = 0
    count: int = 1
    control: Any = None

    @classmethod
    def open(cls, device: str | None = None) -> Crew:
        """This process among those that its launcher started. `device`: cpu or cuda; None: cuda
        where there is a GPU, unless accelerate was told --cpu. Raises GraftlineError."""
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        has = torch.cuda.is_available()
        if device == "cuda" and not has:
            raise GraftlineError("--device cuda: PyTorch finds no GPU here; use --device cpu")
        cpu = device == "cpu" or not has
        if device is None and parse_flag_from_env("ACCELERATE_USE_CPU"):
            cpu = True
        with _talking():
            state: Any = PartialState(cpu=cpu)
            if (state.device.type == "cpu") != cpu:
                raise GraftlineError(
                    f"accelerate already computes on {state.device} in this Python; start another"
                )
            count = int(state.num_processes)
            control = None
            if count > 1:
                control = torch.distributed.new_group(backend="gloo", timeout=LONGEST)
        return cls(torch.device(state.device), int(state.process_index), count, control)

    def close(self) -> None:
        """Take leave of the others, at the end of all."""
        from accelerate import PartialState

        if self.count > 1:
            PartialState().destroy_process_group()

    @property
    def main(self) -> bool:
        """Whether this is the one that answers, judges, prints and writes."""
        return self.rank == 0

    def __str__(self) -> str:
        """What computes, besides one process on the CPU: ", NVIDIA H200, 2 processes"."""
        told = f", {self.count} processes" if self.count > 1 else ""
        if self.device.type != "cuda":
            return told
        return f", {torch.cuda.get_device_name(self.device)}{told}"

    def free_memory(self) -> int:
        """Bytes that are free on the device."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        return free_memory()

    def here(self) -> AbstractContextManager[Any]:
        """While this holds, new tensors are made on the device."""
        return nullcontext() if self.device == CPU else self.device

    @contextmanager
    def seeded(self, seed: int) -> Generator[None]:
        """What is drawn in this block is drawn from a seed, and changes no draws after it."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    def random(self, seed: int) -> torch.Generator:
        """A generator of the device."""
        return torch.Generator(self.device).manual_seed(seed)

    def shared(self, work: Callable[[], T]) -> T:
        """What `work` gives in the main process, in all of them; it can be pickled. Raises in the
        main process what `work` raises, and Ended or KeyboardInterrupt in the others."""
        if self.count == 1:
            return work()
        if self.main:
            try:
                made = work()
            except BaseException as error:
                with suppress(GraftlineError):  # there may be nobody left to tell
                    self._tell(INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED)
                raise
            self._tell(DONE)
            return self._told(made)
        ended = self._awaited()
        if ended == INTERRUPTED:
            raise KeyboardInterrupt
        if ended == FAILED:
            raise Ended(f"process {self.rank} of {self.count} ends with the main one")
        return self._told(None)

    def first(self, work: Callable[[], T]) -> T:
        """What `work` gives in each process: the main one does it before the others, who find what
        it has left on disk."""
        found: list[T] = []
        self.shared(lambda: found.append(work()))
        return found[0] if self.main else work()

    def agree(self, numbers: Sequence[float], stop: bool) -> tuple[Sequence[float], bool]:
        """The numbers of the main process, and whether any process is to stop."""
        if self.count == 1:
            return numbers, stop
        own = numbers if self.main else [0.0] * len(numbers)
        said = self._sum([float(stop), *own])
        return said[1:], said[0] > 0

    def spread(self, tensors: Iterable[torch.Tensor]) -> None:
        """Let tensors hold what they hold in the main process."""
        if self.count > 1:
            from accelerate.utils import broadcast

            with _talking():
                for tensor in tensors:
                    broadcast(tensor.detach())

    def average(
        self, parameters: Iterable[torch.nn.Parameter], loss: torch.Tensor
    ) -> tuple[float, bool]:
        """Give parameters the mean of all processes' gradients, and return the mean of their losses
        and whether any has a gradient. A process without one for a parameter counts as zeros; a
        parameter for which none has one stays without."""
        mean = float(loss.detach())
        if self.count == 1:
            return mean, loss.requires_grad
        from accelerate.utils import reduce

        learned = list(parameters)
        total, *taught = self._sum([mean, *(float(p.grad is not None) for p in learned)])
        with _talking():
            for parameter, teachers in zip(learned, taught, strict=True):
                if teachers:
                    own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    together: Any = reduce(own.contiguous(), "mean")
                    parameter.grad = together
        return total / self.count, any(taught)

    @contextmanager
    def listening(self) -> Generator[list[int]]:
        """Ctrl-C is held back within this block where there are several processes: yields the
        signals that came, for all are to stop at the same step."""
        if self.count == 1:
            yield []
            return
        with uninterrupted() as signals:
            yield signals

    def _sum(self, numbers: Sequence[float]) -> list[float]:
        total = torch.tensor(numbers, dtype=torch.float64, device=CPU)
        with _talking():
            torch.distributed.all_reduce(total, group=self.control)
        return total.tolist()

    def _tell(self, ended: int) -> None:
        with uninterrupted(), _talking():
            torch.distributed.broadcast(torch.tensor([ended], device=CPU), 0, group=self.control)

    def _awaited(self) -> int:
        """How the main process has ended what it does."""
        told = torch.tensor([DONE], device=CPU)
        with _talking():
            work: Any = torch.distributed.broadcast(told, 0, group=self.control, async_op=True)
            while not work.is_completed():
                time.sleep(POLL)
            work.wait()
        return int(told)

    def _told(self, value: T | None) -> T:
        held: list[Any] = [value]
        with uninterrupted(), _talking():
            torch.distributed.broadcast_object_list(held, 0, group=self.control)
        return held[0]


ALONE = Crew()
"""One process on the CPU."""


@contextmanager
def _talking() -> Generator[None]:
    """Another process that has ended is one line. Raises GraftlineError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        reason = line.partition(". ")[0]
        raise GraftlineError(
            f"another process of this training cannot be reached ({reason}); what was kept is "
            "kept: run the same command to go on"
        ) from error
