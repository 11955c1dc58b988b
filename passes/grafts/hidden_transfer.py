"""hidden-transfer: states of the tokens to come enter a host at a middle block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Array, Feed
from graftline.facts import decoder_facts, write_facts
from graftline.law import Evidence
from graftline.passes.anchors.anchors import block_outputs
from graftline.passes.grafts.adapter_cache import count_weights, stream_of
from graftline.passes.grafts.kv_cache import carried_caches, empty_caches
from graftline.passes.grafts.placeholders import check_ids, following, same_bits, stand_ins
from graftline.passes.grafts.transfers import FLOAT, PSEUDO, STREAM, Transfers
from graftline.passes.grafts.tree_mask import Grove, causal_mask
from graftline.passes.graph.cut import elements
from graftline.passes.graph.emit import Emit, new_input
from graftline.passes.graph.ports import input_of, roles_of
from graftline.passes.graph.text import write
from graftline.passes.laws.compare import Comparison, activation_dtype, written_slots
from graftline.passes.pipeline.graft import Evaluate, Graft, Law
from graftline.ports import read_ports
from graftline.tree import Tree

BLOCK_NAME = "transfer"
"""The block that its nodes are stamped with: none of the host's."""
LAW = "pseudo-states"
_GIVEN = "graftline.given"
_ROWS = """
    index = Range (zero, Squeeze (Shape <start = 1, end = 2> (tokens), axis_0), one)
    place = Sub (tokens, vocabulary)
    none = Constant <value_int = -1> ()
    text = Unsqueeze (Where (stands, none, positions), axis_1)
    wanted = Unsqueeze (Sub (Sub (positions, place), one), axis_2)
    behind = Equal (text, wanted)
"""
"""behind [B, N, N]: whether column j is text, at the position behind which row i stands."""
_SEEN_IN_TREE = """
    slots = Unsqueeze (Add (Unsqueeze (write_index, axis_1), index), axis_2)
    by_slot = Transpose <perm = [0, 2, 1]> (Squeeze (mask, axis_1))
    seen = Transpose <perm = [0, 2, 1]> (GatherND <batch_dims = 1> (by_slot, slots))
"""
"""seen [B, N, N]: whether row i may see the slot that row j is written to."""
_SEEN_IN_CHAIN = "seen = LessOrEqual (index, Unsqueeze (index, axis_1))"
_STATES = """
    origin = ReduceMax <keepdims = 0> (Where (And (behind, seen), index, zero), axis_2)
    states = GatherND <batch_dims = 1> (stream, Unsqueeze (origin, axis_2))
"""
"""states [B, N, H]: those of the rows behind which placeholders stand; of other rows nothing."""
_ENTERED = """
    here = Unsqueeze (Equal (place, number), axis_2)
    entered = Where (here, pseudo, stream)
"""


