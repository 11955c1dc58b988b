"""The steps of a training: the same ones again, wherever it was interrupted."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from graftline.errors import GraftlineError
from graftline.interrupts import uninterrupted
from graftline.models.host import Watch
from graftline.models.training.clock import Clock, left
from graftline.models.training.crew import ALONE, Crew, autocast
from graftline.models.training.muon import Muon
from graftline.models.training.tensor_file import damaged, read_tensors, write_tensors

WARMUP, FLOOR = 0.05, 0.02
"""The learning rate rises over this share of the training, and falls to this share of itself."""
CLIP = 1.0
"""The largest norm of a step's gradient."""
LOOKS, PATIENCE, HALF = 10, 4, 0.5
"""How often what is held out is looked at; how often without a gain before it ends, once half of
it is over: the first looks may all find nothing."""
KEEP = 60.0
"""Seconds between two checkpoints."""
END = 0.97
"""The share of the time that training may take it to; the rest is for writing."""


@dataclass(frozen=True)
class Settings:
    """How something is trained. `steps` None: as many as the time allows."""

    steps: int | None = None
    seed: int = 0
    rate: float = 1e-3
    optimizer: str = "adamw"
    bf16: bool = False


@dataclass(frozen=True)
class Look:
    """What held-out examples show. The more `score`, the better; `numbers` are what it was made of,
    `told` is both in words. `learned`: whether anything is right yet."""

    score: float
    numbers: Sequence[Sequence[float]]
    told: str
    learned: bool = True


class Lesson(Protocol):
    """What is learned of examples, and judged by others that are held out."""

    @property
    def parameters(self) -> Mapping[str, torch.nn.Parameter]:
        """What is learned, by name."""
        ...

    def loss(self, step: int, progress: float, random: torch.Generator) -> torch.Tensor:
        """The loss of the examples of a step; `progress` is the share of the training before it."""
        ...

    def look(self) -> Look:
        """How the held-out examples go with the weights as they are."""
        ...


Noted = tuple[int, float, float, Sequence[Sequence[float]]]
"""Of a look: the step, the loss, the score and the numbers."""


@dataclass
class Course:
    """How far a training is. `looks`: each time the held-out examples were looked at; `best` is the
    place among them of the weights that are kept."""

    step: int = 0
    began: float = 0.0
    marks: int = 0
    loss: float = 0.0
    looks: list[Noted] = field(default_factory=list["Noted"])
    best: int = -1
    ended: str = ""

    @property
    def found(self) -> Sequence[Sequence[float]] | None:
        """The numbers of the best look; None where nobody has looked."""
        return self.looks[self.best][3] if self.best >= 0 else None


