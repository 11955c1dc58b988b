"""Numbers by seed and place: the plugin's own, in any order of asking."""

from __future__ import annotations

import numpy as np

from graftline.plugins.uniforms import reference
from graftline.runtimes.uniforms import BLOCK, Uniforms


def test_the_numbers_are_the_plugins() -> None:
    count = 2 * BLOCK + 3
    for seed in (0, 7, 2**63 - 1):
        numbers = Uniforms(seed)
        got = [numbers.random() for _ in range(count)]
        for rows in (1, 16):  # place (0, 0) is one number, however many places are asked for
            (expected,) = reference(np.full(count, seed), np.arange(count), rows=rows)
            assert got == expected[:, 0, 0].tolist()


def test_a_number_follows_from_its_ordinal_alone() -> None:
    whole = Uniforms(11)
    numbers = [whole.random() for _ in range(BLOCK + 10)]
    for ordinal in (0, 1, BLOCK - 1, BLOCK, BLOCK + 9):
        assert Uniforms(11, ordinal).random() == numbers[ordinal]
    whole.ordinal = 5
    assert whole.random() == numbers[5]


def test_seeds_come_from_the_generator_and_give_other_numbers() -> None:
    one, again, other = (Uniforms.of(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.seed == again.seed != other.seed
    assert [one.random() for _ in range(9)] == [again.random() for _ in range(9)]
    assert one.random() != other.random()


def test_they_are_uniform() -> None:
    numbers = Uniforms(3)
    drawn = np.array([numbers.random() for _ in range(20_000)])
    counts, _ = np.histogram(drawn, 20, (0.0, 1.0))
    assert ((counts - 1000) ** 2 / 1000).sum() < 45  # chi-squared, 19 degrees: p about 7e-4
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.03
