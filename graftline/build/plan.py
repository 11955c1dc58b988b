"""What `optimize` was asked for, as pipelines; what can be refused before a file is read, is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.build.engines import EngineRequest, is_engine
from graftline.build.head_plan import NEED, HeadPlan
from graftline.bundle.manifest import EXPORT, StageRole, stage_name
from graftline.draft import (
    DEPTHS,
    MASK_TOKEN,
    DraftSource,
    check_depths,
    check_mask_token,
    depth_stage,
)
from graftline.errors import GraftlineError, nearest
from graftline.exits import ALL, EXITS, check_exits, check_needs, exit_stage, rest_stage, told
from graftline.kinds.decoder.kind import Decoder
from graftline.owners import DRAFT, HEAD, TARGET, head_owner
from graftline.passes import GRAFTS, Graft, Pipeline
from graftline.passes.grafts.collapse_loop import CollapseLoop
from graftline.passes.grafts.draft_heads import DraftHeads
from graftline.passes.grafts.fuse_block import FuseBlock
from graftline.passes.grafts.fuse_draft import FuseDraft
from graftline.passes.grafts.fuse_heads import FuseHeads
from graftline.passes.grafts.fuse_verify import FuseVerify
from graftline.passes.grafts.kv_cache import KvCache
from graftline.passes.grafts.layer_skip import LayerSkip
from graftline.passes.grafts.tree_mask import TreeMask
from graftline.passes.lower.ort.pack_rows import PackRows
from graftline.passes.lower.pack_projections import PackProjections
from graftline.recipe import (
    DECODER,
    FUSED,
    FUSED_DRAFTERS,
    Recipe,
    check_fusable,
    check_step,
    recipe,
)
from graftline.route import MIDDLE, ROUTE, Route, parse_skip, route_stage
from graftline.targets import CPU, CUDA, TARGETS, ending

if TYPE_CHECKING:
    from graftline.facts import DecoderFacts
    from graftline.kinds.kind import Kind

FRONT = Decoder().front
SEQUENCES = (2, 4, 8)
"""Sequences whose rows go into one call."""
CANONICALIZE = r"\s*canonicalize\b"
"""How a pipeline begins that has a front of its own."""
CHAINS, ROWS, STEPS = "chains", "rows", "steps"
"""Names of stages: a step without a mask, and (with a number) one of several sequences, or a
sampling loop of so many steps."""


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


@dataclass(frozen=True)
class Plan:
    """The stages of a bundle, the target's engine first, and those of each owner after its engine.

    `draft` and `depths` are what --draft and --draft-depths said, and `source` what a draft engine
    is made of."""

    recipe: Recipe | None
    target: str
    stages: tuple[StagePlan, ...]
    request: EngineRequest | None = None
    """The engine to build, for a TensorRT target."""
    draft: str | None = None
    source: DraftSource | None = None
    depths: tuple[int, ...] = ()
    passes: str | None = None
    """What --passes said."""
    quantizer: str | None = None
    """What --quantizer said."""
    head: HeadPlan | None = None
    """What --head asked for."""
    skip: str | None = None
    """What --skip said."""
    exits: tuple[int, ...] = ()
    """What --exit said."""
    speedup: float | None = None
    """What --speedup said."""
    spec: str | None = None
    """What --spec said."""
    steps: tuple[int, ...] = ()
    """What --steps said."""

    @property
    def dtype(self) -> str:
        """Of the target."""
        return self.stages[0].dtype

    @property
    def fused(self) -> bool:
        """Whether there is a fused step."""
        return any(stage.role == "fused" for stage in self.stages)

    @property
    def block(self) -> StagePlan | None:
        """The stage of a draft head that keeps keys and values of its own; None without one."""
        if self.recipe is None or self.head is None or not has_block(self.recipe):
            return None
        return next(s for s in self.stages if (s.owner, s.role) == (HEAD, "engine"))

    @classmethod
    def of(
        cls,
        name: str,
        passes: str | None,
        target: str,
        dtype: str,
        quantizer: str | None,
        draft: str | None,
        depths: Sequence[int],
        engine: str,
        step: str,
        head: HeadPlan | None = None,
        *,
        skip: str | None = None,
        exits: Sequence[int] = (),
        speedup: float | None = None,
        spec: str | None = None,
        steps: tuple[int, ...] = (),
    ) -> Plan:
        """The arguments are those of `optimize`. Raises GraftlineError for what is unknown, does
        not go together, or is missing."""
        check_step(step)
        request = EngineRequest.parse(target, dtype, engine) if is_engine(target) else None
        if engine and request is None:
            raise GraftlineError(f"--engine needs a TensorRT target, not {target}")
        check_needs(name, recipe(name).needs, exits)
        taps = _taps(exits) if EXITS in recipe(name).needs else ""
        chosen, text = pipeline_of(name, passes, target, dtype, quantizer, request, fusing=taps)
        text = masked(text) if step == FUSED else text
        stages = [StagePlan(target, "engine", text, dtype)]
        if target == CPU:
            stages += forms_of(text, dtype)
        if step == FUSED:
            if head is not None:
                head.check_fused(dtype)
            request, text = fused_pipeline(chosen, passes, target, dtype, quantizer, request)
            says = "the fused step: the same passes, then drafting and verification in the graph"
            stages.append(StagePlan(FUSED, "fused", text, dtype, says=says))
        source = _source(draft, target, dtype, request)
        if source is None and "draft" in chosen.needs:
            raise GraftlineError(f"the recipe {chosen.name} needs a draft engine; add --draft int8")
        check_depths(depths, draft)
        if DEPTHS in chosen.needs and not depths:
            raise GraftlineError(f"the recipe {chosen.name} needs depths; add --draft-depths 12,20")
        if source is not None:
            stages += _of_draft(source, target, depths)
        if skip is not None or ROUTE in chosen.needs:
            said = MIDDLE if skip is None else skip
            stages.append(_of_route(said, draft, source, stages[0], passes, quantizer))
        if exits:
            stages += _of_exits(exits, stages[0], passes, quantizer, EXITS in chosen.needs)
        if chosen.schedule or speedup is not None:
            stages += _of_schedule(chosen, speedup, stages[0], passes, quantizer)
        if head is None and NEED in chosen.needs:
            raise GraftlineError(
                f"the recipe {name} needs a draft head; add --head PATH, a published head of this "
                "model"
            )
        if head is not None:
            stages += _of_head(chosen, head, target, request)
        return cls(
            chosen, target, tuple(stages), request, draft, source, tuple(depths), passes, quantizer,
            head, skip=skip, exits=tuple(exits), speedup=speedup, spec=spec, steps=steps,
        )  # fmt: skip

    def one_pass(self) -> Pipeline:
        """The grafts for a host that runs once: those of --passes, or of its recipe."""
        text = self.passes
        if text is None and self.recipe is not None and self.recipe.kind != DECODER:
            text = self.recipe.passes
        return Pipeline.parse(text or "", GRAFTS)

    def for_kind(self, kind: Kind, recipe: str | None) -> Plan:
        """The same for a host of that kind. Raises GraftlineError for what another kind's is."""
        if kind.recipe is not None:
            if self.spec is not None or self.steps:
                said = "--spec" if self.spec is not None else "--steps"
                raise GraftlineError(f"{said} is for denoisers; the checkpoint is a {kind.name}")
            if self.recipe is not None and self.recipe.kind != DECODER:
                raise _other_kind(self.recipe, kind)
            return self
        chosen = self.recipe if recipe is not None else None
        if chosen is not None and chosen.kind not in (kind.name, DECODER):
            raise _other_kind(chosen, kind)
        asked = {
            "--recipe": chosen is not None and chosen.kind == DECODER,
            "--draft": self.draft, "--draft-depths": self.depths, "--head": self.head,
            "--skip": self.skip, "--speedup": self.speedup, "--exit": self.exits,
            "--step fused": self.fused, "--target": self.target if self.target != CPU else None,
            f"--dtype {self.dtype}": self.dtype != "fp32",
        }  # fmt: skip
        if odd := [option for option, said in asked.items() if said]:
            raise GraftlineError(f"{odd[0]} is for decoders; the checkpoint is a {kind.name}")
        parts = [kind.front, str(self.one_pass()), ending(self.target, self.dtype, None)]
        pipeline = Pipeline.parse(" | ".join(filter(None, parts)), GRAFTS)
        stages = [
            StagePlan(name, role, str(text), self.dtype, says=says)
            for name, role, text, says in _loops(self.target, pipeline, self.steps)
        ]
        return replace(self, recipe=chosen, stages=tuple(stages))

    def check_draft(self, facts: DecoderFacts) -> None:
        """Raise GraftlineError where the draft's checkpoint, by its facts, cannot be cut or does
        not name the mask that the recipe needs."""
        check_depths(self.depths, self.draft, facts.layers)
        if self.recipe is not None and MASK_TOKEN in self.recipe.needs:
            check_mask_token(facts, f"the recipe {self.recipe.name}", f"--draft {self.draft}")

    def check_route(self, facts: DecoderFacts) -> None:
        """Raise GraftlineError where a target of those facts cannot skip what --skip says."""
        grafts = (g for s in self.stages for g in Pipeline.parse(s.text, GRAFTS).grafts)
        skips = [g for g in grafts if isinstance(g, LayerSkip) and not g.speedup]
        for graft in skips if facts.layers else ():
            try:
                Route.of(facts.layers, graft.layers, graft.attention, graft.mlp)
            except GraftlineError as error:
                raise GraftlineError(f"--skip {self.skip or MIDDLE}: {error}") from error

    def check_exits(self, facts: DecoderFacts) -> None:
        """Raise GraftlineError where a target of those facts has no such exits."""
        if facts.layers:
            check_exits(self.exits, facts.layers)

    def command(self, checkpoint: str | Path, out: str | Path, engine: str) -> str:
        """The command that makes this bundle again."""
        said = f"graftline optimize {checkpoint} -o {out}"
        said += "" if self.recipe is None else f" --recipe {self.recipe.name}"
        said += f" --dtype {self.dtype}"
        said += "" if self.quantizer is None else f" --quantizer {self.quantizer}"
        if self.passes is not None:
            said += f" --passes {shlex.quote(self.passes)}"
        if self.draft is not None:
            said += f" --draft {self.draft}"
        if self.depths:
            said += f" --draft-depths {','.join(map(str, self.depths))}"
        if self.skip is not None:
            said += f" --skip {shlex.quote(self.skip)}"
        if self.exits:
            said += f" --exit {told(self.exits)}"
        if self.speedup is not None:
            said += f" --speedup {self.speedup:g}"
        if self.spec is not None:
            said += f" --spec {shlex.quote(self.spec)}"
        if self.steps:
            said += f" --steps {','.join(map(str, self.steps))}"
        if self.head is not None:
            said += f" --head {shlex.quote(self.head.said)}"
        if self.fused:
            said += " --step fused"
        if self.target != CPU:
            said += f" --target {self.target}" + (f" --engine {engine}" if engine else "")
        return said


