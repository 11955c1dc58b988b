"""Texts that a grammar allows: JSON schema, regular expression or Lark grammar, by llguidance.

A grammar bars tokens, as other logits processors do, by the path alone: so whatever is drafted, a
text is what plain decoding under the same grammar gives. Of drafts it cuts what it forbids before
it is scored, and where it leaves one way to go on, it offers that way as a draft.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from graftline.errors import BackendError, RequestError
from graftline.optional import require
from graftline.runtimes.request import Request
from graftline.runtimes.request_checks import GRAMMARS
from graftline.runtimes.sampling import Ints, Logits
from graftline.runtimes.text.tokenizer import Tokenizer
from graftline.runtimes.trees.packing import only
from graftline.tree import Tree

FORCED = -1
"""The signal of a draft that is the one way to go on: no drafter has it."""
SURE = 0.97
"""First belief that one more token of such a draft is the target's: bytes are forced, but another
division of them into tokens may be the target's choice."""
KEPT = 16
"""Grammars that stay compiled."""


def forced_prior(rows: int) -> tuple[float, ...]:
    """As `Drafter.prior`, of drafts of the signal FORCED."""
    return tuple(SURE**row for row in range(rows))


class Grammars:
    """What compiles the grammars of requests, for the tokens of one engine."""

    def __init__(self, tokenizer: Tokenizer | None, vocabulary: int, ends: frozenset[int]) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._ends = sorted(token for token in ends if token < vocabulary)
        self._lock = Lock()
        self._compiled: dict[tuple[str, str], Any] = {}

    def of(self, request: Request, prompt: int) -> tuple[str, Grammar] | None:
        """The grammar of a request, for a text behind `prompt` tokens, under the name of its
        option; None where it has none.

        Raises RequestError for one that cannot be compiled, BackendError without llguidance.
        """
        name = next((name for name in GRAMMARS if getattr(request, name) is not None), None)
        if name is None:
            return None
        with self._lock:
            matcher = self._matcher(name, _text(name, getattr(request, name)))
        return name, Grammar(name, matcher, np.asarray(self._ends), prompt, self._vocabulary)

    def _matcher(self, name: str, text: str) -> Any:
        known = self._compiled.pop((name, text), None)
        if known is None:
            kind = require("llguidance", "grammar").LLMatcher
            source = getattr(kind, _COMPILERS[name])(text)
            known = kind(self._tokens, source, log_level=0)
            if known.is_error():
                raise RequestError(f"{name} cannot be compiled: {_line(known.get_error())}")
            if len(self._compiled) >= KEPT:
                del self._compiled[next(iter(self._compiled))]
        self._compiled[name, text] = known  # the last used is the last to go
        return known.deep_copy()

    @cached_property
    def _tokens(self) -> Any:
        """The tokenizer as llguidance reads it."""
        if self._tokenizer is None:
            raise RequestError("this bundle has no tokenizer, so no grammar can be followed")
        if not self._ends:
            raise RequestError(
                "this model has no end-of-text token, so no text could end where a grammar does; "
                "rebuild it from a checkpoint with an eos_token_id"
            )
        kind, text = require("llguidance", "grammar").LLTokenizer, self._tokenizer.to_json()
        try:
            return kind(text, n_vocab=self._vocabulary, eos_token=self._ends)
        except ValueError as error:
            raise RequestError(
                f"llguidance cannot read this model's tokenizer: {_line(str(error))}"
            ) from error


