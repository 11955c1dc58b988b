"""EAGLE-1 heads for tiny hosts, and sequences that draft with them by themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graftline.bundle.reader import Bundle
from graftline.bundle.store import load_graph
from graftline.passes.anchors.anchors import with_role
from graftline.passes.grafts.head_parts import Linear
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.session import FINAL, Scores
from graftline.runtimes.verdict import Verdict
from graftline.tree import Tree
from tests.markov_host import HIDDEN, VOCABULARY
from tests.models.heads.reference_eagle import Eagle
from tests.models.heads.reference_layers import Sizes, drawn, state, written

SIZES = Sizes(hidden=HIDDEN, heads=2, kv_heads=1, head_size=16, mlp=64, vocabulary=VOCABULARY)


def eagle(sizes: Sizes = SIZES, layers: int = 1, loud: float = 1.0) -> Eagle:
    """A seeded head, whose states are so many times as large: the larger, the surer it is."""
    module = drawn(Eagle(sizes, layers))
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith("fc.") or name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter *= loud
    return module


def head_files(
    folder: Path,
    layers: int = 1,
    right: bool = False,
    sizes: Sizes = SIZES,
    noise: float = 0.0,
    loud: float = 1.0,
    **changes: Any,
) -> Path:
    """A seeded head; `right`: one that hands the embedding through to the host's lm_head, which
    scores what follows it, with so much `noise`; `loud` as of `eagle`."""
    tensors = state(eagle(sizes, layers, loud))
    if right:
        half = torch.eye(HIDDEN)
        half = half + noise * torch.randn(half.shape, generator=torch.Generator().manual_seed(3))
        tensors["fc.weight"] = torch.cat([half, torch.zeros(HIDDEN, HIDDEN)], dim=1)
        tensors["fc.bias"] = torch.zeros(HIDDEN)
        for name in tensors:
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                tensors[name] = torch.zeros_like(tensors[name])
    folder.mkdir(exist_ok=True)
    return written(folder, sizes.config(num_hidden_layers=layers, **changes), tensors)


TokenPath = tuple[int, ...]
"""Tokens behind a text."""


def expanded(
    probs: Callable[[TokenPath], torch.Tensor],
    chances: Callable[[int, list[float]], list[float]],
    width: int,
    depth: int,
    rows: int,
) -> list[TokenPath]:
    """EAGLE-2's nodes (arXiv 2406.16858), by its description: of each depth the `width` likeliest
    get their `width` likeliest candidates, and the best of all stay. `probs` [V] are of what comes
    after a path; `chances` what probabilities of a depth have come to."""
    value: dict[TokenPath, float] = {(): 1.0}
    layer: list[TokenPath] = [()]
    for place in range(depth):
        fresh: list[TokenPath] = []
        for path in layer:
            best = probs(path).topk(width)
            each = chances(place, best.values.tolist())
            for token, chance in zip(best.indices.tolist(), each, strict=True):
                fresh.append((*path, token))
                value[fresh[-1]] = value[path] * chance
        layer = sorted(fresh, key=lambda path: -value[path])[:width]
    return sorted(value, key=lambda path: -value[path])[:rows]


def lm_head(bundle: Bundle) -> torch.Tensor:
    """[V, H] of the bundle's target."""
    graph = load_graph(bundle.graph("canonical"))
    (node,) = with_role(graph.graph, "lm_head")
    return torch.from_numpy(np.array(Linear.of(node).weight.rows())).double()


class DraftedSequence:
    """A sequence whose target is chance: features and tokens are drawn."""

    def __init__(self, engine: Any, random: Any, length: int, **options: Any) -> None:
        self.random = random
        self.drafter: Any = make_drafter("eagle", options, engine.resources)
        self.tokens: list[int] = random.integers(0, VOCABULARY, length).tolist()
        """All of the text."""
        states = random.standard_normal((length, HIDDEN)).astype(np.float32)
        self.drafter.see(0, {FINAL: states[:4]})
        self.drafter.see(4, {FINAL: states[4:]})
        self.drafter.start(self.tokens)
        self.features = states[:-1]
        """[N, H]: of what stands before the last token."""
        self.tree = Tree.chain(self.tokens[-1:])
        """What was drafted last."""
        self._last = states[-1:]

    def choose(self, path: Sequence[int]) -> None:
        """The target takes these nodes of the draft, root first, and then a token of its own that
        none of the last one's children has."""
        tree, kept = self.tree, list(path)
        taken = [tree.token_list[node] for node in tree.children[kept[-1]]]
        own = next(t for t in self.random.permutation(VOCABULARY).tolist() if t not in taken)
        states = self.random.standard_normal((len(tree), HIDDEN)).astype(np.float32)
        if len(self._last):
            states[0], self._last = self._last[0], self._last[:0]
        scores = Scores(np.zeros((1, len(tree)), np.int64), np.zeros((1, len(tree), 1)),
                        taps={FINAL: states[None]})  # fmt: skip
        self.drafter.observe(tree, Verdict(tuple(kept), own), scores, 0)
        self.tokens += [*(tree.token_list[node] for node in kept[1:]), own]
        self.features = np.concatenate([self.features, states[kept]])
