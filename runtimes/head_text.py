"""What a draft head that reads its target's hidden states reads of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard

from graftline.runtimes.session import Floats


@dataclass(frozen=True)
class HeadText:
    """The tokens [N] of a text but the first, the last chosen one included, and the target's
    features [N, H] of the positions before them."""

    tokens: Sequence[int]
    features: Floats


class TextReader(Protocol):
    """A drafter whose head reads what the target has read."""

    @property
    def head_text(self) -> HeadText:
        """That, behind the first chosen token."""
        ...


def reads_text(drafter: object) -> TypeGuard[TextReader]:
    """True for a drafter whose head reads what the target has read."""
    return hasattr(drafter, "head_text")
