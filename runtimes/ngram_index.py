"""Where every n-gram of a sequence was last seen."""

from __future__ import annotations

from collections.abc import Sequence


class NgramIndex:
    """One hash table per n-gram size, extended by one entry each per new token; the latest wins."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """`sizes`: largest first."""
        self.tokens: list[int] = []
        self._starts: list[tuple[int, dict[tuple[int, ...], int]]] = [(n, {}) for n in sizes]

    def append(self, token: int) -> None:
        """The sequence goes on."""
        tokens, end = self.tokens, len(self.tokens)
        for size, starts in self._starts:
            if size <= end:
                starts[tuple(tokens[end - size :])] = end
        tokens.append(token)

    def find(self, ahead: Sequence[int] = ()) -> tuple[int, int]:
        """The size of the longest n-gram known that ends the sequence and `ahead`, and where its
        continuation starts; (0, 0) when there is none."""
        longest = self._starts[0][0]
        end = [*self.tokens[-longest:], *ahead][-longest:]
        for size, starts in self._starts:
            if size <= len(end):
                start = starts.get(tuple(end[-size:]))
                if start is not None:
                    return size, start
        return 0, 0
