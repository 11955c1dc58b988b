"""Chat templates by the conventions of transformers, in a sandbox that cannot change anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from graftline.errors import BundleError, RequestError

Message = Mapping[str, Any]
OWN = ("messages", "tools", "add_generation_prompt")
"""Names that every template is given, and what else it is given must not have."""
_TAG = "GRAFTLINE_THE_MESSAGE_GOES_ON "
"""Is put behind a message that is to be continued; whether its last space is still there tells
whether the template trims what it is given."""


@dataclass(frozen=True)
class TemplateArguments:
    """What a template is given besides the messages. `tools`: JSON schemas of functions; `go_on`:
    the prompt ends within the last message, which the answer continues; `others` by name, as
    enable_thinking."""

    tools: Sequence[Mapping[str, Any]] | None = None
    go_on: bool = False
    others: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def names(self) -> list[str]:
        """The options that were given, as a user writes them."""
        named = {"tools": self.tools is not None, "continue_final_message": self.go_on}
        return [*(name for name, given in named.items() if given), *self.others]


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's text for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own convention

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A template compiled once; `special` are the tokenizer's special tokens by name."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, jinja2.ext.loopcontrols],
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update({"raise_exception": _refuse, "strftime_now": _now})  # type: ignore[dict-item]
        self._special = dict(special)
        try:
            self._template = environment.from_string(source)
            self._reads = jinja2.meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateError as error:
            raise BundleError(f"the chat template cannot be read: {error}") from error

    @property
    def known(self) -> list[str]:
        """What it can be given besides messages and special tokens."""
        return sorted(self._reads - {"messages", "add_generation_prompt"} - self._special.keys())

    def render(
        self, messages: Sequence[Message], arguments: TemplateArguments | None = None
    ) -> str:
        """The prompt text up to where the assistant begins, or goes on.

        Raises RequestError where the template refuses the messages, does not know what it is given,
        or leaves out the message that is to be continued.
        """
        given = arguments or TemplateArguments()
        self._check(given)
        messages = [*messages[:-1], _tagged(messages)] if given.go_on else list(messages)
        values = {"documents": None, **self._special, **given.others}
        try:
            text = self._template.render(
                messages=messages,
                tools=None if given.tools is None else list(given.tools),
                add_generation_prompt=not given.go_on,
                **values,
            )
        except (jinja2.TemplateError, TypeError) as error:
            raise RequestError(f"the chat template refuses these messages: {error}") from error
        return _cut(text) if given.go_on else text

    def _check(self, given: TemplateArguments) -> None:
        for name in given.others:
            if name in OWN:
                raise RequestError(
                    f"template_args has '{name}', which the engine gives itself; leave it out"
                )
        for name in [*(["tools"] if given.tools is not None else []), *given.others]:
            if name not in self._reads:
                known = f"it knows {', '.join(self.known)}" if self.known else "it takes none"
                raise RequestError(
                    f"this model's chat template does not know '{name}' ({known}); leave it out"
                )


def _tagged(messages: Sequence[Message]) -> Message:
    """The last message, with the tag behind its text."""
    last = messages[-1] if messages else {}
    content = last.get("content")
    if isinstance(content, str):
        return {**last, "content": content + _TAG}
    parts: list[Any] = list(content) if isinstance(content, (list, tuple)) else []
    for place in reversed(range(len(parts))):
        if isinstance(parts[place], Mapping) and "text" in parts[place]:
            parts[place] = {**parts[place], "text": parts[place]["text"] + _TAG}
            return {**last, "content": parts}
    raise RequestError(
        "continue_final_message: the last message has no text to continue; give it some, or leave "
        "the option out"
    )


def _cut(text: str) -> str:
    """The text up to the tag, without the spaces before it where the template trims messages."""
    place = text.rfind(_TAG.strip())
    if place < 0:
        raise RequestError(
            "continue_final_message: the chat template leaves out the last message's text, so it "
            "cannot be continued; leave the option out"
        )
    return text[:place] if text[place : place + len(_TAG)] == _TAG else text[:place].rstrip()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
