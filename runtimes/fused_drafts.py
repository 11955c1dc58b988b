"""What a fused step must draft after each step, as the host drafts: for the law of the fused step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from graftline.errors import LawBroken
from graftline.nearness import NEARBY
from graftline.ports import Port, by_role
from graftline.roles import HEADS_LOGITS
from graftline.runtimes.drafters.eagle import Eagle
from graftline.runtimes.drafters.medusa import Medusa
from graftline.runtimes.drafters.token_recycling import TokenRecycling
from graftline.runtimes.head_text import HeadText
from graftline.runtimes.ort.features import FeatureSession
from graftline.runtimes.ort.fused import OrtFusedStep
from graftline.runtimes.ort.graph import open_graph
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import FINAL, Floats, Ints, Scores, Tap, of_heads
from graftline.runtimes.trees.template import Template
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

ROUNDED = 3e-5
"""How far, as a share of the largest logit, float32 sums over a state may lie apart in two graphs:
candidates nearer than that may stand in either order."""
OTHER_BLOCKS = 4 * NEARBY["int8"]
"""The same, as a share of the logits' spread, where both have int8 matrices whose blocks differ, as
beside int4 weights: each logit is off by NEARBY on average, and of thousands some are off by more.
The best candidates of a head lie three of it and more above most tokens."""


class HostDrafts(Protocol):
    """The host's drafter beside a fused step that is to draft alike."""

    plan: Template
    """The shape of all trees."""
    told: str
    """What is compared, in words."""

    def begin(self, fused: OrtFusedStep) -> None:
        """A fused step that knows nothing yet."""
        ...

    def text(self, prompt: Ints, root: int, states: Mapping[Tap, Floats]) -> HeadText | None:
        """What the step's head reads of a prompt and the token chosen behind it; `states` are the
        target's, each [N, H]. None where it reads nothing."""
        ...

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores) -> None:
        """What the host's rule made of a tree."""
        ...

    def check(self, fused: OrtFusedStep, root: int) -> None:
        """Raise LawBroken unless the step, after the same tree, drafts as the host behind `root`.
        """
        ...


class TableDrafts:
    """Token recycling: both have the same table, to the bit."""

    told = "caches and table"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._host = TokenRecycling(**options)
        self.plan = self._host.plan

    def begin(self, fused: OrtFusedStep) -> None:
        """Both begin with an empty table."""
        assert fused.table is not None, "the step was made by fuse-draft"
        fused.table[...] = -1

    def text(self, prompt: Ints, root: int, states: Mapping[Tap, Floats]) -> HeadText | None:
        """Nothing."""

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores) -> None:
        """See `HostDrafts`."""
        self._host.observe(tree, verdict, scores, 0)

    def check(self, fused: OrtFusedStep, root: int) -> None:
        """See `HostDrafts`."""
        known = self._host.adjacency
        assert fused.table is not None, "the step was made by fuse-draft"
        assert known is not None
        assert known.candidates is not None
        if not np.array_equal(known.candidates[:-1], fused.table):
            raise LawBroken("fused", "fused", "table", "differs from the host's")


class HeadDrafts:
    """Medusa's heads, of which the host has a stage of its own (`graph`, with `ports`), beside a
    target of that `dtype`. Every node of the next tree is as likely to its head as the candidate of
    its rank, and no two children of a node are one token."""

    told = "caches and the trees that heads draft"

    def __init__(
        self,
        graph: Path,
        ports: Sequence[Port],
        options: Mapping[str, Any],
        fused: OrtFusedStep,
        dtype: str = "fp32",
    ) -> None:
        heads = fused.heads
        assert heads is not None, "the step was made by fuse-heads"
        drafter = Medusa(**options)
        drafter.equip(Resources(head=lambda: heads))
        self.plan = drafter.plan
        self._alike = dtype != "int4"
        self._session, self._state = open_graph(graph, 0), np.zeros(0, np.float32)
        self._given = by_role(ports, "hidden", "in")[0].name
        self._logits = by_role(ports, HEADS_LOGITS, "out")[0].name

    def begin(self, fused: OrtFusedStep) -> None:
        """Heads keep nothing."""

    def text(self, prompt: Ints, root: int, states: Mapping[Tap, Floats]) -> HeadText | None:
        """Nothing."""

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores) -> None:
        """See `HostDrafts`."""
        self._state = scores.tap(FINAL)[0, verdict.path[-1]].copy()

    def check(self, fused: OrtFusedStep, root: int) -> None:
        """See `HostDrafts`."""
        tokens, parents = fused.tree(0)
        shape, depth = self.plan.shape, self.plan.shape.depth
        if not np.array_equal(parents, shape.parents) or tokens[0] != root:
            raise LawBroken("fused", "fused", "tree", "is not the template's, below the last token")
        pairs = list(zip(parents.tolist(), tokens.tolist(), strict=True))
        if len(set(pairs[1:])) < len(pairs) - 1:
            raise LawBroken("fused", "fused", "tree", "has one token twice below a node")
        logits = self._asked()
        for node in range(1, len(tokens)):
            row, rank = logits[depth[node] - 1], int(self.plan.ranks[node])
            apart = abs(float(row[tokens[node]]) - float(np.sort(row)[-1 - rank]))
            if not apart <= nearby(row, self._alike):
                told = f"has token {tokens[node]} at node {node}, {apart:.2g} from candidate {rank}"
                raise LawBroken("fused", "fused", "tree", f"{told} of head {depth[node]}")

    def _asked(self) -> npt.NDArray[np.float32]:
        """[heads, V]: what the stage of the heads says of the last accepted row's state."""
        answer: Any = self._session.run([self._logits], {self._given: self._state[None, None]})
        return answer[0][0, 0]


