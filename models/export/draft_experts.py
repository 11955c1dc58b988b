"""Mixtures of experts of draft heads as a torch module: the chosen experts' weights are gathered,
which is the only form without a loop."""

from __future__ import annotations

from copy import copy

import torch
from torch import nn
from torch.nn.functional import silu
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from graftline.models.heads.experts import Experts


class Mixture(nn.Module):
    """See `Experts`. `gate_up` [count, 2 x mlp, H] has the gates of an expert before its ups;
    `down` is [count, H, mlp]."""

    def __init__(self, config: LlamaConfig, experts: Experts) -> None:
        super().__init__()
        self.experts, hidden = experts, config.hidden_size
        self.router = nn.Linear(hidden, experts.count, bias=experts.corrected)
        self.gate_up = nn.Parameter(torch.empty(experts.count, 2 * experts.mlp, hidden))
        self.down = nn.Parameter(torch.empty(experts.count, hidden, experts.mlp))
        if experts.shared:
            sizes = copy(config)
            sizes.intermediate_size = experts.shared
            self.shared = LlamaMLP(sizes)
        if experts.shared_gated:
            self.shared_gate = nn.Linear(hidden, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, N, H] -> [B, N, H]."""
        rows = x.reshape(-1, x.shape[-1])
        weights, best = self._chosen(rows)
        count = best.shape[-1]
        states = rows.repeat_interleave(count, dim=0).unsqueeze(-1)
        gate, up = torch.bmm(self.gate_up[best.reshape(-1)], states).squeeze(-1).chunk(2, dim=-1)
        made = torch.bmm(self.down[best.reshape(-1)], (silu(gate) * up).unsqueeze(-1)).squeeze(-1)
        found = (made * weights.reshape(-1, 1)).view(-1, count, x.shape[-1]).sum(dim=1)
        if self.experts.shared:
            found = found + self._every(rows)
        return found.view(x.shape)

    def _chosen(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights and numbers [rows, chosen] of the experts that rows take."""
        experts = self.experts
        logits = nn.functional.linear(rows, self.router.weight)
        scores = logits.sigmoid() if experts.sigmoid else logits.softmax(dim=-1)
        choice = scores + self.router.bias if experts.corrected else scores
        if experts.groups > 1:
            choice = self._of_best_groups(choice)
        best = choice.topk(experts.chosen, dim=-1)[1]
        weights = scores.gather(-1, best)
        if experts.normed:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights * experts.scale, best

    def _of_best_groups(self, choice: torch.Tensor) -> torch.Tensor:
        """Scores [rows, count], without those of the groups that are not kept."""
        experts = self.experts
        grouped = choice.view(-1, experts.groups, experts.count // experts.groups)
        ranks = grouped.topk(2, dim=-1)[0].sum(dim=-1)
        best = ranks.topk(experts.kept, dim=-1)[1]
        kept = torch.zeros_like(ranks).scatter(-1, best, 1.0).bool()
        return grouped.masked_fill(~kept.unsqueeze(-1), float("-inf")).view(choice.shape)

    def _every(self, rows: torch.Tensor) -> torch.Tensor:
        """What the MLP gives that every row takes."""
        made = self.shared(rows)
        return self.shared_gate(rows).sigmoid() * made if self.experts.shared_gated else made
