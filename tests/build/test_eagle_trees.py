"""EAGLE-2's trees: what is drafted is what its description expands, and worth what it costs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.errors import GraftlineError
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.drafting import draft_alone, draft_together
from graftline.runtimes.load import load
from graftline.runtimes.study.forced import Forcing
from graftline.tree import Tree
from tests.commands.calling import call, refused
from tests.eagle_drafts import DraftedSequence, TokenPath, eagle, expanded, head_files, lm_head
from tests.free_engine import free
from tests.markov_host import MarkovCheckpoint, around, path_of
from tests.runtimes.tree_cases import spelled
from tests.tiny_checkpoints import WIDE

PROMPTS = [[5, 9, 2], [1] * 9, list(range(40, 57))]
WIDTH, DEPTH, ROWS = 3, 4, 14
LOUD = 0.3
"""How sure the seeded head is: its trees are as deep as they are wide."""
OPTIONS = {"width": WIDTH, "depth": DEPTH, "rows": ROWS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("eagle-trees")


@pytest.fixture(scope="module")
def seeded(wide_checkpoint: Path, folder: Path) -> Bundle:
    """A head that knows nothing, over a host that nobody knows."""
    head = head_files(folder / "seeded", loud=LOUD)
    return optimize(wide_checkpoint, folder / "seeded.graft", recipe="eagle-2", head=str(head))


@pytest.fixture(scope="module")
def noisy(known_checkpoints: dict[Path, Any], folder: Path) -> Bundle:
    """A head that often has the next token only among its candidates."""
    path = path_of(folder, "markov")
    known_checkpoints[path] = MarkovCheckpoint(path, WIDE)
    head = head_files(folder / "noisy", right=True, noise=0.35)
    return optimize(path, folder / "noisy.graft", recipe="eagle-2", head=str(head))


class Reference:
    """A head that reads every path from its beginning, with no cache and no mask."""

    def __init__(self, bundle: Bundle, one: DraftedSequence, engine: Any) -> None:
        table = torch.from_numpy(engine.resources.embedding().copy()).double()
        self._table, self._lm_head = table, lm_head(bundle)
        self._module = eagle(loud=LOUD).double()
        self._tokens = one.tokens[1:]
        self._features = torch.from_numpy(one.features).double()
        self._states: dict[TokenPath, torch.Tensor] = {}

    def state(self, path: TokenPath) -> torch.Tensor:
        """[H]: what the head makes of the last token of a path behind the text."""
        if path not in self._states:
            own = [self.state(path[:length]) for length in range(len(path))]
            features = torch.cat([self._features, *(one[None] for one in own)])
            ids = [*self._tokens, *path]
            self._states[path] = self._module(self._table[ids][None], features[None])[0, -1]
        return self._states[path]

    def probs(self, path: TokenPath) -> torch.Tensor:
        """[V]: of what comes after it."""
        return (self._lm_head @ self.state(path)).softmax(-1)


def test_drafts_are_the_references_node_for_node(seeded: Bundle) -> None:
    """After the prompt, after paths that leave the best chain, and after none of a draft: two
    sequences of different lengths, with what their target has made of each chosen token."""
    engine: Any = load(seeded.path)
    random = np.random.default_rng(2)
    ones = [DraftedSequence(engine, random, length, **OPTIONS) for length in (6, 11)]
    paths: list[Callable[[Tree], Sequence[int]]] = [_root, _aside, _root, _aside, _aside]
    for taken in paths:
        for one in ones:
            one.choose(taken(one.tree))
        wanted = [
            expanded(Reference(seeded, one, engine).probs, one.drafter.ranks.of_head, **OPTIONS)
            for one in ones
        ]
        trees = draft_together([one.drafter.draft(Bid.free(ROWS)) for one in ones])
        for one, tree, expected in zip(ones, trees, wanted, strict=True):
            assert isinstance(tree, Tree), tree
            one.tree = tree
            assert [path[1:] for path in spelled(tree)] == expected
            assert not tree.is_chain


def _root(tree: Tree) -> Sequence[int]:
    return (0,)


def _aside(tree: Tree) -> Sequence[int]:
    """The path to the deepest node that no chain of best children leads to."""
    first = {0}
    for node, children in enumerate(tree.children):
        if node in first and children:
            first.add(children[0])
    others = [node for node in range(len(tree)) if node not in first]
    return tree.path_to(max(others, key=lambda node: int(tree.depth[node])))


def test_a_depth_is_one_call(seeded: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = load(seeded.path)
    one = DraftedSequence(engine, np.random.default_rng(5), 6, **OPTIONS)
    one.choose((0,))
    session, calls = engine.resources.head().head, list[int]()
    level, follow = session.follow_level, session.follow

    def counted(*given: Any) -> Any:
        calls.append(len(given[3]))
        return level(*given)

    def first(*given: Any) -> Any:
        calls.append(1)
        return follow(*given)

    monkeypatch.setattr(session, "follow_level", counted)
    monkeypatch.setattr(session, "follow", first)
    tree = draft_alone(one.drafter.draft(Bid.free(ROWS)))
    assert len(calls) == DEPTH
    assert calls[:3] == [1, WIDTH, WIDTH], "fewer only where no child could be among the best"
    assert len(tree) == ROWS
    cost = engine.resources.head().rows_cost
    assert one.drafter.reads == pytest.approx(1.0 + sum(map(cost, calls[1:])))


def test_what_is_not_worth_its_price_is_not_asked_for_or_scored(seeded: Bundle) -> None:
    engine: Any = load(seeded.path)
    one = DraftedSequence(engine, np.random.default_rng(5), 6, **OPTIONS)
    one.choose((0,))
    drafter, free_of = one.drafter, (0.0,) * ROWS
    whole = draft_alone(drafter.draft(Bid.free(ROWS)))
    expensive = draft_alone(drafter.draft(Bid(ROWS, (9.0,) * ROWS, free_of)))
    assert drafter.reads == 1.0, "the first call is paid for, no other is worth nine tokens"
    assert spelled(expensive) == [path for path in spelled(whole) if len(path) < 3]
    assert whole.probs is not None
    least = 0.999 * float(whole.probs[1])
    scored = draft_alone(drafter.draft(Bid(ROWS, free_of, (0.0, *[least] * (ROWS - 1)))))
    assert spelled(scored) == spelled(whole)[:2]
    assert draft_alone(drafter.draft(Bid.free(1))).token_list == one.tokens[-1:]


def test_where_the_target_scores_no_trees_chains_are_drafted(seeded: Bundle) -> None:
    engine: Any = load(seeded.path)
    one = DraftedSequence(engine, np.random.default_rng(5), 6, **OPTIONS)
    one.choose((0,))
    bid = Bid(5, (0.0,) * 5, (0.0,) * 5, branches=False)
    tree = draft_alone(one.drafter.draft(bid))
    assert (len(tree), tree.is_chain) == (5, True)
    assert one.drafter.reads == 4.0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_plains_alone_and_in_a_ragged_batch(seeded: Bundle, temperature: float) -> None:
    engine = free(seeded.path)
    options: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True}
    options |= {"temperature": temperature, "seed": 3}
    plain = [engine.generate(p, recipe="plain", **options).tokens for p in PROMPTS]
    alone = [engine.generate(p, **options) for p in PROMPTS]
    assert [r.tokens for r in alone] == plain
    assert sum(r.stats.drafted for r in alone) > 300
    if not temperature:
        batch = engine.generate(PROMPTS, **options)
        assert [r.tokens for r in batch] == plain


def test_a_tree_finds_what_the_best_chain_misses(noisy: Bundle) -> None:
    engine = free(noisy.path)
    mat: dict[str, list[float]] = {"eagle": [], "eagle-2": []}
    for prompt in PROMPTS:
        expected = [around(prompt[-1])]
        while len(expected) < 80:
            expected.append(around(expected[-1]))
        for name, found in mat.items():
            result = engine.generate(prompt, recipe=name, max_new_tokens=80, ignore_eos=True)
            assert result.tokens == expected
            found.append(result.stats.mat)
    chain, tree = (sum(found) / len(found) for found in mat.values())
    assert 1.2 < chain < 4.0, "the best chain is right now and then"
    assert tree > chain + 0.25


def test_forced_drafts_are_as_good_as_asked(
    seeded: Bundle, noisy: Bundle, tmp_path: Path
) -> None:
    """Of chains and of trees, with a head that knows nothing and with one that knows much; tokens
    stay plain's, and the command says what came of it."""
    rates = (0.8, 0.4, 0.6)
    for bundle in (seeded, noisy):
        engine = free(bundle.path)
        options: dict[str, Any] = {"max_new_tokens": 400, "ignore_eos": True}
        plain = engine.generate([5, 9, 2], recipe="plain", **options).tokens
        for name in ("eagle", "eagle-2"):
            forcing = Forcing(rates, 1, plain)
            engine.force(name, forcing)
            assert engine.generate([5, 9, 2], recipe=name, **options).tokens == plain
            assert_near(forcing, rates, 3)
    asked = ["bench", noisy.path, "--recipes", "eagle,eagle-2", "--max-new-tokens", "40"]
    (tmp_path / "q.jsonl").write_text(json.dumps({"prompt": "ab ab"}) + "\n")
    asked += ["--prompts", tmp_path / "q.jsonl", "--raw", "--ignore-eos"]
    out = tmp_path / "out.json"
    for how in ([], ["--interleaved"]):
        told = call(*asked, "--force-acceptance", "1.0", "--json", out, *how)
        assert told.exit_code == 0, told.output
        assert "acceptance as forced" in told.stdout
        found = json.loads(out.read_text())
        assert found["force_acceptance"] == [1.0]
        assert all(row["overall"]["identical"] for row in found["recipes"].values())
    for more, message in (
        (["--recipes", "suffix"], "the drafts of recipe suffix come from no draft engine"),
        (["--temperature", "0.7"], "leave out --temperature and --oracle"),
    ):
        assert message in refused(*asked, "--force-acceptance", "0.5", *more)


