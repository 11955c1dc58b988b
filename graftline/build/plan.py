"""What `optimize` was asked for, as pipelines; what can be refused before a file is read, is."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from graftline.build.beside import (
    beside_exits,
    of_draft,
    of_exits,
    of_head,
    of_route,
    of_schedule,
    source_of,
)
from graftline.build.engines import EngineRequest, is_engine
from graftline.build.head_plan import NEED, HeadPlan
from graftline.build.pipelines import (
    StagePlan,
    forms_of,
    fused_pipeline,
    has_block,
    masked,
    pipeline_of,
)
from graftline.bundle.manifest import StageRole
from graftline.draft import (
    DEPTHS,
    MASK_TOKEN,
    DraftSource,
    check_depths,
    check_mask_token,
)
from graftline.errors import GraftlineError
from graftline.exits import check_exits, check_needs, told
from graftline.owners import HEAD
from graftline.passes import GRAFTS, Pipeline
from graftline.passes.anchors.one_pass import ONE_PASS
from graftline.passes.grafts.collapse_loop import CollapseLoop
from graftline.passes.grafts.layer_skip import LayerSkip
from graftline.passes.grafts.placeholders import Placeholders
from graftline.passes.graph.mismatch import Mismatch, refusal
from graftline.passes.pipeline.graft import Graft
from graftline.recipe import ANSWER_PREFIX, DECODER, FUSED, Recipe, check_step, recipe
from graftline.route import MIDDLE, ROUTE, Route
from graftline.targets import CPU, CUDA, ending

if TYPE_CHECKING:
    import onnx_ir as ir

    from graftline.facts import DecoderFacts
    from graftline.kinds.kind import Kind

STEPS = "steps"
"""Names of stages, with a number: a sampling loop of so many steps."""


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
    answer_prefix: str | None = None
    """What --answer-prefix said."""

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
        answer_prefix: str | None = None,
    ) -> Plan:
        """The arguments are those of `optimize`. Raises GraftlineError for what is unknown, does
        not go together, or is missing."""
        check_step(step)
        request = EngineRequest.parse(target, dtype, engine) if is_engine(target) else None
        if engine and request is None:
            raise GraftlineError(f"--engine needs a TensorRT target, not {target}")
        check_needs(name, recipe(name).needs, exits)
        fusing = beside_exits(recipe(name), exits)
        chosen, text = pipeline_of(name, passes, target, dtype, quantizer, request, fusing=fusing)
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
        source = source_of(draft, target, dtype, request)
        if source is None and "draft" in chosen.needs:
            raise GraftlineError(f"the recipe {chosen.name} needs a draft engine; add --draft int8")
        check_depths(depths, draft)
        if DEPTHS in chosen.needs and not depths:
            raise GraftlineError(f"the recipe {chosen.name} needs depths; add --draft-depths 12,20")
        if source is not None:
            stages += of_draft(source, target, depths)
        if skip is not None or ROUTE in chosen.needs:
            said = MIDDLE if skip is None else skip
            stages.append(of_route(said, draft, source, stages[0], passes, quantizer))
        if exits:
            stages += of_exits(exits, stages[0], passes, quantizer, chosen)
        if chosen.schedule or speedup is not None:
            stages += of_schedule(chosen, speedup, stages[0], passes, quantizer, head)
        if ANSWER_PREFIX in chosen.needs and not answer_prefix:
            raise GraftlineError(
                f"the recipe {name} needs the latent tokens that answers begin with; add "
                "--answer-prefix TEXT"
            )
        if head is None and NEED in chosen.needs:
            raise GraftlineError(
                f"the recipe {name} needs a draft head; add --head PATH, a published head of this "
                "model"
            )
        if head is not None:
            stages += of_head(chosen, head, target, request)
        return cls(
            chosen, target, tuple(stages), request, draft, source, tuple(depths), passes, quantizer,
            head, skip=skip, exits=tuple(exits), speedup=speedup, spec=spec, steps=steps,
            answer_prefix=answer_prefix,
        )  # fmt: skip

    def one_pass(self) -> Pipeline:
        """The grafts for a host that runs once: those of --passes, or of its recipe."""
        text = self.passes
        if text is None and self.recipe is not None and self.recipe.kind != DECODER:
            text = self.recipe.passes
        return Pipeline.parse(text or "", GRAFTS)

    def for_kind(self, kind: Kind, recipe: str | None, graph: ir.Graph | None = None) -> Plan:
        """The same for a host of that kind, which has this graph. Raises GraftlineError for what
        another kind's is."""
        if kind.recipe is not None:
            if self.spec is not None or self.steps:
                said = "--spec" if self.spec is not None else "--steps"
                raise GraftlineError(f"{said} is for denoisers; the checkpoint is a {kind.name}")
            if self.recipe is not None and self.recipe.kind != DECODER:
                raise _other_kind(self.recipe, kind, graph)
            if self.request is not None:
                self.request.check_steps()
            return self
        chosen = self.recipe if recipe is not None else None
        if chosen is not None and chosen.kind not in (kind.name, DECODER):
            raise _other_kind(chosen, kind, graph)
        asked = {
            "--recipe": chosen is not None and chosen.kind == DECODER,
            "--draft": self.draft, "--draft-depths": self.depths, "--head": self.head,
            "--skip": self.skip, "--speedup": self.speedup, "--exit": self.exits,
            "--answer-prefix": self.answer_prefix,
            "--step fused": self.fused, "--target": self.target == CUDA,
            f"--dtype {self.dtype}": self.request is None and self.dtype != "fp32",
        }  # fmt: skip
        if odd := [option for option, said in asked.items() if said]:
            raise GraftlineError(f"{odd[0]} is for decoders; the checkpoint is a {kind.name}")
        if self.request is None:
            lowering = ending(self.target, self.dtype, None)
        else:
            lowering = self.request.once().lowering_once
        parts = [kind.front, str(self.one_pass()), lowering]
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
        skips = [g for g in self._grafts() if isinstance(g, LayerSkip) and not g.speedup]
        for graft in skips if facts.layers else ():
            try:
                Route.of(facts.layers, graft.layers, graft.attention, graft.mlp)
            except GraftlineError as error:
                raise GraftlineError(f"--skip {self.skip or MIDDLE}: {error}") from error

    def check_placeholders(self, facts: DecoderFacts) -> None:
        """Raise GraftlineError where a target of those facts has no token that stands for those to
        come, and the passes want its own; of graphs without a config the pass says it."""
        for graft in self._grafts() if facts.vocabulary else ():
            if isinstance(graft, Placeholders) and graft.count:
                graft.own_token(facts)

    def _grafts(self) -> Iterator[Graft]:
        """The passes of all stages."""
        for stage in self.stages:
            yield from Pipeline.parse(stage.text, GRAFTS).grafts

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
        if self.answer_prefix is not None:
            said += f" --answer-prefix {shlex.quote(self.answer_prefix)}"
        if self.head is not None:
            said += f" --head {shlex.quote(self.head.said)}"
        if self.fused:
            said += " --step fused"
        if self.target != CPU:
            said += f" --target {self.target}" + (f" --engine {engine}" if engine else "")
        return said


def _other_kind(chosen: Recipe, kind: Kind, graph: ir.Graph | None) -> GraftlineError:
    """With what the graph lacks of the recipe's kind, where its structure tells that one."""
    told = f"the recipe {chosen.name} is for a {chosen.kind}; the checkpoint is a {kind.name}"
    find = ONE_PASS.get(chosen.kind)
    found = None if find is None or graph is None else find(graph)
    return refusal(told, [found]) if isinstance(found, Mismatch) else GraftlineError(told)


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
