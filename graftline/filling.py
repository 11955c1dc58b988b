"""How the canvas of a masked generator is filled: how many tokens each step chooses, and which
steps compute all of it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np

from graftline.errors import RequestError


@dataclass(frozen=True)
class Filling:
    """The steps of MaskGIT (Chang et al., arXiv 2202.04200) in the groups of ReCAP (Liu et al.,
    arXiv 2505.19089).

    Of `steps` the first `full` evaluate the whole canvas. Behind them every such step is followed
    by `light` ones, which compute the positions of their group alone. The part of the canvas that
    is masked before step t is 1 - (t / steps) ** `power`. Tokens are drawn at a temperature that
    falls from 1 to `temperature`; which of them stay is decided by their log-probabilities and
    Gumbel noise, whose factor falls from `choice` to 0. The numbers are those that the authors give
    for 16 steps of MaskGIT.

    `guidance` s is classifier-free (Ho and Salimans, 2207.12598), of scores: u + s (c - u) of those
    with and without conditions; 1: no second evaluation. Where it `rises`, step t of T takes
    1 + (s - 1) t / T (Muse, Chang et al., 2301.00704, which raises it linearly).
    """

    steps: int = 16
    full: int = 8
    light: int = 0
    power: float = 2.5
    temperature: float = 0.65
    choice: float = 5.5
    guidance: float = 1.0
    rises: bool = False

    @classmethod
    def of(cls, positions: int) -> Filling:
        """Full steps alone: 16, or as many as so many positions are enough for."""
        fits = (steps for steps in range(cls.steps, 1, -1) if cls(steps).fits(positions))
        return cls(next(fits, 1))

    def fits(self, masked: int) -> bool:
        """Whether so many masked positions are enough for the steps."""
        try:
            return bool(self.counts(masked))
        except RequestError:
            return False

    def check(self) -> None:
        """Raise RequestError for numbers that are no way to fill a canvas."""
        for name in ("steps", "full", "light"):
            if not isinstance(number := getattr(self, name), int):
                raise RequestError(f"{name}={number!r} is not valid; use a whole number")
        if self.steps < 1:
            raise RequestError(f"steps={self.steps}: a canvas takes at least one step")
        for name in ("full", "light", "temperature", "choice", "guidance"):
            if not 0 <= (number := getattr(self, name)) < float("inf"):
                raise RequestError(f"{name}={number} is not valid; use 0 or more")
        if not 0 < self.power < float("inf"):
            raise RequestError(f"power={self.power} is not valid; use a number above 0")

    def counts(self, masked: int) -> tuple[int, ...]:
        """How many of so many masked positions each step chooses. Raises RequestError where there
        are too few for the steps."""
        self.check()
        begun = 1 - np.linspace(0, 1, self.steps + 1)[:-1] ** self.power
        left = [*np.floor(begun * masked).astype(int).tolist(), 0]
        each = [max(1, a - b) for a, b in pairwise(left)]
        each[-1] = masked - sum(each[:-1])
        if each[-1] < 1:
            told = f"{masked} masked positions are too few for {self.steps} steps"
            raise RequestError(f"{told} that each choose one at least; use fewer steps")
        return tuple(each)

    def groups(self, masked: int) -> tuple[tuple[int, ...], ...]:
        """The steps of `counts` in groups: a full one, and the light ones that follow it."""
        steps, made = iter(self.counts(masked)), list[tuple[int, ...]]()
        for first in steps:
            lights = self.light if len(made) >= self.full else 0
            made.append((first, *islice(steps, lights)))
        return tuple(made)

    def temperatures(self) -> tuple[float, ...]:
        """At which each step draws its tokens."""
        falls = 1 - np.linspace(0, 1, self.steps) ** 0.5
        return tuple((self.temperature + falls * (1 - self.temperature)).tolist())

    def guidances(self) -> tuple[float, ...]:
        """The guidance of each step."""
        shares = [step / self.steps if self.rises else 1.0 for step in range(1, self.steps + 1)]
        return tuple(1 + (self.guidance - 1) * share for share in shares)

    def told(self) -> str:
        """In words."""
        steps = f"filled in {self.steps} steps"
        if self.guidance != 1:
            steps += f" at guidance {self.guidance:g}"
        if not self.light or self.full + 1 >= self.steps:
            return steps
        return f"{steps}, behind the first {self.full} each full one with {self.light} light"
