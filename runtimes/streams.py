"""Requests that are read while they run: a step, or a piece of text, at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from graftline.runtimes.decoding import FinishReason
from graftline.runtimes.generation import Generation
from graftline.runtimes.logprobs import TokenLogprob
from graftline.runtimes.result import Result, Usage
from graftline.runtimes.scheduler import Scheduler
from graftline.runtimes.task import raise_first


class _Running:
    """A generation that is under way. Whoever no longer refers to it no longer wants it."""

    def __init__(self, generation: Generation, scheduler: Scheduler) -> None:
        self._generation, self._scheduler = generation, scheduler
        self._result: Result | None = None

    @property
    def id(self) -> str:
        """Of the request, for `Engine.cancel`."""
        return self._generation.id

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
    character or a stop text is not whole, new token ids, and their `logprobs` where the request
    asks for them. `id` is the request's, `usage` that of all its events so far. The last event has
    the result."""

    id: str
    text: str
    tokens: list[int]
    usage: Usage
    logprobs: list[TokenLogprob] | None = None
    result: Result | None = None

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it has ended; None while it goes on."""
        return None if self.result is None else self.result.finish_reason


class Events(_Running, AsyncIterator[Event]):
    """An event at each `anext`. Cancelling the task, `aclose`, or dropping it end it early."""

    _count, _over = 0, False
    _next: Event | None = None

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
        assert self._next is not None, "it was ready"
        return self._next

    def _event(self) -> Event:
        """What nobody has been told yet."""
        generation, one, before = self._generation, self._generation.one, self._count
        fresh = one.tokens[before:]
        self._count += len(fresh)
        pieces, noted = generation.pieces, one.logprobs
        text = "".join([pieces.popleft() for _ in range(len(pieces))])
        listed = None
        if noted is not None and noted.chosen is not None:
            listed = noted.tokens[before : self._count]
        self._over = one.done
        result = generation.result() if self._over else None
        return Event(generation.id, text, fresh, generation.usage, listed, result)

    async def aclose(self) -> None:
        """Stop generating; others go on."""
        self.close()

    def __aiter__(self) -> Events:
        return self

    def _ready(self) -> bool:
        """Whether there is something to tell; it is put together here, between two steps."""
        one = self._generation.one
        ready = len(one.tokens) > self._count or one.check()
        if ready and one.error is None:
            self._next = self._event()
        return ready


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
