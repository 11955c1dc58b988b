"""The laws of the fused step: it says what the host's rule says on the host's own outputs.

The host graph scores seeded trees, from caches empty and partly filled; the operators' numpy
references, composed on what it returns, judge the fused graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Array, Feed
from graftline.law import Evidence
from graftline.owners import TARGET
from graftline.passes.grafts.kv_cache import POISON
from graftline.passes.graph.operators import calls
from graftline.passes.graph.ports import port_of, roles_of
from graftline.passes.laws.compare import TOLERANCE, Comparison
from graftline.passes.pipeline.graft import Evaluate, Graft
from graftline.plugins.candidate_update import CANDIDATE_UPDATE
from graftline.plugins.draft_tree import DRAFT_TREE
from graftline.plugins.kv_commit import KV_COMMIT
from graftline.plugins.tree_verify import TREE_VERIFY
from graftline.plugins.uniforms import UNIFORMS
from graftline.ports import read_ports, slot_ports
from graftline.roles import Roles
from graftline.tree import Tree

LENGTHS = ((2, 0), (1,))
"""Committed positions of the sequences of each step that is tried; N + 2 slots hold them."""
NODES = 24
"""Most nodes of a tree that is tried."""
LEAST_ENDS = 2
"""Rows at which paths must end, where a step drafts behind them: one row for all would not tell
which is read."""
ROUNDS = 3
"""Depth to which drafts are made right, so that paths have up to one node more."""
TIE = 2e-6
"""Largest error of a float32 sum of probabilities: a draw this near a boundary may fall on either
side of it."""


@dataclass
class TreeStep:
    """One step on random trees [B, N], the last nodes of the last of them padding."""

    tokens: Array
    parents: Array
    lengths: Array
    caches: Feed
    names: Roles
    """Of the graph before fuse-verify, or behind it."""

    @classmethod
    def of(cls, model: ir.Model, feed: Feed, lengths: tuple[int, ...]) -> TreeStep:
        """A step of as many rows and slots as the feed's, seeded."""
        random, batch = np.random.default_rng(len(lengths)), len(lengths)
        roles = roles_of(model)
        tokens = feed[roles.inputs["tokens"]][:batch, :NODES].copy()
        rows = tokens.shape[1]
        parents = np.full((batch, rows), -1, np.int64)
        for node in range(1, rows):
            parents[:, node] = random.integers(max(0, node - 3), node, batch)
        parents[-1, max(1, rows - 2) :] = -1
        names = [p.name for p in slot_ports(read_ports(model), "in", TARGET)]
        caches = {name: feed[name][:batch].copy() for name in names}
        for cache in caches.values():
            for row, length in enumerate(lengths):
                cache[row, :, :length] = random.standard_normal(cache[row, :, :length].shape)
        return cls(tokens, parents, np.asarray(lengths, np.int64), caches, roles)

    def fused(self, after: Roles | None = None) -> Feed:
        """Inputs of a graph that makes positions and mask itself, of these names."""
        roles = after or self.names
        given = roles.feed(tokens=self.tokens, parents=self.parents, write_index=self.lengths)
        return given | self.caches

    def host(self) -> Feed:
        """Inputs of the graph before fuse-verify."""
        batch, rows = self.tokens.shape
        slots = next(iter(self.caches.values())).shape[2]
        mask = np.zeros((batch, 1, rows, slots), np.bool_)
        for row, length in enumerate(self.lengths):
            mask[row, 0, :, :length] = True
            mask[row, 0, :, length : length + rows] = self._tree(row).mask
            for node in np.flatnonzero(self.parents[row] < 0)[1:]:
                mask[row, 0, node, length] = False  # padding does not see the root
        positions = self.lengths[:, None] + self.depth()
        every = np.tile(np.arange(rows, dtype=np.int64), (batch, 1))
        given = self.names.feed(
            tokens=self.tokens, write_index=self.lengths, positions=positions, mask=mask, rows=every
        )
        return given | self.caches

    def depth(self) -> Array:
        """[B, N]; 0 at padding."""
        depth = np.stack([self._tree(row).depth for row in range(len(self.tokens))])
        return np.where(self.parents < 0, 0, depth)

    def _tree(self, row: int) -> Tree:
        """A sequence's tree with its padding hung below the root."""
        above = np.maximum(self.parents[row], 0)
        above[0] = -1
        return Tree(self.tokens[row], above)

    def draft(self, choice: Array) -> None:
        """Let three nodes in four carry the token chosen after their parent."""
        for row, node in np.argwhere(self.parents >= 0):
            if node % 4 != 2:
                self.tokens[row, node] = choice[row, self.parents[row, node]]


