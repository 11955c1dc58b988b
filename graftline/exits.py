"""What `--exit` asks for: after how many of its first blocks a model drafts for itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from graftline.errors import GraftlineError

EXIT, EXITS = "exit", "exits"
"""What a recipe's needs call one of them, and several."""
ADAPTER = "adapter"
"""The stage of the graph of a head that passes put into the target's own, as it was published."""
ALL = "exit-head"
"""The stage that reads hidden states behind any block: the target's final norm and head alone."""
_HELP = "as in --exit 8, or --exit 6,12,18 for several"


def exit_stage(blocks: int) -> str:
    """The stage of the target's first blocks, its final norm and its head."""
    return f"exit-{blocks}"


def rest_stage(blocks: int) -> str:
    """The stage of all blocks behind those."""
    return f"rest-{blocks}"


def told(exits: Sequence[int]) -> str:
    """As `--exit` takes them."""
    return ",".join(map(str, exits))


def parse_exits(text: str) -> tuple[int, ...]:
    """Read `8` or `6,12,18`. Raises GraftlineError for what is not whole numbers that increase."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise GraftlineError(f"--exit {text}: takes numbers of blocks joined by commas, {_HELP}")
    exits = tuple(map(int, words))
    if any(b <= a for a, b in pairwise((0, *exits))):
        raise GraftlineError(f"--exit {text}: exits start at 1 and increase, {_HELP}")
    return exits


def check_exits(exits: Sequence[int], layers: int) -> None:
    """Raise GraftlineError unless a target of so many blocks has blocks behind every exit."""
    if exits and exits[-1] >= layers:
        span = f"use 1 to {layers - 1}" if layers > 1 else "it has no room for an exit"
        raise GraftlineError(
            f"--exit {told(exits)}: the target has {layers} blocks, and an exit is in front of its "
            f"last; {span}"
        )


def exits_of(exits: Sequence[int], trained: int | None, head: str) -> tuple[int, ...]:
    """The exits that are asked for, or the one that a `head` was `trained` behind, where its files
    say it. Raises GraftlineError where both do and differ."""
    if trained is None:
        return tuple(exits)
    if exits and tuple(exits) != (trained,):
        raise GraftlineError(
            f"--exit {told(exits)}: the head {head} was trained behind the first {trained} "
            "blocks; leave --exit out"
        )
    return (trained,)


def check_needs(name: str, needs: Sequence[str], exits: Sequence[int]) -> None:
    """Raise GraftlineError where a recipe needs exits that are not asked for."""
    if EXIT in needs and not exits:
        raise GraftlineError(
            f"the recipe {name} needs an exit; add --exit 8, the number of first blocks that draft"
        )
    if EXITS in needs and len(exits) < 2:
        raise GraftlineError(f"the recipe {name} chooses among exits; add --exit 6,12,18")
