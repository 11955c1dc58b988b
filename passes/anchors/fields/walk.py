"""What is known of values on the way from the latents to the output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.errors import CannotEvaluate
from graftline.passes.anchors.fields.span import Blocked, Span
from graftline.passes.graph.shapes.inference import Shape
from graftline.passes.graph.shapes.shapes import Measure


@dataclass(frozen=True)
class Uniform:
    """A value that is the same at every place, however long the latents are."""


@dataclass(frozen=True)
class Sized:
    """A value made of the latents' length, or of other shapes."""


State = Span | Blocked | Uniform | Sized | None
"""What is known of a value; None: it does not depend on the latents."""
BOTH = (0, 1)
"""The two lengths at which shapes are measured."""


@dataclass
class Walk:
    """What is known of the values between the latents and the output, in graph order, and their
    shapes with `lengths` latents."""

    states: dict[ir.Value, State]
    shapes: tuple[Measure, Measure]
    lengths: tuple[int, int]

    def state(self, value: ir.Value | None) -> State:
        """What is known of a value."""
        return None if value is None else self.states.get(value)

    def shape(self, value: ir.Value | None, which: int = 0) -> Shape:
        """Sizes at one of the two lengths. Raises CannotEvaluate where they are not known."""
        found = self.shapes[which].of(value)
        if found is None:
            name = "an operand" if value is None else value.name
            raise CannotEvaluate(f"the shape of {name} is not known")
        return found

    def rank(self, value: ir.Value | None) -> int:
        """Number of dimensions."""
        known = None if value is None else value.shape
        return len(self.shape(value)) if known is None else len(known)

    def numbers(self, value: ir.Value | None, which: int = 0) -> list[int]:
        """The whole numbers of an operand that says pads, axes or sizes. Raises CannotEvaluate."""
        if value is None:
            return []
        return [int(n) for n in np.ravel(self.shapes[which].values(value))]

    def fixed(self, value: ir.Value | None) -> list[int] | None:
        """The same where they are the same at both lengths, else None."""
        one, other = (self.numbers(value, which) for which in BOTH)
        return one if one == other else None
