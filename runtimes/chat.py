"""A conversation: the messages so far, and the options of every turn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from graftline.errors import RequestError
from graftline.runtimes.defaults import ANSWER_PREFIX
from graftline.runtimes.prompt_reader import PROPER
from graftline.runtimes.request import TEMPLATE_OPTIONS, Ints, Message, Options, read_options
from graftline.runtimes.result import Result
from graftline.runtimes.session import check_fits
from graftline.runtimes.streams import Event, Events, Stream

if TYPE_CHECKING:
    from graftline.runtimes.engine import Engine

Said = str | Message | Sequence[Message]
Keep = Callable[[Result], None]
WAYS = ("take turns back (chat.undo())", "go on in a new chat from a summary")
"""What can be done about a conversation that has become too long."""


class Chat:
    """A conversation with an engine. `messages` may be read and changed between two turns; only a
    turn that came to a proper end is added to them.

    What the engine has read of the conversation it does not read again, as far as it is still in
    its prefix cache. A chat makes one turn at a time; `fork` it for several.
    """

    def __init__(
        self, engine: Engine, messages: Sequence[Message], options: Mapping[str, Any]
    ) -> None:
        if engine.tokenizer is None or not engine.tokenizer.has_chat_template:
            raise RequestError(
                "this bundle has no chat template; keep the conversation as one text, and use "
                "generate"
            )
        if read_options(options).raw:
            raise RequestError("raw leaves out the chat template, which a chat needs; leave it out")
        self._engine, self.options = engine, dict(options)
        """Of every turn that does not say otherwise."""
        self.messages: list[Message] = [dict(message) for message in messages]

    def send(self, said: Said, **options: Unpack[Options]) -> Result:
        """The answer to a text of the user's, or to messages: a tool's result, say.

        Takes the options of `Engine.generate`, for this turn. Raises RequestError where the
        conversation has become too long, and then leaves it as it was.
        """
        ids, given, keep = self._turn(said, options)
        result = self._engine.generate(ids, **given)
        assert isinstance(result, Result), "of one prompt"
        keep(result)
        return result

    def stream(self, said: Said, **options: Unpack[Options]) -> ChatStream:
        """The same, piece by piece; leaving it early leaves the conversation as it was."""
        ids, given, keep = self._turn(said, options)
        return ChatStream(self._engine.stream(ids, **given), keep)

    def asend(self, said: Said, **options: Unpack[Options]) -> ChatEvents:
        """The same for `async for`, as `Engine.agenerate`."""
        ids, given, keep = self._turn(said, options)
        return ChatEvents(self._engine.agenerate(ids, **given), keep)

    def go_on(self, **options: Unpack[Options]) -> Result:
        """Continue the last message: an answer that ended by its length, or the beginning of one
        that the app has written. The result has what is new."""
        last = self.messages[-1] if self.messages else {}
        if last.get("role") != "assistant" or not isinstance(last.get("content"), str):
            raise RequestError(
                "the last message is not an assistant's text, so it cannot be continued; send one"
            )
        before = list(self.messages)
        going_on = {"continue_final_message": True, ANSWER_PREFIX: ""}
        ids, given = self._encoded(before, {**options, **going_on})
        result = self._engine.generate(ids, **given)
        assert isinstance(result, Result), "of one prompt"
        longer = {**last, "content": last["content"] + result.text}
        self._keep(before, [*before[:-1], longer], result)
        return result

    def undo(self) -> list[Message]:
        """Take back the last turn: the last message of the user's, and all after it."""
        places = [n for n, message in enumerate(self.messages) if message.get("role") == "user"]
        if not places:
            raise RequestError("the conversation has no turn to take back")
        taken = self.messages[places[-1] :]
        del self.messages[places[-1] :]
        return taken

    def fork(self) -> Chat:
        """Another conversation that goes on from here."""
        return Chat(self._engine, self.messages, self.options)

    @property
    def room(self) -> int:
        """Tokens that the next message and its answer may have together, give or take the few that
        the template puts around a message."""
        ids, _ = self._encoded(self.messages, {}, checked=False) if self.messages else ([], {})
        return self._engine.session.capacity - len(ids)

    def _turn(self, said: Said, options: Mapping[str, Any]) -> tuple[Ints, dict[str, Any], Keep]:
        """The prompt of a turn, the options that go with it, and what keeps its outcome."""
        before = list(self.messages)
        new = [{"role": "user", "content": said}] if isinstance(said, str) else said
        asked = [*before, *([new] if isinstance(new, Mapping) else new)]
        if len(asked) == len(before):
            raise RequestError("there is no message to answer; give a text or messages")
        ids, given = self._encoded(asked, options)
        begun = self._engine.request({**self.options, **options}).answer_prefix

        def keep(result: Result) -> None:
            answer = {"role": "assistant", "content": begun + result.text}
            self._keep(before, [*asked, answer], result)

        return ids, given, keep

    def _keep(self, before: list[Message], after: list[Message], result: Result) -> None:
        if result.finish_reason not in PROPER:
            return
        if self.messages != before:
            raise RequestError(
                "the conversation went on while this answer was made; use chat.fork() for turns at "
                "the same time"
            )
        self.messages[:] = after

    def _encoded(
        self, messages: Sequence[Message], options: Mapping[str, Any], checked: bool = True
    ) -> tuple[Ints, dict[str, Any]]:
        """The ids of messages, and the options that are not the template's. Raises RequestError
        where an answer does not fit behind them."""
        given = {**self.options, **options}
        if given.get("n", 1) != 1:
            raise RequestError("a chat gives one answer a turn; fork it for n of them")
        ids = self._engine.encode(messages, **given)
        if checked:
            new = self._engine.request(given).max_new_tokens
            check_fits(self._engine.session, len(ids), new, *WAYS)
        others = {name: value for name, value in given.items() if name not in TEMPLATE_OPTIONS}
        return ids, {**others, ANSWER_PREFIX: ""}  # the ids have it


class ChatStream(Iterator[str]):
    """Pieces of an answer. See `Engine.stream`."""

    def __init__(self, stream: Stream, keep: Keep) -> None:
        self._stream, self._keep = stream, keep
        self.result: Result | None = None
        """Set once the answer has ended."""

    def __next__(self) -> str:
        try:
            return next(self._stream)
        except StopIteration:
            if self.result is None and self._stream.result is not None:
                self.result = self._stream.result
                self._keep(self.result)
            raise

    def close(self) -> None:
        """Stop; the conversation is as it was before."""
        self._stream.close()

    def __enter__(self) -> ChatStream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class ChatEvents(AsyncIterator[Event]):
    """Events of an answer. See `Engine.agenerate`."""

    def __init__(self, events: Events, keep: Keep) -> None:
        self._events, self._keep = events, keep

    def __aiter__(self) -> ChatEvents:
        return self

    async def __anext__(self) -> Event:
        event = await anext(self._events)
        if event.result is not None:
            self._keep(event.result)
        return event

    async def aclose(self) -> None:
        """Stop; the conversation is as it was before."""
        await self._events.aclose()
