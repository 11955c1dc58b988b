"""Requests that are read while they run: a pass of the target, or a piece of text, at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager

from graftline.runtimes.job import Job
from graftline.runtimes.result import Result


class Passes(Iterator[int]):
    """Every `next` is one target pass, the prompt's being the first, and gives the number of tokens
    so far. `close` (or exhaustion) frees the engine; `result` is set once the text has ended."""

    def __init__(self, job: Job, held: AbstractContextManager[None]) -> None:
        self._steps = self._run(job, held)
        self.result: Result | None = None

    def _run(self, job: Job, held: AbstractContextManager[None]) -> Generator[int]:
        with held:
            for _ in job.run(pieces=False):
                yield job.count
        self.result = job.results()[0]

    def __next__(self) -> int:
        return next(self._steps)

    def close(self) -> None:
        """Stop generating and free the engine."""
        self._steps.close()


class Stream(Iterator[str]):
    """Pieces of text, each of whole characters. `close` (or `with`) frees the engine early;
    `result` is set once the text has ended."""

    def __init__(self, job: Job, held: AbstractContextManager[None]) -> None:
        self._pieces = self._run(job, held)
        self.result: Result | None = None

    def _run(self, job: Job, held: AbstractContextManager[None]) -> Generator[str]:
        with held:
            yield from filter(None, job.run())
        self.result = job.results()[0]

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop generating and free the engine."""
        self._pieces.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
