"""What a draft is learned by: the host's distribution over a part of the vocabulary.

The scores of a whole vocabulary cost more than the rest of a small head. A step scores the tokens
that its texts speak of, and a random sample of the others, each standing for as many as were left
out: the sum over the vocabulary is estimated without bias.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax

LIKELY = 8
"""Of the host's best tokens at a position, those that are scored in any case."""
CE, VARIATION = 0.1, 0.9
"""Weights of cross-entropy and total variation once the distributions are near each other."""
TINY = 1e-12
"""Less than any probability that is kept."""
UNSCORED, NEVER = -1, -2
"""In place of a token's place: it is not scored in this step, or the head cannot draft it."""


@dataclass(frozen=True)
class Scored:
    """The C tokens that a step scores: their ids [C], what is added to their scores [C], and the
    place of every id of the vocabulary among them [V], UNSCORED or NEVER for none."""

    ids: torch.Tensor
    weights: torch.Tensor
    places: torch.Tensor

    @classmethod
    def choose(
        cls,
        spoken: torch.Tensor,
        drafted: torch.Tensor,
        vocabulary: int,
        most: int,
        random: torch.Generator,
    ) -> Scored:
        """Of the ids `drafted` [D] of a vocabulary: the `spoken` ones, and others up to `most` in
        all."""
        places = torch.full((vocabulary,), NEVER)
        places[drafted] = UNSCORED
        known = torch.unique(spoken)
        known = known[places[known] == UNSCORED]
        rest = places == UNSCORED
        rest[known] = False
        others = rest.nonzero()[:, 0]
        unspoken = len(others)
        count = min(max(most - len(known), 0), unspoken)
        if count < unspoken:
            drawn = torch.randperm(unspoken, generator=random, device=random.device)[:count]
            others = others[drawn.to(others.device)]
        ids = torch.cat([known, others])
        weights = torch.zeros(len(ids))
        if count:
            weights[len(known) :] = math.log(unspoken / count)
        places[ids] = torch.arange(len(ids))
        return cls(ids, weights, places)


@dataclass(frozen=True)
class Wanted:
    """What R drafts are to be: the host's best tokens and their log-probabilities [R, K], and the
    token that followed [R]."""

    best: torch.Tensor
    scores: torch.Tensor
    token: torch.Tensor


def draft_loss(
    logits: torch.Tensor,
    wanted: Wanted,
    scored: Scored,
    cold: bool,
    sureness: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss of drafts with logits [R, C]: `cold`, KL divergence over the host's best tokens;
    then CE of the token that followed and total variation, which is 1 - acceptance. `sureness` [R]:
    logits of the head's own estimate of each draft's acceptance, which learns it by CE (DSpark).

    Tokens that the head cannot draft are learned by no draft: the KL divergence is to the host's
    share among the others, CE leaves them out, and their probability is accepted in no case.
    """
    logs = log_softmax(logits.float() + scored.weights, dim=-1)
    places = scored.places[wanted.best]
    there = places >= 0
    ours = logs.gather(-1, places.clamp_min(0))
    chances = wanted.scores.exp()
    theirs = torch.where(there, chances, 0.0)
    lost = torch.where(places == NEVER, chances, 0.0).sum(-1)
    shared = torch.minimum(theirs, torch.where(there, ours.exp(), 0.0)).sum(-1)
    others = torch.minimum(
        1 - theirs.sum(-1) - lost, 1 - torch.where(there, ours.exp(), 0.0).sum(-1)
    ).clamp_min(0)
    accepted = shared + others
    if cold:
        share = theirs / theirs.sum(-1, keepdim=True).clamp_min(TINY)
        entropy = torch.special.entr(share).sum(-1)
        loss = -(share * ours).sum(-1).mean() - entropy.mean()
    else:
        token = scored.places[wanted.token]
        entropy = -logs.gather(-1, token.clamp_min(0)[:, None])[:, 0]
        entropy = torch.where(token >= 0, entropy, 0.0)
        loss = (CE * entropy + VARIATION * (1 - accepted)).mean()
    if sureness is None:
        return loss
    chance = accepted.detach().clamp(0.0, 1.0)
    return loss + binary_cross_entropy_with_logits(sureness.float(), chance)
