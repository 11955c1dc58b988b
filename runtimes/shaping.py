"""The target's scores as a request has them shaped, row by row, when a rule asks for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graftline.errors import RequestError
from graftline.runtimes.processors import Processor
from graftline.runtimes.sampling import Ints, Logits
from graftline.runtimes.scores import DeviceScores
from graftline.runtimes.session import Floats, Scores
from graftline.tree import Tree


class Shaper:
    """One sequence's path and its logits processors, each under the name of its option."""

    def __init__(self, prompt: Ints, processors: Sequence[tuple[str, Processor]]) -> None:
        self._processors = processors
        self._ids = np.concatenate([prompt, np.empty(64, np.int64)])
        self._prompt = self._count = len(prompt)

    def extend(self, tokens: Sequence[int]) -> None:
        """These tokens were chosen."""
        end = self._count + len(tokens)
        if end > len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty(end, np.int64)])
        self._ids[self._count : end] = tokens
        self._count = end

    def path(self, tree: Tree, node: int) -> Ints:
        """All tokens up to `node`; the tree's root is the last that was chosen."""
        known = self._ids[: self._count]
        if node == 0:
            return known.copy()
        return np.concatenate([known, tree.tokens[list(tree.path_to(node)[1:])]])

    def shaped(self, path: Ints, logits: Logits) -> Logits:
        """The logits [V] of what follows `path`, from the target's, which stay as they are.

        Raises RequestError where no token is left to choose.
        """
        path.setflags(write=False)
        changed = np.array(logits)
        for _, processor in self._processors:
            changed = processor(path, changed)
        if changed.max() == -np.inf:
            names = ", ".join(name for name, _ in self._processors)
            raise RequestError(
                f"after {len(path) - self._prompt} new tokens no token is left to choose: "
                f"{names} bar all of them; loosen one"
            )
        return changed


class ShapedScores(DeviceScores):
    """Scores of a tree whose rows are shaped when a rule reads them by `after` or `best`; `logits`
    and what else there is are the target's own."""

    def __init__(self, scores: Scores, tree: Tree, shaper: Shaper) -> None:
        super().__init__(
            scores.argmax, scores.topk_ids, scores.topk_logits, scores.top_gap,
            lambda: scores.logits, scores.taps,
        )  # fmt: skip
        known: dict[int, Floats] = {}
        for name, value in (("_tree", tree), ("_shaper", shaper), ("_known", known)):
            object.__setattr__(self, name, value)  # Scores is frozen

    _tree: Tree
    _shaper: Shaper
    _known: dict[int, Floats]

    def after(self, row: int, node: int) -> Floats:
        if node not in self._known:
            self._known[node] = self.shaped(node, self.logits[row, node])
        return self._known[node]

    def shaped(self, node: int, logits: Floats) -> Floats:
        return self._shaper.shaped(self._shaper.path(self._tree, node), logits)

    def best(self, row: int, node: int) -> int:
        return int(np.argmax(self.after(row, node)))
