"""One seed: a host, a random pipeline, and the comparison with ONNX Runtime on the host's file."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import graftline
from graftline.errors import GraftlineError
from tests.generated.builder import Array
from tests.generated.decoder import generate
from tests.generated.draw import Draw, draw
from tests.generated.reference import GeneratorDefect, Reference, prompts
from tests.generated.settings import Settings

NEW_TOKENS = 20
CAPACITY = 160
RECIPES = ("prompt-lookup", "suffix", "token-recycling", "lookahead", "jacobi", "plain")


@dataclass(frozen=True)
class Choice:
    """What graftline is asked for."""

    recipe: str = "prompt-lookup"
    passes: str | None = None
    dtype: str = "fp32"
    step: str = "host"

    @classmethod
    def draw(cls, seed: int) -> Choice:
        """The choice of a seed."""
        d = Draw(seed + 1_000_000)
        recipe = d.of(RECIPES)
        tree = "" if recipe == "plain" else "tree-mask | "
        passes = d.of(
            (None, f"kv-cache | {tree}select-rows", f"kv-cache | {tree}tap | select-rows",
             f"kv-cache | {tree}reduce-logits{{topk=4}}",
             f"kv-cache | {tree}tap | select-rows | reduce-logits{{topk=3}}"),
            (5, 1, 1, 0.3, 1),
        )  # fmt: skip
        dtype = d.of(("fp32", "int8", "int4"), (12, 1, 1))
        if recipe == "token-recycling" and dtype == "fp32" and d.chance(0.4):
            return cls(recipe, None, dtype, "fused")
        if recipe == "token-recycling":
            passes = None  # it reads as many alternatives as it draws
        return cls(recipe, passes, dtype, "host")

    @property
    def features(self) -> list[str]:
        """What is not the default."""
        rows = [f"recipe={self.recipe}", f"passes={self.passes}", f"dtype={self.dtype}"]
        return [r for r in [*rows, f"step={self.step}"] if not r.endswith(("=None", "=host"))]


@dataclass
class Outcome:
    """`kind`: equal, refused, silent or crash; `line` says why."""

    kind: str
    line: str
    settings: Settings
    choice: Choice
    near_ties: list[float] = field(default_factory=list)
    """Gaps of tokens that differ because the two best logits are closer than rounding."""


def of_seed(seed: int, folder: Path) -> Outcome:
    """The outcome of a seed. Raises GeneratorDefect where the generator is at fault."""
    s, choice = draw(seed), Choice.draw(seed)
    if choice.dtype != "fp32":
        s = in_blocks(s)
    return of(s, choice, folder, seed)


def in_blocks(s: Settings) -> Settings:
    """The same host with every matrix a multiple of 32 rows, which a quantizer's blocks need."""
    heads = s.heads * s.head_size
    return replace(s, hidden=32, inner=64, head_size=s.head_size if heads % 32 == 0 else 32)


def of(s: Settings, choice: Choice, folder: Path, seed: int = 0) -> Outcome:
    """The outcome of one host under one choice."""
    reference = Reference.write(generate(s), folder / "host.onnx")
    for ids in prompts(s, seed):
        reference.logits(ids[None])  # whatever is refused later, the file itself runs
    try:
        bundle = graftline.optimize(
            folder / "host.onnx", folder / "out.graft", recipe=choice.recipe, passes=choice.passes,
            dtype=choice.dtype, step=choice.step,
        )  # fmt: skip
    except GraftlineError as error:
        return Outcome("refused", f"{type(error).__name__}: {error}", s, choice)
    except Exception as error:
        return Outcome("crash", _where(error), s, choice)
    try:
        engine = graftline.load(bundle.path, capacity=CAPACITY, threads=1)
        return _compare(s, choice, reference, engine, seed)
    except GeneratorDefect:
        raise
    except Exception as error:
        # `optimize` has accepted it: from here on a refusal comes too late
        return Outcome("crash", f"after exit 0: {_where(error)}", s, choice)


def _where(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    first = " ".join(str(error).split())[:300]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {first}"


def _compare(
    s: Settings, choice: Choice, reference: Reference, engine: Any, seed: int
) -> Outcome:
    if s.head != "lm":
        return Outcome("silent", f"a host with head {s.head} was accepted", s, choice)
    outcome = Outcome("equal", "", s, choice)
    given = prompts(s, seed)
    alone = [_generate(engine, choice, ids) for ids in given[:1]]
    together = _generate(engine, choice, given)
    if choice.dtype != "fp32":
        return outcome
    for ids, made in [*zip(given[:1], alone, strict=True), *zip(given, together, strict=True)]:
        limit = _limit(s, reference.logits(ids[None]))
        line = _tokens(reference, ids, made.tokens, limit, outcome)
        line = line or _logits(reference, ids, engine, limit)
        if line:
            return Outcome("silent", line, s, choice)
    return outcome


def _generate(engine: Any, choice: Choice, given: Array | list[Array]) -> Any:
    """One prompt alone, or several as one batch."""
    return engine.generate(
        given, max_new_tokens=NEW_TOKENS, ignore_eos=True, recipe=choice.recipe, step=choice.step
    )


def _limit(s: Settings, logits: Array) -> float:
    """How far two orders of the same sums may be apart, for logits [B, N, V].

    A block has about 60 roundings one after the other (seven products, two norms, a softmax), and
    those of a product of up to 128 terms grow as its root, 11: here they are counted twice, which
    is 20 times what 64 such hosts showed. In fp16 a sum is fp32 and only its result is rounded.
    """
    unit, growth = (2.0**-11, 0.25) if s.half else (2.0**-24, 2.0)
    return float(unit * growth * 60 * (1 + len(s.layers)) * max(1.0, np.abs(logits).max()))


def _tokens(
    reference: Reference, ids: Array, tokens: list[int], limit: float, outcome: Outcome
) -> str:
    wanted, rows = reference.greedy(ids, NEW_TOKENS)
    for i, (got, want, row) in enumerate(zip(tokens, wanted, rows, strict=True)):
        if got == want:
            continue
        gap = float(row[want] - row[got])
        if gap < limit:
            outcome.near_ties.append(gap)
            return ""
        return f"prompt of {len(ids)}: token {i} is {got}, not {want}, {gap:.2e} below the best"
    return ""


def _logits(reference: Reference, ids: Array, engine: Any, limit: float) -> str:
    """The last rows of a prompt through the session, after two calls that commit those before."""
    session, last = engine.session, min(8, len(ids) - 2)
    middle = (len(ids) - last) // 2 + 1
    session.reset(1)
    session.prefill([ids[:middle]])
    chain = ids[None, middle : len(ids) - last]
    if chain.shape[1]:
        session.score(chain)
        session.commit([tuple(range(chain.shape[1]))])
    got = np.asarray(session.score(ids[None, -last:]).logits, np.float64)[0]
    want = reference.logits(ids[None])[0, -last:]
    if got.shape[1] != want.shape[1]:
        return f"logits have {got.shape[1]} columns, not {want.shape[1]}"
    worst = float(np.abs(got[-len(want) :] - want).max())
    if not worst < limit:
        return f"prompt of {len(ids)}: logits differ by {worst:.1e}, limit {limit:.1e}"
    return ""
