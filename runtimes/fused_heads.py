"""Draft heads inside a fused step: which trees they can draft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graftline.errors import BackendError
from graftline.owners import HEAD
from graftline.ports import Port, by_role
from graftline.roles import HEADS_IDS
from graftline.runtimes.fused import check_ranks
from graftline.runtimes.fused_block import block_depth
from graftline.runtimes.session import Floats, Ints
from graftline.runtimes.trees.template import Template


@dataclass
class FusedHeads:
    """`heads` of `width` candidates each, which draft in the step's own graph and nowhere else. See
    `runtimes.head_reader.Heads`."""

    heads: int
    width: int
    hidden: int
    sequential: bool = False
    reads_last: bool = False
    milliseconds: float = 0.0
    """Nothing beside the step."""

    @classmethod
    def of(cls, ports: Sequence[Port]) -> FusedHeads | None:
        """Those of a fused graph; None where it drafts by something else."""
        found = [p for p in by_role(ports, HEADS_IDS, "out") if p.owner == HEAD]
        if not found or not by_role(ports, "template.depths", "in"):
            return None
        taps = [p for p in by_role(ports, "hidden", "out") if p.tap == "postnorm"]
        heads, width = map(int, found[0].shape[2:])
        return cls(heads, width, int(taps[0].shape[-1]))

    def answer(
        self, hidden: Floats, head: int = 0, tokens: Ints | None = None
    ) -> tuple[Ints, Floats]:
        """Raises BackendError: the host cannot ask them."""
        raise BackendError(
            "the draft heads of this engine draft within its steps; use --step fused, or --recipe "
            "plain"
        )

    def check(self, plan: Template) -> None:
        """Raise BackendError for a tree that is deeper or wider than the heads."""
        if len(plan.levels) > self.heads:
            raise BackendError(
                f"a tree of depth {len(plan.levels)}; this step has {self.heads} draft heads, one "
                "for each depth"
            )
        check_ranks(plan, self.width, "head")


def drafter_of(ports: Sequence[Port]) -> str:
    """The drafter whose place a fused graph takes: that of its heads, or of its table."""
    if block_depth(ports):
        return "eagle"
    return "token-recycling" if FusedHeads.of(ports) is None else "medusa"
