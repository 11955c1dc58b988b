"""Judge decoding: a trained head says from the target's hidden state whether a token is right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from graftline.errors import GraftlineError
from graftline.runtimes.acceptance.lenient import Lenient, Place
from graftline.runtimes.resources import Resources, missing
from graftline.runtimes.sampling import Doubles, Sampling
from graftline.runtimes.session import FINAL, Bools, Floats, Scores


@dataclass(frozen=True)
class JudgeHead:
    """sigmoid(weight . h + bias) is the chance that a token is right, h [H] being the target's
    hidden state, after its final norm, in the token's own row."""

    weight: Floats
    bias: float

    def chances(self, hidden: Floats) -> Doubles:
        """[n]: the chance of being right, of hidden states [n, H]."""
        return 1 / (1 + np.exp(-np.clip(hidden @ self.weight + self.bias, -80.0, 80.0)))

    def to_json(self) -> dict[str, list[float]]:
        """What `of` reads."""
        return {"weight": [float(w) for w in self.weight], "bias": [self.bias]}

    def save(self, path: str | Path) -> None:
        """Write the head as safetensors: weight [H] and bias [1], float32."""
        arrays = {"weight": self.weight, "bias": np.array([self.bias], np.float32)}
        save_file({name: np.asarray(a, np.float32) for name, a in arrays.items()}, str(path))

    @classmethod
    def load(cls, path: str | Path) -> JudgeHead:
        """Read what `save` wrote. Raises GraftlineError for anything else."""
        try:
            return cls.of(load_file(path))
        except (OSError, SafetensorError, KeyError) as error:
            raise GraftlineError(
                f"judge: {path} is not a head with weight [H] and bias [1] ({error}); "
                "write one with JudgeHead.save"
            ) from error

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> JudgeHead:
        """From arrays or lists by name."""
        weight = np.asarray(arrays["weight"], np.float32).reshape(-1)
        return cls(weight, float(np.asarray(arrays["bias"], np.float32).reshape(())))


def train_judge(hidden: Floats, labels: Bools, decay: float = 1e-2, steps: int = 50) -> JudgeHead:
    """Logistic regression on hidden states [n, H] of tokens and whether they were right [n].

    Newton's method on the mean log-loss, both classes weighing the same (right tokens are far more
    common), plus decay / 2 |weight|^2. Raises GraftlineError for labels of one class only.
    """
    right = np.asarray(labels, np.bool_)
    if hidden.ndim != 2 or right.shape != hidden.shape[:1] or right.all() or not right.any():
        raise GraftlineError(
            f"train_judge: hidden {list(hidden.shape)} and labels {list(right.shape)}, "
            f"{int(right.sum())} of them right, do not match; give [n, H] and [n], both classes "
            "in it"
        )
    x = np.column_stack([hidden, np.ones(len(right))]).astype(np.float64)
    share = np.where(right, 0.5 / right.sum(), 0.5 / (~right).sum())
    ridge = np.append(np.full(hidden.shape[1], decay), 1e-9)  # the bias is not held back

    def loss(w: Doubles) -> float:
        return float(share @ np.logaddexp(0.0, np.where(right, -1, 1) * (x @ w)) + ridge @ w**2 / 2)

    w, now = np.zeros(x.shape[1]), math.log(2.0)
    for _ in range(steps):
        chance = 1 / (1 + np.exp(-np.clip(x @ w, -500, 500)))
        slope = x.T @ (share * (chance - right)) + ridge * w
        curve = (x * (share * chance * (1 - chance))[:, None]).T @ x + np.diag(ridge)
        step = np.linalg.solve(curve, slope)
        while loss(w - step) > now and np.abs(step).max() > 1e-9:
            step /= 2
        before, now, w = now, loss(w - step), w - step
        if before - now < 1e-10:
            break
    return JudgeHead(w[:-1].astype(np.float32), float(w[-1]))


@dataclass(frozen=True)
class Judge:
    """Judge decoding (arXiv 2501.19309): a drafted token stands when the target would choose it or
    when the head finds it right, whatever the target would have chosen.

    Strict: threshold = 1 (the target's choices only). Loose: threshold = 0 (everything). At
    temperature > 0 the head says the same; only the target's own choices are draws.
    """

    lossless: ClassVar[bool] = False
    threshold: float = 0.5
    """The least chance of being right, not reached at 1."""
    head: str = ""
    """File of the head; without one, what `tuned` holds under "judge"."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise GraftlineError(
                f"judge: threshold={self.threshold} is not valid; use a chance from 0 to 1"
            )

    def of(
        self, sampling: Sampling, generator: np.random.Generator, resources: Resources
    ) -> Lenient:
        """The rule for these settings. Raises GraftlineError when there is no head."""
        tuned = (resources.tuned or {}).get("judge")
        if self.head:
            head = JudgeHead.load(self.head)
        elif tuned is not None:
            head = JudgeHead.of(tuned)
        else:
            raise missing("the rule judge", "judge head")
        return Lenient(sampling, generator, Bench(head, self.threshold).stands)


class Bench:
    """A head and the score from which it lets tokens stand."""

    def __init__(self, head: JudgeHead, threshold: float) -> None:
        self._head = head
        odds = threshold / (1 - threshold) if threshold < 1 else math.inf
        self._least = math.log(odds) if odds > 0 else -math.inf

    def stands(self, place: Place, child: int, token: int) -> bool:
        hidden, weight = hidden_states(place.scores), self._head.weight
        if hidden.shape[-1] != len(weight):
            raise GraftlineError(
                f"judge: the head is for hidden states of {len(weight)}, this host's have "
                f"{hidden.shape[-1]}; train a head for this host"
            )
        return float(hidden[place.row, child] @ weight) + self._head.bias > self._least


def hidden_states(scores: Scores) -> Floats:
    """[B, N, H]. Raises GraftlineError for a graph that does not bring them out."""
    if FINAL not in scores.taps:
        raise GraftlineError(
            "the rule judge reads the final hidden state, which this graph does not return; "
            "rebuild the bundle with the pass tap{layers=norm}"
        )
    return scores.taps[FINAL]
