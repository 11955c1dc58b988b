"""What a decoder's bundle answers: greedy tokens, beside its export's and between recipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graftline.bundle.reader import Bundle
from graftline.kinds.kind import Finding
from graftline.nearness import OF_FACTS, limit
from graftline.recipe import FUSED

if TYPE_CHECKING:
    from graftline.bundle.manifest import Manifest
    from graftline.runtimes.engine import Engine

Ints = npt.NDArray[np.int64]
PLAIN = "plain"
NEW_TOKENS = 24
PROMPT = "Explain in two sentences why the sky is blue."


def answers(bundle: Bundle) -> list[Finding]:
    """Greedy tokens: plain decoding against the export, and every way the bundle decodes against
    plain decoding on the same engine."""
    from graftline.runtimes.load import load

    manifest, gone = bundle.manifest, bundle.without_source()
    rows = manifest.exactness
    exact = rows is not None and not rows.row_invariant and rows.min_rows is not None
    engine = load(bundle.path, verify=False, exact=exact, prefix_cache=0, defaults=False)
    findings: list[Finding] = []
    ways = [(manifest.recipe, "host")] if manifest.recipe != PLAIN else []
    if FUSED in manifest.stages:
        ways.append((manifest.recipe, FUSED))

    def generate(prompt: Ints, recipe: str, step: str) -> Any:
        return engine.generate(
            prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True, recipe=recipe, step=step
        )

    for prompt in _prompts(bundle, engine):
        plain = generate(prompt, PLAIN, "host").tokens
        size = f"prompt of {len(prompt)}"
        reference: Greedy | None = None
        if gone:
            what, told = f"greedy tokens, plain, {size}", f"not compared with the export: {gone}"
            findings.append(Finding(what, told, True, "not_run"))
        else:
            reference = Greedy(*reference_tokens(bundle, prompt, NEW_TOKENS), _near_tie(manifest))
            findings.append(_beside_export(size, manifest.dtype, plain, reference))
        for recipe, step in ways:
            found = generate(prompt, recipe, step)
            told = f"{recipe}, fused" if step == FUSED else recipe
            what = f"greedy tokens, {told} beside plain, {size}"
            findings.append(_beside_plain(what, found, plain, reference))
    return findings


@dataclass(frozen=True)
class Greedy:
    """What the export would write: its tokens, and at each how far its two best logits are apart,
    relative to the largest; below `tie` rounding may order them either way."""

    tokens: Sequence[int]
    gaps: Sequence[float]
    tie: float

    def is_tie(self, at: int, tokens: Sequence[int]) -> bool:
        """Whether a text that is the export's before `at` may go on differently there."""
        return list(tokens[:at]) == list(self.tokens[:at]) and self.gaps[at] < self.tie


def _near_tie(manifest: Manifest) -> float:
    """Two logits, each off by as much as the law `whole` allows."""
    return 2 * limit(OF_FACTS.get(manifest.facts.dtype, "fp32"), manifest.decoder)


def _first(tokens: Sequence[int], expected: Sequence[int]) -> int | None:
    """The first place where two texts differ."""
    pairs = zip(tokens, expected, strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), None)


def _beside_export(size: str, dtype: str, tokens: Sequence[int], reference: Greedy) -> Finding:
    what, at = f"greedy tokens, plain, {size}", _first(tokens, reference.tokens)
    if at is None:
        return Finding(what, f"all {len(tokens)} are the export's", True)
    told = f"leave the export's at token {at} of {len(tokens)}"
    told += f", where its two best are {reference.gaps[at]:.2g} of the largest logit apart"
    if dtype != "fp32":
        told = f"measured: {told}; {dtype} weights are not the export's"
        return Finding(what, told, True, "measured")
    tie = reference.is_tie(at, tokens)
    return Finding(what, told + (": a near-tie" if tie else ""), tie)


def _beside_plain(
    what: str, found: Any, plain: Sequence[int], reference: Greedy | None
) -> Finding:
    """A recipe's result against plain decoding on the same engine: where it calls itself lossless,
    its tokens are the same. Only with the export's own can a near-tie be told."""
    at = _first(found.tokens, plain)
    drafted = f"{found.stats.drafted} tokens were drafted"
    if at is None:
        return Finding(what, f"all {len(plain)} are plain's; {drafted}", True)
    told = f"leave plain's at token {at} of {len(plain)}; {drafted}"
    if not found.stats.lossless:
        return Finding(what, f"measured: {told}, and nothing makes it exact", True, "measured")
    if reference is None:
        told += "; without the export nobody can tell whether that is a near-tie"
        return Finding(what, f"measured: {told}", True, "measured")
    tie = reference.is_tie(at, plain)
    return Finding(what, told + (": a near-tie" if tie else ""), tie)


def reference_tokens(bundle: Bundle, prompt: Ints, count: int) -> tuple[list[int], list[float]]:
    """The unmodified export's greedy continuation, and at every token how far its two best logits
    are apart, relative to the largest.

    The export has no cache, so every token costs a pass over all of them: meant for short texts.
    """
    from graftline.runtimes.ort.graph import open_graph, run_export

    session = open_graph(bundle.graph("export"), 0)
    tokens, gaps = list(map(int, prompt)), list[float]()
    for _ in range(count):
        last = run_export(session, np.asarray([tokens], np.int64))[0, -1]
        best = np.argpartition(last, -2)[-2:]
        tokens.append(int(last.argmax()))
        apart, largest = abs(last[best[1]] - last[best[0]]), np.max(np.abs(last))
        gaps.append(float(apart / max(largest, 1e-30)))
    return tokens[len(prompt) :], gaps


def _prompts(bundle: Bundle, engine: Engine) -> list[Ints]:
    """A seeded run of ids with a repeated stretch, so that drafts are made; and a chat prompt."""
    facts = bundle.manifest.decoder
    room = facts.positions or 1024
    stretch = np.random.default_rng(3).integers(0, facts.vocabulary, 8, dtype=np.int64)
    prompts = [np.concatenate([stretch, stretch, stretch[:3]])]
    if engine.tokenizer is not None:
        prompts.append(np.asarray(engine.tokenizer.encode(PROMPT, False), np.int64))
    return [p[: max(1, room - NEW_TOKENS - 1)] for p in prompts]
