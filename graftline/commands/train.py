"""`graftline train`: prompts in, a draft head of the host's own out."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftline.commands import libraries, screen
from graftline.commands import options as o
from graftline.commands.answering import EngineAnswerer, built, engine_name, source_of
from graftline.commands.conversations import read_conversations, read_texts
from graftline.errors import GraftlineError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graftline.bundle.writer import Watch
    from graftline.models.training.answers import Answerer
    from graftline.models.training.run import Data, Trained

MINUTES = 20.0


def train(
    kind: o.HeadKind,
    checkpoint: o.CheckpointOrBundle,
    prompts: o.TrainPrompts,
    out: o.HeadFolder,
    text: o.PlainText = False,
    minutes: o.Minutes = None,
    steps: o.TrainSteps = None,
    seed: o.TrainSeed = 0,
    heads: o.Heads = None,
    form: o.MedusaForm = None,
    dtype: o.AnswerDtype = "int8",
    max_new_tokens: o.TrainTokens = 256,
    answers: o.TrainAnswers = 1,
    learning_rate: o.LearningRate = 1e-3,
    optimizer: o.Optimizer = "adamw",
    precision: o.TrainPrecision = "fp32",
    threads: o.Threads = None,
    quiet: o.Quiet = False,
    json: o.Json = False,
) -> None:
    """Train a draft head for a model on your prompts, and write it as published heads are written.

    The model answers the prompts (70 % greedily, 30 % sampled at temperature 0.8), and the head
    learns to foresee the answers; the model itself never changes. Some answers are held out: the
    acceptance shown is the share of drafts on them that are the model's best token. Answers and
    hidden states are kept in graftline's cache. Ctrl-C leaves the head as it is by then, and the
    same command goes on where it stopped.

    Examples:

    `graftline train medusa ./SmolLM2-135M-Instruct --prompts mine.jsonl -o smol-medusa`

    `graftline train eagle model.gguf --prompts mine.jsonl -o smol-eagle --minutes 120`

    `graftline optimize ./SmolLM2-135M-Instruct -o fast.graft --head smol-medusa`
    """
    _check(kind, heads, form, dtype, optimizer, precision, minutes, steps, learning_rate)
    given = {
        "--minutes": minutes, "--steps": steps, "--seed": seed or None, "--heads": heads,
        "--form": form, "--dtype": None if dtype == "int8" else dtype, "--threads": threads,
        "--max-new-tokens": None if max_new_tokens == 256 else max_new_tokens,
        "--answers": None if answers == 1 else answers,
        "--learning-rate": None if learning_rate == 1e-3 else learning_rate,
        "--optimizer": None if optimizer == "adamw" else optimizer,
        "--precision": None if precision == "fp32" else precision,
    }  # fmt: skip
    libraries.silence_onnxruntime()
    with screen.steps(quiet) as watch:
        from graftline.optional import require_export

        require_export()
        from graftline.models.training.frozen import checkpoint_folder, host_name
        from graftline.models.training.run import Head, Job
        from graftline.models.training.run import train as run
        from graftline.models.training.trainer import Settings

        source = source_of(checkpoint)
        conversations = [] if text else read_conversations(prompts, answers)
        folder = checkpoint_folder(source.checkpoint, watch)
        _use(threads)
        if text:
            data = _plain_data(folder, prompts, seed)
        else:
            name = host_name(folder)
            data = _asked_data(source, name, conversations, dtype, max_new_tokens, threads, seed,
                               watch)  # fmt: skip
        job = Job(
            Head(kind, form or "v2", heads or 3), source.checkpoint, folder, out, data,
            Settings(steps, seed, learning_rate, optimizer, precision == "bf16"),
            minutes if minutes or steps else MINUTES,
            _command(kind, checkpoint, prompts, out, text, given),
        )  # fmt: skip
        trained = run(job, watch)
    _show(trained, source.checkpoint, json)


def _plain_data(folder: Path, file: Path, seed: int) -> Data:
    from graftline.models.training.answers import Sampling
    from graftline.models.training.run import Data
    from graftline.runtimes.text.tokenizer import Tokenizer

    encode = Tokenizer.from_folder(folder).encode_part
    ids = [encode(text) for text in read_texts(file)]
    return Data((), None, "text", Sampling(seed=seed), ids)


def _asked_data(
    source: Any,
    name: str,
    conversations: Sequence[Any],
    dtype: str,
    most: int,
    threads: int | None,
    seed: int,
    watch: Watch,
) -> Data:
    from graftline.models.cache import place
    from graftline.models.training.answers import Sampling
    from graftline.models.training.run import POSITIONS, Data

    def opened() -> Answerer:
        bundle = built(source, name, dtype, place("training") / "hosts", watch)
        return EngineAnswerer(bundle, threads, most, POSITIONS, watch)

    engine = engine_name(source, name, dtype, most)
    return Data(conversations, opened, engine, Sampling(seed=seed))


def _use(threads: int | None) -> None:
    import os

    import torch

    if threads is None:
        return
    if not 1 <= threads <= (most := os.cpu_count() or 1):
        raise GraftlineError(f"--threads {threads}: this machine has {most} processors")
    torch.set_num_threads(threads)


def _check(
    kind: str, heads: int | None, form: str | None, dtype: str, optimizer: str, precision: str,
    minutes: float | None, steps: int | None, rate: float,
) -> None:  # fmt: skip
    known = {
        "KIND": (kind, ("medusa", "eagle")), "--form": (form or "v2", ("v1", "v2")),
        "--dtype": (dtype, ("int8", "int4", "fp32")), "--optimizer": (optimizer, ("adamw", "muon")),
        "--precision": (precision, ("fp32", "bf16")),
    }  # fmt: skip
    for option, (value, values) in known.items():
        if value not in values:
            raise GraftlineError(f"{option} {value}: unknown{nearest(value, values)}")
    if kind != "medusa" and (heads is not None or form is not None):
        raise GraftlineError(f"--heads and --form are Medusa's; {kind} takes neither")
    for option, number in (("--minutes", minutes), ("--steps", steps), ("--learning-rate", rate)):
        if number is not None and not 0 < number < float("inf"):
            raise GraftlineError(f"{option} {number}: use a number above 0")


def _command(
    kind: str, checkpoint: str, prompts: Path, out: Path, text: bool, given: dict[str, Any]
) -> str:
    """The command line that does this again."""
    said = ["graftline", "train", kind, checkpoint, "--prompts", str(prompts), "-o", str(out)]
    said += ["--text"] if text else []
    for option, value in given.items():
        said += [] if value is None else [option, str(value)]
    return shlex.join(said)


def _show(trained: Trained, checkpoint: str, json: bool) -> None:
    found = trained.found
    if json:
        screen.write_json({
            "out": str(trained.out), "family": trained.family, "bytes": trained.size,
            "steps": trained.course.step, "ended": trained.course.ended,
            "minutes": trained.minutes, "acceptance": found and list(found.shares),
            "tokens_per_step": found and found.tokens, "held_out": found and asdict(found),
        })  # fmt: skip
        return
    told = f"held-out acceptance {found}" if found else "nobody looked at the held-out texts"
    print(f"{trained.out}: {trained.family}, {screen.size(trained.size)}; {told}")
    use = shlex.join(["graftline", "optimize", checkpoint, "-o", "OUT.graft", "--head",
                      str(trained.out)])  # fmt: skip
    print(f"try: {use}")
