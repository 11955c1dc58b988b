"""A step whose sequences are computed by different graphs over one set of caches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from graftline.runtimes.decoding import Decoding
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.ort.step_arrays import Assembly, OutputMemory
from graftline.runtimes.session import Scores, Session


def follow_courses(session: Session, ones: Sequence[Decoding]) -> Scores:
    """The scores of the last token of each sequence, by seat, each by the graph that its course
    takes now: one call for those in a row that take the same. Nothing is committed."""
    assert isinstance(session, OrtSession), "routes are opened on sessions of ONNX Runtime"
    ordered = sorted(ones, key=lambda one: one.seat)
    found = Assembly(OutputMemory(), len(session.lengths), max(one.least for one in ones))
    for graph, run in _runs(session, ordered):
        tokens, first = [one.tokens[-1] for one in run], run[0].seat
        if run[0].least > 1:
            scores = graph.follow(first, run[0].length, tokens * run[0].least, run[0].least)
        elif len(run) == 1:
            scores = graph.follow(first, run[0].length, tokens)
        else:
            scores = graph.follow_rows(first, [one.length for one in run], tokens)
        for place, one in enumerate(run):
            found.put(one.seat, scores, place)
    return found.scores()


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


def _graph(session: OrtSession, one: Decoding) -> OrtSession:
    return session if one.course is None else one.course.graph(len(one.tokens) - 1)
