"""Reflective verification: the target judges a draft twice, reading on and having reflected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.acceptance.reflection import REFLECTIVE_PROMPT, Reflection
from graftline.runtimes.resources import Resources
from graftline.runtimes.sampling import Logits, Sampling
from graftline.runtimes.session import Scores
from graftline.runtimes.uniforms import Uniforms
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree


@dataclass(frozen=True)
class Reflective:
    """Reflective verification (arXiv 2505.18629), for the chains of the drafter `reflective`.

    One pass gives two logits for each drafted token: z in its place, and z' in its copy behind a
    prompt that has the target reflect on the draft. A token stands when it is the target's choice
    by z, or by (1 - weight) z + weight z'; what is emitted behind the last of them is chosen by z.
    At temperature > 0 both choices are draws with one uniform number. The prompt and the copy are
    never accepted. Strict: weight = 0 (the target's choices only). Loose: weight = 1 (all that the
    target repeats on reflection).
    """

    lossless: ClassVar[bool] = False
    weight: float = 0.3
    """How much the reflective logits count, 0 to 1."""
    prompt: str = REFLECTIVE_PROMPT
    """The drafter's `prompt`."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise GraftlineError(
                f"reflective: weight={self.weight} is not valid; use a share from 0 to 1"
            )

    def of(
        self, sampling: Sampling, generator: np.random.Generator, resources: Resources
    ) -> ReflectiveRule:
        """The rule for these settings. Raises GraftlineError without a tokenizer."""
        layout = Reflection.of("the rule reflective", self.prompt, resources)
        return ReflectiveRule(sampling, generator, self.weight, layout)


class ReflectiveRule:
    """`Reflective` for one sequence."""

    lossless: ClassVar[bool] = False

    def __init__(
        self,
        sampling: Sampling,
        generator: np.random.Generator,
        weight: float,
        layout: Reflection,
    ) -> None:
        self._sampling, self._uniforms = sampling, Uniforms.of(generator)
        self._weight, self._layout = weight, layout

    def judge(self, tree: Tree, scores: Scores, row: int) -> Verdict:
        if not tree.is_chain:
            raise GraftlineError("the rule reflective judges chains; use the drafter reflective")
        tokens = tree.token_list
        count = self._layout.drafted(tokens)
        mirror = count + len(self._layout.prompt)  # the copy of row i is row mirror + i
        path = [0]
        while True:
            node = path[-1]
            uniform = 0.0 if self._sampling.greedy else self._uniforms.random()
            z = scores.logits[row, node]
            own = self._choose(scores.after(row, node), uniform)
            token = tokens[node + 1] if node < count else None
            if token not in (None, own) and mirror + node < len(tokens):
                fused = (1 - self._weight) * z + self._weight * scores.logits[row, mirror + node]
                if self._choose(scores.shaped(node, fused), uniform) == token:
                    own = token
            if token != own:
                return Verdict(tuple(path), own)
            path.append(node + 1)

    def _choose(self, logits: Logits, uniform: float) -> int:
        if self._sampling.greedy:
            return int(np.argmax(logits))
        return self._sampling.draw(logits, uniform)
