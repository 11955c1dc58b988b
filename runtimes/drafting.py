"""Drafts of several sequences, made together: what they want read at a time goes into one call."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from graftline.runtimes.draft_engine import Read
from graftline.runtimes.session import Scores
from graftline.tree import Tree

Draft = Generator[Read, Scores, Tree]
"""A draft under way: it yields what it wants read, one thing at a time, is sent the scores, valid
until it yields again, and returns its tree."""


def draft_alone(draft: Draft) -> Tree:
    """The tree of one sequence, whose calls are made for it alone."""
    try:
        read = next(draft)
        while True:
            read = draft.send(read.scores())
    except StopIteration as end:
        return end.value


def draft_together(drafts: Sequence[Draft]) -> list[Tree | Exception]:
    """The trees of several sequences, in step with one another: one call of an engine for each
    depth. What a draft raises ends it alone; what a call raises, those that it was made for."""
    if len(drafts) > 1:
        return _Drafts(drafts).finish()
    ended: list[Tree | Exception] = []
    for draft in drafts:
        try:
            ended.append(draft_alone(draft))
        except Exception as error:
            ended.append(error)
    return ended


class _Drafts:
    """Drafts of which none goes on before what all of them want read has been read."""

    def __init__(self, drafts: Sequence[Draft]) -> None:
        self._drafts = drafts
        self._ended: dict[int, Tree | Exception] = {}
        """By the draft's place, what came of it."""
        self._asked: dict[Read, int] = {}
        """What the others want read, with their places."""

    def finish(self) -> list[Tree | Exception]:
        """What came of each."""
        for place in range(len(self._drafts)):
            self._go_on(place, None)
        while self._asked:
            asked, self._asked = self._asked, {}
            for engine in dict.fromkeys(read.engine for read in asked):
                reads = [read for read in asked if read.engine is engine]
                try:
                    for read, scores in engine.answers(reads):
                        self._go_on(asked.pop(read), scores)
                except Exception as error:
                    for read in reads:
                        if read in asked:
                            self._end(asked[read], error)
        return [self._ended[place] for place in range(len(self._drafts))]

    def _go_on(self, place: int, scores: Scores | None) -> None:
        """Let a draft go on with its scores, or begin without any."""
        draft = self._drafts[place]
        try:
            read = next(draft) if scores is None else draft.send(scores)
        except StopIteration as end:
            self._ended[place] = end.value
        except Exception as error:
            self._ended[place] = error
        else:
            self._asked[read] = place

    def _end(self, place: int, error: Exception) -> None:
        self._drafts[place].close()
        self._ended[place] = error
