"""encoder-reuse: a UNet's encoder at key steps only, its decoder at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.passes.anchors.denoiser import PREDICTION
from graftline.passes.grafts.collapse_loop import Caller, CollapseLoop, called
from graftline.passes.graph.ports import input_of
from graftline.passes.laws.sampled import halves_of
from graftline.roles import PAST
from graftline.sampling.spec import Sampling

PUBLISHED = (0, 1, 2, 3, 5, 10, 15, 25, 35)
"""The paper's key steps of a loop of 50: most of them where features change most."""
OF = 50


@dataclass(frozen=True)
class EncoderReuse(CollapseLoop):
    """The sampling loop as one chain, in which a UNet's encoder runs at key steps alone: the steps
    between call its decoder, at their own time, on the features that the last key step has left at
    the skip connections and in the middle (Faster Diffusion, Li et al., arXiv 2312.09608).

    Changes samples by design. `keys` are numbers of steps from 0 on, joined by `+`; none: the
    paper's, in proportion. Other options as `collapse-loop`. Neutral: the published loop with those
    key steps, which is the host's where all steps are.
    """

    keys: str = ""

    def requires(self, model: ir.Model) -> None:
        super().requires(model)
        if input_of(model, PAST) is not None:
            raise NotApplicable(f"{self.name()} keeps no features of chunks; use collapse-loop")
        self.key_steps(self.sampling(model))
        halves_of(model)

    def key_steps(self, sampling: Sampling) -> tuple[int, ...]:
        """Raises NotApplicable for what are not steps of that loop."""
        steps = sampling.steps
        if not self.keys:
            return tuple(dict.fromkeys(step * steps // OF for step in PUBLISHED))
        words = self.keys.split("+")
        found = tuple(sorted(int(word) for word in words if word.isdecimal()))
        if len(found) < len(words) or len(set(found)) < len(found) or found[0] != 0:
            raise NotApplicable(
                f"{self}: name each key step once, the first among them, as keys=0+2+5"
            )
        if found[-1] >= steps:
            raise NotApplicable(f"{self}: the last of {steps} steps is {steps - 1}")
        return found

    def caller(self, graph: ir.Graph, part: ir.Model) -> Caller:
        return Reusing(graph, *halves_of(part), self.key_steps(self.sampling(part)), self.name())


@dataclass
class Reusing:
    """Writes calls of all of a network at `keys`, and between them of its decoder, on the features
    of the last one."""

    graph: ir.Graph
    whole: ir.Model
    decoder: ir.Model
    keys: tuple[int, ...]
    by: str
    features: dict[str, ir.Value] = field(default_factory=dict[str, ir.Value])

    def __call__(self, given: Mapping[str, ir.Value], time: float, step: int) -> ir.Value:
        key = step in self.keys
        part, known = (self.whole, {}) if key else (self.decoder, self.features)
        made = called(self.graph, part, {**given, **known}, time, step, self.by)
        said = made.pop(PREDICTION)
        if key:
            self.features = made
        return said
