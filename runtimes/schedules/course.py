"""The graphs of a schedule, opened on one set of caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.schedules.schedule import Schedule
from graftline.runtimes.scores import copied
from graftline.runtimes.session import Ints, Scores


@dataclass(frozen=True)
class Course:
    """What computes the tokens of all sequences of one recipe: the `schedule` chooses, `graphs` are
    the whole model and its routes, which write into its caches."""

    schedule: Schedule
    graphs: Sequence[OrtSession]

    def graph(self, step: int) -> OrtSession:
        """The graph of step 0, 1, ... behind the prompt."""
        return self.graphs[self._route(step)]

    def told(self, step: int) -> str:
        """That graph in words."""
        route = self._route(step)
        return f"route {route} of {self.schedule.name}" if route else "all of the model"

    def _route(self, step: int) -> int:
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
