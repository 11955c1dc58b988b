"""One sequence of a batch: what was asked, what has been chosen, and how it went."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from graftline.runtimes.drafter import Bid, Drafter, Seeing, is_paid, sees
from graftline.runtimes.drafters.none import NoDrafts
from graftline.runtimes.grammar import FORCED, Grammar
from graftline.runtimes.logprobs import Logprobs, read_scored
from graftline.runtimes.marks import Marks
from graftline.runtimes.prefix_cache import PromptEnd
from graftline.runtimes.rules.greedy import Greedy
from graftline.runtimes.schedules.course import Course
from graftline.runtimes.scores import check_numbers
from graftline.runtimes.session import Floats, Ints, Scores, Session, Tap
from graftline.runtimes.shaping import ShapedScores, Shaper
from graftline.runtimes.trees.packing import first_path, text_first, text_of, trim
from graftline.runtimes.trees.soundness import sound
from graftline.runtimes.verdict import Rule, Verdict
from graftline.tree import Tree

FinishReason = Literal["eos", "stop", "length", "cancelled", "timeout"]


@dataclass(eq=False)
class Decoding:
    """The root of every tree is the last chosen token: it is not in the cache yet, so a sequence
    with t chosen tokens has `len(prompt) + t - 1` committed positions."""

    prompt: Ints
    limit: int
    """Most tokens to choose, at least 1."""
    ends: frozenset[int]
    """Ids that end the sequence."""
    drafter: Drafter
    rule: Rule
    watch: Callable[[Tree, Verdict, Scores, int], None] | None = None
    """Is shown every judged tree, its verdict, and the scores that it was judged by."""
    stops: frozenset[int] = frozenset()
    """Those of the ends that the request has named."""
    shaper: Shaper | None = None
    """Shapes the target's logits, where the request asks for it."""
    grammar: Grammar | None = None
    """What the text must be: it guides drafts; `shaper` bars by it."""
    logprobs: Logprobs | None = None
    """Where log-probabilities are noted, if the request asks for any."""
    least: int = 1
    """Fewest rows that a step may score: 2 keeps a backend whose single-row kernel rounds
    differently to its other kernel in every step."""
    exact: bool = False
    """Whether all of its steps are of one kernel family: of `least` rows or more."""
    branches: bool = True
    """Whether its drafts may branch."""
    deadline: float | None = None
    """By time.perf_counter: when to stop, be it ended or not."""
    outfit: Callable[[], tuple[Drafter, Rule]] | None = None
    """Makes drafter and rule when it is seated, in place of those it was made with."""
    outfitted: bool = False
    """Whether it has."""
    digest_with: Callable[[], None] | None = None
    """Is called when tokens were added, within the step."""
    course: Course | None = None
    """What computes its tokens, where that is not always the whole model."""
    vocabulary: int = 0
    """Ids the target knows, as its first scores show."""
    placeholders: int = 0
    """Ids behind those that it reads and never scores."""
    seat: int = 0
    """Its row in the session's batch."""
    read: int = 0
    """Prompt tokens that are committed."""
    shown: int = 0
    """Those of which a drafter has seen the hidden states."""
    any_prefix: bool = False
    """Whether a beginning of any length may be copied from what was read before, because rows do
    not depend on one another; else what has the same bits in every prompt alone."""
    reused: int = 0
    """Prompt tokens that were copied, not read."""
    chunked: int = 0
    """Positions from the first on that have the bits which reading the prompt in chunks gives."""
    prompt_end: PromptEnd | None = None
    """The scores of the prompt's last row, where they are kept for others."""
    together: bool = False
    """True once a step has scored other sequences with it, or rows that are no text."""
    spent: Marks | None = None
    """What its steps were expected to bring and to take, once it has ended."""
    drafts: bool = True
    """False where nothing is ever drafted."""
    cancelled: bool = False
    """Set by whoever no longer wants it."""
    error: BaseException | None = None
    """What ended it, if it was no end of a text."""
    tokens: list[int] = field(default_factory=list[int])
    finish: FinishReason | None = None
    steps: int = 0
    drafted: int = 0
    offered: list[int] = field(default_factory=list[int])
    """For depth 1, 2, ...: steps whose tree was that deep."""
    accepted: list[int] = field(default_factory=list[int])
    """For depth 1, 2, ...: steps that accepted a token there."""
    started: float = 0.0
    first: float = 0.0
    ended: float = 0.0
    """Times by time.perf_counter: start of the request, first token, last token."""

    @property
    def length(self) -> int:
        """Committed positions."""
        return self.read + max(len(self.tokens) - 1, 0)

    @property
    def done(self) -> bool:
        """True when it has ended in one way or another; within a step, perhaps not yet in full."""
        return self.finish is not None or self.error is not None

    @property
    def shared(self) -> int:
        """Positions from the first on whose keys and values are those of the whole model, so that
        they may be kept for other requests."""
        if self.course is None:
            return len(self.prompt) + len(self.tokens)
        return len(self.prompt) if self.course.reads_whole else 0

    def check(self) -> bool:
        """Whether it has ended; one that is no longer wanted, or is out of time, ends here."""
        if not self.done and (self.cancelled or self.deadline is not None):
            late = self.deadline is not None and time.perf_counter() > self.deadline
            if self.cancelled or late:
                self.end("cancelled" if self.cancelled else "timeout")
                self.unhook()
        return self.done

    def end(self, reason: FinishReason) -> None:
        """No more tokens."""
        self.finish, self.ended = reason, time.perf_counter()

    def seated(self, seat: int) -> None:
        """It has a row of the session's now, and needs its drafter."""
        self.seat = seat
        outfit = self.outfit  # another thread may cancel it
        if outfit is not None:
            self.outfitted = True
            self.drafter, self.rule = outfit()

    def release(self) -> None:
        """Let go of what only decoding needs: a drafter may hold caches of its own."""
        self.prompt_end = None
        if self.outfitted:
            self.drafter, self.rule = NoDrafts(), Greedy()
        self.unhook()

    def unhook(self) -> None:
        """Forget who made it, and holds it: else they would be garbage that only a collection
        finds, and with them the engine."""
        self.outfit = self.digest_with = None

    def attempt(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call something that belongs to this sequence alone: what it raises ends no other."""
        try:
            return call(*arguments)
        except Exception as error:
            self.error = error
            return None

    def digest(self) -> None:
        """Tell whoever reads its text of new tokens."""
        reader = self.digest_with  # another thread may cancel it
        if reader is not None and self.error is None:
            self.attempt(reader)
        if self.done:
            self.unhook()

    @property
    def explains_prompt(self) -> bool:
        """Whether every row of its prompt is scored: then nothing of it is read as a chunk, and
        nothing may be left out."""
        return self.logprobs is not None and self.logprobs.prompted is not None

    def read_prompt(self, session: Session, stop: int) -> Scores:
        """Commit its prompt up to `stop`, or to its end; the scores of the last row (B = N = 1)."""
        span, drafter = range(self.read, min(stop, len(self.prompt))), self.drafter
        show = partial(self._shown, drafter) if sees(drafter) else None
        if self.logprobs is not None and self.explains_prompt:
            scores = read_scored(
                session, self.seat, self.prompt, span, self.least, self.logprobs, show
            )
        elif self.course is not None and not self.course.reads_whole:
            scores = self.course.read(self.seat, self.prompt[span.start : span.stop])
        else:
            scores = session.read(self.seat, self.prompt[span.start : span.stop], show)
        self.read = span.stop
        return scores

    def _shown(self, drafter: Seeing, states: Mapping[Tap, Floats]) -> None:
        drafter.see(self.shown, states)
        self.shown += len(next(iter(states.values()), ()))

    def begin(self, scores: Scores, row: int) -> list[int]:
        """Choose the first token from the prompt's last row."""
        check_numbers(scores, row)
        self.read = len(self.prompt)
        self.drafts = self.drafter.rows > 1
        self.vocabulary = scores.logits.shape[-1]
        self.course = None if self.course is None else self.course.begun(scores, row)
        context: list[int] = self.prompt.tolist()
        self.drafter.start(context)
        root = Tree.chain((context[-1],))
        verdict = self.rule.judge(root, self._asked(root, scores), row)
        self.drafter.observe(root, verdict, scores, row)
        fresh = self._take(verdict.tokens(root))
        self._note(scores, row, verdict, fresh)
        self.first = time.perf_counter()
        return fresh

    def root(self) -> tuple[int, Tree]:
        """What is proposed when nothing is drafted."""
        return 0, Tree.chain((self.tokens[-1],))

    def proposal(self, branches: bool) -> tuple[int, Tree]:
        """What is proposed; the root alone where proposing failed, which ends this sequence."""
        return self.attempt(self.propose, branches and self.branches) or self.root()

    def bought(
        self, bid: Bid, outcome: Tree | Exception, branches: bool
    ) -> tuple[int, Tree]:
        """As `proposal`, of what came of a draft for `bid`, which was `affordable`."""
        if isinstance(outcome, Exception):
            self.error = outcome
            return self.root()
        found = self.attempt(self._checked, outcome, bid.rows, branches and self.branches, True)
        return found or self.root()

    def judged(self, tree: Tree, scores: Scores, row: int) -> tuple[tuple[int, ...], list[int]]:
        """As `judge`; what it raises ends this sequence alone."""
        return self.attempt(self.judge, tree, scores, row) or ((), [])

    def propose(self, branches: bool) -> tuple[int, Tree]:
        """The drafter's signal and a tree of it that costs nothing, none of it deeper than chains
        can still be used; a chain unless `branches`; the root alone where no draft could help."""
        budget = self._budget(self.drafter.rows)
        if not budget:
            return self.root()
        return self._checked(self.drafter.propose(budget), budget, branches, False)

    def affordable(self, bid: Bid, branches: bool) -> Bid | None:
        """What of a bid may be spent here, in a step that scores trees if `branches`; None where no
        draft could help."""
        budget, branches = self._budget(bid.rows), branches and self.branches
        if not branches:
            budget = min(budget, self.limit - len(self.tokens))
        if not budget:
            return None
        whole = self.least > 1
        return replace(bid, rows=budget, row=self.seat, branches=branches, whole=whole)

    def _budget(self, rows: int) -> int:
        """Rows that are of use, of so many; 0 where no draft could help."""
        remaining, drafter = self.limit - len(self.tokens), self.drafter
        if self.done or remaining < 2 or drafter.rows < 2:
            return 0
        return min(rows, drafter.rows) if drafter.branching else min(rows, drafter.rows, remaining)

    def _checked(
        self, proposed: Tree, budget: int, branches: bool, paid: bool
    ) -> tuple[int, Tree]:
        """The signal and the tree of what a drafter proposed for that budget."""
        drafter, remaining = self.drafter, self.limit - len(self.tokens)
        tree = sound(proposed, self.tokens[-1], self.vocabulary, budget, paid, self.placeholders)
        signal = drafter.signal
        if self.grammar is not None:
            # a drafter with a model has no class for what is not its own
            rows = 1 if is_paid(drafter) else budget
            tree, forced = self.grammar.guided(tree, self.tokens, rows, drawn=paid)
            signal = FORCED if forced else signal
        if not branches:
            tree = first_path(tree)
        if len(tree) > remaining and tree.is_chain and not paid:
            tree = trim(tree, remaining)  # what lies behind the limit is never read
        return signal, tree

    def cut(self, tree: Tree, rows: int) -> Tree:
        """The first rows of a proposal, as they are scored."""
        cut = trim(tree, rows)
        return text_first(cut, self.vocabulary) if self.placeholders else cut

    def judge(self, tree: Tree, scores: Scores, row: int) -> tuple[tuple[int, ...], list[int]]:
        """The path to commit and the tokens chosen; nothing for a finished sequence. The rule sees
        the text of a tree alone."""
        if self.done:
            return (), []
        check_numbers(scores, row)
        text = text_of(tree, self.vocabulary) if self.placeholders else tree
        self.together = self.together or len(text) < len(tree)
        asked = self._asked(text, scores)
        verdict = self.rule.judge(text, asked, row)
        self.drafter.observe(tree, verdict, scores, row)
        if self.watch is not None:
            self.watch(text, verdict, asked, row)
        fresh = self.take(verdict.tokens(text), text)
        self._note(scores, row, verdict, fresh)
        return verdict.path[: len(fresh)], fresh

    def take(self, chosen: list[int], shape: Tree) -> list[int]:
        """What counts of the tokens that a step on a tree of that shape chose."""
        fresh = self._take(chosen)
        self.steps += 1
        if len(shape) > 1:
            self._count(shape, len(fresh) - 1)
        return fresh

    def _asked(self, tree: Tree, scores: Scores) -> Scores:
        """Scores as a rule is to read them."""
        return scores if self.shaper is None else ShapedScores(scores, tree, self.shaper)

    def _note(self, scores: Scores, row: int, verdict: Verdict, fresh: list[int]) -> None:
        if self.logprobs is not None:
            self.logprobs.choose(scores, row, verdict.path, fresh)

    def _take(self, chosen: list[int]) -> list[int]:
        """Append the tokens up to the first end or the limit."""
        fresh = chosen[: self.limit - len(self.tokens)]
        if self.ends:
            for place, token in enumerate(fresh):
                if token in self.ends:
                    fresh = fresh[: place + 1]
                    self.finish = "stop" if token in self.stops else "eos"
                    break
        self.tokens += fresh
        if self.shaper is not None:
            self.shaper.extend(fresh)
        if self.finish is None and len(self.tokens) == self.limit:
            self.finish = "length"
        if self.finish is not None:
            self.end(self.finish)
        return fresh

    def _count(self, tree: Tree, accepted: int) -> None:
        deepest = int(tree.depth.max()) if not tree.is_chain else len(tree) - 1
        self.drafted += len(tree) - 1
        while len(self.offered) < deepest:
            self.offered.append(0)
            self.accepted.append(0)
        for depth in range(deepest):
            self.offered[depth] += 1
            self.accepted[depth] += depth < accepted
