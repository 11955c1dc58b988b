"""Students whose states are scored as the host's own."""

from __future__ import annotations

import torch

from graftline.models.training.student import scored


class HostScored:
    """By the host's lm_head and its bias."""

    lm_head: torch.Tensor
    bias: torch.Tensor | None

    def scores(self, states: torch.Tensor, depth: int, ids: torch.Tensor | None) -> torch.Tensor:
        """See `Student.scores`."""
        return scored(states, self.lm_head, self.bias, ids)


class Parallel(HostScored):
    """All depths are drafted where drafting begins."""

    def place(self, depth: int) -> int:
        """Where drafting begins."""
        return 0

    def weight(self, depth: int) -> float:
        """Later drafts say less that is of use: 0.8 to the depth, as Medusa's own training."""
        return 0.8**depth


class Stepwise(HostScored):
    """One token at a time, by a step of the host without some of its work."""

    def place(self, depth: int) -> int:
        """A step's states stand at the token before the one that they foretell."""
        return 1

    def weight(self, depth: int) -> float:
        """All there is."""
        return 1.0
