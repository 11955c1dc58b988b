"""`check`: is a bundle still what it was proven to be? Nothing is believed, all is re-run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from graftline.build.engines import is_engine
from graftline.bundle.reader import Bundle
from graftline.errors import GraftlineError, LawBroken
from graftline.files import of_source
from graftline.law import LawRow, Status, summary
from graftline.nearness import OF_FACTS, limit
from graftline.recipe import FUSED
from graftline.targets import CUDA

if TYPE_CHECKING:
    from graftline.bundle.manifest import Manifest
    from graftline.runtimes.engine import Engine

Ints = npt.NDArray[np.int64]
Watch = Callable[[str], None]
PLAIN = "plain"
NEW_TOKENS = 24
PROMPT = "Explain in two sentences why the sky is blue."


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: what, what was found, and whether it is as it should be."""

    what: str
    found: str
    holds: bool
    status: Status = "held"
    """Of what does not differ: whether a limit held, or there was none, or it was not run."""


@dataclass(frozen=True)
class Report:
    """All findings; `holds` when nothing differs."""

    path: str
    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        """True when nothing differs."""
        return all(f.holds for f in self.findings)


def check(path: str | Path, watch: Watch | None = None) -> Report:
    """Re-hash every file, re-run the laws, and compare greedy tokens: plain decoding's with the
    unmodified export's, the recipe's with plain decoding's on the same engine.

    A damaged bundle ends the check: what cannot be trusted is not run. Of a bundle without its
    source weights, what cannot be compared is `not_run`. Raises BundleError only for a path that is
    no bundle or whose manifest cannot be read.
    """
    say = watch or _silent
    bundle = Bundle.open(path, verify=False)
    say(f"hashing {len(bundle.manifest.files)} files")
    findings = _files(bundle)
    if not all(f.holds for f in findings):
        return Report(str(path), tuple(findings))
    draft, elsewhere = bundle.draft(), _elsewhere(bundle.manifest.target)
    findings += _laws(bundle, elsewhere, say)
    if draft is not None:
        say("the draft engine")
        findings += [replace(f, what=f"draft: {f.what}") for f in _laws(draft, elsewhere, say)]
    if elsewhere:
        return Report(str(path), (*findings, Finding("greedy tokens", elsewhere, True, "not_run")))
    say("comparing greedy tokens")
    findings += _tokens(bundle)
    return Report(str(path), tuple(findings))


def _elsewhere(target: str) -> str:
    """Why the bundle's graph does not run here, "" when it does."""
    from graftline.runtimes.ort.provider import cuda_missing

    if is_engine(target):
        return "not compared: the engine runs on its GPU only"
    missing = cuda_missing() if target == CUDA else ""
    return f"not compared: {missing}" if missing else ""


def _files(bundle: Bundle) -> list[Finding]:
    whole = not bundle.without_source()
    wrong = [Finding("files", line, False) for line in bundle.differences(source=whole)]
    wrong += [Finding("files", f"{rel} is not in the manifest", False) for rel in bundle.unlisted()]
    count = sum(whole or not of_source(rel) for rel in bundle.manifest.files)
    return wrong or [Finding("files", f"{count} files have their sha256", True)]


def _laws(bundle: Bundle, elsewhere: str, say: Watch) -> list[Finding]:
    from graftline.build.recheck import recheck

    if told := bundle.without_source():
        return _without_source(bundle, told, elsewhere, say)
    say("running the laws again")
    try:
        rows = recheck(bundle, say)
    except LawBroken as error:
        return [Finding(f"law {error.law}", str(error), False)]
    except GraftlineError as error:
        return [Finding("laws", str(error), False)]
    found = [Finding(f"law {r.law}", f"{r.graft}: {r.text}", True, r.status) for r in rows]
    return [*found, Finding("laws", summary(rows), True)]


def _without_source(bundle: Bundle, why: str, elsewhere: str, say: Watch) -> list[Finding]:
    """What is left to check: a law that asks the engine alone. The others are as they were."""
    laws = bundle.manifest.laws
    names = ", ".join(dict.fromkeys(row.law for row in laws))
    told = f"not run: {why}; when it was made: {summary(laws)}"
    found = [Finding(f"laws {names}", told, True, "not_run")]
    if elsewhere or not laws:
        return found
    from graftline.runtimes.load import open_session
    from graftline.runtimes.row_invariance import row_invariance

    say("the engine's rows against one another")
    prompt = np.random.default_rng(1).integers(0, bundle.manifest.decoder.vocabulary, 24)
    evidence = row_invariance(open_session(bundle), prompt).evidence
    row = LawRow.of(bundle.manifest.target, "row-invariant", evidence)
    return [*found, Finding(f"law {row.law}", f"{row.graft}: {row.text}", True, row.status)]


def _tokens(bundle: Bundle) -> list[Finding]:
    """Greedy tokens: plain decoding against the export, and every way the bundle decodes against
    plain decoding on the same engine."""
    from graftline.runtimes.load import load

    manifest, gone = bundle.manifest, bundle.without_source()
    invariant = manifest.exactness is not None and manifest.exactness.row_invariant
    exact = not invariant and manifest.extra.get("min_rows") is not None
    engine = load(bundle.path, verify=False, exact=exact)
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


def _silent(line: str) -> None:
    """Watch nothing."""
