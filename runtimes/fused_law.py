"""The law of the fused step: on recorded steps it does what the host does, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from graftline.errors import LawBroken
from graftline.runtimes.acceptance.lenient import dense
from graftline.runtimes.fused import Start
from graftline.runtimes.fused_drafts import HostDrafts
from graftline.runtimes.ort.fused import OrtFusedStep
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.rules.point_mass import PointMass
from graftline.runtimes.sampling import Sampling
from graftline.runtimes.session import Floats, Ints, Scores, Tap
from graftline.runtimes.uniforms import Uniforms
from graftline.runtimes.verdict import Rule, Verdict
from graftline.tree import Tree

STEPS = 12
NEAR_TIE = 1e-6
"""How far, as a share of the distribution, a sum in float32 may put the end of a token's share."""
SAMPLINGS = (Sampling(), Sampling(0.8, min_p=0.02))


def fused_is_host(session: OrtSession, fused: OrtFusedStep, host: HostDrafts) -> str:
    """Every recorded step is scored, judged and committed by the host too, from the same state.

    Tokens and committed caches must be equal, and what is drafted next as `host` checks it. Both
    score the same rows, so rounding is no excuse; but the graph sums
    probabilities in float32, so a draw proven to lie on the border of two tokens may fall either
    way. Raises LawBroken, else tells what held.
    """
    random = np.random.default_rng(4)
    prompt = random.integers(0, session.facts.vocabulary, 12, dtype=np.int64)
    fused.reset(host.plan)
    host.begin(fused)
    counts: list[int] = []
    for seed, sampling in enumerate(SAMPLINGS):
        rule = PointMass.of(sampling, np.random.default_rng(seed))
        session.reset(1)
        chosen, states = _first(session, rule, prompt)
        drawn = rule.uniforms.seed if isinstance(rule, PointMass) else 0
        text = host.text(prompt, chosen, states)
        fused.seat(0, Start(chosen, 1, drawn, sampling, text))
        for _ in range(STEPS):
            if session.capacity - session.lengths[0] < len(host.plan):
                break
            counts.append(_step(session, fused, rule, host))
            if counts[-1] == 0:  # from here on the two write different texts
                break
    held = f"{np.count_nonzero(counts)} steps ({sum(counts)} tokens)"
    ties = f", {counts.count(0)} near-ties" if 0 in counts else ""
    return f"{held} are the host's, {host.told} too{ties}"


def _first(session: OrtSession, rule: Rule, prompt: Ints) -> tuple[int, dict[Tap, Floats]]:
    """The first token, and the hidden states [N, H] of the prompt, which is read in one call."""
    states: dict[Tap, Floats] = {}

    def show(shown: Mapping[Tap, Floats]) -> None:
        states.update({tap: rows.copy() for tap, rows in shown.items()})

    scores = session.read(0, prompt, show)
    return rule.judge(Tree.chain(prompt[-1:]), scores, 0).next, states


def _step(session: OrtSession, fused: OrtFusedStep, rule: Rule, host: HostDrafts) -> int:
    """One step both ways; how many tokens it gave, 0 when it fell on a near-tie."""
    nodes, above = (x.copy() for x in fused.tree(0))
    real = np.flatnonzero((above >= 0) | (np.arange(len(above)) == 0))
    place = {int(node): i for i, node in enumerate(real)}
    tree = Tree(nodes[real], np.asarray([-1, *(place[int(p)] for p in above[real[1:]])]))
    depth, mask = np.zeros(len(nodes), np.int64), np.eye(len(nodes), dtype=np.bool_)
    depth[real], mask[np.ix_(real, real)] = tree.depth, tree.mask
    scores = session.score(nodes[None], depth[None], mask[None])
    kept = Scores.of({key: part[:, real] for key, part in scores.parts().items()})
    verdict = rule.judge(tree, kept, 0)
    host.observe(tree, verdict, kept)
    start = int(session.lengths[0])
    rows = _committed(session, start + real[list(verdict.path)])
    got = fused.step(0, session.capacity - start)
    expected = verdict.tokens(tree)
    if expected != got:
        if isinstance(rule, PointMass) and _near_tie(rule, kept, verdict, expected, got):
            return 0
        _same("tokens", expected, got)
    slots = np.arange(start, start + len(got))
    for name, row in _committed(session, slots).items():
        _same(name, rows[name], row)
    host.check(fused, got[-1])
    return len(got)


def _near_tie(
    rule: PointMass, scores: Scores, verdict: Verdict, expected: list[int], got: list[int]
) -> bool:
    """Whether the first other token is one whose share of the distribution ends at the draw."""
    pairs = zip(expected, got, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if place is None:
        return False
    drawn = Uniforms(rule.uniforms.seed, rule.uniforms.ordinal - len(expected) + place).random()
    probs = dense(rule.sampling, scores.logits[0, verdict.path[place]])
    end = float(probs[: got[place] + 1].sum())
    return end - probs[got[place]] - NEAR_TIE <= drawn <= end + NEAR_TIE


def _committed(session: OrtSession, slots: Ints) -> dict[str, Any]:
    return {name: cache[:, :, slots] for name, cache in session.caches(0).items()}


def _same(what: str, expected: Any, got: Any) -> None:
    if not np.array_equal(expected, got):
        told = f"the host has {expected}, the fused step {got}" if what == "tokens" else "differ"
        raise LawBroken("fused", "fused", what, told)