def _other_kind(chosen: Recipe, kind: Kind) -> GraftlineError:
    told = f"the recipe {chosen.name} is for a {chosen.kind}"
    return GraftlineError(f"{told}; the checkpoint is a {kind.name}")


def _loops(
    target: str, pipeline: Pipeline, steps: Sequence[int]
) -> list[tuple[str, StageRole, Pipeline, str]]:
    """The engine, and forms of it with other numbers of steps in its sampling loop."""
    if not steps:
        return [(target, "engine", pipeline, "")]
    if all(not isinstance(g, CollapseLoop) for g in pipeline.grafts):
        raise GraftlineError('--steps needs a loop in the graph: add --passes "collapse-loop"')
    if twice := [n for n in steps if steps.count(n) > 1]:
        raise GraftlineError(f"--steps names {twice[0]} twice")

    def of(count: int) -> Pipeline:
        grafts = pipeline.grafts
        return Pipeline(
            tuple(replace(g, steps=count) if isinstance(g, CollapseLoop) else g for g in grafts)
        )

    first, *others = steps
    found: list[tuple[str, StageRole, Pipeline, str]] = [(target, "engine", of(first), "")]
    for n in others:
        found.append((f"{STEPS}-{n}", "form", of(n), f"its loop of {n} steps"))
    return found


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


