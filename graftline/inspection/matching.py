"""Which nodes of two graphs are the same ones: by what they are and by their surroundings, never by
their names or their order in the file."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Sequence

from graftline.inspection.net import Net, place_of

RADII = (8, 4, 2, 1, 0)
"""Hops of surroundings that must agree, round after round, the widest first; in the last one only
neighbours that are pairs too make a pair of likeness."""


class Matching:
    """Nodes of two graphs in pairs, each of `before` with one of `after`.

    1. Nodes of which everything above and below agrees are pairs, and so are, round after round,
       those whose surroundings of fewer hops agree and are as frequent in both graphs; first where
       they read the same weights.
    2. From each pair matching spreads to what both read and to who reads both.
    3. At last nodes of one operator in the same place of pairs are pairs: they were changed.

    Rounds that agree everywhere leave nothing to the next ones, so that equal graphs take one.
    """

    def __init__(self, before: Net, after: Net) -> None:
        self.before, self.after = before, after
        self.pairs: dict[int, int] = {}
        self.back: dict[int, int] = {}
        self._ids: dict[Hashable, int] = {}
        self._orders = before.order(), after.order()
        labels = self._numbered(before.labels), self._numbered(after.labels)
        exact = self._numbered(before.exact), self._numbered(after.exact)
        self._labels = labels
        for chosen in (exact, labels):
            self._round(self._whole(before, chosen[0], 0), self._whole(after, chosen[1], 1))
        if len(self.pairs) < min(len(before.nodes), len(after.nodes)):
            colours = [[self._around(i, chosen[i]) for i in (0, 1)] for chosen in (exact, labels)]
            for radius in RADII:
                for one, other in colours:
                    self._round(one[radius], other[radius])
        self._drop_lonely()
        self._spread(dict(self.pairs), lambda a, b: labels[0][a] == labels[1][b])
        self._spread(dict(self.pairs), self._same_operator)

    def _numbered(self, forms: Sequence[Hashable]) -> list[int]:
        ids = self._ids
        return [ids.setdefault(form, len(ids)) for form in forms]

    def _whole(self, net: Net, labels: Sequence[int], side: int) -> list[Hashable]:
        """Of each node a number for all that is above it and one for all that is below."""
        ids, order = self._ids, self._orders[side]
        up, down = [0] * len(labels), [0] * len(labels)
        for node in order:
            reads = tuple((s.output, up[s.node]) for s in net.sources[node] if s.kind == "node")
            up[node] = ids.setdefault(("up", labels[node], reads), len(ids))
        ends: dict[int, list[Hashable]] = defaultdict(list)
        for key, source in net.outputs.items():
            ends[source.node].append((source.output, key))
        for node in reversed(order):
            read = tuple(sorted((out, down[by], slot) for out, by, slot in net.readers[node]))
            form = ("down", labels[node], read, tuple(ends.get(node, ())))
            down[node] = ids.setdefault(form, len(ids))
        return list(zip(up, down, strict=True))

    def _around(self, side: int, labels: Sequence[int]) -> list[list[int]]:
        """By hops, of each node a number for what lies within so many."""
        net, ids = (self.before, self.after)[side], self._ids
        reads = [tuple(s.node for s in sources) for sources in net.sources]  # -1: not a node
        rings = [list(labels)]
        for _ in range(max(RADII)):
            now = [*rings[-1], -1]
            rings.append(
                [
                    ids.setdefault(
                        (
                            now[node],
                            tuple([now[by] for by in reads[node]]),
                            tuple(sorted([(out, now[by], slot) for out, by, slot in readers])),
                        ),
                        len(ids),
                    )
                    for node, readers in enumerate(net.readers)
                ]
            )
        return rings

    def _round(self, one: Sequence[Hashable], other: Sequence[Hashable]) -> None:
        """Pair nodes whose colour is as frequent among those left of both graphs."""
        found: dict[Hashable, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for node in self._orders[0]:
            if node not in self.pairs:
                found[one[node]][0].append(node)
        for node in self._orders[1]:
            if node not in self.back:
                found[other[node]][1].append(node)
        fresh: dict[int, int] = {}
        for mine, theirs in found.values():
            if len(mine) == len(theirs):
                fresh |= zip(mine, theirs, strict=True)
        for pair in fresh.items():
            self._add(*pair)
        labels = self._labels
        self._spread(fresh, lambda a, b: labels[0][a] == labels[1][b])

    def _add(self, one: int, other: int) -> None:
        self.pairs[one], self.back[other] = other, one

    def _spread(self, seeds: dict[int, int], alike: Callable[[int, int], bool]) -> None:
        """Pair what both nodes of a pair read, and who reads both, where it is alike."""
        queue = deque(seeds.items())
        while queue:
            one, other = queue.popleft()
            for pair in (*self._producers(one, other), *self._consumers(one, other)):
                if pair[0] not in self.pairs and pair[1] not in self.back and alike(*pair):
                    self._add(*pair)
                    queue.append(pair)

    def _producers(self, one: int, other: int) -> list[tuple[int, int]]:
        reads = zip(self.before.sources[one], self.after.sources[other], strict=False)
        return [
            (a.node, b.node)
            for a, b in reads
            if a.kind == b.kind == "node" and a.output == b.output
        ]

    def _consumers(self, one: int, other: int) -> list[tuple[int, int]]:
        """Readers of the same output by the same input, where there is one of a kind in both."""
        found: dict[Hashable, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        nets, numbers, taken = (self.before, self.after), (one, other), (self.pairs, self.back)
        for side, (net, number) in enumerate(zip(nets, numbers, strict=True)):
            for out, by, slot in net.readers[number]:
                if by not in taken[side]:
                    found[out, slot, net.nodes[by].op_type][side].append(by)
        return [(a[0], b[0]) for a, b in found.values() if len(a) == len(b) == 1]

    def _same_operator(self, one: int, other: int) -> bool:
        a, b = self.before.nodes[one], self.after.nodes[other]
        return (a.domain, a.op_type) == (b.domain, b.op_type)

    def _drop_lonely(self) -> None:
        """Undo pairs that likeness alone made: none of their neighbours are pairs too, and others
        are like them."""
        nets = self.before, self.after
        counts = [Counter(labels) for labels in self._labels]
        lonely = [
            (one, other)
            for one, other in self.pairs.items()
            if any(counts[i][self._labels[i][n]] > 1 for i, n in enumerate((one, other)))
            and _linked(nets[0], one)
            and _linked(nets[1], other)
            and not _anchors(nets[0], one) & _anchors(nets[1], other)
            and not any(self.pairs.get(a) == b for a, b in self._producers(one, other))
            and not self._read_alike(one, other)
        ]
        for one, other in lonely:
            del self.pairs[one], self.back[other]

    def _read_alike(self, one: int, other: int) -> bool:
        theirs = {(out, by, slot) for out, by, slot in self.after.readers[other]}
        mine = self.before.readers[one]
        return any((out, self.pairs.get(by, -1), slot) in theirs for out, by, slot in mine)


def _linked(net: Net, node: int) -> bool:
    """Whether a node has neighbours among the nodes at all."""
    return bool(net.readers[node]) or any(s.kind == "node" for s in net.sources[node])


def _anchors(net: Net, node: int) -> set[Hashable]:
    """The ports and the weights, by where they lie, that a node reads."""
    read = ((s.kind, s.key, place_of(s)) for s in net.sources[node])
    return {one for one in read if one[0] in ("port", "weight")}