def assert_near(forcing: Forcing, rates: Sequence[float], depths: int) -> None:
    """Within 4 standard deviations of as many trials."""
    for (drafts, hits), rate in zip(forcing.outcomes[:depths], rates, strict=True):
        assert drafts >= 20
        assert abs(hits / drafts - rate) < 4 * sqrt(rate * (1 - rate) / drafts)


def test_the_heads_mask_is_proven(seeded: Bundle) -> None:
    laws = {(w.owner, w.graft, w.law): w.status for w in seeded.manifest.laws}
    assert laws["head.0", "tree-mask", "branches"] == "held"
    report = check(seeded.path)
    assert report.holds, [f for f in report.findings if not f.holds]


def test_trees_that_cannot_be_drafted_are_refused_in_a_line(
    seeded: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = load(seeded.path)
    with pytest.raises(GraftlineError, match="width=9, and the head of this bundle names 8") as no:
        make_drafter("eagle", {"width": 9}, engine.resources)
    assert "\n" not in str(no.value)
    monkeypatch.setattr(engine.resources.head().head, "_tree", False)
    with pytest.raises(GraftlineError, match="reads chains only; rebuild the bundle, or use the"):
        make_drafter("eagle", {"width": 2}, engine.resources)
    for options in ({"sampled": True}, {"length": "fixed{count=3}"}):
        with pytest.raises(GraftlineError, match="leave out `sampled` and `length`"):
            make_drafter("eagle", {"width": 2, **options}, engine.resources)
    with pytest.raises(GraftlineError, match="width=0, depth=8 are not valid"):
        make_drafter("eagle", {"width": 0}, engine.resources)
