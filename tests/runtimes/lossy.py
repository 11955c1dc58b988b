"""What tests of lossy rules share: the ends of every knob, and scores made by hand."""

from __future__ import annotations

import math

import numpy as np

from graftline.runtimes.resources import Resources
from graftline.runtimes.rules import make_rule
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import FINAL, Floats, Scores
from graftline.runtimes.verdict import Rule

V = 40
EMBEDDING = np.random.default_rng(2).normal(size=(V, 6)).astype(np.float32)


def embedding() -> Floats:
    return EMBEDDING


HEAD = {"weight": [1.0, 0.0], "bias": 0.0}
RESOURCES = Resources(
    embedding=embedding,
    tuned={"judge": HEAD},
    encode=lambda text: [len(word) for word in text.split()],
)

STRICT = {
    "typical": {"epsilon": 1.0, "delta": math.inf},
    "threshold": {"threshold": 0.0},
    "relaxed": {"k": 0, "tolerance": 0.0},
    "neighbours": {"bound": 0.0},
    "clusters": {"size": 0},
    "judge": {"threshold": 1.0},
    "reflective": {"weight": 0.0},
    "step-score": {"threshold": 0.1},
}
LOOSE = {
    "typical": {"epsilon": 0.0},
    "threshold": {"threshold": math.inf},
    "relaxed": {"tolerance": math.inf},
    "neighbours": {"k": V, "bound": 1.0},
    "clusters": {"size": V, "gap": 2.0, "distance": math.inf},
    "judge": {"threshold": 0.0},
    "step-score": {"threshold": -math.inf},
}
DICED = ("neighbours", "clusters")
"""Rules that throw their own dice."""


def rule(name: str, sampling: Sampling | None = None, seed: int = 0, **options: object) -> Rule:
    generator = np.random.default_rng(seed)
    return make_rule(name, sampling or Sampling(), generator, options, RESOURCES)


def logits_of(rows: list[dict[int, float]]) -> Scores:
    """Rows of probabilities by token; what is left of 1 is spread over the other tokens."""
    logits = np.empty((1, len(rows), V), np.float32)
    for row, given in enumerate(rows):
        logits[0, row] = math.log(max(1 - sum(given.values()), 1e-6) / (V - len(given)))
        for token, p in given.items():
            logits[0, row, token] = math.log(p)
    return Scores(logits.argmax(-1), logits, taps={FINAL: np.zeros((1, len(rows), 2), np.float32)})
