"""The decode loop: propose, score, judge, commit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from time import perf_counter

from graftline.runtimes.control.host_time import working
from graftline.runtimes.control.pacer import Pacer
from graftline.runtimes.decoding import Decoding
from graftline.runtimes.session import Session
from graftline.runtimes.trees.packing import pack, trim


def decode(
    session: Session,
    batch: Sequence[Decoding],
    pacer: Pacer,
    least: int = 1,
    waiting: Iterable[Decoding] = (),
    branches: bool = True,
) -> Iterator[None]:
    """Decode a batch of sequences until each has finished; yields after every target pass.

    Between yields the caller may read `tokens`, shorten them and set `finish` of any sequence.
    Sequences advance by unequal numbers of tokens; one that has finished gives its place to the
    next of `waiting`, and when none is left rides along as a padding row and commits nothing.
    `least` is the fewest rows a step scores: 2 keeps a backend whose single-row kernel rounds
    differently to its other kernel in every step. Without `branches` every draft is a chain.
    """
    branches = branches and session.supports_trees
    session.reset(len(batch))
    pacer.begin(len(batch))
    scores = session.prefill([one.prompt for one in batch])
    for row, one in enumerate(batch):
        one.seat = row
        one.begin(scores, row)
    yield
    batch, queue = list(batch), iter(waiting)
    while True:
        while begun := admit(session, batch, queue):
            for row in begun:
                pacer.admit(row)
            yield
        if all(one.finish is not None for one in batch):
            return
        _retire(session, batch)
        asking = pacer.asking
        began, work = perf_counter(), working()
        proposals = [one.propose(branches) if asking else one.root() for one in batch]
        proposing = 1e3 * (working() - work) if asking else None
        past = max(one.length for one in batch)
        room = session.capacity - past
        rows = pacer.choose(proposals, room, past)
        drafters = [one.drafter if one.finish is None else None for one in batch]
        if (bid := pacer.bid(drafters, room)) is not None:
            proposals = [one.propose(branches, bid) for one in batch]
            rows = pacer.bought(proposals, drafters)
        trees = [trim(tree, rows) for _, tree in proposals]
        packed = pack(trees, least)
        asked = working()
        scores = session.score(*packed)
        scored = working()
        paths: list[tuple[int, ...]] = []
        for row, (one, tree) in enumerate(zip(batch, trees, strict=True)):
            path, fresh = one.judge(tree, scores, row)
            pacer.learn(row, fresh)
            paths.append(path)
        session.commit(paths)
        host = working() - scored + asked - work
        pacer.took(1e3 * (perf_counter() - began), 1e3 * host, proposing)
        yield


def admit(session: Session, batch: list[Decoding], queue: Iterator[Decoding]) -> list[int]:
    """Give the places of finished sequences to those that wait; the rows where one has begun."""
    begun: list[int] = []
    for row, one in enumerate(batch):
        fresh = None if one.finish is None else next(queue, None)
        if fresh is not None:
            batch[row], fresh.seat = fresh, row
            fresh.begin(session.admit(row, fresh.prompt), 0)
            begun.append(row)
    return begun


def _retire(session: Session, batch: Sequence[Decoding]) -> None:
    """Roll finished sequences back to one position, so that they bound nobody's room."""
    leaving = [one for one in batch if one.finish is not None and not one.retired]
    if leaving:
        for one in leaving:
            one.retired = True
        session.truncate([one.length for one in batch])
