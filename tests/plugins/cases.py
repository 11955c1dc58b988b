"""Seeded inputs for every plugin: what a step can bring, and what is hard."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from graftline.evaluate import Array
from graftline.plugins import PLUGINS
from graftline.plugins.spec import Values
from graftline.tree import Tree
from tests.rounding import sum_tolerance

Case = tuple[str, list[Array], Values]
"""The plugin's name, its inputs, its attributes."""
POISON = 1e4
"""What slots hold that no row may see."""


def tree(rng: np.random.Generator, rows: int, reach: int = 4) -> Array:
    """Random parents [rows]: each among the `reach` nodes before it, so trees of all depths."""
    return np.array(
        [-1] + [int(rng.integers(max(0, i - reach), i)) for i in range(1, rows)], np.int64
    )


def trees(rng: np.random.Generator, batch: int, rows: int, padding: int = 0) -> Array:
    """Parents [batch, rows]; in all but the first row the last `padding` nodes are no nodes."""
    parents = np.stack([tree(rng, rows, int(rng.integers(1, rows + 1))) for _ in range(batch)])
    if padding:
        parents[1:, rows - padding :] = -1
    return parents


def tree_verify(seed: int, batch: int, rows: int, padding: int = 0) -> Case:
    """Few token values, so that paths are long and siblings repeat tokens."""
    rng = np.random.default_rng(seed)
    parents = trees(rng, batch, rows, padding)
    choice, tokens = rng.integers(0, 2, (2, batch, rows))
    return "TreeVerify", [choice, tokens, parents], {}


def tree_attention(
    seed: int, lengths: list[int], rows: int, heads: tuple[int, int], size: int, slots: int,
    dtype: type = np.float32, padding: int = 0, **values: float,
) -> Case:  # fmt: skip
    """Slots that no row may see hold poison."""
    rng = np.random.default_rng(seed)
    batch = len(lengths)
    query = rng.standard_normal((batch, heads[0], rows, size))
    key, value = rng.standard_normal((2, batch, heads[1], slots, size))
    for b, length in enumerate(lengths):
        key[b, :, length + rows :] = value[b, :, length + rows :] = POISON
    parents = trees(rng, batch, rows, padding)
    floats = [x.astype(dtype) for x in (query, key, value)]
    return "TreeAttention", [*floats, parents, np.array(lengths, np.int64)], values


def tree_attention_parts(seed: int) -> Case:
    _, inputs, values = tree_attention(seed, [70, 0], 6, (4, 2), 16, 80, scale=0.25, parts=2)
    return "TreeAttentionParts", inputs, values


def tree_attention_merge(seed: int) -> Case:
    _, inputs, values = tree_attention_parts(seed)
    plugin = PLUGINS["TreeAttentionParts"]
    partial = plugin.reference(*inputs, **plugin.values(values))
    return "TreeAttentionMerge", [*partial, inputs[0]], {}


def attention_tolerance(case: Case) -> Array:
    """What rounding may change of every output [B, Hq, N, D] of TreeAttention.

    An output is an average: its own sums make errors of the average of |values|, and an error of a
    score is a relative one of its weight.
    """
    _, (query, key, value, parents, lengths), values = case
    plugin, slots = PLUGINS["TreeAttention"], int(lengths.max()) + parents.shape[1]
    given = plugin.values({k: v for k, v in values.items() if k != "parts"})
    (average,) = plugin.reference(query, key, np.abs(value), parents, lengths, **given)
    return (score_tolerance(case)[..., None] + sum_tolerance(2 * slots)) * average


def parts_tolerance(case: Case) -> list[Array]:
    """The same of TreeAttentionParts' sums, top scores and totals; a weight is e^(score - top)."""
    _, (query, key, value, parents, lengths), values = case
    plugin, slots = PLUGINS["TreeAttentionParts"], int(lengths.max()) + parents.shape[1]
    given = plugin.values(values)
    sums, tops, totals = plugin.reference(query, key, np.abs(value), parents, lengths, **given)
    score = np.broadcast_to(score_tolerance(case)[:, :, None], tops.shape)
    relative = 2 * score + sum_tolerance(slots)
    return [relative[..., None] * sums, score, relative * totals]


