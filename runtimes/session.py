"""What the loop asks of a backend: score rows against its caches, keep an accepted path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from graftline.errors import BackendError, GraftlineError, RequestError
from graftline.facts import DecoderFacts
from graftline.ports import FEATURES, Port

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


class Tap(NamedTuple):
    """Which of a graph's hidden states: the role of its port, and for those of the residual stream
    where it was tapped, as the port says it (`Port.tap`, `Port.layer`)."""

    role: str
    place: str | None = None
    layer: int | None = None

    @classmethod
    def of(cls, port: Port) -> Tap:
        """What a port brings out."""
        return cls(port.role, port.tap, port.layer)


FINAL = Tap("hidden", "postnorm")
"""What the final norm gives."""
MADE = Tap(FEATURES)
"""What the target's step makes of several layers for a draft head."""
NO_STATES = (
    "what is asked for reads hidden states of the target which this graph does not return; rebuild "
    "the bundle with the pass tap{layers=norm} (for an EAGLE-3 head: head-features)"
)
Show = Callable[[Mapping[Tap, Floats]], object]
"""Is shown hidden states, each [N, H], valid during the call."""


@dataclass(frozen=True)
class Scores:
    """The target's answer for N rows of each of B sequences. Arrays are valid until the next call.

    `argmax` [B, N]; `topk_ids` [B, N, k] best first, and `topk_logits`, or None where the graph
    does not reduce them; `top_gap` [B, N]: best minus second-best logit, or None; `logits` [B, N,
    V] float32; `taps`: the hidden states that the graph returns, each [B, N, H] float32.
    """

    argmax: Ints
    logits: Floats
    topk_ids: Ints | None = None
    topk_logits: Floats | None = None
    top_gap: Floats | None = None
    taps: Mapping[Tap, Floats] = field(default_factory=dict[Tap, Floats])

    def tap(self, which: Tap) -> Floats:
        """[B, N, H]. Raises GraftlineError where the graph does not return it."""
        return tapped(self.taps, which)

    def parts(self) -> dict[str | Tap, npt.NDArray[Any]]:
        """All arrays, read: by the name of their field, and the hidden states by their tap."""
        named = {name: getattr(self, name) for name in _NAMED}
        return {**{k: v for k, v in named.items() if v is not None}, **self.taps}

    @classmethod
    def of(cls, parts: Mapping[str | Tap, npt.NDArray[Any]]) -> Scores:
        """From what `parts` gives."""
        named: dict[str, Any] = {k: v for k, v in parts.items() if isinstance(k, str)}
        taps = {k: v for k, v in parts.items() if isinstance(k, Tap)}
        return cls(**named, taps=taps)

    def after(self, row: int, node: int) -> Floats:
        """[V]: logits of what follows a row, as the request has them shaped (`ShapedScores`)."""
        return self.logits[row, node]

    def shaped(self, node: int, logits: Floats) -> Floats:
        """Logits [V] in place of the target's of what follows a row, shaped like those."""
        return logits

    def best(self, row: int, node: int) -> int:
        """The best token after a row, as the request has its logits shaped."""
        return int(self.argmax[row, node])


_NAMED = ("argmax", "logits", "topk_ids", "topk_logits", "top_gap")


def tapped(taps: Mapping[Tap, Floats], which: Tap) -> Floats:
    """One of them. Raises GraftlineError where it is not there."""
    if which not in taps:
        raise GraftlineError(NO_STATES)
    return taps[which]


def of_heads(taps: Mapping[Tap, Floats]) -> Tap:
    """Which of them the bundle's draft head reads: what its target makes for it, if it does."""
    return MADE if MADE in taps else FINAL


def call_starts(count: int, asked: int, most: int) -> list[int]:
    """Where each call begins when `count` rows go in calls of `most` rows, and the last call must
    hold the last `asked` rows, be they more."""
    starts = [0]
    while (left := count - starts[-1]) > max(most, asked):
        starts.append(starts[-1] + min(most, left - asked))
    return starts


def room(session: Session, *ways: str) -> str:
    """The capacity, and what to do where a request needs more: one of `ways`, or a larger capacity
    where the bundle can be opened with one."""
    told = f"the capacity is {session.capacity}"
    if session.capacity < session.largest:
        ways = (*ways, f"load with a larger capacity (at most {session.largest})")
    else:
        told += ", the most that this bundle allows"
    return f"{told}; {', '.join(ways[:-1])}{' or ' if ways[1:] else ''}{ways[-1]}"


def check_fits(session: Session, prompt: int, new: int | None, *shorten: str) -> None:
    """Raises RequestError where so many prompt tokens and new ones (None: any) do not fit;
    `shorten`: what can be done about so long a prompt, if not simply that."""
    new = 1 if new is None else new
    if prompt + new > session.capacity:
        ways = [*(shorten or ["shorten the prompt"]), "lower max_new_tokens"]
        ways = ways if new > 1 else ways[:-1]
        raise RequestError(
            f"{prompt} prompt tokens and {new} new ones need {prompt + new} positions, but "
            f"{room(session, *ways)}"
        )


