"""Drafters that misbehave in every way there is, and honest ones that are hard to get right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np

from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafting import Draft
from graftline.runtimes.session import Floats, Ints, Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Draws, Tree

Shape = Callable[[int, int, np.random.Generator], Tree]
"""(root, vocabulary, generator) -> a proposal."""


def chain(root: int, ids: Sequence[int] | Ints, draws: dict[int, Draws] | None = None) -> Tree:
    line = Tree.chain([root, *(int(i) for i in ids)])
    return Tree(line.tokens, line.parents, draws=draws)


def outside(root: int, vocabulary: int, rng: np.random.Generator) -> Tree:
    return chain(root, rng.integers(-3, vocabulary + 4, 6))


def enormous(root: int, vocabulary: int, rng: np.random.Generator) -> Tree:
    return chain(root, [2**62, -(2**62), 1])


def elsewhere(root: int, vocabulary: int, rng: np.random.Generator) -> Tree:
    return chain((root + 1) % vocabulary, rng.integers(0, vocabulary, 4))


def alone(root: int, vocabulary: int, rng: np.random.Generator) -> Tree:
    return Tree.chain([root])


def halves(root: int, vocabulary: int, rng: np.random.Generator) -> Tree:
    """Ids that are no whole numbers."""
    tree = chain(root, rng.integers(0, vocabulary, 3))
    return Tree(tree.tokens + 0.5, tree.parents)  # type: ignore[arg-type]


def twins(root: int, vocabulary: int, rng: np.random.Generator) -> Tree:
    """Every token three times below every node that has children."""
    token = int(rng.integers(0, vocabulary))
    tokens = [root, token, token, token, *([int(rng.integers(0, vocabulary))] * 3)]
    return Tree(np.asarray(tokens), np.asarray([-1, 0, 0, 0, 1, 1, 2]))


def endless(root: int, vocabulary: int, rng: np.random.Generator) -> Tree:
    return chain(root, rng.integers(0, vocabulary, 300))


def bushy(root: int, vocabulary: int, rng: np.random.Generator) -> Tree:
    """Hundreds of rows, none in the order of depth."""
    parents = [-1, *(int(rng.integers(0, n)) for n in range(1, 200))]
    return Tree(np.asarray([root, *rng.integers(0, vocabulary, 199)]), np.asarray(parents))


def drawn(root: int, vocabulary: int, rng: np.random.Generator, rows: int = 5) -> Tree:
    """No misbehaviour: an honest chain, drawn from a tilted distribution."""
    law = rng.dirichlet(np.full(vocabulary, 0.5))
    ids = rng.choice(vocabulary, rows, p=law)
    return chain(root, ids, {node: Draws(law, (node + 1,)) for node in range(rows)})


def too_long(root: int, vocabulary: int, rng: np.random.Generator) -> Tree:
    """Honest, but more than was asked for."""
    return drawn(root, vocabulary, rng, 40)


def independent(root: int, vocabulary: int, rng: np.random.Generator) -> Tree:
    """Honest: three draws with replacement, each with a node and a draw below it of its own, even
    where two are the same token."""
    law, below = (rng.dirichlet(np.full(vocabulary, 0.5)) for _ in range(2))
    ids = [root, *rng.choice(vocabulary, 3, p=law), *rng.choice(vocabulary, 3, p=below)]
    draws = {0: Draws(law, (1, 2, 3), True)} | {n: Draws(below, (n + 3,)) for n in (1, 2, 3)}
    return Tree(np.asarray(ids), np.asarray([-1, 0, 0, 0, 1, 2, 3]), draws=draws)


def distinct(root: int, vocabulary: int, rng: np.random.Generator) -> Tree:
    """Honest: three draws without replacement, and a point mass below the first."""
    law = rng.dirichlet(np.full(vocabulary, 5.0))
    ids = [root, *rng.choice(vocabulary, 3, p=law, replace=False), root]
    draws = {0: Draws(law, (1, 2, 3))}
    return Tree(np.asarray(ids), np.asarray([-1, 0, 0, 0, 1]), draws=draws)


def claimed(probs: Callable[[Floats], Floats]) -> Shape:
    """A chain of one token picked on purpose, said to be drawn from no distribution."""

    def shape(root: int, vocabulary: int, rng: np.random.Generator) -> Tree:
        tree = drawn(root, vocabulary, rng)
        assert tree.draws is not None
        wrong = probs(tree.draws[0].probs.copy())  # type: ignore[arg-type]
        return chain(root, tree.tokens[1:], {n: Draws(wrong, (n + 1,)) for n in range(5)})  # type: ignore[arg-type]

    return shape


def zero(root: int, vocabulary: int, rng: np.random.Generator) -> Tree:
    """A token that its own distribution could never give."""
    law = np.eye(vocabulary)[root]
    return chain(root, [(root + 1) % vocabulary, root], {0: Draws(law, (1,))})


def unlisted(root: int, vocabulary: int, rng: np.random.Generator) -> Tree:
    """The order names a node that is no child, and leaves a child out."""
    law = np.full(vocabulary, 1 / vocabulary)
    tokens = np.asarray([root, 1, 2, 3])
    return Tree(tokens, np.asarray([-1, 0, 0, 1]), draws={0: Draws(law, (1, 3)), 9: Draws(law, ())})


def twice(root: int, vocabulary: int, rng: np.random.Generator) -> Tree:
    """One token drawn twice without replacement."""
    law = np.full(vocabulary, 1 / vocabulary)
    return Tree(np.asarray([root, 2, 2]), np.asarray([-1, 0, 0]), draws={0: Draws(law, (1, 2))})


SHAPES: dict[str, Shape] = {
    "outside": outside, "enormous": enormous, "elsewhere": elsewhere, "alone": alone,
    "halves": halves, "twins": twins, "endless": endless, "bushy": bushy, "zero": zero,
    "unlisted": unlisted, "twice": twice,
    "nan": claimed(lambda law: np.where(np.arange(len(law)) == 2, np.nan, law)),
    "infinite": claimed(lambda law: law * np.inf),
    "negative": claimed(lambda law: law - 2 * law.max() * np.eye(len(law))[law.argmin()]),
    "unnormalised": claimed(lambda law: law * 1.5),
    "short": claimed(lambda law: law[:-1] / law[:-1].sum()),
    "drawn": drawn, "too_long": too_long, "independent": independent, "distinct": distinct,
}  # fmt: skip
HONEST = list(SHAPES)[-4:]


@dataclass
class Misbehaving:
    """Proposes one shape, or any of them by turns, every second time an honest one."""

    branching: ClassVar[bool] = True
    rows: int = 9
    shape: str = ""
    seed: int = 0
    signal: int = field(default=1, init=False)

    @cached_property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def fork(self) -> Misbehaving:
        return Misbehaving(self.rows, self.shape, int(self.rng.integers(1 << 30)))

    def start(self, context: Sequence[int]) -> None:
        self.last = context[-1]

    def propose(self, budget: int) -> Tree:
        names = HONEST if self.rng.random() < 0.5 else list(SHAPES)
        name = self.shape or names[int(self.rng.integers(len(names)))]
        return SHAPES[name](self.last, self.vocabulary, self.rng)

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        self.last, self.vocabulary = verdict.next, scores.logits.shape[-1]

    def prior(self, signal: int) -> Sequence[float]:
        return [0.8**row for row in range(self.rows)]


@dataclass
class MisbehavingModel(Misbehaving):
    """The same shapes from a drafter that is paid for, whose drafts nobody cuts."""

    reads: int = field(default=0, init=False)

    def fork(self) -> MisbehavingModel:
        return MisbehavingModel(self.rows, self.shape, int(self.rng.integers(1 << 30)))

    def propose(self, budget: int) -> Tree:
        return Tree.chain([self.last])

    def draft(self, bid: Bid) -> Draft:
        yield from ()
        return super().propose(bid.rows)

    def hope(self, foresight: int) -> Sequence[float]:
        return self.prior(foresight)

    def price(self, reads: int) -> float:
        return 0.0

    def share(self, sequences: int) -> float:
        return 1.0

    def debt(self) -> float:
        return 0.0

    def foresight(self) -> int:
        return 0
