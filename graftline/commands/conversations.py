"""What a head is trained on: prompts of a .jsonl or .txt file, or texts as they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from graftline.commands.texts import from_file
from graftline.errors import RequestError

if TYPE_CHECKING:
    from graftline.models.training.answers import Conversation

FIELDS = ("turns", "prompt", "text", "messages")
ROLES = ("system", "user", "assistant")


def read_conversations(path: Path, answers: int = 1) -> list[Conversation]:
    """The prompts of a file, each once, and again for every further one of `answers`. Raises
    RequestError naming the line that is none."""
    from graftline.models.training.answers import Conversation

    if _form(path) == ".txt":
        lines = from_file(path).splitlines()
        found = [Conversation((line.strip(),)) for line in lines if line.strip()]
    else:
        found = [_conversation(path, at, row) for at, row in _rows(path)]
    if not found:
        raise RequestError(f"{path} has no prompts")
    once = dict.fromkeys(found)
    return [replace(one, take=take) for take in range(answers) for one in once]


def read_texts(path: Path) -> list[str]:
    """The plain texts of a file: all of a .txt, or `text` or `prompt` of every line. Raises
    RequestError."""
    if _form(path) == ".txt":
        found = [from_file(path)]
    else:
        found = [_plain(path, at, row) for at, row in _rows(path)]
    if not any(text.strip() for text in found):
        raise RequestError(f"{path} has no text")
    return [text for text in found if text.strip()]


def _form(path: Path) -> str:
    """The file's form by its name's end. Raises RequestError for another one."""
    if path.suffix not in (".txt", ".jsonl"):
        raise RequestError(f"{path}: prompts are read from .jsonl or .txt files")
    return path.suffix


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    found: list[tuple[int, dict[str, Any]]] = []
    for at, line in enumerate(from_file(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{path}, line {at}: not JSON ({error})") from error
        if not isinstance(row, dict):
            _refuse(path, at, f"not an object with one of {', '.join(FIELDS)}")
        found.append((at, cast("dict[str, Any]", row)))
    return found


def _conversation(path: Path, at: int, row: dict[str, Any]) -> Conversation:
    from graftline.models.training.answers import Conversation

    given = [name for name in FIELDS if name in row]
    if not given:
        _refuse(path, at, f"needs one of {', '.join(FIELDS)}")
    if given[0] == "messages":
        return _messages(path, at, row["messages"])
    value: Any = row[given[0]]
    turns: Any = value if given[0] == "turns" else [value]
    if not isinstance(turns, list) or not turns:
        _refuse(path, at, f"'{given[0]}' is not a list of texts")
    texts = cast("list[Any]", turns)
    return Conversation(tuple(_text(path, at, text) for text in texts))


def _messages(path: Path, at: int, given: Any) -> Conversation:
    """What the user says of a conversation, and its system message; what somebody answered is left
    out: the host answers for itself."""
    from graftline.models.training.answers import Conversation

    rows = cast("list[Any]", given) if isinstance(given, list) else []
    turns: list[str] = []
    system = ""
    for number, row in enumerate(rows):
        message = cast("dict[str, Any]", row) if isinstance(row, dict) else {}
        role = message.get("role")
        if role not in ROLES or (role == "system" and number):
            _refuse(path, at, f"message {number} has the role {role!r}; known: {', '.join(ROLES)}")
        if role == "user":
            turns.append(_text(path, at, message.get("content")))
        elif role == "system":
            system = _text(path, at, message.get("content"))
    if not turns:
        _refuse(path, at, "'messages' hold no message of a user")
    return Conversation(tuple(turns), system)


def _plain(path: Path, at: int, row: dict[str, Any]) -> str:
    if "text" not in row and "prompt" not in row:
        _refuse(path, at, "needs 'text': with --text it is learned as it is")
    return _text(path, at, row.get("text", row.get("prompt")))


def _text(path: Path, at: int, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        _refuse(path, at, f"{value!r:.40} is not a text")
    if any("\ud800" <= c <= "\udfff" for c in value):
        _refuse(path, at, "half of a surrogate pair is not a character")
    return value


def _refuse(path: Path, at: int, why: str) -> NoReturn:
    raise RequestError(f"{path}, line {at}: {why}")
