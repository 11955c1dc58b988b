"""Filling a canvas: which positions' tokens are chosen at each step, and what is computed for it.

MaskGIT (Chang et al., arXiv 2202.04200) scores the whole canvas at every step. ReCAP (Liu et al.,
arXiv 2505.19089) chooses the positions of several steps at once, and scores those alone in all of
them but the first, over the keys and values that the first has left of all others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graftline.errors import RequestError
from graftline.facts import CanvasFacts
from graftline.filling import Filling
from graftline.runtimes.one_pass.feeding import Array

Feed = dict[str, Array]
Step = Callable[[Array, Array, Feed], tuple[Array, Feed]]
"""step(tokens [B, M], their positions [B, M], what is kept) -> (scores [B, M, V], what to keep);
with guidance B are the rows of both branches, the conditional ones first."""


@dataclass
class Filler:
    """Fills canvases of tokens, in which `mask` stands where none is chosen. `random` draws."""

    step: Step
    filling: Filling
    mask: int
    random: np.random.Generator

    def fill(self, canvas: Array) -> Array:
        """A canvas [B, N] with a token at every position; tokens that it has stay."""
        made, (rows, positions) = canvas.copy(), canvas.shape
        groups = self.filling.groups(int((canvas[0] == self.mask).sum()))
        temperatures = iter(self.filling.temperatures())
        guidances = iter(self.filling.guidances())
        every = np.tile(np.arange(positions, dtype=np.int64), (rows, 1))
        for number, counts in enumerate(groups):
            guided = [next(guidances) for _ in counts]
            scores, kept = self._scored(made, every, {}, guided[0])
            noise = self.filling.choice * (1 - (number + 1) / len(groups))
            at = self._surest(scores, made == self.mask, sum(counts), noise)
            chosen = self._group(np.take_along_axis(scores, at[..., None], 1), at, counts,
                                 kept, [next(temperatures) for _ in counts], guided)  # fmt: skip
            np.put_along_axis(made, at, chosen, axis=1)
        return made

    def _group(
        self,
        scores: Array,
        at: Array,
        counts: tuple[int, ...],
        kept: Feed,
        heats: list[float],
        guided: list[float],
    ) -> Array:
        """The tokens at the positions `at`, the surest ones first; between two steps their scores
        are computed anew."""
        tokens, begin = np.full(at.shape, self.mask, np.int64), 0
        for number, (count, heat) in enumerate(zip(counts, heats, strict=True)):
            if number:
                scores, _ = self._scored(tokens, at, kept, guided[number])
            part = slice(begin, begin + count)
            tokens[:, part] = self._drawn(scores[:, part], heat)
            begin += count
        return tokens

    def _surest(self, scores: Array, masked: Array, count: int, noise: float) -> Array:
        """Of the masked positions those where a token that is drawn is likeliest, give or take
        noise: [B, count], the surest first."""
        drawn = self._drawn(scores, 1.0)
        top = scores.max(axis=-1, keepdims=True)
        total = top[..., 0] + np.log(np.exp(scores - top).sum(axis=-1))
        sure = np.take_along_axis(scores, drawn[..., None], -1)[..., 0] - total
        sure = sure + noise * self.random.gumbel(size=sure.shape)
        return np.argsort(-np.where(masked, sure, -np.inf), axis=1, kind="stable")[:, :count]

    def _drawn(self, scores: Array, heat: float) -> Array:
        """A token of each position, by the Gumbel-max trick; the best one at temperature 0."""
        noise = self.random.gumbel(size=scores.shape)
        return np.argmax(scores + heat * noise, axis=-1)

    def _scored(
        self, tokens: Array, at: Array, kept: Feed, guidance: float
    ) -> tuple[Array, Feed]:
        """Scores in fp64, in which the mask is no token. Guided ones are of two branches, which are
        rows of one step."""
        branches = 1 if self.filling.guidance == 1 else 2
        each, places = (np.concatenate([array] * branches) for array in (tokens, at))
        scores, left = self.step(each, places, kept)
        scores = scores.astype(np.float64)
        if branches == 2:
            conditional, unconditional = np.split(scores, 2)
            scores = unconditional + guidance * (conditional - unconditional)
        if self.mask < scores.shape[-1]:
            scores[..., self.mask] = -np.inf
        return scores, left


def mask_of(path: Path, facts: CanvasFacts, said: int | None) -> int:
    """The id of a position without a token. Raises RequestError where nobody says it."""
    mask = facts.mask if said is None else said
    if mask is None:
        raise RequestError(f"{path} does not say which id is masked; give mask=ID")
    return mask


def canvas_of(path: Path, facts: CanvasFacts, given: Any, mask: int) -> Array:
    """Canvases [B, N] as given, or so many of masks alone. Raises RequestError for what is not of
    the engine's, and for rows with different numbers of masked positions."""
    canvas = np.asarray(given)
    if canvas.ndim == 0 and canvas.dtype.kind in "iu" and canvas > 0:
        canvas = np.full((int(canvas), facts.positions), mask, np.int64)
    if canvas.ndim != 2 or canvas.shape[1] != facts.positions or canvas.dtype.kind not in "iu":
        shape = ", ".join(map(str, canvas.shape))
        told = f"a canvas is [B, {facts.positions}] whole numbers, not [{shape}] {canvas.dtype}"
        raise RequestError(f"{path}: {told}")
    odd = canvas[((canvas < 0) | (canvas >= facts.vocabulary)) & (canvas != mask)]
    if odd.size:
        told = f"the token {int(odd[0])} is neither below {facts.vocabulary} nor the mask {mask}"
        raise RequestError(f"{path}: {told}")
    masked = (canvas == mask).sum(axis=1)
    if not masked.all() or (masked != masked[0]).any():
        told = ", ".join(map(str, masked.tolist()))
        raise RequestError(
            f"{path}: rows have {told} masked positions (id {mask}); fill rows of as many together"
        )
    return canvas
