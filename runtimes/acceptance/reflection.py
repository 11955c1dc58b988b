"""How a reflective draft is laid out: known to its drafter, which builds it, and its rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graftline.errors import GraftlineError
from graftline.runtimes.resources import Resources, missing

REFLECTIVE_PROMPT = "\n\nWait, is that right? Checked and written out again:\n\n"


@dataclass(frozen=True)
class Reflection:
    """The chain root, d1 .. dn, r1 .. rm, d1 .. dn: a draft, a prompt r to reflect on it, and the
    draft once more, so that the rows from rm on tell what the target says having read it all.

    A chain cut anywhere is still read: what is left of the prompt is told from the draft.
    """

    prompt: tuple[int, ...]

    @classmethod
    def of(cls, who: str, text: str, resources: Resources) -> Reflection:
        """From the prompt's text. Raises GraftlineError without a tokenizer or for no text."""
        if resources.encode is None:
            raise missing(who, "tokenizer")
        prompt = tuple(resources.encode(text))
        if not prompt:
            raise GraftlineError(f"{who}: prompt={text!r} has no tokens; write what to reflect on")
        return cls(prompt)

    def longest(self, rows: int) -> int:
        """The longest draft whose whole layout fits in `rows`; below 1: none does."""
        return (rows - 1 - len(self.prompt)) // 2

    def chain(self, root: int, draft: Sequence[int]) -> list[int]:
        """The whole layout."""
        return [root, *draft, *self.prompt, *draft]

    def drafted(self, tokens: Sequence[int]) -> int:
        """n of a layout, whole or cut to its first rows."""
        width = len(self.prompt)
        for end in range(2, len(tokens)):
            found = tuple(tokens[end : end + width])
            copy = tokens[end + width :]
            if found == self.prompt[: len(found)] and copy == tokens[1 : 1 + len(copy)]:
                return end - 1
        return len(tokens) - 1
