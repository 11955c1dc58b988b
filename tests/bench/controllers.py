"""Replays recorded answers with every store drafter under the controller of the code it runs with,
on a clock that takes what a table of true costs says.

    PYTHONPATH=TREE python tests/bench/controllers.py answers.jsonl --out FILE.json
        [--recipes a,b] [--batches 1,4,8] [--costs fp32,int8,int4,packed] [--noise 0.05] [--fixed 2]

A recipe with a draft model is `name@AGREEMENT/PRICE/BELIEF`: the share of its tokens that are
right, what a call takes in steps of the target, and what it is believed to take over that. With
`0.33-0.31-0.43` for a share it is a head whose tokens are right so often by depth, which nobody
knows before it is used. A batch of `8g` is of one group, others over 4 are of all of them. With
noise, steps take that share longer on the mean, and their first of a shape FIRST more.
`record_answers.py` makes the answers. With PYTHONPATH another tree's controller is measured;
`--table OLD.json NEW.json` prints both beside each other. Rows off the recorded answer get the
candidates that their token had elsewhere, for the drafters that keep candidates.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graftline.facts import DecoderFacts
from graftline.recipe import recipe, recipes
from graftline.runtimes import scheduler as scheduling
from graftline.runtimes import step_times
from graftline.runtimes.chances.calibration import USUAL
from graftline.runtimes.control.costs import Costs
from graftline.runtimes.decoding import Decoding
from graftline.runtimes.draft_engine import DraftEngine, usual_cost
from graftline.runtimes.draft_seats import TargetSeats
from graftline.runtimes.policy import make_policy
from graftline.runtimes.resources import Resources
from graftline.runtimes.rules.greedy import Greedy
from graftline.runtimes.session import Bools, Ints, Scores, Show

VOCABULARY = 49152
TRUE = {  # FINDINGS.md: milliseconds of a single row, and rows over it; chains, trees
    "fp32": (24.6, {2: 1.15, 3: 1.21, 4: 1.23, 6: 1.30, 8: 1.56, 12: 1.80, 16: 2.27, 24: 2.90,
                    32: 3.61, 64: 6.24},
             {2: 1.27, 3: 1.26, 4: 1.32, 6: 1.39, 8: 1.73, 12: 1.98, 16: 2.42, 24: 2.99,
              32: 3.86, 64: 6.62}),
    "int8": (9.4, {2: 1.14, 3: 1.23, 4: 1.44, 6: 1.54, 8: 2.05, 12: 2.12, 16: 2.44, 24: 3.19,
                   32: 4.14, 64: 6.87},
             {2: 1.24, 3: 1.34, 4: 1.57, 6: 1.68, 8: 2.23, 12: 2.31, 16: 2.66, 24: 3.48,
              32: 4.51, 64: 7.49}),
    "int4": (4.29, {2: 1.11, 3: 1.35, 4: 1.52, 6: 1.95, 8: 2.28, 12: 3.1, 16: 3.96, 24: 5.7,
                    32: 7.4, 64: 14.4},
             {2: 1.30, 3: 1.50, 4: 1.77, 6: 2.2, 8: 2.60, 12: 3.5, 16: 4.4, 24: 6.3,
              32: 8.4, 64: 16.3}),
}  # fmt: skip
LAYERS, ATTENTION = 30, 0.016
"""FINDINGS.md: milliseconds of a layer's attention, of one row over 200 positions."""
PACKED = {1: 14.9, 2: 15.2, 3: 16.8, 4: 18.0, 6: 19.0, 8: 21.9, 12: 26.0, 16: 32.5, 24: 42.0,
          32: 52.0, 64: 90.0}  # fmt: skip
"""Results of 2026-11-27 (forms, batches): milliseconds of all products of so many rows, in fp32."""
READING = {1: (0.8, 2.3), 2: (1.4, 6.3), 4: (1.6, 7.2), 8: (2.2, 9.4), 16: (3.5, 13.0),
           32: (6.5, 25.0)}  # fmt: skip