def check_prompt(session: Session, held: int, tokens: int, *ways: str) -> None:
    """Raises RequestError where so many tokens of a prompt do not fit behind the `held` ones."""
    if tokens == 0:
        raise RequestError("an empty prompt has no last token to continue")
    if held + tokens > session.capacity:
        raise RequestError(f"{held + tokens} tokens do not fit: {room(session, *ways)}")


def rolled_back(lengths: Ints, to: Sequence[int]) -> Ints:
    """The lengths `to`, none of them longer. Raises BackendError otherwise."""
    wanted = np.asarray(to, np.int64)
    if np.any(wanted > lengths) or np.any(wanted < 0):
        raise BackendError(f"cannot roll back from {lengths} to {wanted}")
    return wanted


class Snapshot(Protocol):
    """A copy of the keys and values of some positions of a sequence, where the session keeps its
    caches; it is given back with the last reference to it."""

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        ...


class Session(Protocol):
    """A bundle opened on a backend, with one set of caches for a batch of sequences, which come
    and go between two calls.

    Slots [0, lengths[b]) of row b hold committed positions, where slot equals position. `score`
    writes its N rows to slots lengths[b] .. lengths[b] + N - 1 without committing them; a later
    `score` overwrites them; `commit` keeps some of them, moved together, and advances the length.
    """

    facts: DecoderFacts
    capacity: int
    """Most slots a sequence may use."""
    largest: int
    """The largest capacity that the bundle can be opened with."""
    most_sequences: int | None
    """Most sequences at once; None: as many as memory holds."""
    row_invariant: bool
    """True when a row's result does not depend on how many rows go with it (law row-invariant)."""
    exact_rows: int | None
    """Fewest rows of a step from which on rows are all rounded alike: 1 when row-invariant; None
    when a row's result depends on the rows beside it, so that nothing makes speculation exact."""
    same_rows: int | None
    """Fewest rows of a call from which on keys and values are the same bits however a prompt is cut
    into calls; None where only the same calls give the same bits."""

    @property
    def lengths(self) -> Ints:
        """[B]: committed positions of each sequence."""
        ...

    @property
    def supports_trees(self) -> bool:
        """True when `score` takes a mask that is not causal."""
        ...

    @property
    def packs(self) -> bool:
        """True when chains of several sequences cost one engine call, and trees one for each."""
        ...

    def reset(self, batch: int) -> None:
        """Forget everything and make room for `batch` sequences."""
        ...

    def prefill(self, prompts: Sequence[Ints]) -> Scores:
        """Commit one prompt per sequence, in chunks; the scores of each last row (N = 1)."""
        ...

    def score(
        self,
        tokens: Ints,
        depth: Ints | None = None,
        mask: Bools | None = None,
        counts: Sequence[int] | None = None,
    ) -> Scores:
        """Score N new rows per sequence: tokens [B, N].

        Without `mask` row i follows row i - 1 (a causal chain). With it, `mask` [B, N, N] says
        which rows of this call each row sees (itself included) besides all committed slots, and
        `depth` [B, N] is each row's distance from the first, so its position is lengths[b] + depth.
        `counts` [B]: rows of each sequence from there on are padding, and their scores nothing.
        """
        ...

    def score_slots(self, tokens: Ints, positions: Ints, mask: Bools) -> Scores:
        """Score N new rows per sequence, tokens [B, N], where slots need not hold their position.

        `positions` [B, N] are the rows' own. `mask` [B, N, M] says which slots each row sees,
        itself included: of the committed ones and of this call's, which are lengths[b] ..
        lengths[b] + N - 1; slots from M on are hidden. Raises BackendError where attention goes by
        the distance of slots (windows, ALiBi), and where the bundle scores no trees.
        """
        ...

    def seat(self) -> int:
        """Make room for one more sequence, empty, behind the others; its row."""
        ...

    def leave(self, row: int) -> None:
        """Forget sequence `row`. The last sequence takes its row, so that rows have no gaps."""
        ...

    def read(self, row: int, tokens: Ints, show: Show | None = None) -> Scores:
        """Commit `tokens`, of a prompt, behind what sequence `row` has; the scores of the last one
        (B = 1 and N = 1), as a copy. The other sequences stay as they are. `show` is given the
        hidden states [N, H] that `tap` brings out, of some of the tokens at a time, in order."""
        ...

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        """Keep, per sequence, the rows of the last `score` listed in its path (ascending),
        compacted.

        An empty path keeps nothing. Rows are moved only where the path is not already 0, 1, 2, ...
        """
        ...

    def truncate(self, lengths: Sequence[int]) -> None:
        """Roll back each sequence to a shorter committed length."""
        ...

    def snapshot(self, row: int, start: int, stop: int) -> Snapshot:
        """A copy of what sequence `row` has committed in slots [start, stop)."""
        ...

    def restore(self, row: int, kept: Snapshot, count: int) -> None:
        """Commit the first `count` positions of a snapshot, of this session or of a sibling, behind
        what sequence `row` has: the very tokens that were before them when it was taken."""
        ...
