"""Whole steps, drafting and judging, with every outcome of their dice.

A target and a draft over a few tokens have their own law after every prefix. A step sketches a
tree and judges it; both throw the dice that `Branches` replays, so the law of what the step emits
is known to rounding.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import product

import numpy as np

from graftline.runtimes.acceptance.stochastic import Dice, Doubles, StochasticRule
from graftline.runtimes.processors import Shaping
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Scores
from graftline.runtimes.shaping import ShapedScores, Shaper
from graftline.runtimes.verdict import Verdict
from graftline.tree import Draws, Tree

V = 3
UNSHAPED = Shaping()
DEPTH = 2
Prefix = tuple[int, ...]


class Branches(Dice):
    """Dice that fall in every way, one after the other."""

    def __init__(self) -> None:
        self._open: list[list[int]] = []

    def outcomes(self, step: Callable[[], tuple[Tree, Verdict]]) -> list[tuple[float, Prefix, int]]:
        """Probability, emitted tokens and accepted drafts of every way that `step` can go."""
        found: list[tuple[float, Prefix, int]] = []
        self._open = [[]]
        while self._open:
            self._script, self._place, self._chance = self._open.pop(), 0, 1.0
            tree, verdict = step()
            found.append((self._chance, tuple(verdict.tokens(tree)), len(verdict.path) - 1))
        return found

    def coin(self, chance: float) -> bool:
        chance = min(1.0, max(0.0, float(chance)))
        return self.draw(np.array([1.0 - chance, chance])) == 1

    def draw(self, law: Doubles) -> int:
        ways = np.flatnonzero(law).tolist()
        if self._place == len(self._script):
            self._open += [[*self._script, way] for way in ways[1:]]
            self._script.append(ways[0])
        way = self._script[self._place]
        self._place += 1
        self._chance *= float(law[way] / law.sum())
        return way


@dataclass(frozen=True)
class World:
    """A target and a draft: a law after every prefix."""

    seed: int
    sampling: Sampling
    draft: str = "tilted"
    vocabulary: int = V
    shaping: Shaping = UNSHAPED

    @cache  # noqa: B019  (a handful of worlds, as long-lived as the module)
    def logits(self, prefix: Prefix, salt: int = 0) -> np.ndarray:
        key = zlib.crc32(repr((self.seed, prefix, salt)).encode())
        return np.random.default_rng(key).normal(size=self.vocabulary).astype(np.float32)

    @cache  # noqa: B019  (a handful of worlds, as long-lived as the module)
    def p(self, prefix: Prefix) -> Doubles:
        logits = self.shaper().shaped(np.array([0, *prefix]), self.logits(prefix))
        ids, probs = self.sampling.distribution(logits)
        law = np.zeros(self.vocabulary)
        law[slice(None) if ids is None else ids] = probs
        return law

    @cache  # noqa: B019  (a handful of worlds, as long-lived as the module)
    def q(self, prefix: Prefix) -> Doubles:
        p, tilt = self.p(prefix), np.exp(2.0 * self.logits(prefix, 1).astype(np.float64))
        weights = {
            "tilted": tilt,
            "near": p * tilt**0.2,
            "equal": p,
            "one-hot": (np.arange(self.vocabulary) == 1).astype(np.float64),
            "zeros": tilt * (np.arange(self.vocabulary) != 2),
            "disjoint": tilt * (p == 0.0),
        }[self.draft]
        return weights / weights.sum()

    def law(self) -> dict[Prefix, float]:
        """Of all sequences of one token more than a tree is deep."""
        return {
            tokens: float(np.prod([self.p(tokens[:i])[t] for i, t in enumerate(tokens)]))
            for tokens in product(range(self.vocabulary), repeat=DEPTH + 1)
        }

    def scores(self, tree: Tree) -> Scores:
        tokens: list[int] = tree.tokens.tolist()
        prefixes = [tuple(tokens[i] for i in tree.path_to(n)[1:]) for n in range(len(tree))]
        logits = np.stack([self.logits(prefix) for prefix in prefixes])[None]
        return ShapedScores(Scores(logits.argmax(-1), logits), tree, self.shaper())

    def shaper(self) -> Shaper:
        """Node 0 is the whole prompt."""
        return Shaper(np.zeros(1, np.int64), self.shaping.processors(1, frozenset()))


@dataclass
class Sketch:
    """A tree under construction; node 0 carries token 0, which is in the context."""

    world: World
    dice: Dice
    tokens: list[int] = field(default_factory=lambda: [0])
    parents: list[int] = field(default_factory=lambda: [-1])
    draws: dict[int, Draws] = field(default_factory=dict[int, Draws])

    def prefix(self, node: int) -> Prefix:
        return () if node == 0 else (*self.prefix(self.parents[node]), self.tokens[node])

    def put(self, parent: int, token: int) -> int:
        """The child of `parent` with this token, made when it is not there."""
        for node in range(1, len(self.tokens)):
            if self.parents[node] == parent and self.tokens[node] == token:
                return node
        self.tokens.append(token)
        self.parents.append(parent)
        return len(self.tokens) - 1

    def draw(self, node: int, count: int, replacement: bool) -> tuple[int, ...]:
        law = q = self.world.q(self.prefix(node))
        known = self.draws.get(node)
        order = list(known.order) if known else []
        for _ in range(count if replacement else min(count, np.count_nonzero(q))):
            token = self.dice.draw(law)
            order.append(self.put(node, token))
            if not replacement:
                law = law * (np.arange(len(law)) != token)
        self.draws[node] = Draws(q, tuple(order), replacement)
        return tuple(order)

    def tree(self) -> Tree:
        return Tree(np.array(self.tokens), np.array(self.parents), draws=self.draws or None)


def paths(count: int) -> Callable[[Sketch], None]:
    """Independent paths from the root to the full depth; equal beginnings share their nodes."""

    def draft(sketch: Sketch) -> None:
        for _ in range(count):
            node = 0
            for _ in range(DEPTH):
                node = sketch.draw(node, 1, replacement=True)[-1]

    return draft


def outcomes(
    kind: type[StochasticRule], world: World, draft: Callable[[Sketch], None]
) -> list[tuple[float, Prefix, int]]:
    dice = Branches()
    rule = kind(world.sampling, dice)

    def step() -> tuple[Tree, Verdict]:
        sketch = Sketch(world, dice)
        draft(sketch)
        tree = sketch.tree()
        verdict = rule.judge(tree, world.scores(tree), 0)
        assert verdict.path == tree.path_to(verdict.path[-1])
        return tree, verdict

    return dice.outcomes(step)


def error(kind: type[StochasticRule], world: World, draft: Callable[[Sketch], None]) -> float:
    """The largest difference between the law of the output and the target's."""
    emitted: dict[Prefix, float] = {}
    for chance, tokens, _ in outcomes(kind, world, draft):
        emitted[tokens] = emitted.get(tokens, 0.0) + chance
    worst = 0.0
    for tokens, wanted in world.law().items():
        have = sum(
            emitted.get(tokens[:n], 0.0)
            * float(np.prod([world.p(tokens[:i])[tokens[i]] for i in range(n, DEPTH + 1)]))
            for n in range(1, DEPTH + 2)
        )
        worst = max(worst, abs(have - wanted))
    return worst


def accepted(kind: type[StochasticRule], world: World, draft: Callable[[Sketch], None]) -> float:
    """The expected number of accepted drafts."""
    return sum(chance * count for chance, _, count in outcomes(kind, world, draft))