def _source(
    draft: str | None, target: str, dtype: str, request: EngineRequest | None
) -> DraftSource | None:
    if draft is None:
        return None
    if request is not None:
        raise GraftlineError(f"--draft needs --target ort-cpu, not {target}")
    source = DraftSource.parse(draft, TARGETS[target], dtype)
    if source.checkpoint is not None and not source.checkpoint.exists():
        known = nearest(draft, [name for name in TARGETS[target] if name != dtype])
        raise GraftlineError(f"--draft {draft}: no such file or folder, nor a precision{known}")
    return source


def _of_draft(source: DraftSource, target: str, depths: Sequence[int]) -> list[StagePlan]:
    """A draft's stages: plain decoding, because a draft scores single rows, and a cut for each
    depth. Of the target's own export where it has no checkpoint of its own."""
    made_of = EXPORT if source.checkpoint is None else stage_name(DRAFT, EXPORT)

    def stage(name: str, role: StageRole, says: str, fusing: str = "") -> StagePlan:
        text = pipeline_of("plain", None, target, source.dtype, None, fusing=fusing)[1]
        return StagePlan(name, role, text, source.dtype, DRAFT, made_of, says)

    says = f"draft engine: {source.checkpoint or 'the same weights'} in {source.dtype}"
    cuts = (
        stage(depth_stage(b), "depth", f"its first {b} blocks", f"cut-depth{{blocks={b}}}")
        for b in depths
    )
    return [stage(DRAFT, "engine", says), *cuts]


