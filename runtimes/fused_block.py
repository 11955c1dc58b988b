"""A draft block inside a fused step: its caches, and which trees it can draft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from graftline.errors import BackendError
from graftline.owners import HEAD
from graftline.ports import Port, by_role, slot_ports
from graftline.roles import DRAFT_LOGITS
from graftline.runtimes.head_text import HeadText
from graftline.runtimes.session import Floats, Scores
from graftline.runtimes.trees.template import Template


class BlockSession(Protocol):
    """The session of a head's own stage, which reads what the host has read."""

    def follow(
        self,
        row: int,
        length: int,
        tokens: Sequence[int],
        asked: int = 1,
        features: Floats | None = None,
    ) -> Scores:
        """Tokens and a feature [N, H] for each, behind the first `length` slots."""
        ...


class CachedSession(BlockSession, Protocol):
    """One whose caches can be bound by others."""

    def reset(self, batch: int) -> None:
        """Forget everything and make room for `batch` sequences."""
        ...

    def caches(self, row: int) -> dict[str, npt.NDArray[Any]]:
        """The caches of sequence `row`, [1, K, S, D] each, by the name of their graph input."""
        ...


def read_text(session: BlockSession, row: int, text: HeadText | None) -> None:
    """Put into the head's caches of sequence `row` what the host has read."""
    assert text is not None, "the drafter of such a head is shown the prompt"
    session.follow(row, 0, text.tokens, 1, text.features)


def block_depth(ports: Sequence[Port]) -> int:
    """How many tokens the draft block of a fused graph drafts; 0 where there is none."""
    found = [p for p in by_role(ports, DRAFT_LOGITS, "out") if p.owner == HEAD]
    return int(found[0].shape[-1]) if found else 0


class FusedBlock:
    """The caches of a draft block over which fused steps draft chains of at most `depth` tokens.

    The head's own stage reads each prompt into them; the steps go on from there.
    """

    def __init__(self, session: CachedSession, ports: Sequence[Port]) -> None:
        self.depth, self._session = block_depth(ports), session
        self._own = frozenset(p.name for p in slot_ports(ports, "in", HEAD))

    def reset(self, batch: int) -> None:
        """Forget all sequences and make room for `batch` of them."""
        self._session.reset(batch)

    def read(self, row: int, text: HeadText | None) -> None:
        """Begin sequence `row` with what the host has read."""
        read_text(self._session, row, text)

    def caches(self, row: int) -> dict[str, npt.NDArray[Any]]:
        """Those of sequence `row`, by the names of the fused graph's inputs."""
        named = self._session.caches(row).items()
        return {own: cache for name, cache in named if (own := f"{HEAD}.{name}") in self._own}

    def check(self, plan: Template) -> None:
        """Raise BackendError for a tree that is no chain, or longer than what is drafted."""
        check_chain(plan, self.depth)


def check_chain(plan: Template, depth: int) -> None:
    """Raise BackendError for a tree that is no chain of at most `depth` drafts."""
    if np.any(plan.shape.parents != np.arange(-1, len(plan) - 1)) or plan.ranks.any():
        raise BackendError("this fused step drafts chains, and the tree has branches")
    if len(plan) > depth + 1:
        raise BackendError(
            f"a chain of {len(plan) - 1} drafts; this fused step drafts {depth}; rebuild it with "
            "--step fused and a recipe of that depth"
        )
