"""What `optimize` was asked for, as pipelines; what can be refused before a file is read, is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.build.engines import EngineRequest, is_engine
from graftline.draft import DEPTHS, MASK_TOKEN, DraftSource, check_depths, check_mask_token
from graftline.errors import GraftlineError, nearest
from graftline.kinds.decoder.kind import Decoder
from graftline.passes import GRAFTS, Pipeline
from graftline.recipe import FUSED, Recipe, check_fusable, check_step, recipe
from graftline.targets import CPU, TARGETS, ending

if TYPE_CHECKING:
    from graftline.facts import DecoderFacts
    from graftline.kinds.kind import Kind

FRONT = Decoder().front


@dataclass(frozen=True)
class Plan:
    """`text` is the whole pipeline of the target, `fused` that of its fused step, `cuts` those of
    its sub-models by their number of blocks; `draft` and `depths` are what --draft and
    --draft-depths said, and `source` what a draft engine is made of."""

    recipe: Recipe | None
    text: str
    target: str
    dtype: str
    request: EngineRequest | None = None
    """The engine to build, for a TensorRT target."""
    fused: str | None = None
    draft: str | None = None
    source: DraftSource | None = None
    depths: tuple[int, ...] = ()
    passes: str | None = None
    """What --passes said."""
    quantizer: str | None = None
    """What --quantizer said."""
    cuts: tuple[tuple[int, str], ...] = ()
    forms: bool = False
    """Whether its step is made in other forms too: without a mask, and for several sequences."""

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
    ) -> Plan:
        """The arguments are those of `optimize`. Raises GraftlineError for what is unknown, does
        not go together, or is missing."""
        check_step(step)
        request = EngineRequest.parse(target, dtype, engine) if is_engine(target) else None
        if engine and request is None:
            raise GraftlineError(f"--engine needs a TensorRT target, not {target}")
        chosen, text = pipeline_of(name, passes, target, dtype, quantizer, request)
        fused = None
        if step == FUSED:
            request, fused = fused_pipeline(chosen, passes, target, dtype, quantizer, request)
        source = _source(draft, target, dtype, request)
        if source is None and "draft" in chosen.needs:
            raise GraftlineError(f"the recipe {chosen.name} needs a draft engine; add --draft int8")
        check_depths(depths, draft)
        if DEPTHS in chosen.needs and not depths:
            raise GraftlineError(f"the recipe {chosen.name} needs depths; add --draft-depths 12,20")
        given = draft, source, tuple(depths)
        made = cls(chosen, text, target, dtype, request, fused, *given)
        return replace(made, passes=passes, quantizer=quantizer, forms=target == CPU)

    def for_kind(self, kind: Kind, recipe: str | None) -> Plan:
        """The same for a host of that kind. Raises GraftlineError for what is a decoder's alone."""
        if kind.recipe is not None:
            return self
        asked = {
            "--recipe": recipe, "--draft": self.draft, "--draft-depths": self.depths,
            "--step fused": self.fused, "--target": self.target if self.target != CPU else None,
            f"--dtype {self.dtype}": self.dtype != "fp32",
        }  # fmt: skip
        if odd := [option for option, said in asked.items() if said]:
            raise GraftlineError(f"{odd[0]} is for decoders; the checkpoint is a {kind.name}")
        parts = [kind.front, self.passes, ending(self.target, self.dtype, None)]
        text = " | ".join(filter(None, parts))
        return replace(self, recipe=None, text=str(Pipeline.parse(text, GRAFTS)), forms=False)

    def check_draft(self, facts: DecoderFacts) -> None:
        """Raise GraftlineError where the draft's checkpoint, by its facts, cannot be cut or does
        not name the mask that the recipe needs."""
        check_depths(self.depths, self.draft, facts.layers)
        if self.recipe is not None and MASK_TOKEN in self.recipe.needs:
            check_mask_token(facts, f"the recipe {self.recipe.name}", f"--draft {self.draft}")

    def of_draft(self) -> Plan:
        """The draft engine's own: plain decoding, because a draft scores single rows, and a cut for
        each depth."""
        assert self.source is not None, "there is a draft"
        dtype = self.source.dtype

        def pipeline(fusing: str = "") -> tuple[Recipe, str]:
            return pipeline_of("plain", None, self.target, dtype, None, fusing=fusing)

        chosen, text = pipeline()
        cuts = tuple((b, pipeline(f"cut-depth{{blocks={b}}}")[1]) for b in self.depths)
        return replace(
            self, recipe=chosen, text=text, dtype=dtype, request=None, fused=None, cuts=cuts,
            forms=False,
        )  # fmt: skip

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
        if self.fused is not None:
            said += " --step fused"
        if self.target != CPU:
            said += f" --target {self.target}" + (f" --engine {engine}" if engine else "")
        return said


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
    if not re.match(r"\s*canonicalize\b", first):
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
    from graftline.runtimes.drafters import make_drafter

    drafter: Any = make_drafter(chosen.drafter, chosen.options)
    if request is not None:
        request = request.stepping(drafter.rows)
    fusing = f"fuse-verify{{sample=true}} | fuse-draft{{width={drafter.width}}}"
    text = pipeline_of(chosen.name, passes, target, dtype, quantizer, request, fusing)[1]
    return request, text
