"""A tree drafted by a target's first blocks, and verified by the others in one call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.errors import GraftlineError
from graftline.runtimes.drafter import Bid
from graftline.runtimes.drafters.exit_tree import ExitTree
from graftline.runtimes.drafting import draft_alone
from graftline.runtimes.load import load
from graftline.runtimes.trees.packing import pack
from graftline.tree import Tree
from tests.free_engine import answers_are_plains, free
from tests.tiny_checkpoints import WIDE, TinyCheckpoint

SPEC = replace(WIDE, layers=4)
BLOCKS, ROWS, WIDTH = 2, 16, 3
PROMPT = [11, 200, 35, 4, 90, 17]


@pytest.fixture(scope="module")
def bundle(known_checkpoints: dict[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path, out = (tmp_path_factory.mktemp(name) for name in ("checkpoint", "exits"))
    known_checkpoints[path] = TinyCheckpoint(path, SPEC)
    return optimize(path, out / "tree.graft", recipe="layer-skip-tree", exits=(BLOCKS,))


def test_laws_hold_of_trees_too(bundle: Bundle) -> None:
    stages = bundle.manifest.stages
    for stage in ("exit-2", "rest-2"):
        assert [p for p in stages[stage].ports if p.role == "mask"]
    laws = {(row.graft, row.law): row for row in bundle.manifest.laws}
    assert {laws[key].status for key in (("exit-2", "prefix"), ("rest-2", "joined"))} == {"held"}
    assert laws["rest-2", "resumed"].status == "held"
    assert laws["rest-2", "resumed"].what.startswith("8 rows"), laws["rest-2", "resumed"].what
    assert {laws[f"rest-2-rows-{n}", "form"].status for n in (2, 4, 8)} == {"held"}
    assert check(bundle.path).holds


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_tokens_are_those_of_plain_decoding(bundle: Bundle, temperature: float) -> None:
    random = np.random.default_rng(5)
    prompts = [random.integers(0, 256, n).tolist() for n in (5, 17, 40)]
    answers_are_plains(bundle.path, prompts, temperature)


def drafting(engine: Any) -> tuple[Any, ExitTree]:
    """A drafter whose sequence is seated and has chosen a token."""
    session = engine.session
    session.reset(1)
    best = int(session.prefill([np.asarray(PROMPT)]).argmax[0, 0])
    drafter = engine.policies.of(None).drafter.fork()
    drafter.start([*PROMPT, best])
    return session, drafter


def test_a_tree_is_what_the_exit_says_of_each_branch(bundle: Bundle) -> None:
    """Every node of the tree is one of the likeliest behind its parent, by the exit alone on a
    chain of its ancestors; the rows of one depth are one call."""
    engine: Any = load(bundle.path)
    _, drafter = drafting(engine)
    tree = draft_alone(drafter.draft(Bid.free(ROWS)))
    assert len(tree) == ROWS
    assert not tree.is_chain
    (way,) = engine.resources.exits()
    for node in range(1, len(tree)):
        above, parent = list[int](), int(tree.parents[node])
        while parent >= 0:
            above.insert(0, tree.token_list[parent])
            parent = int(tree.parents[parent])
        scores = way.engine.session.follow(0, len(PROMPT), above)
        assert tree.token_list[node] in scores.topk_ids[0, -1, :WIDTH].tolist()


def test_verification_computes_the_blocks_left_alone_and_gives_the_whole_models_scores(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = load(bundle.path)
    session, drafter = drafting(engine)
    (way,) = engine.resources.exits()
    tree = draft_alone(drafter.draft(Bid.free(ROWS)))
    calls: dict[str, list[int]] = {"whole": [], "rest": []}
    for name, one in (("whole", session), ("rest", way.rest)):

        def run(call: Any, name: str = name, ran: Any = one._run) -> Any:
            calls[name].append(call.tokens.size)
            return ran(call)

        monkeypatch.setattr(one, "_run", run)
    given = tree.tokens[None], tree.depth[None], tree.mask[None]
    got = session.score(*given).logits.copy()
    assert calls == {"whole": [], "rest": [ROWS]}
    expected = session.score(*given).logits
    assert calls["whole"] == [ROWS]
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    cut = slice(0, 5)
    drafter.start([*PROMPT, tree.token_list[0]])
    tree = draft_alone(drafter.draft(Bid.free(ROWS)))
    session.score(tree.tokens[None, cut], tree.depth[None, cut], tree.mask[None, cut, cut])
    assert calls["rest"] == [ROWS, 5], "the first rows of a tree are begun, too"
    other = Tree(tree.tokens, np.asarray([-1, *[0] * (ROWS - 1)]))
    way.begun(0, len(PROMPT), tree, np.zeros((ROWS, SPEC.hidden), np.float32))
    session.score(other.tokens[None], other.depth[None], other.mask[None])
    assert calls["rest"] == [ROWS, 5], "rows that see others are not begun"


def test_trees_begun_and_not_begun_go_together(bundle: Bundle) -> None:
    """Of three sequences, of several lengths and numbers of rows, the first and the last are."""
    engine: Any = load(bundle.path)
    (way,), session = engine.resources.exits(), engine.session
    texts = [np.arange(3, 9), np.arange(40, 45), np.arange(7)]
    trees = [
        Tree(np.asarray(ids), np.asarray(parents))
        for ids, parents in (
            ([1, 2, 3, 4], [-1, 0, 0, 1]), ([5, 6, 7], [-1, 0, 0]), ([8, 9, 7, 6], [-1, 0, 0, 2])
        )
    ]  # fmt: skip
    session.reset(3)
    session.prefill(texts)
    tokens, depth, mask = pack(trees)
    given, counts = (tokens, depth, mask), [4, 3, 4]
    expected = session.score(*given, counts=counts).logits.copy()
    for row in (0, 2):
        tree, start, states = trees[row], len(texts[row]), list[Any]()
        for node in range(len(tree)):  # as chains, and no two of them at once
            path = tree.path_to(node)
            chain = way.engine.session.follow(row, start, tree.tokens[list(path)].tolist())
            states.append(chain.tap(way.tap)[0, -1].copy())
        way.engine.session.follow(row, start, tree.token_list[:1])
        for level in range(1, int(tree.depth.max()) + 1):
            nodes = np.flatnonzero(tree.depth == level)
            seen = tree.mask[nodes, 1 : nodes[-1] + 1]
            ids = tree.tokens[nodes].tolist()
            way.engine.session.follow_level(
                row, start + 1, start + int(nodes[0]), ids, None, level, seen
            )
        way.begun(row, start, tree, np.stack(states))
    got = session.score(*given, counts=counts).logits
    for row, count in enumerate(counts):
        np.testing.assert_allclose(got[row, :count], expected[row, :count], rtol=1e-3, atol=1e-4)


def test_what_is_not_worth_its_price_is_not_read(bundle: Bundle) -> None:
    engine: Any = load(bundle.path)
    _, drafter = drafting(engine)
    free_of = (0.0,) * ROWS
    whole = draft_alone(drafter.draft(Bid.free(ROWS)))
    assert len(draft_alone(drafter.draft(Bid(ROWS, (9.0,) * ROWS, free_of)))) == 1
    assert drafter.reads == 1.0, "the root's call is made; no other is worth nine tokens"
    assert whole.probs is not None
    least = 0.999 * float(whole.probs[1])
    costs = (0.0, *[least] * (ROWS - 1))
    few = draft_alone(drafter.draft(Bid(ROWS, costs, costs)))
    assert 1 < len(few) < ROWS
    assert few.token_list[1] == whole.token_list[1]


def test_steps_have_branches_and_some_are_taken(bundle: Bundle) -> None:
    engine = free(bundle.path)
    trees: list[Any] = engine.explain()
    engine.generate(PROMPT, max_new_tokens=24, ignore_eos=True)
    wide = [s for s in trees if s.parents != tuple(range(-1, len(s.parents) - 1))]
    assert wide
    assert any(s.path != tuple(range(len(s.path))) for s in wide), "a branch behind the first"


def test_what_cannot_be_is_refused(
    bundle: Bundle, known_checkpoints: dict[Path, Any], tmp_path: Path
) -> None:
    with pytest.raises(GraftlineError, match=r"width=1, .* use early-exit for chains"):
        ExitTree(width=1)
    known_checkpoints[tmp_path / "c"] = TinyCheckpoint(tmp_path / "c", SPEC)
    chains = optimize(tmp_path / "c", tmp_path / "chain.graft", recipe="layer-skip", exits=(2,))
    with pytest.raises(GraftlineError, match="reads chains only; build it with"):
        load(chains.path, recipe="layer-skip-tree")
