"""Bigrams of what a host says, as a matrix of low rank: counts and a decomposition, no gradient.

At every position of an answer the host says how likely each next token is. Added up over answers
these are expected counts c(a, x) of x behind a, and

    M[a, x] = max(0, log (c(a, x) N / (c(a) c(x)))) * c / (c + 1) * m / (m + 1)

with c = c(a, x) and m the lesser of c(a) and c(x): the positive pointwise mutual information, less
where little was counted (Pantel and Lin, 2002). It is what the token before says of the next one
beyond how frequent that is, which a head that scores it from a state alone does not know.
M = w1 w2^T by its largest singular values, the root of each on either side (Levy and Goldberg,
2014). All of it is done once, and on the CPU, whatever the head is trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from graftline.models.training.rows import Row

BEYOND, ROUNDS = 8, 4
"""Singular vectors more than are kept, and rounds of the iteration that finds them (Halko et al.,
arXiv 0909.4061)."""


def expected_counts(rows: Sequence[Row], vocabulary: int) -> torch.Tensor:
    """[V, V] sparse: how often the host expects each token behind each, over its answers."""
    before, after, weights = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    for row in rows:
        places = slice(max(row.start - 1, 0), len(row) - 1)
        best = row.states.best[places]
        before.append(np.repeat(row.ids[places], best.shape[1]))
        after.append(best.reshape(-1))
        weights.append(np.exp(row.states.scores[places].astype(np.float32)).reshape(-1))
    index = np.stack([np.concatenate(before), np.concatenate(after)]).astype(np.int64)
    values = torch.from_numpy(np.concatenate(weights))
    return _sparse(torch.from_numpy(index), values, vocabulary)


def information(counts: torch.Tensor) -> torch.Tensor:
    """[V, V] sparse: the discounted positive pointwise mutual information of counts."""
    (before, after), joint = counts.indices(), counts.values()
    first, second = (torch.sparse.sum(counts, dim).to_dense() for dim in (1, 0))
    one, other = first[before], second[after]
    mutual = (joint * joint.sum() / (one * other)).log().clamp_min(0)
    least = torch.minimum(one, other)
    values = mutual * joint / (joint + 1) * least / (least + 1)
    return _sparse(counts.indices(), values, counts.shape[0])


def _sparse(index: torch.Tensor, values: torch.Tensor, size: int) -> torch.Tensor:
    made = torch.sparse_coo_tensor(
        index, values, (size, size), device=values.device, check_invariants=True
    )
    return made.coalesce()


def factorised(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """w1 and w2 [V, rank], the nearest to a sparse matrix [V, V] as w1 w2^T."""
    most = min(rank + BEYOND, matrix.shape[0])
    left, sizes, right = torch.svd_lowrank(matrix, q=most, niter=ROUNDS)
    root = sizes[:rank].sqrt()
    return left[:, :rank] * root, right[:, :rank] * root
