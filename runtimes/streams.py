"""Requests that are read while they run: a step, or a piece of text, at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from graftline.runtimes.decoding import FinishReason
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
        wanted = self._result is None and not one.cancelled
        if wanted and self._scheduler.between(lambda: one.finish is not None):
            self._result = self._generation.result()
        return self._result

    def close(self) -> None:
        """Stop generating; others go on."""
        if not self._generation.one.done:
            self._generation.cancel()
            self._generation.one.unhook()  # nobody reads it any more

    def __del__(self) -> None:
        self.close()


class Submitted(_Running):
    """A request that takes part in all steps from now on, whoever makes them."""

    def wait(self) -> Result:
        """The outcome, once it has ended; raises what ended it otherwise."""
        self._scheduler.finish([self._generation.one])
        return self._generation.result()


@dataclass(frozen=True)
class Event:
    """What came of a generation since the last event: new text, which may be held back while a
    character or a stop text is not whole, and new token ids. The last event has the result."""

    text: str
    tokens: list[int]
    result: Result | None = None

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it has ended; None while it goes on."""
        return None if self.result is None else self.result.finish_reason


class Events(_Running, AsyncIterator[Event]):
    """An event at each `anext`. Cancelling the task, `aclose`, or dropping it end it early."""

    _count, _over = 0, False

    async def __anext__(self) -> Event:
        if self._over:
            raise StopAsyncIteration
        one = self._generation.one
        try:
            await self._scheduler.wait_elsewhere(self._ready)
        except BaseException:  # the task was cancelled
            self.close()
            raise
        raise_first([one])
        self._over = one.done
        fresh = one.tokens[self._count :]
        self._count += len(fresh)
        pieces = self._generation.pieces
        text = "".join([pieces.popleft() for _ in range(len(pieces))])
        return Event(text, fresh, self._generation.result() if self._over else None)

    async def aclose(self) -> None:
        """Stop generating; others go on."""
        self.close()

    def __aiter__(self) -> Events:
        return self

    def _ready(self) -> bool:
        one = self._generation.one
        return len(one.tokens) > self._count or one.check()


class Passes(_Running, Iterator[int]):
    """Every `next` makes the steps until there are new tokens, the first being the prompt's, and
    gives the number of tokens so far."""

    _count = 0

    def __next__(self) -> int:
        one = self._generation.one
        self._scheduler.wait(lambda: len(one.tokens) > self._count or one.check())
        raise_first([one])
        if one.cancelled or len(one.tokens) == self._count:
            raise StopIteration
        self._count = len(one.tokens)
        return self._count


class Stream(_Running, Iterator[str]):
    """Pieces of text, each of whole characters. `close`, `with`, or dropping the stream end it
    early; `result` is set once the text has ended."""

    def __next__(self) -> str:
        self._scheduler.wait(self._ready)
        piece = self._taken()
        if piece is None:
            raise StopIteration
        return piece

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