def merge_tolerance(case: Case) -> Array:
    """The same of TreeAttentionMerge, which sums over parts what may have cancelled within them."""
    _, (sums, tops, totals, like), _ = case
    (average,) = PLUGINS["TreeAttentionMerge"].reference(np.abs(sums), tops, totals, like)
    return sum_tolerance(2 * tops.shape[2], average)


def tolerances(case: Case) -> list[Array] | None:
    """What rounding may change of each output; None where integers are computed, or copies made."""
    known: dict[str, Callable[[Case], list[Array]]] = {
        "TreeAttention": lambda case: [attention_tolerance(case)],
        "TreeAttentionParts": parts_tolerance,
        "TreeAttentionMerge": lambda case: [merge_tolerance(case)],
    }
    return known[case[0]](case) if case[0] in known else None


def score_tolerance(case: Case) -> Array:
    """What rounding may change of row scores [B, Hq, N], whose terms add up to |query| |key|."""
    _, (query, key, _, parents, lengths), values = case
    largest = np.linalg.norm(query.astype(np.float64), axis=-1)
    for b, length in enumerate(lengths):
        used = key[b, :, : length + parents.shape[1]].astype(np.float64)
        largest[b] *= values.get("scale", 1.0) * np.linalg.norm(used, axis=-1).max()
    return sum_tolerance(query.shape[-1], largest)


def kv_commit(
    seed: int, layers: int, lengths: list[int], places: int, size: int, dtype: type = np.float32
) -> Case:
    """Ascending paths that begin at the root, padded with -1 as TreeVerify pads them."""
    rng = np.random.default_rng(seed)
    batch, heads, slots = len(lengths), 2, max(lengths) + places + 1
    path = np.full((batch, places), -1, np.int64)
    count = rng.integers(1, places + 1, batch)
    for b, steps in enumerate(count):
        later = np.sort(rng.choice(np.arange(1, places), steps - 1, replace=False))
        path[b, :steps] = [0, *later]
    cache = rng.standard_normal((layers * batch, heads, slots, size)).astype(dtype)
    return "KVCommit", [cache, path, count, np.array(lengths, np.int64)], {}


def draft_tree(seed: int, batch: int, rows: int) -> Case:
    """A quarter of the candidates are missing."""
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 20, (20, 4), dtype=np.int32)
    table[rng.random((20, 4)) < 0.25] = -1
    parents = tree(rng, rows)
    ranks = rng.integers(0, 4, rows)
    depth = int(Tree(np.zeros(rows, np.int64), parents).depth.max())
    inputs = [table, rng.integers(0, 20, batch), parents, ranks]
    return "DraftTree", inputs, {"levels": depth}


