"""What a drafter that pays for every token asks before it drafts the next one."""

from __future__ import annotations

from typing import Protocol


class Length(Protocol):
    """Decides how long a draft gets. One length serves one sequence.

    It is asked before a token is drawn and sees only the distribution it would be drawn from, so
    the decision depends on tokens already kept and never on the one to come: every token that was
    drawn is offered to the target, and sampled drafts stay exact.
    """

    def fork(self) -> Length:
        """The same policy for another sequence: what was trained is shared, what runs is not."""
        ...

    def go_on(self, depth: int, confidence: float, entropy: float) -> bool:
        """Whether to draft one more token after `depth` drafted ones; depth 0 begins a new draft.

        `confidence` is the largest probability and `entropy` (nats) the entropy of the
        distribution that token would be drawn from.
        """
        ...

    def observe(self, accepted: int, offered: int) -> None:
        """The target accepted `accepted` of the draft's `offered` tokens; called once a draft, and
        not for a draft of no tokens."""
        ...
