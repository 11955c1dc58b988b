"""Pipelines of stages: a recipe's passes between a front and what its target wants."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from graftline.build.engines import EngineRequest
from graftline.build.head_plan import NEED
from graftline.bundle.manifest import EXPORT, StageRole
from graftline.errors import GraftlineError
from graftline.kinds.decoder.kind import Decoder
from graftline.owners import TARGET
from graftline.passes import GRAFTS, Graft, Pipeline
from graftline.passes.grafts.draft_heads import DraftHeads
from graftline.passes.grafts.fuse_block import FuseBlock
from graftline.passes.grafts.fuse_draft import FuseDraft
from graftline.passes.grafts.fuse_heads import FuseHeads
from graftline.passes.grafts.fuse_verify import FuseVerify
from graftline.passes.grafts.kv_cache import KvCache
from graftline.passes.grafts.tree_mask import TreeMask
from graftline.passes.lower.ort.pack_rows import PackRows
from graftline.recipe import FUSED_DRAFTERS, Recipe, check_fusable, recipe
from graftline.targets import CPU, ending

FRONT = Decoder().front
SEQUENCES = (2, 4, 8)
"""Sequences whose rows go into one call."""
CANONICALIZE = r"\s*canonicalize\b"
"""How a pipeline begins that has a front of its own."""
CHAINS, ROWS = "chains", "rows"
"""Names of stages: a step without a mask, and (with a number) one of several sequences."""


@dataclass(frozen=True)
class StagePlan:
    """A stage to be made: the `text` of its whole pipeline, which runs on the export `made_of`."""

    name: str
    role: StageRole
    text: str
    dtype: str
    owner: str = TARGET
    made_of: str = EXPORT
    says: str = ""
    """What it is, in words, for whoever waits for it."""
    inputs_from: tuple[str, ...] = ()
    """The stages whose outputs it takes."""


def forms_of(text: str, dtype: str, of: str = "") -> list[StagePlan]:
    """The other forms of a step on ONNX Runtime's CPU provider: of chains, without the mask, where
    the engine takes one; and of the chains of several sequences. Their names begin with `of`."""
    grafts = Pipeline.parse(text, GRAFTS).grafts
    chains = str(Pipeline(tuple(g for g in grafts if not isinstance(g, TreeMask))))
    says = "its step for chains, without the mask"
    found = [StagePlan(CHAINS, "form", chains, dtype, says=says)] if chains != text else []
    for count in SEQUENCES:
        says = f"its step for the rows of {count} sequences"
        packed = f"{chains} | {PackRows(sequences=count)}"
        found.append(StagePlan(f"{of}{ROWS}-{count}", "form", packed, dtype, says=says))
    return found


def has_block(chosen: Recipe) -> bool:
    """Whether its draft head keeps keys and values of its own."""
    return any(isinstance(g, KvCache) for g in Pipeline.parse(chosen.head, GRAFTS).grafts)


def asked_by_rows(chosen: Recipe) -> bool:
    """Whether its head drafts row by row behind any of its slots, as EAGLE's do."""
    return chosen.asks in FUSED_DRAFTERS and has_mask(chosen.head)


def _drafting(chosen: Recipe, drafter: Any) -> Graft:
    """The pass that drafts in the graph as this recipe does on the host."""
    if NEED not in chosen.needs:
        return FuseDraft(width=drafter.width)
    heads = Pipeline.parse(chosen.head, GRAFTS).grafts
    if has_block(chosen):
        return FuseBlock(depth=len(drafter.plan.levels))
    return FuseHeads(next(g.topk for g in heads if isinstance(g, DraftHeads)))


def pipeline_of(
    name: str,
    passes: str | None,
    target: str,
    dtype: str,
    quantizer: str | None,
    request: EngineRequest | None = None,
    fusing: str = "",
) -> tuple[Recipe, str]:
    """The recipe of that name and the whole pipeline text, with the passes `fusing` behind the
    recipe's. Raises for what is unknown."""
    chosen = recipe(name)
    front, own = _front(passes, chosen.passes)
    parts = [front, own, fusing, "pack-projections"]
    if request is not None:
        if quantizer is not None:
            raise GraftlineError(f"--quantizer needs --target ort-cpu, not {target}")
        text = " | ".join([*filter(None, parts), request.lowering])
        return chosen, str(Pipeline.parse(text, GRAFTS))
    text = " | ".join(filter(None, [*parts, ending(target, dtype, quantizer)]))
    return chosen, str(Pipeline.parse(text, GRAFTS))


def _front(passes: str | None, own: str) -> tuple[str, str]:
    """The front of a pipeline and what follows it. `passes` may begin with a canonicalize of other
    options; where they are nothing else, the recipe's `own` passes follow."""
    first, _, rest = (passes or "").partition("|")
    if not re.match(CANONICALIZE, first):
        return FRONT, own if passes is None else passes
    return f"{first} | {FRONT.partition('| ')[2]}", rest if rest.strip() else own


def own_front(passes: str | None) -> str | None:
    """The canonicalize of other options that --passes begins with, if it does."""
    first = (passes or "").partition("|")[0]
    return first if re.match(CANONICALIZE, first) else None


def fused_pipeline(
    chosen: Recipe,
    passes: str | None,
    target: str,
    dtype: str,
    quantizer: str | None,
    request: EngineRequest | None,
) -> tuple[EngineRequest | None, str]:
    """The pipeline text of the fused step, and the engine it asks for, whose steps are the
    recipe's trees. Raises GraftlineError for a recipe or a target that has none."""
    if request is None and target != CPU:
        raise GraftlineError(
            f"--step fused needs --target {CPU} or a TensorRT target, not {target}"
        )
    check_fusable(chosen)
    if has_block(chosen) and not asked_by_rows(chosen):
        raise GraftlineError(
            f"recipe {chosen.name}: a fused step drafts by heads whose graph has a tree mask, as "
            "EAGLE's; use --step host"
        )
    from graftline.runtimes.drafters import configured

    drafter = configured(chosen.drafter, chosen.options)
    if request is not None:
        request = request.stepping(len(drafter.plan) if has_block(chosen) else drafter.rows)
    fusing = f"{FuseVerify(sample=True)} | {_drafting(chosen, drafter)}"
    text = pipeline_of(chosen.name, passes, target, dtype, quantizer, request, fusing)[1]
    return request, masked(text)


def has_mask(text: str) -> bool:
    """Whether the steps of a pipeline score trees."""
    return any(isinstance(graft, TreeMask) for graft in Pipeline.parse(text, GRAFTS).grafts)


def masked(text: str) -> str:
    """A pipeline with a tree mask behind its cache, which a step that verifies makes itself, and by
    which the host scores the same rows: also where the recipe's steps are chains."""
    if has_mask(text):
        return text
    pipeline = Pipeline.parse(text, GRAFTS)
    pairs = ([g, TreeMask()] if isinstance(g, KvCache) else [g] for g in pipeline.grafts)
    return str(Pipeline(tuple(graft for pair in pairs for graft in pair)))
