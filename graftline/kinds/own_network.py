"""What the export of a host that runs once is held to: the checkpoint's own network or file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.evaluate import Feed
from graftline.kinds.named_graph import NamedGraph
from graftline.owners import TARGET

if TYPE_CHECKING:
    from graftline.models.reference import Original, OwnNetwork

Run = Callable[[Sequence[Feed]], list[Feed] | str]


def run_of(own: Original | None) -> Run | str:
    """What runs the original of a host that runs once on feeds by its own names: a file by ONNX
    Runtime. Or why nothing does."""
    from graftline.models.reference import OwnNetwork

    if isinstance(own, Path):
        return lambda feeds: _of_file(own, feeds)
    return own.run if isinstance(own, OwnNetwork) else "the checkpoint has no network of its own"


def beside(owns: Mapping[str, Original | None]) -> OwnNetwork:
    """The originals of the parts of one graph as one, by owner: the names of the inputs and outputs
    of all but the target's begin with the owner's."""
    from graftline.models.reference import OwnNetwork

    def run(feeds: Sequence[Feed]) -> list[Feed] | str:
        found = [Feed() for _ in feeds]
        for owner, own in owns.items():
            asked, start = run_of(own), "" if owner == TARGET else f"{owner}."
            given = [_part(feed, owner, owns) for feed in feeds]
            made = asked if isinstance(asked, str) else asked(given)
            if isinstance(made, str):
                return made
            for one, outputs in zip(found, made, strict=True):
                one.update({f"{start}{name}": value for name, value in outputs.items()})
        return found

    return OwnNetwork(run)


def _part(feed: Feed, owner: str, owners: Mapping[str, Any]) -> Feed:
    """What a part is fed, by its own names."""
    if owner != TARGET:
        start = f"{owner}."
        return {n.removeprefix(start): v for n, v in feed.items() if n.startswith(start)}
    others = tuple(f"{one}." for one in owners if one != TARGET)
    return {n: v for n, v in feed.items() if not n.startswith(others)}


def _of_file(file: Path, feeds: Sequence[Feed]) -> list[Feed]:
    graph = NamedGraph.of(file)
    return [graph(feed) for feed in feeds]
