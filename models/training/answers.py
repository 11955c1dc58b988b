"""Prompts answered by the host: once each, kept on disk, most of them greedily.

A line of the file is a conversation with all its answers and a digest. Lines are added when a whole
chunk of conversations is answered: what is interrupted is answered again in the same batches.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from graftline.models.host import Watch
from graftline.models.training.clock import Clock, left
from graftline.models.training.tensor_file import damaged, room

CHUNK = 32
"""Conversations answered together."""


@dataclass(frozen=True)
class Conversation:
    """What a user says, turn after turn, behind a system message or none. `take`: how often it was
    answered before; from the second answer on all are sampled, for greedy ones are alike."""

    turns: tuple[str, ...]
    system: str = ""
    take: int = 0

    @property
    def group(self) -> int:
        """What tells it, with all its answers, from others."""
        words = json.dumps([self.system, self.turns])
        return int.from_bytes(hashlib.sha256(words.encode()).digest()[:7], "big")


@dataclass(frozen=True)
class Asked:
    """A prompt for the host. `messages` are (role, content); a temperature of 0 is greedy."""

    messages: tuple[tuple[str, str], ...]
    temperature: float
    seed: int


@dataclass(frozen=True)
class Reply:
    """The ids of a prompt and of its answer, and what the answer says."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    text: str


class Answerer(Protocol):
    """The host as it answers: a reply for each prompt, None where one has no room."""

    def __call__(self, asked: Sequence[Asked]) -> Sequence[Reply | None]: ...


@dataclass(frozen=True)
class Text:
    """Token ids, of which those from `start` on are to be foreseen: an answer, or all but the first
    of a plain text. Texts of one `group` speak of the same: they are learned or held out together.
    `greedy`: the host chose each as its best."""

    ids: tuple[int, ...]
    start: int
    group: int
    greedy: bool = True


