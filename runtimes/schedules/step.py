"""A step whose sequences are computed by different graphs over one set of caches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from graftline.runtimes.decoding import Decoding
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.ort.step_arrays import Assembly, OutputMemory
from graftline.runtimes.session import Scores, Session
from graftline.runtimes.step_story import StepStory


def follow_courses(session: Session, ones: Sequence[Decoding]) -> Scores:
    """The scores of the last token of each sequence, by seat, each by the graph that its course
    takes now: one call for those in a row that take the same. Nothing is committed."""
    assert isinstance(session, OrtSession), "routes are opened on sessions of ONNX Runtime"
    runs = list(_runs(session, sorted(ones, key=lambda one: one.seat)))
    batch = len(session.lengths)
    if len(runs[0][1]) == batch:
        return _scored(*runs[0])
    found = Assembly(OutputMemory(), batch, max(one.least for one in ones))
    for graph, run in runs:
        scores = _scored(graph, run)
        for place, one in enumerate(run):
            found.put(one.seat, scores, place)
    return found.scores()


def _scored(graph: OrtSession, run: Sequence[Decoding]) -> Scores:
    """The scores of sequences in neighbouring seats by one graph."""
    tokens, first = [one.tokens[-1] for one in run], run[0].seat
    if run[0].least > 1:
        return graph.follow(first, run[0].length, tokens * run[0].least, run[0].least)
    if len(run) == 1:
        return graph.follow(first, run[0].length, tokens)
    return graph.follow_rows(first, [one.length for one in run], tokens)


def _runs(
    session: OrtSession, ordered: Sequence[Decoding]
) -> Iterator[tuple[OrtSession, Sequence[Decoding]]]:
    """Sequences in neighbouring seats that take the same graph; one that must not be a single row
    goes alone."""
    graphs = [_graph(session, one) for one in ordered]
    ends = [
        place
        for place, (one, other) in enumerate(pairwise(ordered), 1)
        if graphs[place] is not graphs[place - 1]
        or other.seat != one.seat + 1
        or max(one.least, other.least) > 1
    ]
    for start, end in pairwise([0, *ends, len(ordered)]):
        yield graphs[start], ordered[start:end]


def story_of(
    one: Decoding, path: Sequence[int], fresh: Sequence[int], milliseconds: float
) -> StepStory:
    """What such a step was for a sequence, once it has ended and its `fresh` tokens are chosen."""
    step = len(one.tokens) - 1 - len(fresh)
    by = "all of the model" if one.course is None else one.course.told(step)
    return StepStory(
        one.length - len(fresh), "plain", (one.tokens[step],), (-1,), tuple(path), tuple(fresh),
        1, 0, milliseconds, None, None, (), by,
    )  # fmt: skip


def _graph(session: OrtSession, one: Decoding) -> OrtSession:
    return session if one.course is None else one.course.graph(len(one.tokens) - 1)
