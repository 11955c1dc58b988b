"""A bundle with an FSPAD head: proven, and its trees are what the published formula drafts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graftline.build.heads import check_recipe, open_draft_head
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.errors import GraftlineError
from graftline.recipe import recipe
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafting import draft_together
from graftline.runtimes.load import load
from graftline.tree import Tree
from tests.eagle_drafts import DraftedSequence, TokenPath, expanded, head_files, lm_head
from tests.free_engine import free
from tests.fspad_files import fspad, sizes_of, write_fspad
from tests.markov_host import HIDDEN, VOCABULARY
from tests.runtimes.tree_cases import spelled

PROMPTS = [[5, 9, 2], [1] * 9, list(range(40, 57))]
LOUD = 0.3
OPTIONS = {"width": 3, "depth": 4, "rows": 14}


@pytest.fixture(scope="module")
def bundle(wide_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A head that knows nothing, over a host that nobody knows."""
    folder = tmp_path_factory.mktemp("fspad")
    head = write_fspad(folder / "head", HIDDEN, VOCABULARY, LOUD)
    return optimize(wide_checkpoint, folder / "fspad.graft", head=str(head), step="fused")


class Reference:
    """A head that reads every path from its beginning, with no cache and no mask."""

    def __init__(self, bundle: Bundle, one: DraftedSequence, engine: Any) -> None:
        self._table = torch.from_numpy(engine.resources.embedding().copy()).double()
        self._lm_head, self._module = lm_head(bundle), fspad(sizes_of(HIDDEN, VOCABULARY), LOUD)
        self._tokens = one.tokens[1:]
        self._features = torch.from_numpy(one.features).double()
        self._ends: dict[TokenPath, tuple[torch.Tensor, torch.Tensor]] = {}

    def ends(self, path: TokenPath) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the last token of a path behind the text: what is scored, and the feature, [H]."""
        if path not in self._ends:
            own = [self.ends(path[:length])[1] for length in range(len(path))]
            features = torch.cat([self._features, *(one[None] for one in own)])
            ids = [*self._tokens, *path]
            scored, feature = self._module(self._table[ids][None], features[None])
            self._ends[path] = scored[0, -1], feature[0, -1]
        return self._ends[path]

    def probs(self, path: TokenPath) -> torch.Tensor:
        return (self._lm_head @ self.ends(path)[0]).softmax(-1)


def test_the_head_is_proven(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert (manifest.recipe, manifest.stages["head.0"].facts.kind) == ("fspad", "draft-block")
    laws = {(w.graft.partition("{")[0], w.law): w.status for w in manifest.laws
            if w.owner == "head.0"}  # fmt: skip
    wanted = [("next-feature", "foretold"), ("tree-mask", "branches"), ("features", "opened"),
              ("head.0", "whole"), ("head.0", "taps")]  # fmt: skip
    assert {laws[row] for row in wanted} == {"held"}
    assert {w.status for w in manifest.laws if w.law == "drafted-by-block"} == {"held"}


def test_drafts_are_the_references_node_for_node(bundle: Bundle) -> None:
    """Two sequences of different lengths, after the prompt, after a path aside, and after none."""
    engine: Any = load(bundle.path, step="host")
    random = np.random.default_rng(2)
    ones = [DraftedSequence(engine, random, length, **OPTIONS) for length in (6, 11)]
    paths: list[Callable[[Tree], Sequence[int]]] = [_root, _last, _root]
    for taken in paths:
        for one in ones:
            one.choose(taken(one.tree))
        wanted = [
            expanded(Reference(bundle, one, engine).probs, one.drafter.ranks.of_head, **OPTIONS)
            for one in ones
        ]
        trees = draft_together([one.drafter.draft(Bid.free(14)) for one in ones])
        for one, tree, expected in zip(ones, trees, wanted, strict=True):
            assert isinstance(tree, Tree), tree
            one.tree = tree
            assert [path[1:] for path in spelled(tree)] == expected
            assert max(map(len, expected)) > 1, "a feature of the head's own is read"


def _root(tree: Tree) -> Sequence[int]:
    return (0,)


def _last(tree: Tree) -> Sequence[int]:
    return tree.path_to(len(tree) - 1)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_plains_alone_and_in_a_ragged_batch(bundle: Bundle, temperature: float) -> None:
    engine = free(bundle.path, step="host")
    options: dict[str, Any] = {"max_new_tokens": 20, "ignore_eos": True}
    options |= {"temperature": temperature, "seed": 3}
    plain = [engine.generate(p, recipe="plain", **options).tokens for p in PROMPTS]
    alone = [engine.generate(p, **options) for p in PROMPTS]
    assert [r.tokens for r in alone] == plain
    assert sum(r.stats.drafted for r in alone) > 200
    if not temperature:
        for step in ("host", "fused"):
            found = engine.generate(PROMPTS, step=step, **options)
            assert [r.tokens for r in found] == plain
            assert all(r.stats.drafted for r in found)


def test_recipes_of_other_heads_are_refused(tmp_path: Path) -> None:
    head = open_draft_head(str(write_fspad(tmp_path / "fspad", HIDDEN, VOCABULARY)), print)
    with pytest.raises(GraftlineError, match="eagle-2 has no next-feature for a head"):
        check_recipe(head, recipe("eagle-2"))
    other = open_draft_head(str(head_files(tmp_path / "eagle")), print)
    with pytest.raises(GraftlineError, match=r"fspad has no tap\{layers=-1\} for a head"):
        check_recipe(other, recipe("fspad"))
