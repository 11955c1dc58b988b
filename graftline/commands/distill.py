"""`graftline distill`: a sampling loop in, a student of one step out."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING

from graftline.commands import libraries, screen
from graftline.commands.distilling import Command
from graftline.commands.options.printing import Json, Quiet
from graftline.files import told_size
from graftline.optional import require_export

if TYPE_CHECKING:
    from graftline.models.training.distil import Distilled


def distill(command: Command, quiet: Quiet = False, json: Json = False) -> None:
    """Distil a denoiser and its sampling loop into a graph that is called once.

    The teacher's whole loop draws samples of seeded noise, and a copy of its graph learns to make
    each in one call of the same noise, by squared error and SSIM. OUT holds the student's graph and
    spec, which `optimize` takes as any other. Some conditions are held out: errors shown are
    theirs. Ctrl-C leaves the student as it is by then, and the same command goes on where it
    stopped.

    Examples:

    `graftline distill one-step unet.onnx --spec unet.toml -o fast --minutes 60`

    `graftline distill one-step loop.graft --condition latents=z.npy -o fast --steps 5000`

    `graftline optimize fast/student.onnx --spec fast/spec.toml -o one.graft --recipe ssdd`
    """
    command.check()
    libraries.silence_onnxruntime()
    with screen.steps(quiet) as watch:
        require_export()
        from graftline.models.training.distil import distill as run

        made = run(command.job(watch), watch)
    _show(made, json)


def _show(made: Distilled, json: bool) -> None:
    from graftline.models.training.student_folder import GRAPH, SPEC

    found = made.found
    if json:
        screen.write_json({
            "out": str(made.out), "bytes": made.size, "pairs": made.pairs,
            "steps": made.course.step, "ended": made.course.ended, "minutes": made.minutes,
            "held_out": found and asdict(found), "naive": asdict(made.naive),
        })  # fmt: skip
        return
    told = str(found) if found else "nobody looked at the held-out samples"
    print(
        f"{made.out}: {told_size(made.size)}; beside the teacher: {told} (its own weights in one "
        f"step: {made.naive})"
    )
    graph, spec = made.out / GRAPH, made.out / SPEC
    use = shlex.join(["graftline", "optimize", str(graph), "--spec", str(spec), "-o", "OUT.graft",
                      "--passes", "collapse-loop"])  # fmt: skip
    print(f"try: {use}")
