"""A process of a crew: what torchrun starts in test_crew.py, for all that two processes do."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from graftline.errors import GraftlineError
from graftline.models.training import trainer
from graftline.models.training.answers import Asked, Sampling
from graftline.models.training.crew import Crew
from graftline.models.training.head_lesson import HeadSettings
from graftline.models.training.kinds import Head
from graftline.models.training.run import Data, Job, Trained, train
from tests.models.training.predictable import Known, conversations

STEPS, COUNT, LENGTH = 6, 9, 24


def job(folder: Path, name: str, answerer: Any = None, engine: str = "known") -> Job:
    """A few steps of Medusa heads; what is written goes to `name`, beside the host's folder."""
    known = answerer or Known(LENGTH)
    data = Data(conversations(COUNT), lambda: known, engine, Sampling())
    settings = HeadSettings(steps=STEPS, tokens=64, rate=2e-2)
    out = folder.parent / name
    return Job(Head("medusa"), "host", folder, out, data, settings, None, "graftline train")


class Broken(Known):
    """Cannot answer."""

    def __call__(self, asked: Sequence[Asked]) -> Any:
        raise GraftlineError("the engine is gone")


class Signalled:
    """Ctrl-C to this process in its so-many-th step."""

    def __init__(self, steps: int) -> None:
        self.left, self.real = steps, trainer.Trainer._step

    def __enter__(self) -> None:
        def step(one: Any, progress: float) -> None:
            self.left -= 1
            if not self.left:
                signal.raise_signal(signal.SIGINT)
            self.real(one, progress)

        trainer.Trainer._step = step  # type: ignore[method-assign]

    def __exit__(self, *given: Any) -> None:
        trainer.Trainer._step = self.real  # type: ignore[method-assign]


def ended(given: Job, crew: Crew) -> str:
    """How a training ends that does not come to its end."""
    try:
        train(given, print, crew)
    except (KeyboardInterrupt, GraftlineError) as error:
        return f"{type(error).__name__}: {error}"
    return "to its end"


def spread(crew: Crew) -> list[float]:
    """What others hold of a tensor that every process has filled with its own number."""
    own = torch.full((2,), float(crew.rank))
    crew.spread([own])
    return own.tolist()


def averaged(crew: Crew) -> tuple[float, bool, list[float] | None, list[float] | None]:
    """The mean loss, whether any taught, and the gradients of two parameters: the second process
    reads what teaches nothing, and nobody teaches the second parameter."""
    one, two = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    loss = (3.0 * one + 4.0).sum() if crew.main else torch.zeros(())
    if loss.requires_grad:
        loss.backward()
    mean, taught = crew.average([one, two], loss)
    gradients = (None if p.grad is None else p.grad.tolist() for p in (one, two))
    return (mean, taught, *gradients)  # type: ignore[return-value]


def main(folder: Path) -> None:
    """All of it; each process writes what it saw to a file of its own."""
    crew, seen = Crew.open("cpu"), dict[str, Any]()
    kept = list[dict[str, torch.Tensor]]()
    real = trainer.Trainer._leave_best

    def ended_with(one: trainer.Trainer) -> None:
        kept.append({name: p.detach().clone() for name, p in one.parameters.items()})
        real(one)

    trainer.Trainer._leave_best = ended_with  # type: ignore[method-assign]
    write, states = trainer.write_tensors, list[Path]()

    def written(path: Path, *given: Any) -> None:
        states.append(path)
        write(path, *given)

    trainer.write_tensors = written
    seen["broken"] = ended(job(folder, "broken", Broken(), "broken"), crew)
    whole: Trained = train(job(folder, "whole"), print, crew)
    with Signalled(3) if crew.rank == 1 else Signalled(STEPS + 1):
        seen["stopped"] = ended(job(folder, "parts"), crew)
    parts = train(job(folder, "parts"), print, crew)
    seen["timed"] = train(
        replace(job(folder, "timed"), settings=HeadSettings(tokens=64), minutes=0.02), print, crew
    ).course.step
    seen["looks"] = [whole.course.looks, parts.course.looks]
    seen["spread"], seen["averaged"] = spread(crew), averaged(crew)
    seen["size"], seen["states"] = whole.size, len(states)
    torch.save([seen, *kept], folder.parent / f"seen-{crew.rank}.pt")
    crew.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
