"""What is drafted under a grammar: nothing it forbids, and what it leaves as the one way on."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from grammars import GRAMMARS, PROMPTS, SCHEMA, WILD, V, Wordy, engine
from misbehaviour import Misbehaving
from scipy import stats
from toy_session import FLAT, INT4

from graftline.recipe import recipe
from graftline.runtimes import decoding
from graftline.runtimes.drafters import DRAFTERS
from graftline.runtimes.engine import Engine
from graftline.runtimes.grammar import Grammars
from graftline.runtimes.request import read_options
from graftline.runtimes.resources import Resources
from graftline.runtimes.text.tokenizer import Tokenizer
from graftline.tree import Draws, Tree

pytest.importorskip("llguidance")


@pytest.fixture(autouse=True)
def _misbehaving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DRAFTERS, "misbehaving", Misbehaving)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", GRAMMARS)
def test_nothing_forbidden_is_scored(
    bytewise: Tokenizer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row of every step is one that the text could go to: so random drafts are all cut."""
    app = engine(bytewise)
    begin = app._around.grammars.of(read_options(GRAMMARS[name]), 0)
    assert begin is not None
    checker, scored = begin[1], list[int]()
    real = decoding.Decoding.judge

    def judge(self: Any, tree: Tree, scores: Any, row: int) -> Any:
        for node in range(1, len(tree)):
            *before, token = tree.tokens[list(tree.path_to(node)[1:])].tolist()
            path = np.asarray([*self.tokens, *before])
            assert checker(path, np.zeros(V, np.float32))[token] == 0.0
        scored.append(len(tree))
        return real(self, tree, scores, row)

    monkeypatch.setattr(decoding.Decoding, "judge", judge)
    for chosen in (WILD, "suffix", "token-recycling"):
        app.generate(PROMPTS[0], raw=True, max_new_tokens=60, recipe=chosen, **GRAMMARS[name])
    assert max(scored) >= 3


def test_the_one_way_to_go_on_is_drafted(bytewise: Tokenizer) -> None:
    """Keys and quotes of a schema cost no step of their own, though nothing is repeated."""
    options: dict[str, Any] = {"max_new_tokens": 150, "raw": True, "json_schema": SCHEMA}
    plain: Any = engine(bytewise).generate("x", **options)
    for costs in (None, FLAT, INT4):
        found: Any = engine(bytewise, costs).generate("x", recipe="prompt-lookup", **options)
        assert found.tokens == plain.tokens
        assert found.stats.steps <= plain.stats.steps - 12


@pytest.mark.parametrize(
    "name", ["speculative-sampling", "block-verification", "mdsd", "spectr", "gbv", "sjd"]
)
def test_drawn_drafts_keep_their_law(bytewise: Tokenizer, name: str) -> None:
    """Sampled drafts of a model that knows no grammar, under the rules that count their law."""
    options: dict[str, Any] = {
        "max_new_tokens": 3, "temperature": 3.0, "raw": True, "regex": "[ab][abc][ab]x",
        "logprobs": 0,
    }  # fmt: skip
    words = [tuple(bytewise.encode_part("".join(w))) for w in product("ab", "abc", "ab")]
    prompt = bytewise.encode_part("ab")
    session = engine(bytewise).session

    def after(*more: int) -> np.ndarray:
        context = [*prompt, *more]
        pairs = np.stack([np.arange(len(context)), np.asarray(context)], axis=1)
        return session.logits_of(pairs) / 3.0  # type: ignore[attr-defined]

    law: dict[tuple[int, ...], float] = {}
    for word in words:
        chance = 1.0
        for place, letters in enumerate(("ab", "abc", "ab")):
            odds = np.exp(after(*word[:place]))
            chance *= odds[word[place]] / odds[bytewise.encode_part(letters)].sum()
        law[word] = float(chance)
    count, app = 400, engine(bytewise)
    seen = dict.fromkeys(words, 0)
    for seed in range(count):
        found: Any = app.generate(prompt, recipe=name, seed=seed, **options)
        seen[tuple(found.tokens)] += 1
    expected = np.asarray([law[word] * count for word in words])
    assert stats.chisquare([seen[word] for word in words], expected).pvalue > 1e-3