def candidate_update(seed: int, batch: int, rows: int) -> Case:
    """Few tokens, so that most rows of the table are fought over."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 6, (batch, rows))
    path = np.full((batch, rows), -1, np.int64)
    for b in range(batch):
        steps = int(rng.integers(0, rows))
        path[b, : steps + 1] = [0, *np.sort(rng.choice(np.arange(1, rows), steps, replace=False))]
    topk = rng.integers(0, 99, (batch, rows, 3), dtype=np.int32)
    parents = trees(rng, batch, rows)
    for b in range(1, batch):
        free = np.setdiff1d(np.arange(rows), path[b])
        parents[b, free[: len(free) // 2]] = -1
    return "CandidateUpdate", [np.full((9, 3), -1, np.int32), tokens, parents, topk, path], {}


def head_tree(seed: int, batch: int, rows: int) -> Case:
    """Few distinct logits, so that most ranks are ties."""
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 5, (batch, 3, 2500 if batch == 1 else 70)).astype(np.float32)
    depths = np.array([0, *rng.integers(1, 4, rows - 1)])
    inputs = [logits, rng.integers(0, 70, batch), depths, rng.integers(0, 5, rows)]
    return "HeadTree", inputs, {"width": 5}


def tree_grow(seed: int, batch: int, rows: int) -> Case:
    rng = np.random.default_rng(seed)
    joint = -rng.integers(0, 3, (batch, rows)).astype(np.float32)
    logprobs = -rng.integers(0, 9, (batch, rows, 3)).astype(np.float32) / 2
    ids = rng.integers(0, 999, (batch, rows, 3))
    return "TreeGrow", [joint, logprobs, ids], {"beam": min(4, 3 * rows)}


def tree_prune(seed: int, batch: int, rows: int) -> Case:
    """Joint scores with ties: every child is at most its parent."""
    rng = np.random.default_rng(seed)
    parents = trees(rng, batch, rows)
    scores = np.zeros((batch, rows), np.float32)
    for b in range(batch):
        for node in range(1, rows):
            scores[b, node] = scores[b, parents[b, node]] - int(rng.integers(0, 3))
    inputs = [scores, rng.integers(0, 999, (batch, rows)), parents]
    return "TreePrune", inputs, {"rows": max(1, rows // 2)}


def distributions(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Peaked, with zeros in places."""
    raw = rng.gamma(0.3, size=shape) * (rng.random(shape) < 0.8)
    raw[..., 0] += 1e-3
    return (raw / raw.sum(axis=-1, keepdims=True)).astype(np.float32)


def tree_sample(seed: int, batch: int, rows: int, vocabulary: int) -> Case:
    """Children drawn without replacement from their node's draft; some nodes are point masses."""
    rng = np.random.default_rng(seed)
    target, draft = distributions(rng, (2, batch, rows, vocabulary))
    parents, tokens = trees(rng, batch, rows), np.zeros((batch, rows), np.int64)
    for b, n in np.ndindex(batch, rows):
        kids = np.flatnonzero(parents[b] == n)
        likely = np.flatnonzero(draft[b, n])
        if rng.random() < 0.3 or len(kids) > len(likely):
            draft[b, n] = 0
            tokens[b, kids] = rng.choice(vocabulary, len(kids), replace=False)
        else:
            p = draft[b, n].astype(np.float64)
            tokens[b, kids] = rng.choice(vocabulary, len(kids), replace=False, p=p / p.sum())
    uniforms = rng.random((batch, 2, rows), dtype=np.float32)
    return "TreeSample", [target, draft, tokens, parents, uniforms], {}


def tilted_stars(seed: int, batch: int, rows: int, vocabulary: int) -> Case:
    """A root and its children, drawn where the target is unlikely, so that most of them fail."""
    rng = np.random.default_rng(seed)
    target, draft = np.zeros((2, batch, rows, vocabulary), np.float32)
    target[:] = distributions(rng, (batch, rows, vocabulary))
    tilted = 1 / (target[:, 0] + 0.05)
    draft[:, 0] = tilted / tilted.sum(axis=-1, keepdims=True)
    order = np.argsort(-np.log(draft[:, 0]) - rng.gumbel(size=draft[:, 0].shape), axis=-1)
    tokens = np.zeros((batch, rows), np.int64)
    tokens[:, 1:] = order[:, : rows - 1]
    parents = np.tile(np.array([-1, *[0] * (rows - 1)]), (batch, 1))
    uniforms = rng.random((batch, 2, rows), dtype=np.float32)
    return "TreeSample", [target, draft, tokens, parents, uniforms], {}


def every_plugin() -> list[Case]:
    """One small case of each."""
    return [
        tree_verify(0, 2, 9, 2),
        tree_attention(0, [5, 0], 6, (4, 2), 16, 14, scale=0.25, softcap=5.0, window=4),
        tree_attention_parts(0),
        tree_attention_merge(0),
        kv_commit(0, 3, [2, 0], 6, 16),
        draft_tree(0, 2, 9),
        candidate_update(0, 2, 9),
        head_tree(0, 2, 9),
        tree_grow(0, 2, 3),
        tree_prune(0, 2, 9),
        tree_sample(0, 2, 6, 20),
        ("Uniforms", [np.array([7, 2**40]), np.array([3, 4])], {"rows": 5}),
    ]