class BlockDrafts:
    """A draft block, of which the host has a stage of its own: `session`. It reads what each step
    accepts, call by call, and drafts on its own states; every token of the next chain is as likely
    to it as its best, and its caches are the step's. `dtype` is the precision of both."""

    told = "caches, the head's too, and the chains that it drafts"

    def __init__(
        self, session: FeatureSession, options: Mapping[str, Any], dtype: str = "fp32"
    ) -> None:
        self.plan = Eagle(**options).plan
        self._session, self._alike = session, dtype == "fp32"
        self._length = 0

    def begin(self, fused: OrtFusedStep) -> None:
        """It begins with the text."""
        self._session.reset(1)

    def text(self, prompt: Ints, root: int, states: Mapping[Tap, Floats]) -> HeadText:
        """See `HostDrafts`."""
        self._reads, self._length = of_heads(states), len(prompt)
        text = HeadText([*prompt[1:].tolist(), root], states[self._reads])
        self._session.follow(0, 0, text.tokens, 1, text.features)
        return text

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores) -> None:
        """See `HostDrafts`."""
        features = scores.tap(self._reads)[0, list(verdict.path)].copy()
        self._fresh = HeadText(verdict.tokens(tree), features)

    def check(self, fused: OrtFusedStep, root: int) -> None:
        """See `HostDrafts`."""
        tokens, parents = fused.tree(0)
        if not np.array_equal(parents, self.plan.shape.parents) or tokens[0] != root:
            raise LawBroken("fused", "fused", "tree", "is not a chain below the last token")
        session, fresh = self._session, self._fresh
        scores = session.follow(0, self._length, fresh.tokens, 1, fresh.features)
        self._length += len(fresh.tokens)
        self._check_caches(fused)
        for ahead, token in enumerate(tokens[1:].tolist()):
            logits = scores.logits[0, -1]
            apart = float(logits.max()) - float(logits[token])
            if not apart <= nearby(logits, self._alike):
                told = f"has token {token} at node {ahead + 1}, {apart:.2g} from the head's best"
                raise LawBroken("fused", "fused", "tree", told)
            state = scores.tap(session.state)[0, -1:].copy()
            scores = session.follow(0, self._length + ahead, [token], 1, state)

    def _check_caches(self, fused: OrtFusedStep) -> None:
        """What the step's head holds of the text is what the host's does."""
        assert fused.block is not None, "the step was made by fuse-block"
        theirs = fused.block.caches(0)
        for name, own in self._session.caches(0).items():
            array = next(v for key, v in theirs.items() if key.endswith(f".{name}"))
            held, other = (side[0, :, : self._length] for side in (own, array))
            if not np.abs(held - other).max() <= nearby(held, self._alike):
                raise LawBroken("fused", "fused", name, "differs from what the head's stage holds")


def nearby(numbers: npt.NDArray[np.float32], alike: bool) -> float:
    """How far apart two sums may be that one graph has and another: by rounding where both compute
    `alike`, else by blocks of other scales."""
    if alike:
        return ROUNDED * float(np.abs(numbers).max())
    return OTHER_BLOCKS * float(numbers.std())
