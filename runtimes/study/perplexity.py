"""How well a session predicts a text: exp of the mean negative log-likelihood per token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from graftline.errors import RequestError
from graftline.runtimes.session import Floats, Ints, Session

HELD_OUT = Path(__file__).with_name("heldout.txt")
"""Public-domain English, written down from memory and famous, so likely in training data.

It compares precisions of one model, not models.
"""


def perplexity(session: Session, texts: Sequence[Ints], chunk: int = 32) -> float:
    """Perplexity of token sequences, each from an empty cache, scored `chunk` rows at a time.

    Every token but the first of each text is predicted. Raises RequestError for a text of one token
    or one that does not fit the session.
    """
    total, count = 0.0, 0
    for text in texts:
        if len(text) < 2 or len(text) > session.capacity:
            raise RequestError(
                f"perplexity takes texts of 2 to {session.capacity} tokens, not {len(text)}"
            )
        session.reset(1)
        for start in range(0, len(text) - 1, chunk):
            rows = text[start : min(start + chunk, len(text) - 1)]
            scores = session.score(rows[None])
            total -= likelihood(scores.logits[0], text[start + 1 : start + 1 + len(rows)])
            session.commit([range(len(rows))])
            count += len(rows)
    if count == 0:
        raise RequestError("perplexity needs at least one text")
    return float(np.exp(total / count))


def likelihood(logits: Floats, wanted: Ints) -> float:
    """Sum over rows of log softmax(logits)[wanted]."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    norm = np.log(np.exp(wide).sum(axis=-1))
    return float((wide[np.arange(len(wanted)), wanted] - norm).sum())
