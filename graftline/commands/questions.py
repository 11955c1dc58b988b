"""Benchmark questions: Spec-Bench's JSON lines, in its six task groups, or plain prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from graftline.commands.texts import from_file
from graftline.errors import RequestError

MT_BENCH = frozenset(
    ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
)
GROUPS = ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag")
"""Spec-Bench's task groups (hemingkx/Spec-Bench): its first eight categories are MT-bench's."""


@dataclass(frozen=True)
class Question:
    """One question: `turns` are what the user says, one after another."""

    name: str
    group: str
    turns: tuple[str, ...]


def read_questions(path: Path) -> list[Question]:
    """Questions of a .jsonl file: Spec-Bench's fields, or {"prompt": ...}; in the file's order.

    Raises RequestError naming the line that is neither, or the byte that is not UTF-8.
    """
    lines = from_file(path).split("\n")  # a JSON text may hold other line separators
    found = [_question(path, at, line) for at, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise RequestError(f"{path} has no questions")
    return found


def _question(path: Path, at: int, line: str) -> Question:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}, line {at}: not JSON ({error})") from error
    fields = cast("dict[str, Any]", row) if isinstance(row, dict) else {}
    turns: Any = fields.get("turns", [fields.get("prompt")])
    listed = cast("list[object]", turns) if isinstance(turns, list) else []
    if not listed or not all(isinstance(t, str) and t for t in listed):
        raise RequestError(f"{path}, line {at}: needs 'turns' (a list of texts) or 'prompt'")
    if any("\ud800" <= c <= "\udfff" for text in listed for c in str(text)):
        raise RequestError(f"{path}, line {at}: half of a surrogate pair is not a character")
    category = str(fields.get("category", "prompts"))
    group = "mt_bench" if category in MT_BENCH else category
    return Question(
        str(fields.get("question_id", at)), group, cast("tuple[str, ...]", tuple(listed))
    )


def groups(questions: Sequence[Question]) -> list[str]:
    """The groups there are: Spec-Bench's in its order, then others as they come."""
    present = dict.fromkeys(q.group for q in questions)
    return [g for g in GROUPS if g in present] + [g for g in present if g not in GROUPS]


def select(questions: Sequence[Question], per_group: int | None) -> list[Question]:
    """At most `per_group` of each group, spread evenly over it, so every category has its share."""
    if per_group is None:
        return list(questions)
    if per_group < 1:
        raise RequestError(f"--per-group is {per_group}; use at least 1")
    chosen: list[Question] = []
    for group in groups(questions):
        members = [q for q in questions if q.group == group]
        count = min(per_group, len(members))
        chosen += [members[i * len(members) // count] for i in range(count)]
    return chosen
