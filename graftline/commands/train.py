"""`graftline train`: prompts in, a draft head of the host's own out."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from graftline.commands import libraries, screen
from graftline.commands.options.printing import Json, Quiet
from graftline.commands.training import Command
from graftline.files import told_size
from graftline.optional import require_export

if TYPE_CHECKING:
    from graftline.models.training.run import Trained


def train(command: Command, quiet: Quiet = False, json: Json = False) -> None:
    """Train a draft head for a model on your prompts, and write it as published heads are written.

    The model answers the prompts (70 % greedily, 30 % sampled at temperature 0.8), and the head
    learns to foresee the answers; the model itself never changes. Some answers are held out: the
    acceptance shown is the share of drafts on them that are the model's best token. Answers and
    hidden states are kept in graftline's cache. Ctrl-C leaves the head as it is by then, and the
    same command goes on where it stopped.

    On a machine with a GPU it trains there, and on several GPUs under `accelerate launch` or
    `torchrun`, a process for each: the first one answers, judges and writes, and each learns from
    texts of its own at every step, so that a step reads as many times the texts.

    Examples:

    `graftline train medusa ./SmolLM2-135M-Instruct --prompts mine.jsonl -o smol-medusa`

    `graftline train markov ./SmolLM2-135M-Instruct --head smol-medusa --prompts mine.jsonl -o both`

    `graftline train eagle3 model.gguf --prompts mine.jsonl -o smol-eagle3 --minutes 120`

    `graftline train dspark model.gguf --block 5 --prompts mine.jsonl -o smol-dspark`

    `graftline train hidden-transfer model.gguf --enter 20 --prompts mine.jsonl -o smol-transfer`

    `graftline train exit-adapter model.gguf --exit 4 --prompts mine.jsonl -o smol-kangaroo`

    `graftline train accelerator model.gguf --exit 8 --prompts mine.jsonl -o smol-m2r2`

    `graftline train lora-drop model.gguf --layers 9+13+17 --prompts mine.jsonl -o smol-lora-drop`

    `graftline train router model.gguf --share 0.2 --prompts mine.jsonl -o smol-routers`

    `accelerate launch --multi_gpu --num_processes 2 -m graftline train eagle3 model.gguf ...`

    `graftline optimize ./SmolLM2-135M-Instruct -o fast.graft --head smol-medusa`
    """
    command.check()
    libraries.silence_onnxruntime()
    with screen.steps(quiet or _follows()) as watch:
        require_export()
        from graftline.models.training.crew import Crew, Ended
        from graftline.models.training.run import train as run

        crew = Crew.open(command.device)
        try:
            job = crew.first(lambda: command.job(watch, crew.device.type))
            trained = run(job, watch, crew)
        except (KeyboardInterrupt, Ended) as end:
            if crew.main:
                raise
            raise typer.Exit(1) from end  # the first process says why
        crew.close()
    if crew.main:
        _show(trained, job.checkpoint, json)


def _follows() -> bool:
    """Whether a launcher has numbered this process as another than the first, which prints."""
    return os.environ.get("RANK", "0") != "0"


def _show(trained: Trained, checkpoint: str, json: bool) -> None:
    found = trained.found
    if json:
        screen.write_json({
            "out": str(trained.out), "family": trained.family, "bytes": trained.size,
            "steps": trained.course.step, "ended": trained.course.ended,
            "minutes": trained.minutes, "acceptance": found and list(found.shares),
            "tokens_per_step": found and found.tokens, "held_out": found and asdict(found),
            "notes": dict(trained.notes),
        })  # fmt: skip
        return
    told = f"held-out acceptance {found}" if found else "nobody looked at the held-out texts"
    print(f"{trained.out}: {trained.family}, {told_size(trained.size)}; {told}")
    for name, note in trained.notes.items():
        print(f"{name}: {note}")
    use = shlex.join(["graftline", "optimize", checkpoint, "-o", "OUT.graft", "--head",
                      str(trained.out)])  # fmt: skip
    print(f"try: {use}")