def drawn_tree() -> tuple[Tree, list[int]]:
    """Below "a": b and x drawn at random, and what was drawn below each."""
    law = np.full(V, 1 / V)
    a, b, x = 64, 65, 87  # letters of the byte tokenizer, see the test
    tree = Tree(
        np.array([a, x, b, a, b, x]), np.array([-1, 0, 0, 1, 2, 2]),
        draws={0: Draws(law, (1, 2)), 1: Draws(law, (3,)), 2: Draws(law, (4, 5))},
    )  # fmt: skip
    return tree, [a]


def test_what_was_drawn_stays_to_be_refused(bytewise: Tokenizer) -> None:
    tree, text = drawn_tree()
    assert bytewise.encode_part("abx") == [64, 65, 87]
    made = Grammars(bytewise, V, frozenset({256})).of(read_options({"regex": "[ab]+"}), 0)
    assert made is not None
    same, forced = made[1].guided(tree, text, 9, drawn=False)
    assert same is tree
    assert not forced
    cut, _ = made[1].guided(tree, text, 9, drawn=True)
    assert cut.tokens.tolist() == [64, 87, 65, 65, 87]  # what was drawn below x is gone
    assert cut.parents.tolist() == [-1, 0, 0, 2, 2]
    assert cut.draws is not None
    assert {n: d.order for n, d in cut.draws.items()} == {0: (1, 2), 2: (3, 4)}
    free = Tree(tree.tokens, tree.parents)
    chosen, _ = made[1].guided(free, text, 9, drawn=False)
    assert chosen.tokens.tolist() == [64, 65, 65]


def test_nothing_is_drafted_behind_an_end(bytewise: Tokenizer) -> None:
    made = Grammars(bytewise, V, frozenset({256})).of(read_options({"regex": "ab?"}), 0)
    assert made is not None
    tree = Tree(np.array([64, 256, 65, 64, 256]), np.array([-1, 0, 0, 1, 2]))
    cut, _ = made[1].guided(tree, [64], 9, drawn=False)
    assert (cut.tokens.tolist(), cut.parents.tolist()) == ([64, 256, 65, 256], [-1, 0, 0, 2])
    tree = Tree.chain([65, 256, 64])
    cut, _ = made[1].guided(tree, [64, 65], 9, drawn=False)
    assert cut.tokens.tolist() == [65, 256]
    early = Grammars(bytewise, V, frozenset({256})).of(read_options({"regex": "abc|abd"}), 0)
    assert early is not None
    cut, _ = early[1].guided(Tree.chain([64, 256, 65]), [64], 1, drawn=False)
    assert cut.tokens.tolist() == [64]


def test_a_drafted_end_ends_the_text(bytewise: Tokenizer) -> None:
    """It stands with the tokens before it, and a rule looks at the row behind it, too."""
    corpus = np.asarray([*bytewise.encode_part("xxabcd"), 256, *bytewise.encode_part("yz")])
    session = Wordy(vocabulary=V, capacity=300)
    ends: Any = {"eos_token_id": 256}
    app = Engine(
        session, bytewise, ends, recipe("plain"), None, resources=Resources(corpus=(corpus,))
    )
    options: dict[str, Any] = {"regex": "abcd", "raw": True, "logprobs": 1, "seed": 1}
    for heat in (0.0, 1.0):
        plain: Any = app.generate("xx", temperature=heat, **options)
        found: Any = app.generate("xx", temperature=heat, recipe="rest", **options)
        assert (found.text, found.tokens) == ("abcd", plain.tokens)
        assert found.tokens[-1] == 256
        assert found.stats.steps == 1, "the first token is the prompt's, the others one draft"
        assert [one.token for one in found.logprobs] == found.tokens
