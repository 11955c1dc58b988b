"""An answer told step by step: as lines of text, and as a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from graftline.inspection.page import TIMELINE, write_page
from graftline.inspection.scene import Json
from graftline.runtimes.step_story import StepStory

Decode = Callable[[Sequence[int]], str]
"""Text of token ids."""


def story_lines(stories: Sequence[StepStory], decode: Decode) -> Iterator[str]:
    """Two lines a step: what was expected and what came of it; what was scored, and why."""
    for number, one in enumerate(stories, 1):
        expected = "nothing expected"
        if one.expected is not None and one.expected_milliseconds is not None:
            expected = f"expected {one.expected:.2f} in {one.expected_milliseconds:.1f} ms"
        yield (
            f"step {number:3d}  past {one.past:5d}  {one.kind:5}  {len(one.tokens):3d} rows  "
            f"{expected}, got {len(one.fresh)} in {one.milliseconds:.1f} ms  {_quoted(one, decode)}"
        )
        drawn = f"scored {drawn_tree(one, decode)}; " if len(one.tokens) > 1 else ""
        yield f"          {drawn}{one.why}"


def drawn_tree(story: StepStory, decode: Decode) -> str:
    """The tree on one line: a node's children in parentheses behind it, accepted ones with a `+`;
    the only child of a node stands behind it as it is."""
    kids: list[list[int]] = [[] for _ in story.tokens]
    for node, parent in enumerate(story.parents[1:], 1):
        kids[parent].append(node)

    def drawn(node: int) -> str:
        sign = "+" if node in story.path and node else ""
        text = sign + repr(decode([story.tokens[node]]))
        while len(kids[node]) == 1:
            (node,) = kids[node]
            text += (" +" if node in story.path else " ") + repr(decode([story.tokens[node]]))
        return text + (f" ({', '.join(map(drawn, kids[node]))})" if kids[node] else "")

    return drawn(0)


def _quoted(story: StepStory, decode: Decode) -> str:
    return repr(decode(story.fresh))


def write_timeline(
    stories: Sequence[StepStory], decode: Decode, title: str, told: str, path: Path
) -> None:
    """The page of an answer. Raises GraftlineError where it cannot be written."""
    steps = [
        {
            **asdict(one),
            "why": one.why,
            "text": decode(one.fresh),
            "labels": [decode([token]) for token in one.tokens],
            "considered": [[c.rows, c.tokens, c.milliseconds] for c in one.considered],
        }
        for one in stories
    ]
    data: Json = {"title": title, "subtitle": told, "steps": steps}
    write_page(data, path, TIMELINE)
