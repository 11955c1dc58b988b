"""The graphs of a schedule, opened on one set of caches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from graftline.ports import ROUTERS, by_role
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.schedules.schedule import Schedule
from graftline.runtimes.scores import copied
from graftline.runtimes.session import Floats, Ints, Scores


@dataclass(frozen=True)
class Course:
    """What computes the tokens of all sequences of one recipe: the `schedule` chooses, `graphs` are
    the whole model and its routes, which write into its caches. `taken`: the route of a sequence
    whose prompt has chosen one for all of its steps; None: the schedule says it step by step."""

    schedule: Schedule
    graphs: Sequence[OrtSession]
    taken: int | None = None

    def begun(self, scores: Scores, row: int) -> Course:
        """The course of a sequence whose prompt's last row has these scores."""

        def needed() -> Floats:
            return scores.tap(next(tap for tap in scores.taps if tap.role == ROUTERS))[row, -1]

        skipped = [_blocks(self.graphs[0]) - _blocks(route) for route in self.graphs[1:]]
        return replace(self, taken=self.schedule.choose(needed, skipped))

    def each(self) -> Iterator[Course]:
        """The courses that a sequence may have, besides that of the whole model."""
        for taken in self.schedule.courses(len(self.graphs) - 1):
            yield replace(self, taken=taken)

    def graph(self, step: int) -> OrtSession:
        """The graph of step 0, 1, ... behind the prompt."""
        return self.graphs[self.route(step)]

    def told(self, step: int) -> str:
        """That graph in words."""
        route = self.route(step)
        return f"route {route} of {self.schedule.name}" if route else "all of the model"

    def route(self, step: int) -> int:
        """Its number; 0 is the whole model."""
        if self.taken is not None:
            return self.taken
        return self.schedule.route(step, len(self.graphs) - 1)

    @property
    def reads_whole(self) -> bool:
        """Whether prompts are read by the whole model, as every other recipe reads them."""
        return self.schedule.prompt == 0

    def read(self, row: int, tokens: Ints) -> Scores:
        """Commit tokens of a prompt behind what sequence `row` has; the scores of the last one."""
        whole, route = self.graphs[0], self.graphs[self.schedule.prompt]
        scores = copied(route.follow(row, int(whole.lengths[row]), tokens.tolist()))
        whole.advance(row, len(tokens))
        return scores


def _blocks(graph: OrtSession) -> frozenset[int]:
    """The blocks whose attention a graph computes."""
    ports = by_role(graph.ports, "cache.key", "out")
    return frozenset(port.layer for port in ports if port.layer is not None)
