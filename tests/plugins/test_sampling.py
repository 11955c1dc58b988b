"""TreeSample and Uniforms: function, kernel and reference agree, and the rule is exact."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from graftline.evaluate import Array
from graftline.plugins import PLUGINS
from graftline.plugins.uniforms import philox
from graftline.runtimes.acceptance.stochastic import Dice, Laws
from graftline.runtimes.rules.rejection import Rejection
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Scores
from graftline.tree import Draws, Tree

from .cases import tilted_stars, tree_sample
from .conftest import Interpret, meaning, referred

SAMPLE, UNIFORMS = PLUGINS["TreeSample"], PLUGINS["Uniforms"]


SHAPES = [(1, 1, 7), (2, 6, 13), (1, 17, 40), (3, 9, 2100)]


@pytest.mark.parametrize(("batch", "rows", "vocabulary"), SHAPES)
def test_function_equals_the_published_rule(batch: int, rows: int, vocabulary: int) -> None:
    for seed in range(5):
        _, inputs, _ = tree_sample(seed, batch, rows, vocabulary)
        np.testing.assert_array_equal(meaning(SAMPLE, inputs)[0], referred(SAMPLE, inputs)[0])


@pytest.mark.parametrize(("batch", "rows", "vocabulary"), [*SHAPES, (1, 3, 5000)])
def test_kernel_equals_the_published_rule(
    interpret: Interpret, batch: int, rows: int, vocabulary: int
) -> None:
    for seed in range(2):
        _, inputs, _ = tree_sample(seed, batch, rows, vocabulary)
        np.testing.assert_array_equal(interpret(SAMPLE, inputs)[0], referred(SAMPLE, inputs)[0])


def test_several_failures_in_a_row(interpret: Interpret) -> None:
    _, inputs, _ = tilted_stars(0, 30, 6, 9)
    want = referred(SAMPLE, inputs)[0]
    assert np.mean(want[:, 0] == inputs[2][:, 1]) < 0.5  # the first child often fails
    np.testing.assert_array_equal(meaning(SAMPLE, inputs)[0], want)
    np.testing.assert_array_equal(interpret(SAMPLE, inputs)[0], want)


def test_the_choice_has_the_targets_distribution() -> None:
    """20,000 trees of a root and three children, drawn without replacement from a tilted draft."""
    rng = np.random.default_rng(0)
    count, vocabulary = 20_000, 6
    p = np.array([0.4, 0.25, 0.2, 0.1, 0.05, 0.0], np.float32)
    q = np.array([0.05, 0.1, 0.05, 0.2, 0.2, 0.4], np.float32)
    target, draft = np.zeros((2, count, 4, vocabulary), np.float32)
    target[:], draft[:, 0] = p, q
    scores = np.log(q) + rng.gumbel(size=(count, vocabulary))  # Gumbel top-k: no replacement
    tokens = np.zeros((count, 4), np.int64)
    tokens[:, 1:] = np.argsort(-scores, axis=1)[:, :3]
    parents = np.tile([-1, 0, 0, 0], (count, 1))
    uniforms = rng.random((count, 2, 4), dtype=np.float32)
    choice = meaning(SAMPLE, [target, draft, tokens, parents, uniforms])[0][:, 0]
    seen = np.bincount(choice, minlength=vocabulary)
    assert seen[5] == 0
    assert stats.chisquare(seen[:5], count * p[:5].astype(float)).pvalue > 1e-3


class Replay(Dice):
    """The plugin's numbers in the order the host asks for them at one node."""

    def __init__(self) -> None:
        super().__init__(np.random.default_rng(0))
        self.tests, self.quantile = iter(()), 0.0

    def coin(self, chance: float) -> bool:
        return next(self.tests) < chance

    def draw(self, law: Array) -> int:
        cumulative = np.cumsum(law)
        return int(np.argmax(cumulative > self.quantile * cumulative[-1]))


class Replayed(Rejection):
    """The host's rule with the plugin's numbers: the tests of a node's children, then its draw."""

    def __init__(self, sampling: Sampling, uniforms: Array) -> None:
        self.replay, self.uniforms = Replay(), uniforms
        super().__init__(sampling, self.replay)

    def choose(
        self, tree: Tree, tokens: list[int], node: int, laws: Laws
    ) -> tuple[int, int | None]:
        self.replay.tests = iter(self.uniforms[0, list(tree.children[node])].tolist())
        self.replay.quantile = float(self.uniforms[1, node])
        return super().choose(tree, tokens, node, laws)


@pytest.mark.parametrize("seed", range(12))
def test_sample_then_verify_is_the_host_rule(seed: int) -> None:
    """Given the same numbers, the two operators return the verdict of runtimes/rules/rejection."""
    sampling = Sampling(temperature=0.7, top_k=9)
    _, (_, draft, tokens, parents, uniforms), _ = tree_sample(seed, 1, 17, 12)
    logits = np.random.default_rng(seed).standard_normal((1, 17, 12)).astype(np.float32)
    plain = Tree(tokens[0], parents[0])
    draws = {
        n: Draws(draft[0, n].astype(np.float64), kids)
        for n, kids in enumerate(plain.children)
        if kids and draft[0, n].any()
    }
    tree = Tree(tokens[0], parents[0], draws=draws)
    scores = Scores(logits.argmax(-1), logits)
    verdict = Replayed(sampling, uniforms[0]).judge(tree, scores, 0)

    laws = Laws(sampling, scores, 0)
    target = np.stack([laws.at(n) for n in range(17)])[None].astype(np.float32)
    choice = meaning(SAMPLE, [target, draft, tokens, parents, uniforms])[0]
    path, _, count, following = meaning(PLUGINS["TreeVerify"], [choice, tokens, parents])
    assert tuple(path[0, : count[0]]) == verdict.path
    assert following[0] == verdict.next


def test_philox_gives_its_published_words() -> None:
    """The known answers that come with Random123 (kat_vectors, philox4x32 10)."""
    zero = np.zeros(1, np.uint64)
    words = philox(np.zeros((2, 1), np.uint64), [zero] * 4)
    assert [int(w[0]) for w in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = np.full(1, 0xFFFFFFFF, np.uint64)
    words = philox(np.full((2, 1), 0xFFFFFFFF, np.uint64), [ones] * 4)
    assert [int(w[0]) for w in words] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_uniforms(interpret: Interpret, rows: int) -> None:
    inputs = [np.array([0, 7, 2**62 + 12345]), np.array([0, 3, 2**33 + 9])]
    values = {"rows": rows}
    want = referred(UNIFORMS, inputs, values)[0]
    np.testing.assert_array_equal(meaning(UNIFORMS, inputs, values)[0], want)
    np.testing.assert_array_equal(interpret(UNIFORMS, inputs, values)[0], want)
    assert want.min() >= 0
    assert want.max() < 1
