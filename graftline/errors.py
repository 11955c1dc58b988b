"""Every error a user can meet. One line: who, what, which value, by how much, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GraftlineError(Exception):
    """Base of all errors graftline raises on purpose. The CLI prints it in one line and exits 2."""


class NotApplicable(GraftlineError):
    """A graft or a reader does not fit this host; names the nodes that were looked at."""

    def __init__(self, reason: str, nodes: Iterable[str] = ()) -> None:
        self.nodes = tuple(nodes)
        seen = f" (looked at: {', '.join(self.nodes[:8])})" if self.nodes else ""
        super().__init__(reason + seen)


class CannotEvaluate(GraftlineError):
    """A value cannot be computed without running the model: it depends on activations, a weight is
    too large to look at, or an operator has no reference implementation. Names the nodes.

    It says nothing about the value: whoever catches it knows no more than before.
    """

    def __init__(self, reason: str, nodes: Iterable[str] = ()) -> None:
        self.nodes = tuple(nodes)
        seen = f" (looked at: {', '.join(self.nodes[:8])})" if self.nodes else ""
        super().__init__(reason + seen)


class DoesNotRun(CannotEvaluate):
    """A node fails on the values the graph itself gives it, as in any runtime: an index out of its
    table, shapes that do not broadcast. The host cannot be run at these sizes."""


class LawBroken(GraftlineError):
    """A law of grafts does not hold: who broke it, which law, which value, by how much."""

    def __init__(self, who: str, law: str, value: str, by: str) -> None:
        self.who, self.law, self.value, self.by = who, law, value, by
        super().__init__(f"{who} breaks the law '{law}' at {value}: {by}")


class PipelineSyntax(GraftlineError):
    """A pipeline text cannot be read, or names an unknown pass or option."""


class CheckpointError(GraftlineError):
    """A checkpoint is missing, damaged, or of a kind that cannot be read."""


class BundleError(GraftlineError):
    """A bundle is damaged, incomplete, or was built for something else."""


class BackendError(GraftlineError):
    """A backend is not installed, cannot run this graph, or failed."""


class RequestError(GraftlineError):
    """A generation request that cannot be served: empty, too long, ids out of range."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest known name, else `; known: a, b`."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names) or 'none'}"