class Trainer:
    """One training of a lesson; its state lies at `path`. Each process of a `crew` learns from
    examples of its own at every step, and all move by the mean of their gradients."""

    def __init__(
        self, lesson: Lesson, settings: Settings, path: Path, clock: Clock, crew: Crew = ALONE
    ) -> None:
        """Goes on where a state at `path` stopped. Raises CheckpointError where it is damaged, and
        GraftlineError where another number of processes began it."""
        self.lesson, self.settings = lesson, settings
        self.path, self.clock, self.crew = path, clock, crew
        self.parameters = lesson.parameters
        self.optimizers = _optimizers(self.parameters, settings)
        self.course = Course(began=clock.spent)
        self.best: dict[str, torch.Tensor] = {}
        self._kept = time.monotonic()
        if path.exists():
            self._resume()
        crew.spread(self.parameters.values())

    def run(self, say: Watch) -> Course:
        """Train to the end, and leave the best weights in the lesson. Raises KeyboardInterrupt at
        the end of the step in which it came to any process, when the state has been kept."""
        course = self.course
        try:
            with self.crew.listening() as signals:
                while not course.ended:
                    self._turn(bool(signals), say)
        except KeyboardInterrupt:
            self.keep()
            self._leave_best()
            raise
        self.keep()
        self._leave_best()
        return course

    def _turn(self, stop: bool, say: Watch) -> None:
        """A look at what is held out, a step, or the end, as the main process's clock says."""
        course, past = self.course, self.clock.past(END)
        (progress, over), stop = self.crew.agree((self.progress, float(past)), stop)
        if stop:
            raise KeyboardInterrupt
        if int(progress * LOOKS) > course.marks:
            self._look(progress, say)
        elif progress >= 1.0:
            course.ended = "all steps" if self._counts else "the time is over"
        elif over:
            self._look(progress, say)
            course.ended = "the time is over"
        else:
            with uninterrupted():
                self._step(progress)
            if time.monotonic() - self._kept > KEEP:
                self.keep()

    @property
    def progress(self) -> float:
        """The share of the training that is done."""
        if self._counts:
            return self.course.step / (self.settings.steps or 1)
        began = self.course.began
        whole = END * (self.clock.limit or 0.0) - began
        return 1.0 if whole <= 0 else (self.clock.spent - began) / whole

    @property
    def _counts(self) -> bool:
        return self.settings.steps is not None

    def _step(self, progress: float) -> None:
        course, settings, crew = self.course, self.settings, self.crew
        place = course.step * crew.count + crew.rank
        random = crew.random(settings.seed * 1_000_003 + place)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = settings.rate * _slope(progress)
        with crew.here(), autocast(crew.device, settings.bf16):
            loss = self.lesson.loss(place, progress, random)
        if loss.requires_grad:  # texts that are too short to draft in teach nothing
            loss.backward()
        mean, taught = crew.average(self.parameters.values(), loss)
        if taught:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP)
            for optimizer in self.optimizers:
                optimizer.step()
        course.step += 1
        course.loss += (mean - course.loss) / min(course.step, 20)
        if not math.isfinite(course.loss):
            raise GraftlineError(
                f"the loss is not finite at step {course.step}; use a lower --learning-rate"
            )

    def _look(self, progress: float, say: Watch) -> None:
        """Look at what is held out; keep the weights where they are the best so far. The main
        process looks for all: it is a step's work, and its verdict must be everybody's."""
        course = self.course
        found = self.crew.shared(self._seen)
        with uninterrupted():
            self._note(found, progress)
        spent = self.clock.spent - course.began
        todo = spent / progress * (1 - progress) if progress else 0.0
        of = f" of {self.settings.steps}" if self._counts else ""
        say(
            f"training: step {course.step}{of}, loss {course.loss:.3f}, {found.told}, "
            f"{left(todo)} left"
        )

    def _seen(self) -> Look:
        with self.crew.here():
            return self.lesson.look()

    def _note(self, found: Look, progress: float) -> None:
        course = self.course
        course.looks.append((course.step, course.loss, found.score, found.numbers))
        course.marks = int(progress * LOOKS)
        last = len(course.looks) - 1
        if course.best < 0 or found.score > course.looks[course.best][2]:
            course.best = last
            self.best = {name: p.detach().clone() for name, p in self.parameters.items()}
        elif progress > HALF and found.learned and last - course.best >= PATIENCE:
            course.ended = f"no better in {PATIENCE} looks at what is held out"

    def _leave_best(self) -> None:
        with torch.no_grad():
            for name, value in self.best.items():
                self.parameters[name].copy_(value)

    def keep(self) -> None:
        """Let the main process write the state, whole or not at all. Raises GraftlineError on a
        full disk."""
        if not self.crew.main:
            return
        with uninterrupted():
            tensors = {f"now.{name}": p for name, p in self.parameters.items()}
            tensors |= {f"best.{name}": value for name, value in self.best.items()}
            for number, optimizer in enumerate(self.optimizers):
                for place, p in enumerate(optimizer.param_groups[0]["params"]):
                    for key, value in optimizer.state[p].items():
                        tensors[f"optimizer.{number}.{place}.{key}"] = value
            arrays = {name: value.detach().cpu().numpy() for name, value in tensors.items()}
            notes = {"course": json.dumps(vars(self.course)), "processes": str(self.crew.count)}
            write_tensors(self.path, arrays, notes)
            self.clock.keep()
            self._kept = time.monotonic()

    def _resume(self) -> None:
        arrays, notes = read_tensors(self.path)
        began = int(notes.get("processes", "1"))
        if began != self.crew.count:
            raise GraftlineError(
                f"this training reads {began} packs of texts a step, one for each process that "
                f"began it, and the processes now are {self.crew.count}: start {began}, or choose "
                "another -o to begin anew"
            )
        tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
        course = json.loads(notes["course"])
        course["looks"] = [(a, b, c, d) for a, b, c, d in course["looks"]]
        self.course = Course(**course)
        with torch.no_grad():
            for name, p in self.parameters.items():
                if f"now.{name}" not in tensors or tensors[f"now.{name}"].shape != p.shape:
                    raise damaged(self.path, f"'{name}' is not in it as it was written")
                p.copy_(tensors[f"now.{name}"])
        self.best = {
            name.removeprefix("best."): value.to(self.crew.device)
            for name, value in tensors.items()
            if name.startswith("best.")
        }
        for number, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, torch.Tensor]] = {}
            for name, value in tensors.items():
                if name.startswith(f"optimizer.{number}."):
                    place, key = name.split(".")[2:]
                    state.setdefault(int(place), {})[key] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})  # to its devices


def _optimizers(
    parameters: Mapping[str, torch.nn.Parameter], settings: Settings
) -> list[torch.optim.Optimizer]:
    """AdamW; or Muon for the matrices of layers, and AdamW for the rest."""
    flat = [p for name, p in parameters.items() if not _is_layer(name, p)]
    layers = [p for name, p in parameters.items() if _is_layer(name, p)]
    made: list[torch.optim.Optimizer] = []
    options: dict[str, Any] = {"lr": settings.rate, "weight_decay": 0.01}
    if settings.optimizer == "muon" and layers:
        made.append(Muon(layers, **options))
        layers = []
    if flat or layers:
        made.append(torch.optim.AdamW([*flat, *layers], betas=(0.9, 0.95), **options))
    return made


def _is_layer(name: str, parameter: torch.nn.Parameter) -> bool:
    """A layer's matrix, and no table over the vocabulary."""
    return parameter.ndim == 2 and not name.startswith("own.")


def _slope(progress: float) -> float:
    """The learning rate's share: a rise, then half a cosine."""
    if progress < WARMUP:
        return max(progress / WARMUP, 0.1)
    share = (progress - WARMUP) / (1 - WARMUP)
    return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
