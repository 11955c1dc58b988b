"""Drafts of a given quality: what a head or a draft model says is put right, or wrong, by chance.

The machinery can then be timed as it would run with other weights.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from graftline.errors import RequestError
from graftline.recipe import Recipe
from graftline.runtimes.draft_engine import Read
from graftline.runtimes.drafter import Bid
from graftline.runtimes.feature_engine import FeatureEngine
from graftline.runtimes.head_reader import Heads
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import Floats, Ints, Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree

FORCEABLE = ("draft-model", "eagle", "hydra", "medusa")
"""Drafters whose drafts follow from what an engine or a head says token by token."""
_KNOWN = f"{', '.join(FORCEABLE[:-1])} or {FORCEABLE[-1]}"


def parse_rates(text: str) -> tuple[float, ...]:
    """Read `0.7,0.5`. Raises RequestError for what is not numbers from 0 to 1."""
    try:
        rates = tuple(float(word) for word in text.split(","))
    except ValueError:
        rates = ()
    if not rates or not all(0.0 <= rate <= 1.0 for rate in rates):
        raise RequestError(
            f"--force-acceptance {text}: takes numbers from 0 to 1 joined by commas, one for each "
            "depth; the last holds for all greater depths"
        )
    return rates


def check_forcing(
    recipes: Sequence[Recipe], temperature: float, step: str, oracle: bool
) -> None:
    """Raise RequestError where drafts cannot be forced in such a benchmark."""
    if temperature > 0 or oracle:
        raise RequestError(
            "--force-acceptance puts the target's own greedy tokens into drafts; leave out "
            "--temperature and --oracle"
        )
    if step != "host":
        raise RequestError("--force-acceptance needs drafts made on the host; use --step host")
    for chosen in recipes:
        if chosen.asks not in FORCEABLE:
            raise RequestError(
                f"--force-acceptance: the drafts of recipe {chosen.name} come from no draft engine "
                f"or head token by token; use recipes whose drafter is {_KNOWN}"
            )


@dataclass
class Forcing:
    """Of one sequence at a time: by depth, the chance that the likeliest candidate is the target's
    own next token, where all before it are; else none of the candidates is. `answer` is what the
    target is known to write. The last of the `rates` holds for all greater depths."""

    rates: Sequence[float]
    seed: int = 0
    answer: Sequence[int] = ()
    written: int = field(default=0, init=False)
    """Tokens of the answer that are chosen."""
    outcomes: list[list[int]] = field(default_factory=list[list[int]], init=False)
    """By depth, drafts behind what was accepted, and those of them that were accepted."""

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def candidates(self, path: Sequence[int], ids: Sequence[int]) -> list[int]:
        """In place of candidates `ids`, best first, behind drafted tokens. They stay what they are
        behind tokens that the target does not write."""
        begin, place = self.written, self.written + len(path)
        if place >= len(self.answer) or list(path) != list(self.answer[begin:place]):
            return list(ids)
        true, rate = int(self.answer[place]), self.rates[min(len(path), len(self.rates) - 1)]
        others = [token for token in ids if token != true]
        if self._random.random() < rate:
            return [true, *others][: len(ids)]
        unused = (token for token in range(len(ids) + 1) if token != true and token not in others)
        return others if len(others) == len(ids) else [*others, next(unused)]

    def scores(self, scores: Scores, paths: Sequence[Sequence[int]]) -> Scores:
        """In place of scores [1, N] of what follows these paths: other best tokens."""
        best = scores.argmax.copy()
        top = None if scores.topk_ids is None else scores.topk_ids.copy()
        for row, path in enumerate(paths):
            known = best[0, row : row + 1] if top is None else top[0, row]
            known[:] = self.candidates(path, known.tolist())
            best[0, row] = known[0]
        more = scores.topk_logits, scores.top_gap, scores.taps
        return Scores(best, scores.logits, top, *more)

    def judged(self, tree: Tree, verdict: Verdict) -> None:
        """A draft was judged."""
        for depth, node in enumerate(verdict.path):
            if tree.children[node]:
                while len(self.outcomes) <= depth:
                    self.outcomes.append([0, 0])
                self.outcomes[depth][0] += 1
                self.outcomes[depth][1] += depth + 1 < len(verdict.path)
        self.written += len(verdict.tokens(tree))


class ForcedHeads:
    """Draft heads whose candidates are forced. See `runtimes.head_reader.Heads`."""

    def __init__(self, heads: Heads, forcing: Forcing) -> None:
        self._inner, self._forcing = heads, forcing
        self.heads, self.width, self.hidden = heads.heads, heads.width, heads.hidden
        self.sequential, self.milliseconds = heads.sequential, heads.milliseconds
        self.reads_last = heads.reads_last

    def answer(
        self, hidden: Floats, head: int = 0, tokens: Ints | None = None
    ) -> tuple[Ints, Floats]:
        """Ids and logits. See `Heads.answer`."""
        found, logits = self._inner.answer(hidden, head, tokens)
        ids, written = found.copy(), self._forcing.written
        for row, each in enumerate(ids):
            for place, known in enumerate(each):
                if tokens is None or not self.sequential:
                    path = self._forcing.answer[written : written + head + place]
                else:
                    path = tokens[row, 1:].tolist()
                known[:] = self._forcing.candidates(path, known.tolist())
        return ids, logits


class ForcedDrafter:
    """A drafter that makes all calls, and is told forced scores; in all else it is the one that it
    was made of."""

    def __init__(self, inner: Any, forcing: Forcing) -> None:
        self._inner, self._forcing = inner, forcing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def fork(self) -> ForcedDrafter:
        """See `Drafter.fork`."""
        return ForcedDrafter(self._inner.fork(), self._forcing)

    def start(self, context: Sequence[int]) -> None:
        """See `Drafter.start`."""
        self._forcing.written = 0
        self._inner.start(context)

    def observe(self, tree: Tree, verdict: Verdict, scores: Scores, row: int) -> None:
        """See `Drafter.observe`."""
        self._inner.observe(tree, verdict, scores, row)
        self._forcing.judged(tree, verdict)

    def draft(self, bid: Bid) -> Generator[Read, Scores, Tree]:
        """See `PaidDrafter.draft`."""
        draft = self._inner.draft(bid)
        try:
            read = next(draft)
            while True:
                scores = yield read
                read = draft.send(self._forcing.scores(scores, self._inner.asked))
        except StopIteration as end:
            return end.value


def forced_resources(resources: Resources, forcing: Forcing) -> Resources:
    """The same, with parallel or sequential heads that are forced. What engines say is forced where
    it is read."""
    opened = None if resources.head is None else resources.head()
    if opened is None or isinstance(opened, FeatureEngine):
        return resources
    heads = ForcedHeads(opened, forcing)
    return replace(resources, head=lambda: heads)
