"""How near a model without some of its blocks is to the whole one, on held-out text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from graftline.runtimes.schedules.course import Course
from graftline.runtimes.session import Floats, Ints
from graftline.runtimes.study.perplexity import likelihood

PROMPT, TOKENS, ROWS = 64, 192, 32
"""Tokens of the text that are read as a prompt, those that are predicted, and most rows of a call.
"""


@dataclass(frozen=True)
class Quality:
    """On `tokens` of held-out text: perplexity of the schedule and of plain decoding, and the share
    of positions at which both have the same best token; the share that the `whole` model computed;
    where MLPs are gated, how many of the model's `mlps` a position passed by on average."""

    tokens: int
    perplexity: float
    plain: float
    agreement: float
    whole: float = 0.0
    skipped_mlps: float | None = None
    mlps: int = 0

    @property
    def words(self) -> str:
        """For people."""
        told = f"perplexity {self.perplexity:.2f} (plain {self.plain:.2f})"
        told += f", plain's best token in {self.agreement:.0%} of {self.tokens} places"
        if self.skipped_mlps is None:
            return f"{told}, {self.whole:.0%} of them computed by the whole model"
        return f"{told}, {self.skipped_mlps:.1f} of {self.mlps} MLPs skipped at each"


def quality(course: Course, text: Sequence[int]) -> Quality:
    """Compare on a text, whose tokens are given at every step. It uses the session's only seat and
    leaves it empty."""
    whole = course.graphs[0]
    ids = np.asarray(text[: min(PROMPT + TOKENS, whole.capacity)], np.int64)
    prompt, wanted = ids[:PROMPT], ids[PROMPT:]
    whole.reset(1)
    counts, by_whole = list[Ints](), list[int]()
    by_course = np.concatenate(list(_followed(course, prompt, wanted, counts, by_whole)))
    whole.reset(1)
    scores = [whole.read(0, prompt).logits[0]]
    for start in range(0, len(wanted) - 1, ROWS):
        part = wanted[start : min(start + ROWS, len(wanted) - 1)]
        scores.append(whole.follow(0, PROMPT + start, part.tolist(), len(part)).logits[0].copy())
    by_plain = np.concatenate(scores)
    whole.reset(0)
    mine, plain = (
        float(np.exp(-likelihood(logits, wanted) / len(wanted))) for logits in (by_course, by_plain)
    )
    same = by_course.argmax(-1) == by_plain.argmax(-1)
    share = sum(by_whole) / max(len(wanted) - 1, 1)
    found = Quality(len(wanted), mine, plain, float(same.mean()), share)
    if not counts:
        return found
    skipped = float(np.concatenate(counts).sum() / len(wanted))
    return replace(found, skipped_mlps=skipped, mlps=whole.facts.layers)


def _followed(
    course: Course, prompt: Ints, wanted: Ints, counts: list[Ints], by_whole: list[int]
) -> Iterator[Floats]:
    """Logits before each wanted token; steps of the same graph go into one call, which is causal.
    `counts` gets how many MLPs the rows of each call passed by, where they are gated, and
    `by_whole` the rows of calls of the whole model."""
    whole = course.graphs[0]
    read = whole.read if course.reads_whole else course.read
    scores = read(0, prompt)
    course = course.begun(scores, 0)
    yield scores.logits[0]
    steps = range(len(wanted) - 1)
    for _, same in groupby(steps, key=lambda step: (id(course.graph(step)), step // ROWS)):
        run = list(same)
        part = wanted[run[0] : run[-1] + 1]
        graph, start = course.graph(run[0]), int(whole.lengths[0])
        yield graph.follow(0, start, part.tolist(), len(part)).logits[0].copy()
        by_whole += [len(part)] if graph is whole else []
        if (skipped := graph.skipped) is not None:
            counts.append(skipped[0].copy())
        whole.advance(0, len(part))
