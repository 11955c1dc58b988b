"""The stages beside an engine: drafts, routes, schedules, exits and draft heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from graftline.build.engines import EngineRequest, is_engine
from graftline.build.head_plan import NEED, HeadPlan
from graftline.build.pipelines import (
    StagePlan,
    asked_by_rows,
    forms_of,
    has_block,
    has_mask,
    masked,
    own_front,
    pipeline_of,
)
from graftline.bundle.manifest import EXPORT, StageRole, stage_name
from graftline.draft import DraftSource, depth_stage
from graftline.errors import GraftlineError, nearest
from graftline.exits import ALL, EXITS, exit_stage, rest_stage, told
from graftline.owners import DRAFT, TARGET, head_owner
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.grafts.adapter_exit import AdapterExit
from graftline.passes.lower.pack_projections import PackProjections
from graftline.recipe import Recipe
from graftline.route import ROUTE, parse_skip, route_stage
from graftline.targets import CPU, CUDA, TARGETS, ending


def source_of(
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


def of_draft(source: DraftSource, target: str, depths: Sequence[int]) -> list[StagePlan]:
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


def of_route(
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
    front, owner, dtype = own_front(passes), TARGET, engine.dtype
    if source is not None:
        owner, dtype, front, quantizer = DRAFT, source.dtype, None, None
    fusing = f"layer-skip{{{options}}}"
    text = pipeline_of("plain", front, engine.name, dtype, quantizer, fusing=fusing)[1]
    says = f"the route: the same weights in {dtype}, {options.replace('=', ' ')} skipped"
    return StagePlan(ROUTE, "route", text, dtype, owner, says=says)


def of_schedule(
    chosen: Recipe,
    speedup: float | None,
    engine: StagePlan,
    passes: str | None,
    quantizer: str | None,
    head: HeadPlan | None,
) -> Iterator[StagePlan]:
    """The stages of a schedule's routes: the engine's passes without some blocks or parts of them,
    over its own weights and caches, so that all of them answer alike. Which they are a `head` of
    routers says."""
    from graftline.runtimes.schedules import schedule_of

    if not chosen.schedule:
        raise GraftlineError(
            f"--speedup is for recipes that skip blocks by it, as unified-layer-skip; "
            f"{chosen.name} does not: leave it out"
        )
    if is_engine(engine.name):
        raise GraftlineError(f"recipe {chosen.name} needs --target {CPU}, not {engine.name}")
    given: dict[str, object] = {} if speedup is None else {"speedup": float(speedup)}
    if head is not None and head.routes:
        given["routes"] = head.routes
    try:
        schedule = schedule_of(chosen, given)
    except GraftlineError as error:
        raise GraftlineError(f"recipe {chosen.name}: {error}") from error
    for number, skipping in enumerate(schedule.passes(), 1):
        parts = chosen.name, passes, engine.name, engine.dtype, quantizer
        lowered = pipeline_of(*parts, fusing=skipping)[1]
        text = " | ".join(filter(None, [lowered, schedule.lowering]))
        says = f"route {number} of the schedule {schedule.name}: {skipping}"
        yield StagePlan(route_stage(schedule.name, number), "route", text, engine.dtype, says=says)


def taps_of(exits: Sequence[int]) -> str:
    """The pass that brings out what leaves the blocks in front of exits."""
    return f"tap{{layers={'+'.join(str(blocks - 1) for blocks in exits)}}}"


def beside_exits(chosen: Recipe, exits: Sequence[int]) -> str:
    """The pass by which the target's own step serves the exits of a recipe: it brings out what
    leaves the blocks in front of them, or fills the cache of the adapter behind one."""
    if EXITS in chosen.needs:
        return taps_of(exits)
    grafts = Pipeline.parse(chosen.exit, GRAFTS).grafts
    cached = any(isinstance(graft, AdapterExit) for graft in grafts)
    return f"adapter-cache{{blocks={exits[0]}}}" if cached else ""


def of_exits(
    exits: Sequence[int],
    engine: StagePlan,
    passes: str | None,
    quantizer: str | None,
    chosen: Recipe,
) -> list[StagePlan]:
    """The stages of exits, over the target's own weights and caches: for each its first blocks,
    and all others, for one sequence and for several; with a mask where the recipe drafts trees with
    them. Where a recipe chooses among them, whatever
    computes an exit's hidden states brings them out, for the head that reads them; a draft head of
    the exit stands between its blocks and the lm_head."""
    chosen_among, trees = EXITS in chosen.needs, has_mask(chosen.passes)
    adapter = [chosen.exit] if chosen.exit else []
    if engine.name != CPU:
        raise GraftlineError(f"--exit needs --target {CPU}, not {engine.name}")
    if adapter and len(exits) > 1:
        raise GraftlineError(
            f"--exit {told(exits)}: a draft head stands behind the one exit that it was trained "
            "for; give one"
        )
    front, dtype, made = own_front(passes), engine.dtype, list[StagePlan]()

    def stage(name: str, role: StageRole, says: str, *fusing: str) -> StagePlan:
        fused = " | ".join(fusing)
        text = pipeline_of("plain", front, CPU, dtype, quantizer, fusing=fused)[1]
        return StagePlan(name, role, text, dtype, says=says)

    def scoring(one: StagePlan) -> StagePlan:
        return replace(one, text=masked(one.text)) if trees else one

    for place, blocks in enumerate(exits):
        head = f"the head, {chosen.exit}" if adapter else "the head"
        says = f"the exit behind block {blocks - 1}: the first {blocks} blocks and {head}"
        cut = f"cut-depth{{blocks={blocks}}}"
        passed = exits[: place + 1] if chosen_among else [blocks]
        first = stage(exit_stage(blocks), "exit", says, taps_of(passed), cut, *adapter)
        later = [taps_of(exits[place + 1 :])] if chosen_among and exits[place + 1 :] else []
        says = f"the blocks behind block {blocks - 1}, which verify what those have drafted"
        rest = stage(rest_stage(blocks), "rest", says, *later, f"depth-rest{{blocks={blocks}}}")
        made += [scoring(first), scoring(rest), *forms_of(rest.text, dtype, f"{rest.name}-")]
    if chosen_among:
        says = "the final norm and the head, for hidden states of any block"
        head = stage(ALL, "rest", says, "depth-rest")
        grafts = Pipeline.parse(head.text, GRAFTS).grafts
        left = Pipeline(tuple(g for g in grafts if not isinstance(g, PackProjections)))
        made.append(replace(head, text=str(left)))
    return made


def of_head(
    chosen: Recipe, head: HeadPlan, target: str, request: EngineRequest | None
) -> list[StagePlan]:
    """A draft head's stages, each a graph of its own: heads run for the rows that the next step
    drafts from, and not for all that a step scores."""
    if NEED not in chosen.needs:
        raise GraftlineError(
            f"the recipe {chosen.name} reads no draft head; leave out --head, or --recipe"
        )
    if request is not None and has_block(chosen) and not asked_by_rows(chosen):
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
        found.append(StagePlan(owner, "engine", text, head.dtype, owner, made_of, says, (target,)))
    return found