def pseudo_states(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """Under ids of the vocabulary, its last among them, every output is the host's to the bit. In
    trees with placeholders, after pasts of different lengths, it is what the host gives where the
    states of these rows are what the matrices alone make of those of the rows that they stand
    behind."""
    roles, vocabulary = roles_of(after), decoder_facts(before).vocabulary
    tokens = feed[roles.inputs["tokens"]].copy()
    tokens[:, -1] = vocabulary - 1
    fed = {**feed, **roles.feed(tokens=tokens)}
    now, was = evaluate(after, fed), evaluate(before, fed)
    same_bits(graft, LAW, now, was, "under ids of the vocabulary")
    transfers = Transfers.of(after, graft.name())
    blocks = max(1, min(transfers.note.blocks, len(block_outputs(before.graph)) - 1))
    step = _grove(after, feed, transfers.note.count)
    fed = _after_past(before, step, feed, evaluate)
    known = np.where(fed[roles.inputs["tokens"]] < vocabulary, fed[roles.inputs["tokens"]], 0)
    plain = {**fed, **roles.feed(tokens=known)}
    stream = stream_of(before, blocks, plain, evaluate)
    pseudo = evaluate(transfers.model, {STREAM: stream})
    for row, tree in enumerate(step.trees):
        for node in np.flatnonzero(tree.tokens >= vocabulary):
            number = int(tree.tokens[node]) - vocabulary
            origin = tree.path_to(int(node))[-number - 2]
            stream[row, node] = pseudo[PSEUDO.format(number)][row, origin]
    expected = _entered_by(before, blocks, plain, stream, evaluate)
    got, ports = evaluate(after, fed), read_ports(before)
    got, expected = (written_slots(side, ports, fed) for side in (got, expected))
    comparison = Comparison(graft.name(), LAW, activation_dtype(after))
    worst = comparison.outputs(got, expected, ports)
    count = sum(int((tree.tokens >= vocabulary).sum()) for tree in step.trees)
    what = f"{count} rows enter block {blocks} with the states that {transfers.note.count} matrices"
    return Evidence(f"{what} make of those behind which they stand", worst, comparison.limit)


@dataclass(frozen=True)
class HiddenTransfer(Graft):
    """Lets the ids from V on of a vocabulary of V stand for tokens to come (Hidden Transfer, arXiv
    2404.12022): behind a text, or a node of a drafted tree, a chain of them. What such a row is in
    the first blocks nobody reads. Behind them it gets a trained linear map of the state of the row
    that its chain stands behind, and runs through the rest of the host, where it sees what that row
    sees and the chain before it: its logits foretell the token further ahead, in the same pass.

    After tree-mask, where there is one: by the mask it knows which row a chain stands behind.
    Logits keep V entries, so that no rule can choose one. Adds no input.

    `blocks`: of matrices for more than a host's first so many blocks, behind the last but one; 0:
    where the matrices say.
    """

    laws: ClassVar[tuple[Law, ...]] = (pseudo_states,)

    blocks: int = 0

    def behind(self, model: ir.Model) -> int:
        """The blocks of that host before those that the states enter. Raises NotApplicable."""
        blocks = Transfers.of(model, self.name()).note.blocks
        count = len(block_outputs(model.graph))
        if self.blocks:
            return max(1, min(blocks, self.blocks - 1))
        if not 1 <= blocks < count:
            raise NotApplicable(
                f"hidden-transfer: states that enter behind {blocks} blocks, and this host has "
                f"{count}: they are another model's"
            )
        return blocks

    def requires(self, model: ir.Model) -> None:
        width, hidden = Transfers.of(model, self.name()).width, decoder_facts(model).hidden
        check_ids(self.name(), model)
        if not block_outputs(model.graph):
            raise NotApplicable("hidden-transfer needs stamped blocks; run anchors first")
        if width != hidden:
            raise NotApplicable(
                f"hidden-transfer: the matrices read {width} numbers, and the host's hidden states "
                f"have {hidden}: they are another model's"
            )
        if input_of(model, "write_index") is None:
            raise NotApplicable("hidden-transfer needs a cache; put kv-cache before it")
        self.behind(model)

    def apply(self, model: ir.Model) -> None:
        graph, facts, size = model.graph, decoder_facts(model), elements(model)
        transfers = Transfers.of(model, self.name())
        given = stand_ins(Emit(graph, self.name(), at=check_ids(self.name(), model)), model)
        stream = block_outputs(graph)[self.behind(model) - 1]
        maker, users = stream.producer(), list(stream.uses())
        assert maker is not None, "a block gives it"
        emit = Emit(graph, self.name(), at=following(graph, maker), block=BLOCK_NAME)
        read = {role: input_of(model, role) for role in ("positions", "write_index", "mask")}
        given |= {role: value for role, value in read.items() if value is not None}
        place, states = self._states(emit, {**given, "stream": stream})
        low = stream.dtype not in (None, FLOAT)
        x, entered = emit.op("Cast", [states], to=FLOAT) if low else states, stream
        for number in range(transfers.note.count):
            pseudo = transfers.add(emit, number, x)
            pseudo = emit.op("Cast", [pseudo], to=stream.dtype) if low else pseudo
            known = emit.const(f"transfer.{number}", number, np.int64)
            here = {"place": place, "number": known, "pseudo": pseudo, "stream": entered}
            (entered,) = write(emit, _ENTERED, here, ["entered"])
        entered.shape, entered.type = stream.shape, stream.type
        for user, index in users:
            user.replace_input_with(index, entered)
        write_facts(model, replace(facts, placeholders=transfers.note.count))
        transfers.note.write(model)
        count_weights(model, size)

    def _states(self, emit: Emit, given: dict[str, ir.Value]) -> tuple[ir.Value, ir.Value]:
        """Of every row its placeholder [B, N], from 0 on, and the state [B, N, H] of the row that
        it stands behind."""
        names = ["index", "place", "behind"]
        rows = {k: given[k] for k in ("tokens", "vocabulary", "zero", "stands", "positions")}
        index, place, behind = write(emit, _ROWS, rows, names)
        tree = "mask" in given
        sees = {k: given[k] for k in ("mask", "write_index")} if tree else {}
        (seen,) = write(emit, _SEEN_IN_TREE if tree else _SEEN_IN_CHAIN, {**sees, "index": index},
                        ["seen"])  # fmt: skip
        found = {"index": index, "behind": behind, "seen": seen}
        found |= {k: given[k] for k in ("zero", "stream")}
        return place, write(emit, _STATES, found, ["states"])[0]

    def apart(self, before: ir.Model) -> Mapping[int, bool]:
        return {self.behind(before): True}

    def within(self, blocks: int) -> HiddenTransfer:
        return replace(self, blocks=blocks)


TEXT = ((-1, 0, 0, 1, 2), (-1, 0, 1, 1, 0))
"""Parents of small trees of text, in turn, with several nodes of one depth."""
BEHIND = ((4, 1), (2, 3))
"""The nodes of each behind which chains of placeholders stand."""


def _grove(model: ir.Model, feed: Feed, count: int) -> Grove:
    """Tokens of a feed as trees with chains of `count` placeholders behind some of their nodes, the
    text first; as chains that end with one where the graph takes no trees."""
    roles, vocabulary = roles_of(model), decoder_facts(model).vocabulary
    tokens, made = feed[roles.inputs["tokens"]], list[Tree]()
    chains = "mask" not in roles.inputs
    nodes = len(TEXT[0]) + count * (1 if chains else len(BEHIND[0]))
    past = max(1, tokens.shape[1] - nodes)
    for row in range(len(tokens)):
        parents = list(range(-1, len(TEXT[0]) - 1)) if chains else list(TEXT[row % len(TEXT)])
        ids: list[int] = np.resize(tokens[row, past:], len(parents)).tolist()
        for end in (len(parents) - 1,) if chains else BEHIND[row % len(TEXT)]:
            parents += [end, *range(len(parents), len(parents) + count - 1)]
            ids += range(vocabulary, vocabulary + count)
        made.append(Tree(np.asarray(ids, np.int64), np.asarray(parents, np.int64)))
    lengths = np.asarray([max(1, past - 2 * (n % 2)) for n in range(len(tokens))])
    return Grove(tuple(made), lengths, past, roles)


def _after_past(host: ir.Model, step: Grove, feed: Feed, evaluate: Evaluate) -> Feed:
    """A feed of the trees, asking for all of their rows, after pasts that `host` has read."""
    roles, batch = step.roles, len(step.trees)
    tokens = np.stack([tree.tokens for tree in step.trees])
    slots = step.longest + tokens.shape[1]
    past = step.past(feed) | empty_caches(host, batch, slots)
    mask = causal_mask(np.zeros(batch, np.int64), step.longest, slots)
    past |= roles.feed(mask=mask, rows=_every(batch, step.longest))
    caches = carried_caches(host, evaluate(host, past))
    rows = roles.feed(tokens=tokens, rows=_every(*tokens.shape))
    return step.rows(feed) | caches | step.ports(slots) | rows


def _every(batch: int, rows: int) -> Array:
    return np.tile(np.arange(rows, dtype=np.int64), (batch, 1))


def _entered_by(
    host: ir.Model, blocks: int, feed: Feed, stream: Array, evaluate: Evaluate
) -> Feed:
    """What a host gives where `stream` [B, N, H] enters block `blocks`."""
    upper = host.clone()
    source = block_outputs(upper.graph)[blocks - 1]
    dtype = source.dtype or FLOAT
    given = new_input(upper.graph, _GIVEN, dtype, ["B", "N", stream.shape[-1]])
    source.replace_all_uses_with(given)
    return evaluate(upper, {**feed, _GIVEN: stream.astype(dtype.numpy())})
