"""How prompts get into a session: what was read before is copied, the rest is read in chunks."""

from __future__ import annotations

import numpy as np

from graftline.runtimes.decoding import Decoding
from graftline.runtimes.drafter import sees
from graftline.runtimes.prefix_cache import CHUNK, PrefixCache, PromptEnd
from graftline.runtimes.scores import copied
from graftline.runtimes.session import Scores, Session

PROPER = ("eos", "stop", "length")
"""How a text ends whose keys and values are kept; what was given up is nobody's beginning."""


class PromptReader:
    """Reads the prompts of one session's sequences. `prefixes`: what is known of earlier ones, of
    this session or of its siblings; None: nothing is kept."""

    def __init__(self, session: Session, prefixes: PrefixCache | None) -> None:
        self._session, self.prefixes = session, prefixes

    def recall(self, one: Decoding) -> Scores | None:
        """Copy as much of its prompt as is known into an empty seat; the scores of the prompt's
        last row where that is all of it."""
        if self.prefixes is None or one.explains_prompt or sees(one.drafter) or not one.shared:
            return None
        known = self.prefixes.find(one.prompt, one.any_prefix, self._session.same_rows)
        for kept, count in known.parts:
            self._session.restore(one.seat, kept, count)
        one.read = one.reused = known.length
        one.chunked, one.prompt_end = known.chunked, known.end
        return None if known.end is None else known.end.scores

    def read(self, one: Decoding) -> tuple[int, Scores]:
        """Read the next chunk of its prompt: how many tokens, and the scores of the last one.

        Prompts are cut at multiples of CHUNK, whatever else is going on: where rows of one call
        depend on one another, the same prompt gives the same scores.
        """
        start = one.read
        scores = one.read_prompt(self._session, start - start % CHUNK + CHUNK)
        if one.chunked == start and not one.explains_prompt:
            one.chunked = one.read
        if one.read == len(one.prompt) and self.prefixes is not None:
            scores = copied(scores)  # they outlive this sequence
            one.prompt_end = PromptEnd(one.read, scores, one.chunked == one.read)
            self._keep(one, one.read)
        return one.read - start, scores

    def read_all(self, one: Decoding) -> Scores:
        """Copy and read its whole prompt; the scores of its last row."""
        scores = self.recall(one)
        while one.read < len(one.prompt):
            _, scores = self.read(one)
        assert scores is not None, "a prompt has a token"
        return scores

    def leave(self, one: Decoding) -> None:
        """Keep the prompt and the answer of a sequence that has come to a proper end and is about
        to leave its seat."""
        if one.error is None and one.finish in PROPER:
            self._keep(one, len(one.prompt) + len(one.tokens))

    def _keep(self, one: Decoding, length: int) -> None:
        """Keep its first `length` tokens, as far as they are committed: the last one chosen is not,
        and what is committed behind a stop text is no part of it."""
        length = min(length, one.shared)
        if self.prefixes is None or one.prompt_end is None or not length:
            return
        ids = np.concatenate([one.prompt, np.asarray(one.tokens, np.int64)])
        length = min(length, int(self._session.lengths[one.seat]))
        seat, session = one.seat, self._session
        self.prefixes.keep(
            ids[:length], self._alike(one), one.prompt_end,
            lambda start, stop: session.snapshot(seat, start, stop),
        )  # fmt: skip

    def _alike(self, one: Decoding) -> int:
        """Of its positions, those that have the same bits in every prompt that begins with them:
        whole chunks; where calls of so many rows agree, all that such calls have written."""
        least, rest = self._session.same_rows, one.chunked % CHUNK
        if least is None or 0 < rest < least:
            return one.chunked - rest
        whole = one.exact and one.least >= least and one.chunked == len(one.prompt)
        return len(one.prompt) + len(one.tokens) if whole else one.chunked