def _of_route(
    skip: str,
    draft: str | None,
    source: DraftSource | None,
    engine: StagePlan,
    passes: str | None,
    quantizer: str | None,
) -> StagePlan:
    """The stage of a route: plain decoding, without what --skip names. Of the target's own weights,
    as they are in its engine or, where there is a draft, as they are in that."""
    if is_engine(engine.name):
        raise GraftlineError(f"--skip needs --target {CPU}, not {engine.name}")
    options = parse_skip(skip, draft, source is not None and source.checkpoint is not None)
    front, owner, dtype = _own_front(passes), TARGET, engine.dtype
    if source is not None:
        owner, dtype, front, quantizer = DRAFT, source.dtype, None, None
    fusing = f"layer-skip{{{options}}}"
    text = pipeline_of("plain", front, engine.name, dtype, quantizer, fusing=fusing)[1]
    says = f"the route: the same weights in {dtype}, {options.replace('=', ' ')} skipped"
    return StagePlan(ROUTE, "route", text, dtype, owner, says=says)


def _of_schedule(
    chosen: Recipe,
    speedup: float | None,
    engine: StagePlan,
    passes: str | None,
    quantizer: str | None,
) -> Iterator[StagePlan]:
    """The stages of a schedule's routes: the engine's passes without some blocks, over its own
    weights and caches, so that all of them answer alike."""
    from graftline.runtimes.schedules import schedule_of

    if not chosen.schedule:
        raise GraftlineError(
            f"--speedup is for recipes that skip blocks by it, as unified-layer-skip; "
            f"{chosen.name} does not: leave it out"
        )
    if is_engine(engine.name):
        raise GraftlineError(f"recipe {chosen.name} needs --target {CPU}, not {engine.name}")
    try:
        schedule = schedule_of(chosen, None if speedup is None else {"speedup": float(speedup)})
    except GraftlineError as error:
        raise GraftlineError(f"recipe {chosen.name}: {error}") from error
    for number, skipping in enumerate(schedule.passes(), 1):
        given = chosen.name, passes, engine.name, engine.dtype, quantizer
        text = pipeline_of(*given, fusing=skipping)[1]
        says = f"route {number} of the schedule {schedule.name}: {skipping}"
        yield StagePlan(route_stage(schedule.name, number), "route", text, engine.dtype, says=says)


def _own_front(passes: str | None) -> str | None:
    """The canonicalize of other options that --passes begins with, if it does."""
    first = (passes or "").partition("|")[0]
    return first if re.match(CANONICALIZE, first) else None


def _taps(exits: Sequence[int]) -> str:
    """The pass that brings out what leaves the blocks in front of exits."""
    return f"tap{{layers={'+'.join(str(blocks - 1) for blocks in exits)}}}"


