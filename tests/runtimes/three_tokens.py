"""Drawn drafts against the law of a toy's first three tokens, over a vocabulary of three."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy import stats
from toy_session import ToySession

from graftline.runtimes.engine import Engine
from graftline.runtimes.sampling import Sampling

V = 3
Law = dict[tuple[int, ...], float]


def three_tokens(session: ToySession, prompt: list[int], sampling: Sampling) -> Law:
    """The probability of every three tokens after `prompt`."""

    def law(context: Sequence[int]) -> np.ndarray:
        pairs = np.stack([np.arange(len(context)), np.asarray(context)], axis=1)
        return sampling.distribution(session.logits_of(pairs))[1]

    return {
        (a, b, c): float(law(prompt)[a] * law([*prompt, a])[b] * law([*prompt, a, b])[c])
        for a, b, c in product(range(V), repeat=3)
    }


def drawn_as(
    law: Law, engine: Engine, prompt: list[int], temperature: float, count: int, tokens: int = 3
) -> int:
    """Asserts that the first three of `tokens` come as `law` says, by a chi-square test over
    `count` seeds; how many tokens were drafted."""
    seen, drafted = dict.fromkeys(law, 0), 0
    for seed in range(count):
        result = engine.generate(
            prompt, max_new_tokens=tokens, temperature=temperature, seed=seed, ignore_eos=True
        )
        seen[tuple(result.tokens[:3])] += 1
        drafted += result.stats.drafted
    common = [out for out, p in law.items() if p * count >= 5]
    expected = np.asarray([law[out] * count for out in common])
    found = np.asarray([seen[out] for out in common])
    rest = count - found.sum(), count - expected.sum()
    chi = float(((found - expected) ** 2 / expected).sum() + (rest[0] - rest[1]) ** 2 / rest[1])
    assert stats.chi2.sf(chi, len(common)) > 1e-3
    return drafted