def fused(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """Accepted tokens, counts, paths and committed caches are those of the host's rule."""
    accepted, worst = 0, 0.0
    made = roles_of(after)
    for lengths in LENGTHS:
        step = TreeStep.of(before, feed, lengths)
        rule = _Choice.of(after, before, step)
        for _ in range(ROUNDS):
            step.draft(rule.tokens(evaluate(before, step.host()), step))
        host = evaluate(before, step.host())
        got = evaluate(after, step.fused(made) | rule.fed)
        choice = rule.settled(rule.tokens(host, step), host, _taken(got, made), step)
        path, tokens, count, _ = TREE_VERIFY.reference(choice, step.tokens, step.parents)
        said = {"path": path, "accepted": tokens, "count": count}
        said |= {f"next.{k}": v + count for k, v in rule.counters(step).items()}
        expected = {made.outputs[role]: array for role, array in said.items()}
        for written, committed in commits(before, after):
            moved = KV_COMMIT.reference(host[written], path, count, step.lengths)[0]
            expected |= {written: host[written], committed: moved}
        logits = step.names.outputs["logits"]
        gap = _compare(graft, "fused", {**expected, logits: host[logits]}, got)
        worst = max(worst, gap)
        accepted += int(count.sum()) - len(count)
    what = f"trees of {len(LENGTHS)} steps are judged as the host would ({accepted} drafts stand)"
    return Evidence(what, worst, TOLERANCE["float32"])


def commits(before: ir.Model, after: ir.Model) -> list[tuple[str, str]]:
    """Names of outputs: what a step writes to each cache, and the same with its path committed."""
    sides = (slot_ports(read_ports(model), "out", TARGET) for model in (before, after))
    written, every = ([(p.mirror, p.name) for p in side] for side in sides)
    committed = dict(pair for pair in every if pair not in written)
    return [(name, committed[mirror]) for mirror, name in written]


def drafted(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """The table after a step, and the tree drafted from it, are those of the host's references."""
    roles, made = roles_of(before), roles_of(after)
    table_port = port_of(after, "table")
    assert table_port is not None
    vocabulary, width = map(int, table_port.shape)
    levels = calls(after.graph, DRAFT_TREE)[0].attributes["levels"].as_int()
    for lengths in LENGTHS:
        step, settings = drafted_step(before, feed, lengths, evaluate)
        answer = evaluate(before, step.fused() | settings)
        host = {role: answer[name] for role, name in roles.outputs.items()}
        random = np.random.default_rng(0)
        table = random.integers(-1, vocabulary, (vocabulary, width)).astype(np.int32)
        parents = np.asarray([-1, 0, 0, 1, 3][: 3 if levels == 1 else None], np.int64)
        ranks = np.minimum(np.asarray([0, 0, 1, 0, 0])[: len(parents)], width - 1)
        topk = host["topk_ids"][..., :width].astype(np.int32)
        seen = (table, step.tokens, step.parents, topk, host["path"])
        updated = CANDIDATE_UPDATE.reference(*seen)[0]
        root = np.take_along_axis(host["accepted"], host["count"][:, None] - 1, 1)[:, 0]
        tokens, kept = DRAFT_TREE.reference(updated, root, parents, ranks, levels=levels)
        given = {"table": table, "template.parents": parents, "template.ranks": ranks}
        got = evaluate(after, step.fused(made) | settings | made.feed(**given))
        said = {"table.out": updated, "next.tokens": tokens, "next.parents": kept}
        expected = {made.outputs[role]: array for role, array in said.items()}
        _compare(graft, "drafted", expected, got)
    return Evidence(f"table and next tree are the host's after {len(LENGTHS)} steps")


def drafted_step(
    model: ir.Model, feed: Feed, lengths: tuple[int, ...], evaluate: Evaluate
) -> tuple[TreeStep, Feed]:
    """A step of a graph that verifies, some of whose drafts stand; and what one that samples is
    fed besides."""
    step = TreeStep.of(model, feed, lengths)
    settings, argmax = settings_of(model, step), step.names.outputs["argmax"]
    for _ in range(ROUNDS):
        step.draft(evaluate(model, step.fused() | settings)[argmax])
    return step, settings


def settings_of(model: ir.Model, step: TreeStep) -> Feed:
    """Inputs of a graph that samples: the first sequence of a step warm. None where it does not."""
    return _Choice.of(model, model, step).fed


@dataclass
class _Choice:
    """Which token the host chooses after a node: the argmax, or a draw where it is warm."""

    settings: Feed
    """By role."""
    fed: Feed
    """The same as the graph that samples takes them."""
    host: Roles

    @classmethod
    def of(cls, model: ir.Model, host: ir.Model, step: TreeStep) -> _Choice:
        """For a graph that samples: the first sequence at temperature 0.8, any other greedy. `host`
        is the graph whose outputs it is chosen from."""
        roles = roles_of(host)
        if port_of(model, "temperature") is None:
            return cls({}, {}, roles)
        batch = len(step.tokens)
        cold = np.zeros(batch, np.float32)
        temperature, min_p = cold.copy(), cold.copy()
        temperature[0], min_p[0] = 0.8, 0.02
        seed, ordinal = np.arange(7, 7 + batch), np.arange(3, 3 + batch)
        given = {"temperature": temperature, "min_p": min_p, "seed": seed, "ordinal": ordinal}
        return cls(given, roles_of(model).feed(**given), roles)

    def counters(self, step: TreeStep) -> Feed:
        """What goes on by the number of accepted tokens."""
        ordinal = {"ordinal": self.settings["ordinal"]} if self.settings else {}
        return {"write_index": step.lengths, **ordinal}

    def tokens(self, host: Feed, step: TreeStep) -> Array:
        """[B, N]: what the host chooses after every node."""
        choice = host[self.host.outputs["argmax"]].copy()
        for row, node in self._warm(step):
            sums = self._sums(host, row, node)
            choice[row, node] = np.searchsorted(sums, self._uniform(step, row, node), "right")
        return choice

    def settled(
        self, choice: Array, host: Feed, taken: list[tuple[int, int, int]], step: TreeStep
    ) -> Array:
        """The same, but the fused graph's token where the draw is proven to lie on a boundary."""
        took = {(b, int(n)): int(t) for b, n, t in taken}
        for row, node in self._warm(step):
            token = took.get((row, node), int(choice[row, node]))
            sums, u = self._sums(host, row, node), self._uniform(step, row, node)
            low = float(sums[token - 1]) if token else 0.0
            if low < sums[token] and low - TIE <= u <= sums[token] + TIE:
                choice[row, node] = token
        return choice

    def _warm(self, step: TreeStep) -> list[tuple[int, int]]:
        if not self.settings:
            return []
        rows = np.flatnonzero(self.settings["temperature"] > 0)
        return [(int(row), node) for row in rows for node in range(step.tokens.shape[1])]

    def _sums(self, host: Feed, row: int, node: int) -> Array:
        """[V] float64: the distribution function of the next token, at each token."""
        logits = host[self.host.outputs["logits"]][row, node].astype(np.float64)
        weights = np.exp((logits - logits.max()) / self.settings["temperature"][row])
        weights[weights < self.settings["min_p"][row]] = 0.0
        return np.cumsum(weights) / weights.sum()

    def _uniform(self, step: TreeStep, row: int, node: int) -> float:
        turn = self.settings["ordinal"][row] + step.depth()[row, node]
        number = UNIFORMS.reference(self.settings["seed"][row : row + 1], np.array([turn]), rows=1)
        return float(number[0][0, 0, 0])


def _taken(got: Feed, roles: Roles) -> list[tuple[int, int, int]]:
    """(sequence, node, token chosen after it) along the paths that a graph says stand."""
    paths, accepted = (got[roles.outputs[role]] for role in ("path", "accepted"))
    return [
        (row, int(node), int(token))
        for row in range(len(paths))
        for node, token in zip(paths[row], accepted[row], strict=True)
        if node >= 0
    ]


def _compare(graft: Graft, law: str, expected: Feed, got: Feed) -> float:
    """The largest relative difference; slots that hold poison must hold it still."""
    comparison, worst = Comparison(graft.name(), law), 0.0
    for name, array in expected.items():
        found = got[name]
        if found.shape != array.shape or found.dtype != array.dtype:
            raise comparison.broken(name, f"{found.shape} {found.dtype}")
        unwritten = array == POISON
        if np.any(found[unwritten] != POISON):
            raise comparison.broken(name, "slots that were not written have changed")
        new, old = (np.where(unwritten, 0, side) for side in (found, array))
        worst = max(worst, comparison.output(name, new, old))
    return worst