def _of_exits(
    exits: Sequence[int],
    engine: StagePlan,
    passes: str | None,
    quantizer: str | None,
    chosen_among: bool,
) -> list[StagePlan]:
    """The stages of exits, over the target's own weights and caches: for each its first blocks,
    and all others, for one sequence and for several. Where a recipe chooses among them, whatever
    computes an exit's hidden states brings them out, for the head that reads them."""
    if engine.name != CPU:
        raise GraftlineError(f"--exit needs --target {CPU}, not {engine.name}")
    front, dtype, made = _own_front(passes), engine.dtype, list[StagePlan]()

    def stage(name: str, role: StageRole, says: str, *fusing: str) -> StagePlan:
        fused = " | ".join(fusing)
        text = pipeline_of("plain", front, CPU, dtype, quantizer, fusing=fused)[1]
        return StagePlan(name, role, text, dtype, says=says)

    for place, blocks in enumerate(exits):
        says = f"the exit behind block {blocks - 1}: the first {blocks} blocks and the head"
        cut = f"cut-depth{{blocks={blocks}}}"
        passed = exits[: place + 1] if chosen_among else [blocks]
        made.append(stage(exit_stage(blocks), "exit", says, _taps(passed), cut))
        later = [_taps(exits[place + 1 :])] if chosen_among and exits[place + 1 :] else []
        says = f"the blocks behind block {blocks - 1}, which verify what those have drafted"
        rest = stage(
            rest_stage(blocks), "rest", says, *later, f"depth-rest{{blocks={blocks}}}"
        )
        made += [rest, *forms_of(rest.text, dtype, f"{rest.name}-")]
    if chosen_among:
        says = "the final norm and the head, for hidden states of any block"
        head = stage(ALL, "rest", says, "depth-rest")
        grafts = Pipeline.parse(head.text, GRAFTS).grafts
        left = Pipeline(tuple(g for g in grafts if not isinstance(g, PackProjections)))
        made.append(replace(head, text=str(left)))
    return made


def _of_head(
    chosen: Recipe, head: HeadPlan, target: str, request: EngineRequest | None
) -> list[StagePlan]:
    """A draft head's stages, each a graph of its own: heads run for the rows that the next step
    drafts from, and not for all that a step scores."""
    if NEED not in chosen.needs:
        raise GraftlineError(
            f"the recipe {chosen.name} reads no draft head; leave out --head, or --recipe"
        )
    if request is not None and has_block(chosen) and not _asked_by_rows(chosen):
        raise GraftlineError(
            f"the recipe {chosen.name} has a draft head with keys and values of its own that is "
            f"not EAGLE's, which no engine of {request.target} keeps; use --target {CPU} or {CUDA}"
        )
    lowering = ending(target, head.dtype, None) if request is None else request.of_head(head.dtype)
    text = str(Pipeline.parse(f"{chosen.head} | {lowering}", GRAFTS))
    found: list[StagePlan] = []
    for number in range(head.count):
        owner = head_owner(number)
        says = f"draft head {number + 1} of {head.count}: {head.path} in {head.dtype}"
        made_of = stage_name(owner, EXPORT)
        found.append(
            StagePlan(owner, "engine", text, head.dtype, owner, made_of, says, (target,))
        )
    return found


def _drafting(chosen: Recipe, drafter: Any) -> Graft:
    """The pass that drafts in the graph as this recipe does on the host."""
    if NEED not in chosen.needs:
        return FuseDraft(width=drafter.width)
    heads = Pipeline.parse(chosen.head, GRAFTS).grafts
    if has_block(chosen):
        return FuseBlock(depth=len(drafter.plan.levels))
    return FuseHeads(next(g.topk for g in heads if isinstance(g, DraftHeads)))


def has_block(chosen: Recipe) -> bool:
    """Whether its draft head keeps keys and values of its own."""
    return any(isinstance(g, KvCache) for g in Pipeline.parse(chosen.head, GRAFTS).grafts)


def _asked_by_rows(chosen: Recipe) -> bool:
    """Whether its head drafts row by row behind any of its slots, as EAGLE's do."""
    grafts = Pipeline.parse(chosen.head, GRAFTS).grafts
    return chosen.drafter in FUSED_DRAFTERS and any(isinstance(g, TreeMask) for g in grafts)


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
    if has_block(chosen) and not _asked_by_rows(chosen):
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


def masked(text: str) -> str:
    """A pipeline with a tree mask behind its cache, which a step that verifies makes itself, and by
    which the host scores the same rows: also where the recipe's steps are chains."""
    pipeline = Pipeline.parse(text, GRAFTS)
    if any(isinstance(graft, TreeMask) for graft in pipeline.grafts):
        return text
    pairs = ([g, TreeMask()] if isinstance(g, KvCache) else [g] for g in pipeline.grafts)
    return str(Pipeline(tuple(graft for pair in pairs for graft in pair)))
