"""The law of a draft block in a fused step: it drafts what its own graph says, asked row by row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graftline.evaluate import Array, Feed
from graftline.facts import DraftBlockFacts, read_facts
from graftline.law import Evidence
from graftline.owners import HEAD
from graftline.passes.grafts.block_copy import draft_block, features_of
from graftline.passes.grafts.kv_cache import POISON, carried_caches, empty_caches
from graftline.passes.grafts.tree_mask import causal_mask
from graftline.passes.graph.ports import roles_of
from graftline.passes.laws.compare import Comparison
from graftline.passes.laws.fused import LEAST_ENDS, LENGTHS, TreeStep, drafted_step
from graftline.passes.pipeline.graft import Evaluate, Graft
from graftline.ports import FEATURES, by_role, read_ports, state_port
from graftline.roles import DRAFT_LOGITS

LAW = "drafted-by-block"


def drafted_by_block(
    graft: Graft, before: ir.Model, after: ir.Model, feed: Feed, evaluate: Evaluate
) -> Evidence:
    """After steps whose paths end at several rows: the next chain is what the head's own graph
    drafts, asked about one row after another behind the accepted tokens; its caches hold, up to the
    slot behind them, what that graph has written, and behind a step's rows what they held."""
    block = draft_block(before) or draft_block(after)  # a model that carries a head still does
    assert block is not None
    comparison = Comparison(graft.name(), LAW, "float32")
    made, theirs, read = roles_of(after), roles_of(after, HEAD), features_of(before)
    assert read is not None
    worst, ends, drafts = 0.0, set[int](), 0
    for lengths in LENGTHS:
        step, settings = drafted_step(before, feed, lengths, evaluate)
        answer = evaluate(before, step.fused() | settings)
        host = {role: answer[name] for role, name in roles_of(before).outputs.items()}
        ends |= set(host["path"].max(axis=1).tolist())
        held, template = _filled(block, step), np.arange(-1, _depth(after))
        caches = {f"{HEAD}.{name}": array for name, array in held.items()}
        given = made.feed(**{"template.parents": template})
        got = evaluate(after, step.fused(made) | settings | caches | given)
        said = {role: got[name] for role, name in made.outputs.items()}
        for row, start in enumerate(step.lengths.tolist()):
            count, chain = int(host["count"][row]), said["next.tokens"][row].tolist()
            if chain[0] != (root := int(host["accepted"][row, count - 1])):
                raise comparison.broken("next.tokens", f"begins with {chain[0]}, not {root}")
            asked = _Asked(block, evaluate, {k: v[row : row + 1] for k, v in held.items()})
            features = answer[read.name][row, np.maximum(host["path"][row], 0)]
            asked.read(np.maximum(host["accepted"][row], 0), features, start, count)
            filled = slice(start + len(features))
            for name, array in asked.caches.items():
                new = got[f"{HEAD}.{name}.out"][row : row + 1]
                if np.any(new[:, :, filled.stop :] != POISON):
                    raise comparison.broken(name, "is written behind the step's rows")
                gap = comparison.output(name, new[:, :, filled], array[:, :, filled])
                worst = max(worst, gap)
            best = np.asarray([asked.best(token) for token in chain[1:]])
            logits = got[theirs.outputs[DRAFT_LOGITS]][row]
            worst = max(worst, comparison.output(DRAFT_LOGITS, logits, best[:, 0]))
            worst = max(worst, comparison.output("next.tokens", best[:, 1], best[:, 0]))
            drafts += len(best)
        if np.any(said["next.parents"] != template):
            raise comparison.broken("next.parents", "are not the template's")
    if len(ends) < LEAST_ENDS:
        raise comparison.broken("next.tokens", f"cannot be judged: every path ends at row {ends}")
    rows = ", ".join(map(str, sorted(ends)))
    what = f"{drafts} drafts behind the rows {rows}, and the caches, are the head's, row by row"
    return Evidence(what, worst, comparison.limit)


@dataclass
class _Asked:
    """A head's own graph and the caches of one sequence, asked call by call."""

    block: ir.Model
    evaluate: Evaluate
    caches: Feed
    """By the names of their inputs."""

    def read(self, tokens: Array, features: Array, start: int, count: int) -> None:
        """Read rows [N] with features [N, H] from slot `start` on, of which `count` count."""
        roles, lengths = roles_of(self.block), np.asarray([start])
        places = start + np.arange(len(tokens))[None]
        slots = next(iter(self.caches.values())).shape[2]
        given = roles.feed(
            tokens=tokens[None], positions=places, rows=np.asarray([[count - 1]]),
            write_index=lengths, mask=causal_mask(lengths, len(tokens), slots),
            **{FEATURES: features[None].astype(np.float32)},
        )  # fmt: skip
        answer = self.evaluate(self.block, given | self.caches)
        facts = read_facts(self.block)
        assert isinstance(facts, DraftBlockFacts)
        state = state_port(read_ports(self.block), facts.normed_state).name
        self._logits = answer[roles.outputs["logits"]][0, -1]
        self._state, self._next = answer[state][0, count - 1], start + count
        self.caches = carried_caches(self.block, answer)

    def best(self, drafted: int) -> tuple[float, float]:
        """The largest logit behind the last row that counts, and that of the token which was
        `drafted` there; it is read next, with the head's own state."""
        scores = float(self._logits.max()), float(self._logits[drafted])
        self.read(np.asarray([drafted]), self._state[None], self._next, 1)
        return scores


def _filled(block: ir.Model, step: TreeStep) -> Feed:
    """Caches of the head with something in the committed slots of each sequence."""
    slots = next(iter(step.caches.values())).shape[2]
    random = np.random.default_rng(3)
    caches = empty_caches(block, len(step.tokens), slots)
    for cache in caches.values():
        for row, length in enumerate(step.lengths):
            cache[row, :, :length] = random.standard_normal(cache[row, :, :length].shape)
    return caches


def _depth(after: ir.Model) -> int:
    """How many tokens the step drafts."""
    depth = by_role(read_ports(after), DRAFT_LOGITS)[0].shape[-1]
    assert isinstance(depth, int)
    return depth
