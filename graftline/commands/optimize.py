"""`graftline optimize`: a checkpoint in, a bundle out."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from graftline.commands import libraries, screen
from graftline.commands.options.arguments import Checkpoint
from graftline.commands.options.building import (
    AnswerPrefix,
    Backend,
    Build,
    BuildRecipe,
    DraftHead,
    Drafts,
    NewBundle,
    Passes,
    SamplingLoop,
)
from graftline.commands.options.printing import JsonManifest, Quiet
from graftline.errors import GraftlineError, nearest
from graftline.law import summary
from graftline.recipe import claimed

if TYPE_CHECKING:
    from graftline.bundle.reader import Bundle


def optimize(
    checkpoint: Checkpoint,
    out: NewBundle,
    recipe: BuildRecipe = None,
    passes: Passes = None,
    *,
    backend: Backend,
    drafts: Drafts,
    loop: SamplingLoop,
    head: DraftHead = None,
    answer_prefix: AnswerPrefix = None,
    build: Build,
    quiet: Quiet = False,
    json: JsonManifest = False,
) -> None:
    """Export a checkpoint, graft and compile it, prove it, and write a bundle.

    The bundle is written only if every check passes: an error or Ctrl-C leaves OUT as it was.

    Examples:

    `graftline optimize ./SmolLM2-135M-Instruct -o smol.graft`

    `graftline optimize model.gguf -o fast.graft --recipe token-recycling --dtype int4`

    `graftline optimize ./SmolLM2 -o smol.graft --recipe cascade-drafting --draft int8`

    `graftline optimize ./SmolLM2 -o sorted.graft --recipe s2d --draft int8 --draft-depths 15,24`

    `graftline optimize ./SmolLM2 -o skip.graft --recipe self-skip --skip 10-20`

    `graftline optimize ./SmolLM2 -o fast.graft --recipe unified-layer-skip --speedup 1.5`

    `graftline optimize ./SmolLM2 -o exit.graft --recipe layer-skip --exit 8`

    `graftline optimize ./TARGET -o pard.graft --recipe pard --draft ./PARD-DRAFT:int8`

    `graftline optimize ./vicuna-7b-v1.3 -o medusa.graft --head ./medusa-vicuna-7b-v1.3`

    `graftline optimize ./SmolLM2-135M-Instruct -o rtx.graft --target trt-rtx:sm89 --dtype fp16`

    `graftline optimize ./SmolLM2 -o fused.graft --recipe token-recycling --step fused`

    `graftline optimize unet.onnx -o one.graft --spec unet.toml --passes collapse-loop --steps 1,4`

    `graftline optimize model.onnx -o taps.graft --passes "kv-cache | tap{layers=3}" -q --json`
    """
    mode = _mode(backend.weights)
    for name, path in (("CHECKPOINT", checkpoint), ("--draft", drafts.draft), ("--head", head)):
        if path == "":
            raise GraftlineError(f"{name} is empty; give a path")
    libraries.silence_onnxruntime()
    with screen.steps(quiet) as watch:
        from graftline.build import optimize as compile
        from graftline.draft import parse_depths
        from graftline.exits import parse_exits

        bundle = compile.optimize(
            checkpoint, out, recipe=recipe, passes=passes, target=backend.target,
            dtype=backend.dtype, weights=mode, full_export=build.full_export,
            quantizer=backend.quantizer, draft=drafts.draft,
            draft_depths=parse_depths(drafts.draft_depths) if drafts.draft_depths else (),
            engine=build.engine, step=build.step, head=head, skip=drafts.skip,
            speedup=drafts.speedup, spec=loop.spec, steps=_numbers(loop.steps),
            answer_prefix=answer_prefix,
            exits=() if drafts.exit is None else parse_exits(drafts.exit), watch=watch,
        )  # fmt: skip
    if json:
        screen.write_json(json_format.loads(bundle.manifest.to_json()))
    else:
        _show(out, bundle)


def _show(out: Path, bundle: Bundle) -> None:
    """What was built, and what to do with it."""
    from graftline.facts import DecoderFacts

    laws = f"laws: {summary(bundle.manifest.laws)}"
    size = screen.sizes(*bundle.sizes())
    print(f"{out}: {bundle.manifest.facts.told()}, {size}; {laws}")
    if (said := claimed(bundle.manifest.recipe)) != bundle.manifest.recipe:
        print(f"recipe {said}")
    if not isinstance(bundle.manifest.facts, DecoderFacts):
        print(f"see: graftline inspect {out}")
        return
    if "engine" in bundle.manifest.extra:
        print(f"its engine runs on {bundle.manifest.target}; see: graftline inspect {out}")
        return
    print(f'try: graftline run {out} "Explain speculative decoding."')


def _numbers(text: str) -> tuple[int, ...]:
    """The numbers of --steps."""
    words = [word.strip() for word in text.split(",")] if text else []
    if odd := [word for word in words if not word.isdigit() or not int(word)]:
        raise GraftlineError(f"--steps {text}: '{odd[0]}' is no number of steps; write 1,2,4")
    return tuple(map(int, words))


def _mode(weights: str) -> Literal["link", "copy"]:
    if weights == "link" or weights == "copy":
        return weights
    raise GraftlineError(f"--weights {weights}: unknown mode{nearest(weights, ('link', 'copy'))}")