"""The same: milliseconds of the attention of a sequence with so many rows, over 200 positions and
over each thousand more."""


FIRST = 10.0
"""The same: what a step of a new shape takes besides, on a machine with noise."""


class Clock:
    """Milliseconds that stand still but when an engine works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now / 1e3


class Replay:
    """A session whose sequences are recorded answers, all rows of a step in one call."""

    supports_trees, row_invariant, exact_rows, most_sequences, packs = True, True, 1, 32, False
    same_rows = None
    capacity = largest = 4096

    def __init__(
        self, rows: Sequence[dict[str, Any]], clock: Clock, costs: str, noise: float = 0.0
    ) -> None:
        self.facts = DecoderFacts(VOCABULARY, 8, 1, 1, 1, 8, self.capacity)
        self._clock, self._costs = clock, costs
        self._noise, self._random = noise, np.random.default_rng(0)
        self._shapes: set[tuple[int, ...]] = set()
        self._elsewhere: dict[int, tuple[list[int], list[float]]] = {}
        for row in rows:
            before = [row["prompt"][-1], *row["tokens"]]
            for token, ids, logits in zip(before, row["topk"], row["logits"], strict=False):
                self._elsewhere[token] = (ids, logits)
        self._known = {tuple(row["prompt"]): row for row in rows}
        self._logits = np.broadcast_to(np.float32(0), (1, 1, VOCABULARY))
        self.reset(1)

    @property
    def lengths(self) -> Ints:
        return np.asarray([len(ids) for ids in self._ids], np.int64)

    def reset(self, batch: int) -> None:
        self._ids: list[list[int]] = [[] for _ in range(batch)]
        self._rows: list[dict[str, Any] | None] = [None] * batch
        self._start: list[int] = [0] * batch

    def prefill(self, prompts: Sequence[Ints]) -> Scores:
        for at, prompt in enumerate(prompts):
            self.read(at, prompt)
        return self._scores([[(0, True)] for _ in prompts], range(len(prompts)))

    def seat(self) -> int:
        self._ids.append([])
        self._rows.append(None)
        self._start.append(0)
        return len(self._ids) - 1

    def leave(self, row: int) -> None:
        for kept in (self._ids, self._rows, self._start):
            last = kept.pop()
            if row < len(kept):
                kept[row] = last

    def read(self, row: int, tokens: Ints, show: Show | None = None) -> Scores:
        self._ids[row] += tokens.tolist()
        known = self._known.get(tuple(self._ids[row]))
        self._start[row] = len(self._ids[row])
        self._rows[row] = known
        return self._scores([[(0, True)]], [row])

    def cost(self, counts: Sequence[int], branching: bool) -> float:
        """All weights once for all rows, and the attention of every sequence over its positions,
        which grows with its own rows."""
        pairs = list(zip(counts, self.lengths.tolist(), strict=True))
        if self._costs == "packed":
            products = between(PACKED, sum(counts)) * (1.05 if branching else 1.0)
            at, more = ({n: pair[i] for n, pair in READING.items()} for i in range(2))
            return products + sum(
                between(at, n) + between(more, n) * max(held - 200, 0) / 1e3 for n, held in pairs
            )
        single, chain, tree = TRUE[self._costs]
        one = LAYERS * ATTENTION
        reading = sum(one * (0.7 + 0.3 * n) * (0.5 + 0.5 * held / 200) for n, held in pairs)
        table = {1: 1.0, **(tree if branching else chain)}
        return single * between(table, sum(counts)) + reading - one

    def _hitch(self) -> float:
        """How much longer something takes than it would undisturbed."""
        return 1.0 + self._noise * float(self._random.exponential())

    def score(
        self,
        tokens: Ints,
        depth: Ints | None = None,
        mask: Bools | None = None,
        counts: Sequence[int] | None = None,
    ) -> Scores:
        shape = tuple(counts or [tokens.shape[1]] * len(tokens))
        self._clock.now += self.cost(shape, mask is not None) * self._hitch()
        size = 1 << (len(shape) - 1).bit_length()  # idle places of a graph have a row each
        rows = size, sum(shape) + size - len(shape)
        if self._noise and rows not in self._shapes:
            self._clock.now += FIRST
        self._shapes.add(rows)
        answers: list[list[tuple[int, bool]]] = []
        self._sent = tokens
        for at, ids in enumerate(tokens.tolist()):
            truth = self._rows[at]
            done = len(self._ids[at]) - self._start[at]
            ahead = [] if truth is None else truth["tokens"][done:]
            rows: list[tuple[int, bool]] = []
            right = [False] * len(ids)
            for node in range(counts[at] if counts else len(ids)):
                deep = node if depth is None else int(depth[at, node])
                parent = node - 1
                if mask is not None:
                    seen = np.flatnonzero(mask[at, node][:node])
                    parent = int(seen[-1]) if len(seen) else -1
                fits = deep < len(ahead) and ids[node] == ahead[deep]
                right[node] = fits and (node == 0 or right[parent])
                rows.append((done + deep + 1, right[node]))
            answers.append(rows)
        return self._scores(answers)

    def _scores(
        self, answers: Sequence[Sequence[tuple[int, bool]]], seats: Sequence[int] | None = None
    ) -> Scores:
        width = max(len(rows) for rows in answers)
        ids = np.zeros((len(answers), width, 8), np.int64)
        logits = np.zeros((len(answers), width, 8), np.float32)
        for at, rows in enumerate(answers):
            seat = at if seats is None else seats[at]
            truth = self._rows[seat]
            for node, (place, right) in enumerate(rows):
                if right and truth is not None and place < len(truth["tokens"]):
                    ids[at, node], logits[at, node] = truth["topk"][place], truth["logits"][place]
                elif seats is None:
                    known = self._elsewhere.get(int(self._sent[at, node]))
                    if known is not None:
                        ids[at, node], logits[at, node] = known
        logits[..., 0] += 1e-3
        whole = np.broadcast_to(self._logits, (len(answers), width, VOCABULARY))
        return Scores(ids[..., 0].copy(), whole, ids, logits)

    def commit(self, paths: Sequence[Sequence[int]]) -> None:
        for at, path in enumerate(paths):
            self._ids[at] += [int(self._sent[at, node]) for node in path]

    def truncate(self, lengths: Sequence[int]) -> None:
        for at, length in enumerate(lengths):
            del self._ids[at][length:]


def between(table: dict[int, float], size: int) -> float:
    """Linear between sizes, and beyond them as between the last two."""
    *_, before, last = sizes = sorted(table)
    slope = (table[last] - table[before]) / (last - before)
    return float(np.interp(size, sizes, [table[n] for n in sizes])) + max(size - last, 0) * slope


class RecordedDraft:
    """A session of a draft model over the caches of a replay: right with a chance that grows with
    the target's own certainty, `agreements` by depth on the whole, and as sure of a token as that
    chance, give or take. A call of one row takes `taken` milliseconds."""

    def __init__(
        self, target: Replay, clock: Clock, agreements: Sequence[float], taken: float
    ) -> None:
        self._target, self._clock, self._taken = target, clock, taken
        self._agreements = agreements
        self.facts, self.capacity = target.facts, target.capacity

    @classmethod
    def engine(cls, target: Replay, clock: Clock, shares: str, price: str, belief: str) -> Any:
        """The engine of `SHARES/PRICE/BELIEF`."""
        agreements = [float(share) for share in shares.split("-")]
        taken = float(price) * target.cost([1], False)
        session, known = cls(target, clock, agreements, taken), "-" not in shares
        rows_cost = usual_cost if known else lambda rows: 1.0 + 0.12 * (rows - 1)
        return DraftEngine(
            session, TargetSeats(target), taken * float(belief),
            agreements[0] if known else USUAL, rows_cost,
            own=lambda: cls.engine(target, clock, shares, price, belief),
        )  # fmt: skip

    def follow(self, row: int, length: int, tokens: Sequence[int], asked: int = 1) -> Scores:
        self._clock.now += self._taken * usual_cost(len(tokens))
        ends = range(len(tokens) - asked + 1, len(tokens) + 1)
        return self._scores([[self._row(row, length, tokens[:end]) for end in ends]])

    def follow_rows(self, first: int, starts: Sequence[int], tokens: Sequence[int]) -> Scores:
        more = 0.4 if len(self._agreements) == 1 else 0.12
        self._clock.now += self._taken * (1.0 + more * (len(tokens) - 1))
        rows = [self._row(first + i, starts[i], [token]) for i, token in enumerate(tokens)]
        return self._scores([[one] for one in rows])

    def _scores(self, rows: Sequence[Sequence[tuple[list[int], list[float]]]]) -> Scores:
        ids = np.asarray([[ids for ids, _ in row] for row in rows])
        logits = np.asarray([[logits for _, logits in row] for row in rows], np.float32)
        whole = np.broadcast_to(np.float32(0), (*ids.shape[:2], VOCABULARY))
        return Scores(ids[..., 0].copy(), whole, ids, logits)

    def _row(self, row: int, length: int, tokens: Sequence[int]) -> tuple[list[int], list[float]]:
        """Eight ids and their logits behind the first `length` positions and `tokens`."""
        truth, behind = self._target._rows[row], length - self._target._start[row]
        place, ids, sure = behind + len(tokens), [0] * 8, 0.2
        if truth is not None and place < len(truth["tokens"]):
            random, ids = np.random.default_rng([place, *tokens]), list(truth["topk"][place])
            odds = np.exp(np.asarray(truth["logits"][place]))
            certain = float(odds[0] / odds.sum()) - 0.75
            depth = place - 1 - len(self._target._ids[row]) + self._target._start[row]
            agreement = self._agreements[min(depth, len(self._agreements) - 1)]
            chance = float(np.clip(agreement + 0.5 * certain, 0, 1))
            right = list(tokens) == truth["tokens"][max(behind, 0) : place]
            if not right or random.random() > chance:
                ids = ids[1:] + ids[:1]
            sure = float(np.clip(chance + random.normal(0, 0.15), 0.15, 0.99))
        return ids, [float(np.log(sure)), *[float(np.log((1 - sure) / 7))] * 7]


def stop_clocks(clock: Clock, put: Callable[[object, str, object], None]) -> None:
    """Let all of the runtime look at this clock."""
    for name, module in list(sys.modules.items()):
        if name.startswith("graftline.runtimes"):
            for call in ("perf_counter", "working"):
                if hasattr(module, call):
                    put(module, call, clock)
    put(step_times, "time", type("Time", (), {"perf_counter": staticmethod(clock)}))


def parts(
    rows: Sequence[dict[str, Any]], batch: int, apart: bool
) -> list[list[dict[str, Any]]]:
    """So many questions of one group together, or of all groups."""
    if not apart:
        stride = max(len(rows) // batch, 1)
        return [list(rows[first::stride]) for first in range(stride)]
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    return [
        group[first : first + batch]
        for group in groups.values()
        for first in range(0, len(group), batch)
    ]


def speed(
    rows: Sequence[dict[str, Any]],
    name: str,
    precision: str,
    batch: str,
    noise: float = 0.0,
    fixed: int = 0,
    put: Callable[[object, str, object], None] = setattr,
) -> dict[str, dict[str, float]]:
    """By group: milliseconds of plain decoding and of this recipe, and those that were forecast of
    it for as many tokens. `fixed`: every step has drafts of so many rows, whatever they bring."""
    clock = Clock()
    session = Replay(rows, clock, precision, noise)
    stop_clocks(clock, put)
    costs = Costs.from_json(step_times.measure_costs(session))
    name, *numbers = name.split("@")
    draft = None
    if numbers:
        draft = RecordedDraft.engine(session, clock, *numbers[0].split("/"))
    resources = Resources(None if draft is None else lambda: draft, vocabulary=VOCABULARY)
    policy = make_policy(recipe(name), session, resources, None if fixed else costs)
    policy.control.rows = fixed
    plain = make_policy(recipe("plain"), session, Resources(vocabulary=VOCABULARY), costs)
    found: dict[str, dict[str, float]] = {}
    size = int(batch.removesuffix("g"))
    for part in parts(rows, size, size <= 4 or batch.endswith("g")):
        taken: list[float] = []
        for one in (plain, policy):
            steps = scheduling.Scheduler(session, len(part))
            ones = [
                Decoding(
                    np.asarray(row["prompt"]), len(row["tokens"]), frozenset(),
                    one.drafter.fork(), Greedy(),
                )
                for row in part
            ]  # fmt: skip
            began, before = clock.now, one.lane.marks
            for decoding in ones:
                steps.submit(decoding, one.lane)
            steps.finish(ones)
            while steps.step():  # those that have ended leave
                pass
            for decoding, row in zip(ones, part, strict=True):
                assert decoding.tokens == row["tokens"], "the replay left its answer"
            taken.append(clock.now - began)
            told = dict(zip(before._fields, np.subtract(one.lane.marks, before), strict=True))
        tokens = sum(len(row["tokens"]) - 1 for row in part)
        kinds = {row["group"] for row in part}
        group = kinds.pop() if len(kinds) == 1 else "mixed"
        sums = found.setdefault(group, {"plain": 0.0, "recipe": 0.0, "forecast": 0.0})
        sums["plain"] += taken[0]
        sums["recipe"] += taken[1]
        sums["forecast"] += tokens * float(told["milliseconds"] / (told["tokens"] or 1))
    return found


def table(old: Path, new: Path) -> str:
    """Every group's speed-up under either, and the second over the first."""
    both = [json.loads(path.read_text()) for path in (old, new)]
    lines = ["| recipe | costs | sequences | group | old | new | new / old |", "|---" * 7 + "|"]
    worst = 9.0
    for key in both[0]:
        for group in both[0][key]:
            a, b = (one[key][group]["plain"] / one[key][group]["recipe"] for one in both)
            ratio = both[0][key][group]["recipe"] / both[1][key][group]["recipe"]
            worst = min(worst, ratio)
            name, precision, batch = key.rsplit("/", 2)
            told = f"{ratio:.3f}" if ratio >= 0.97 else f"**{ratio:.3f}**"
            row = f"{name} | {precision} | {batch} | {group} | {a:.2f} | {b:.2f} | {told}"
            lines.append(f"| {row} |")
    return "\n".join([*lines, "", f"Least: {worst:.3f}."])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("answers", type=Path, nargs="?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--recipes", default="")
    parser.add_argument("--batches", default="1,4,8")
    parser.add_argument("--costs", default="fp32,int8,int4")
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--fixed", type=int, default=0)
    parser.add_argument("--table", type=Path, nargs=2)
    given = parser.parse_args()
    if given.table:
        print(table(*given.table))
        return
    rows = [json.loads(line) for line in given.answers.read_text().splitlines()]
    stores = [
        r.name for r in recipes() if not r.needs and r.lossless and r.drafter not in ("none",)
    ]
    names = given.recipes.split(",") if given.recipes else stores
    found: dict[str, Any] = {}
    for name in names:
        for precision in given.costs.split(","):
            for batch in given.batches.split(","):
                found[f"{name}/{precision}/{batch}"] = speed(
                    rows, name, precision, batch, given.noise, given.fixed
                )
                given.out.write_text(json.dumps(found))
                print(name, precision, batch, found[f"{name}/{precision}/{batch}"], flush=True)


if __name__ == "__main__":
    main()
