"""Requests under way, by their ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import count
from weakref import WeakValueDictionary

from graftline.errors import RequestError
from graftline.runtimes.generation import Generation


class Names:
    """Knows the generations of each request as long as somebody waits for them."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._known: WeakValueDictionary[tuple[str, int], Generation] = WeakValueDictionary()
        """By id and by which of the request's answers."""

    def new(self) -> str:
        """An id for a request that has none."""
        return f"request-{next(self._numbers)}"

    def check(self, name: str | None) -> None:
        """Raises RequestError for the id of a request that has not ended."""
        before = None if name is None else self._known.get((name, 0))
        if before is not None and not before.one.done:
            raise RequestError(f"request_id '{name}' is that of a request under way; use another")

    def add(self, generations: Sequence[Generation]) -> None:
        """Those of a call, none of them begun."""
        places: Counter[str] = Counter()
        for one in generations:
            self._known[one.id, places[one.id]] = one
            places[one.id] += 1

    def cancel(self, name: str) -> bool:
        """End the answers to a request within a step; False where none is under way."""
        found = False
        for place in count():
            one = self._known.get((name, place))
            if one is None:
                break
            if not one.one.done:
                found = True
                one.cancel()
        return found