def plain_texts(ids: Iterable[Sequence[int]], most: int) -> list[Text]:
    """Texts as they are, in pieces of at most `most` tokens, each a group of its own; what is left
    of less than 3 leaves nothing to draft."""
    pieces = [tuple(text[i : i + most]) for text in ids for i in range(0, len(text), most)]
    return [Text(piece, 1, group) for group, piece in enumerate(pieces) if len(piece) > 2]


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn: a `share` of the conversations at `temperature`, the rest greedily."""

    share: float = 0.3
    temperature: float = 0.8
    seed: int = 0

    def of(self, conversation: Conversation) -> tuple[float, int]:
        """The temperature and the seed of a conversation, by its content alone."""
        words = json.dumps([self.seed, conversation.group, conversation.take])
        number = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big")
        sampled = conversation.take > 0 or (number >> 32) < self.share * 2**32
        return (self.temperature if sampled else 0.0), number & 0x7FFFFFFF


Turns = tuple[Reply | None, ...]


@dataclass
class AnswerFile:
    """The answers of one host under one limit of tokens, by what was asked."""

    path: Path
    kept: dict[str, Turns] = field(default_factory=dict[str, Turns])

    @classmethod
    def open(cls, path: Path) -> AnswerFile:
        """Read a file, or begin one; a last line that was interrupted is dropped. Raises
        CheckpointError where another line is damaged."""
        found = cls(path)
        if not path.exists():
            return found
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)
        for number, line in enumerate(data[:whole].splitlines(), 1):
            key, turns = _read(path, number, line)
            found.kept[key] = turns
        return found

    def add(self, rows: Mapping[str, Turns]) -> None:
        """Keep the answers of a chunk. Raises GraftlineError on a full disk."""
        lines = b"".join(_line(key, turns) for key, turns in rows.items())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with room(self.path), self.path.open("ab") as file:
            place = file.tell()
            try:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self.path, place)
                raise
        self.kept.update(rows)


def collect(
    conversations: Sequence[Conversation],
    answerer: Callable[[], Answerer],
    file: AnswerFile,
    sampling: Sampling,
    clock: Clock,
    until: float,
    say: Watch,
) -> list[Text]:
    """The texts of all conversations, or of those that were answered before the share `until` of
    the time was over; `answerer` is opened when something is left to answer."""
    texts: list[Text] = []
    progress = _Progress(clock, until, len(conversations), say)
    ask: Answerer | None = None
    too_long = 0
    for start in range(0, len(conversations), CHUNK):
        chunk = list(dict.fromkeys(conversations[start : start + CHUNK]))
        keys = {one: _key(one, *sampling.of(one)) for one in chunk}
        missing = [one for one in chunk if keys[one] not in file.kept]
        if missing and not (texts and clock.past(until)):
            ask = ask or answerer()
            began = time.monotonic()
            file.add({keys[one]: turns for one, turns in _answered(missing, ask, sampling)})
            tokens = sum(len(r.answer) for one in missing for r in file.kept[keys[one]] if r)
            progress.tell(start + len(chunk), tokens, time.monotonic() - began)
        for one in chunk:
            greedy = not sampling.of(one)[0]
            turns = file.kept.get(keys[one], ())
            texts += [
                Text(r.prompt + r.answer, len(r.prompt), one.group, greedy) for r in turns if r
            ]
            too_long += sum(r is None for r in turns)
    if too_long:
        say(f"left out: {too_long} prompts that leave no room for an answer")
    return texts


def _answered(
    conversations: Sequence[Conversation], ask: Answerer, sampling: Sampling
) -> Iterator[tuple[Conversation, Turns]]:
    """Every conversation with its answers: the first turns of all together, then the second ones.
    A turn that had no room ends its conversation."""
    told: dict[Conversation, list[Reply | None]] = {one: [] for one in conversations}
    said = {one: [("system", one.system)] if one.system else [] for one in conversations}
    for turn in range(max(len(one.turns) for one in conversations)):
        going = [o for o in conversations if turn < len(o.turns) and None not in told[o]]
        for one in going:
            said[one].append(("user", one.turns[turn]))
        asked = [Asked(tuple(said[one]), *sampling.of(one)) for one in going]
        for one, reply in zip(going, ask(asked) if asked else (), strict=True):
            told[one].append(reply)
            said[one].append(("assistant", reply.text if reply else ""))
    yield from ((one, tuple(told[one])) for one in conversations)


@dataclass
class _Progress:
    clock: Clock
    until: float
    conversations: int
    say: Watch
    answered: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def tell(self, done: int, tokens: int, seconds: float) -> None:
        self.answered, self.tokens = self.answered + 1, self.tokens + tokens
        self.seconds += seconds
        todo = self.seconds / self.answered * (self.conversations - done) / CHUNK
        if (limit := self.clock.until(self.until)) is not None:
            todo = min(todo, max(limit, 0.0))
        rate = self.tokens / max(self.seconds, 1e-9)
        self.say(
            f"answering: {done} of {self.conversations} prompts, {self.tokens:,} new tokens, "
            f"{rate:.0f} a second, {left(todo)} left"
        )


def _key(one: Conversation, temperature: float, seed: int) -> str:
    drawn = [temperature, seed] if temperature else []
    words = json.dumps([one.system, one.turns, drawn])
    return hashlib.sha256(words.encode()).hexdigest()[:32]


def _line(key: str, turns: Turns) -> bytes:
    rows = [None if r is None else [list(r.prompt), list(r.answer), r.text] for r in turns]
    body = json.dumps([key, rows], ensure_ascii=True)
    return f"{hashlib.sha256(body.encode()).hexdigest()[:16]} {body}\n".encode()


def _read(path: Path, number: int, line: bytes) -> tuple[str, Turns]:
    said, _, body = line.partition(b" ")
    if hashlib.sha256(body).hexdigest()[:16].encode() != said:
        raise damaged(path, f"line {number} is not what was written")
    key, rows = cast("tuple[str, list[Any]]", json.loads(body))
    turns = (None if r is None else Reply(tuple(r[0]), tuple(r[1]), r[2]) for r in rows)
    return key, tuple(turns)