class Grammar:
    """One sequence's grammar: a logits processor that bars what it forbids, and a guide of drafts.

    Its state follows whatever text it is asked about: it goes back to where that leaves the last
    one, and on from there.
    """

    def __init__(
        self, name: str, matcher: Any, ends: Ints, prompt: int, vocabulary: int
    ) -> None:
        self._name, self._matcher, self._ends = name, matcher, set(ends.tolist())
        self._prompt, self._vocabulary = prompt, vocabulary
        self._text = np.empty(0, np.int64)

    def __call__(self, path: Ints, logits: Logits) -> Logits:
        text = path[self._prompt :]
        if len(text) and int(text[-1]) in self._ends:
            return logits  # a draft that ends the text has stood: what would follow is never read
        self._go(text)
        logits[~self._allowed()] = -np.inf
        return logits

    def guided(
        self, tree: Tree, text: Sequence[int], rows: int, drawn: bool
    ) -> tuple[Tree, bool]:
        """The draft `tree`, whose root is the last of `text`, without what is forbidden; or else a
        longer one of at most `rows` rows, which is the one way to go on, and True.

        What was drawn at random and is forbidden stays, to be refused: its law counts it. With
        `drawn` what lies below it goes, which is right where no more is cut by the tree's size.
        """
        self._go(np.asarray(text, np.int64))
        kept = [0]
        self._walk(tree, 0, kept, drawn)
        guided = only(tree, sorted(kept)) if len(kept) < len(tree) else tree
        forced = self._forced(rows - 1)
        deepest = int(guided.depth[guided.tokens < self._vocabulary].max())
        if forced and not tree.draws and len(forced) > deepest:
            return Tree.chain([int(tree.tokens[0]), *forced]), True
        return guided, False

    def _walk(self, tree: Tree, node: int, kept: list[int], drawn: bool) -> None:
        """Collect the rows below `node` that may be scored; the matcher stands behind it."""
        matcher, random = self._matcher, node in (tree.draws or ())
        for child in tree.children[node]:
            token = tree.token_list[child]
            if token >= self._vocabulary:
                kept += _below(tree, child)  # a placeholder is no text
            elif token in self._ends:
                if matcher.is_accepting():
                    kept.append(child)  # nothing follows an end
                elif random:
                    kept += [child] if drawn else _below(tree, child)
            elif not matcher.is_stopped() and matcher.try_consume_tokens([token]):
                kept.append(child)
                self._walk(tree, child, kept, drawn)
                if not matcher.rollback(1):
                    raise self._lost()
            elif random:
                kept += [child] if drawn else _below(tree, child)

    def _forced(self, most: int) -> list[int]:
        """The tokens that alone can follow, where one can."""
        if most < 1 or self._matcher.is_stopped():
            return []
        return [int(token) for token in self._matcher.compute_ff_tokens()[:most]]

    def _allowed(self) -> npt.NDArray[np.bool_]:
        """[V]: the tokens that may follow the text; those that end it where it is whole."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise RequestError(f"{self._name}: {_line(self._matcher.get_error())}")
        return np.unpackbits(bits, count=self._vocabulary, bitorder="little").view(np.bool_)

    def _go(self, text: Ints) -> None:
        """Bring the matcher to the end of `text`."""
        shorter = min(len(self._text), len(text))
        apart = np.flatnonzero(self._text[:shorter] != text[:shorter])
        common = int(apart[0]) if len(apart) else shorter
        back, ahead = len(self._text) - common, text[common:].tolist()
        if back and not self._matcher.rollback(back):
            raise self._lost()
        if int(self._matcher.try_consume_tokens(ahead)) < len(ahead):
            raise self._lost()
        self._text = text.copy()

    def _lost(self) -> BackendError:
        reason = _line(self._matcher.get_error()) or "no reason given"
        return BackendError(
            f"{self._name}: llguidance refuses a token that it had allowed, or to take one back "
            f"({reason})"
        )


_COMPILERS = {
    "json_schema": "grammar_from_json_schema",
    "regex": "grammar_from_regex",
    "grammar": "grammar_from_lark",
}


def _text(name: str, value: str | Mapping[str, Any]) -> str:
    """A grammar as text. Raises RequestError for a schema that is no JSON."""
    if name != "json_schema":
        return str(value)
    try:
        schema = json.loads(value) if isinstance(value, str) else value
        return json.dumps(schema)
    except (ValueError, TypeError) as error:
        raise RequestError(f"json_schema is not JSON: {error}") from error


def _line(message: str) -> str:
    """A message of several lines in one."""
    return " ".join(message.split())


def _below(tree: Tree, node: int) -> list[int]:
    """A node and all that hang on it."""
    found = [node]
    for one in found:
        found += tree.children[one]
    return found
