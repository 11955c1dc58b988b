"""Text in and out: chat templates, token ids, incremental detokenisation, stop strings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer as HFTokenizer

from graftline.errors import BundleError, RequestError
from graftline.runtimes.text.chat_template import ChatTemplate, Message, TemplateArguments

_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


class Tokenizer:
    """A `tokenizer.json`, with the chat template that came with it if any."""

    def __init__(
        self,
        tokenizer: HFTokenizer,
        template: str | None = None,
        special: Mapping[str, str] | None = None,
        tool_template: str | None = None,
    ) -> None:
        """`tool_template`: used in place of `template` where there are tools, if there is one."""
        self._tokenizer = tokenizer
        self.special = dict(special or {})
        """bos_token, eos_token, ... as text."""
        self._template, self._tool_template = (
            None if source is None else ChatTemplate(source, self.special)
            for source in (template, tool_template)
        )

    @classmethod
    def from_folder(cls, folder: Path | str) -> Tokenizer:
        """Read tokenizer.json, tokenizer_config.json and chat_template.jinja.

        Raises BundleError when tokenizer.json is missing or damaged, or a template cannot be read.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise BundleError(f"{folder} holds no tokenizer.json")
        try:
            tokenizer = HFTokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path} cannot be read: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config = _read_config(folder / "tokenizer_config.json")
        special = {k: text for k in _SPECIAL if (text := _special_text(config.get(k)))}
        template, tool_template = _read_templates(folder, config)
        return cls(tokenizer, template, special, tool_template)

    @property
    def has_chat_template(self) -> bool:
        """True when messages can be rendered."""
        return self._template is not None

    def encode(
        self,
        prompt: str | Sequence[Message],
        raw: bool = False,
        arguments: TemplateArguments | None = None,
        begun: str = "",
    ) -> list[int]:
        """Ids of a prompt, and behind it the text that its answer has `begun` with. A string is one
        user message unless `raw` or there is no template, which is given `arguments`.

        Raises RequestError for messages without a template, and where the template refuses them, or
        what it is given.
        """
        given = arguments or TemplateArguments()
        if isinstance(prompt, str) and (raw or self._template is None):
            refuse_arguments(given, "a text without a chat template")
            return self._tokenizer.encode(prompt + begun).ids
        if self._template is None:
            raise RequestError("this model has no chat template; give the prompt as one string")
        if raw:
            raise RequestError("raw=True takes a string, not messages")
        if given.go_on and isinstance(prompt, str):
            raise RequestError("continue_final_message continues a message; give messages")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        with_tools = self._tool_template if given.tools is not None else None
        text = (with_tools or self._template).render(messages, given)
        return self._tokenizer.encode(text + begun, add_special_tokens=False).ids

    def encode_part(self, text: str) -> list[int]:
        """Ids of a text that goes on from another: no template, and no token added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def special_id(self, text: str) -> int | None:
        """The id of a special token of exactly that text, which `decode` leaves out; else None."""
        added = self._tokenizer.get_added_tokens_decoder()
        return next((i for i, t in added.items() if t.special and t.content == text), None)

    def to_json(self) -> str:
        """What its tokenizer.json says."""
        return self._tokenizer.to_str()

    def id_of(self, token: str) -> int | None:
        """The id of a token's text, if it has one."""
        return self._tokenizer.token_to_id(token)


def refuse_arguments(given: TemplateArguments, what: str) -> None:
    """Raises RequestError where a template's arguments come with `what`, which has none."""
    if given.names:
        raise RequestError(f"{given.names[0]} is for chat templates, and this is {what}")


def end_tokens(defaults: Mapping[str, Any], tokenizer: Tokenizer | None) -> frozenset[int]:
    """The ids that end a text: the generation defaults' and the tokenizer's own."""
    given: object = defaults.get("eos_token_id", ())
    listed = cast("list[object]", given if isinstance(given, (list, tuple)) else [given])
    ends = {token for token in listed if isinstance(token, int)}
    if tokenizer is not None and "eos_token" in tokenizer.special:
        own = tokenizer.id_of(tokenizer.special["eos_token"])
        ends |= set() if own is None else {own}
    return frozenset(ends)


class Detokenizer:
    """Text of a growing list of ids, in pieces that are whole characters.

    What a token adds can depend on the token before it (bytes of one character, leading spaces),
    so the difference of two decodings is taken over a window that starts where the last piece did.
    A window that ends within a character is held back.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._known = ""
        self._fixed = 0
        """Ids of the window whose text is out; they are kept as context for the next."""

    def feed(self, token: int) -> str:
        """The text that became whole with this token."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        if text.endswith("\ufffd") or len(text) <= len(self._known):
            return ""
        piece = text[len(self._known) :]
        del self._window[: self._fixed]
        self._fixed = len(self._window)
        self._known = self._tokenizer.decode(self._window)
        return piece

    def flush(self) -> str:
        """The text held back; U+FFFD stands for a character that never became whole."""
        text = self._tokenizer.decode(self._window)
        piece = text[len(self._known) :]
        self._window, self._known, self._fixed = [], "", 0
        return piece


class StopStrings:
    """Cuts a stream of text at the earliest stop string, also one that spans pieces; behind it,
    where it is to be kept. Of several that begin at one place the shortest counts, which is whole
    first."""

    def __init__(self, stops: Sequence[str], keep: bool = False) -> None:
        self._stops, self._keep = tuple(stops), keep
        self._held = ""
        self.hit = False

    def feed(self, piece: str) -> str:
        """The text that surely comes before any stop string."""
        if not self._stops or self.hit:
            return "" if self.hit else piece
        text = self._held + piece
        found = [(at, at + len(stop)) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.hit, self._held = True, ""
            begin, end = min(found)
            return text[: end if self._keep else begin]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text held back, once nothing follows."""
        held, self._held = self._held, ""
        return held


class Transcript:
    """The text of one sequence as it grows: whole characters, cut at a stop string, which is kept
    with `keep`. Stop strings are looked for in what comes with the token `least` and after it."""

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str], keep: bool = False, least: int = 0
    ) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(stops, keep)
        self._free = least - 1
        """Tokens to come before that one."""
        self.text = ""

    @property
    def stopped(self) -> bool:
        """True once a stop string has come."""
        return self._stops.hit

    def feed(self, token: int) -> str:
        """The text to show now that `token` has come."""
        piece = self._detokenizer.feed(token)
        if self._free > 0:
            self._free -= 1
            return self._show(piece)
        return self._show(self._stops.feed(piece))

    def add(self, text: str) -> str:
        """Show a text that no token has: the one that a special token ended it with."""
        return self._show(text)

    def close(self) -> str:
        """The text still held back, once no token follows; a stop string may end in it."""
        if self.stopped:
            return ""
        last = self._stops.feed(self._detokenizer.flush())
        return self._show(last + self._stops.flush())

    def _show(self, piece: str) -> str:
        self.text += piece
        return piece


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop` and is shorter than it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path} is not JSON: {error}") from error


def _special_text(value: object) -> str | None:
    """A special token's text; some configurations give it as a table."""
    if isinstance(value, dict):
        value = cast("dict[str, object]", value).get("content")
    return value if isinstance(value, str) else None


def _read_templates(folder: Path, config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The template file, else the configuration's: of several named ones the default, and the one
    for tools."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8"), None
    template = config.get("chat_template")
    if isinstance(template, list):
        rows = cast("list[dict[str, str]]", template)
        named = {row["name"]: row["template"] for row in rows}
        return named.get("default") or next(iter(named.values()), None), named.get("tool_use")
    return template if isinstance(template, str) else None, None
