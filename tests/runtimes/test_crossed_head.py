"""Hydra's cross-attn head drafts as EAGLE's do: what PyTorch's own drafts, token by token."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from graftline.models.heads import open_head
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafting import draft_together
from graftline.runtimes.feature_engine import FeatureEngine
from graftline.runtimes.ort.features import FeatureSession
from graftline.runtimes.resources import Resources
from graftline.runtimes.session import FINAL
from graftline.tree import Tree
from tests.draft_engine import lowered, seeded_tables
from tests.eagle_drafts import SIZES, DraftedSequence
from tests.models.heads.reference_hydra import CrossAttention
from tests.models.heads.reference_layers import drawn, state, written

CONFIG = {"hydra_num_heads": 1, "hydra_num_layers": 1, "hydra_head_arch": "cross-attn"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The head alone, for sequences whose features are drawn."""
    folder = tmp_path_factory.mktemp("crossed")
    head = open_head(written(folder, CONFIG, state(drawn(CrossAttention(SIZES)))))
    graph, ports, facts = lowered(head, "eagle-2", SIZES, folder, SIZES.config())
    session = FeatureSession(graph, facts, ports, capacity=128, threads=1)
    own = FeatureEngine(session, FINAL, 1.0)
    return SimpleNamespace(resources=Resources(head=lambda: own, vocabulary=SIZES.vocabulary))


def probabilities(tokens: list[int], features: torch.Tensor, path: list[int]) -> torch.Tensor:
    """[V]: what the reference says behind `tokens` [N + 1], whose features [N, H] are given, and a
    path of drafts, whose features are its own states."""
    table, lm_head = (torch.from_numpy(t).double() for t in seeded_tables(SIZES))
    module, made, ids = drawn(CrossAttention(SIZES)), features.double(), tokens[1:]
    with torch.no_grad():
        for token in [*path, None]:
            last = module(table[ids][None], made[None])[0, -1:]
            made = torch.cat([made, last])
            ids = [*ids, token]
    return torch.softmax(lm_head @ last[0], dim=-1)  # pyright: ignore[reportPossiblyUnboundVariable]


def test_chains_are_the_references_whatever_was_accepted(engine: Any) -> None:
    """After a prompt, and after drafts of which 0, 2 and 0 tokens stood; two sequences of different
    lengths in the same calls."""
    random = np.random.default_rng(2)
    ones = [DraftedSequence(engine, random, length) for length in (6, 11)]
    for accepted in (0, 2, 0):
        for one in ones:
            one.choose(range(accepted + 1))
        trees = draft_together([one.drafter.draft(Bid.free(5)) for one in ones])
        for one, tree in zip(ones, trees, strict=True):
            assert isinstance(tree, Tree)
            one.tree, path = tree, list[int]()
            for token in tree.token_list[1:]:
                probs = probabilities(one.tokens, torch.from_numpy(one.features), path)
                assert token == int(probs.argmax())
                path.append(token)
            assert len(path) == 4


def test_trees_are_of_the_references_likeliest(engine: Any) -> None:
    """Every node of a depth sees its own path: its children are the best of what that says."""
    one = DraftedSequence(engine, np.random.default_rng(3), 9, width=3, depth=3)
    one.choose([0])
    (tree,) = draft_together([one.drafter.draft(Bid.free(12))])
    assert isinstance(tree, Tree)
    inner = [node for node in range(len(tree)) if tree.children[node]]
    assert len(inner) > 2
    for node in inner:
        path = [tree.token_list[n] for n in tree.path_to(node)][1:]
        probs = probabilities(one.tokens, torch.from_numpy(one.features), path)
        children = {tree.token_list[n] for n in tree.children[node]}
        assert children <= set(probs.topk(3).indices.tolist())
