"""A tree of ranks: the shape that a drafter's candidates are put into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from graftline.errors import GraftlineError
from graftline.runtimes.trees.packing import trim
from graftline.tree import Ints, Tree

Ranks = tuple[int, ...]
"""A node named by its path: the rank, from 0, of the candidate taken at each depth."""


@dataclass(frozen=True)
class Template:
    """Node i is candidate `ranks[i]` of its parent; `chances[i]` is the chance, as first believed,
    that it is accepted: 1 for the root, and never rising, so a smaller tree is the first rows."""

    shape: Tree
    ranks: Ints
    chances: tuple[float, ...]

    @classmethod
    def of(cls, chances: Mapping[Ranks, float]) -> Template:
        """The tree of these paths, likeliest first. Raises GraftlineError for a path whose parent
        is missing or less likely, or that is no path of ranks."""
        known: dict[Ranks, float] = {(): 1.0, **chances}
        # of two equally likely paths the shorter comes first, so a parent precedes its children
        order = sorted(known, key=lambda path: (-known[path], len(path), path))
        row = {path: i for i, path in enumerate(order)}
        for path in order[1:]:
            if any(rank < 0 for rank in path) or path[:-1] not in known:
                raise GraftlineError(f"tree: the path {path} has no parent among the paths; add it")
            if not 0 <= known[path] <= known[path[:-1]]:
                raise GraftlineError(
                    f"tree: the path {path} has the chance {known[path]}, its parent "
                    f"{known[path[:-1]]}; no path is likelier than its parent"
                )
        parents = [-1, *(row[path[:-1]] for path in order[1:])]
        ranks = [0, *(path[-1] for path in order[1:])]
        shape = Tree(np.zeros(len(order), np.int64), np.asarray(parents, np.int64))
        return cls(shape, np.asarray(ranks, np.int64), tuple(known[path] for path in order))

    def __len__(self) -> int:
        return len(self.chances)

    @cached_property
    def levels(self) -> tuple[Ints, ...]:
        """The nodes of each depth after the root."""
        depth = self.shape.depth
        return tuple(np.flatnonzero(depth == d) for d in range(1, int(depth.max()) + 1))

    @cached_property
    def paths(self) -> tuple[Ranks, ...]:
        """Every node's ranks from the root, whose own are ()."""
        paths: list[Ranks] = [()]
        for parent, rank in zip(self.shape.parents[1:].tolist(), self.ranks[1:], strict=True):
            paths.append((*paths[parent], int(rank)))
        return tuple(paths)

    @property
    def columns(self) -> dict[str, Ints]:
        """What a fused step is told of it, by the roles of its inputs."""
        shape = self.shape
        return {
            "template.parents": shape.parents, "template.depths": shape.depth,
            "template.ranks": self.ranks,
        }  # fmt: skip

    @property
    def expected(self) -> float:
        """Tokens that a step gives, if the chances are right: the accepted ones and the next."""
        return float(sum(self.chances))

    def first(self, rows: int) -> Template:
        """The first `rows` rows; kept, so that what is derived from them is derived once."""
        if rows >= len(self):
            return self
        if rows not in self._firsts:
            _ = self.shape.mask  # handed on to the part
            shape = trim(self.shape, rows)
            self._firsts[rows] = Template(shape, self.ranks[:rows], self.chances[:rows])
        return self._firsts[rows]

    def within(self, width: int) -> Template:
        """The nodes that take ranks below `width` only."""
        if self.ranks.max() < width:
            return self
        known = zip(self.paths, self.chances, strict=True)
        return Template.of({path: c for path, c in known if path and max(path) < width})

    @cached_property
    def _firsts(self) -> dict[int, Template]:
        return {}

    def to_json(self) -> dict[str, list[Any]]:
        """`parents`, `ranks` and `chances`, row by row."""
        return {
            "parents": self.shape.parents.tolist(),
            "ranks": self.ranks.tolist(),
            "chances": list(self.chances),
        }

    @classmethod
    def from_json(cls, table: Mapping[str, Sequence[Any]]) -> Template:
        """Inverse of `to_json`. Raises GraftlineError when it is no tree of ranks."""
        try:
            shape = Tree(
                np.zeros(len(table["parents"]), np.int64), np.asarray(table["parents"], np.int64)
            )
            ranks = np.asarray(table["ranks"], np.int64)
            made = cls(shape, ranks, tuple(float(c) for c in table["chances"]))
            again = cls.of(dict(zip(made.paths[1:], made.chances[1:], strict=True)))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise GraftlineError(f"a tuned tree cannot be read ({error}); {_AGAIN}") from error
        if not len(ranks) == len(shape) == len(made) == len(again):
            raise GraftlineError(
                f"a tuned tree has {len(ranks)} ranks and {len(made)} chances for {len(shape)} "
                f"rows; {_AGAIN}"
            )
        return again


_AGAIN = "run graftline tune again"
