"""Requests that are read while they run: a step, or a piece of text, at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

from graftline.runtimes.generation import Generation
from graftline.runtimes.result import Result
from graftline.runtimes.scheduler import Scheduler, raise_first


class _Running:
    """A generation that is under way. Whoever no longer refers to it no longer wants it."""

    def __init__(self, generation: Generation, scheduler: Scheduler) -> None:
        self._generation, self._scheduler = generation, scheduler
        self._result: Result | None = None

    @property
    def result(self) -> Result | None:
        """The outcome; None until it has ended, and where it was closed before."""
        one = self._generation.one
        if self._result is None and one.done and one.error is None and not one.cancelled:
            self._result = self._generation.result()
        return self._result

    def close(self) -> None:
        """Stop generating; others go on."""
        if not self._generation.one.done:
            self._generation.cancel()

    def __del__(self) -> None:
        self.close()


class Passes(_Running, Iterator[int]):
    """Every `next` makes the steps until there are new tokens, the first being the prompt's, and
    gives the number of tokens so far."""

    _count = 0

    def __next__(self) -> int:
        one = self._generation.one
        while len(one.tokens) == self._count and not one.check():
            self._scheduler.step(lambda: len(one.tokens) > self._count or one.done)
        raise_first([one])
        if len(one.tokens) == self._count:
            raise StopIteration
        self._count = len(one.tokens)
        return self._count


class Stream(_Running, Iterator[str], AsyncIterator[str]):
    """Pieces of text, each of whole characters, in a `for` or an `async for`. Leaving the loop and
    the stream's scope, `close` or `with` end it early; `result` is set once the text has ended."""

    def __next__(self) -> str:
        while not self._ready():
            self._scheduler.step(self._ready)
        piece = self._taken()
        if piece is None:
            raise StopIteration
        return piece

    async def __anext__(self) -> str:
        while not self._ready():
            await self._scheduler.step_elsewhere(self._ready)
            await asyncio.sleep(0)
        piece = self._taken()
        if piece is None:
            raise StopAsyncIteration
        return piece

    def __aiter__(self) -> Stream:
        return self

    def _ready(self) -> bool:
        return bool(self._generation.pieces) or self._generation.one.check()

    def _taken(self) -> str | None:
        """The next piece; None at the end."""
        if self._generation.one.cancelled:
            return None
        if self._generation.pieces:
            return self._generation.pieces.popleft()
        raise_first([self._generation.one])
        return None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
