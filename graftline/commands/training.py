"""What `graftline train` was asked for: checked, written down, and made a job."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from graftline.commands.conversations import read_conversations, read_texts
from graftline.commands.options.training import TrainOptions
from graftline.errors import GraftlineError, nearest

if TYPE_CHECKING:
    from pathlib import Path

    from graftline.bundle.writer import Watch
    from graftline.commands.answering import Source
    from graftline.models.training.answers import Answerer, Conversation
    from graftline.models.training.run import Data, Job

MINUTES = 20.0
KNOWN: dict[str, Sequence[str]] = {
    "kind": (
        "medusa", "hydra", "markov", "eagle", "eagle3", "fspad", "dflash", "dspark", "ppd",
        "hidden-transfer", "exit-adapter", "accelerator", "lora-drop", "router",
    ),
    "form": ("v1", "v2"),
    "dtype": ("int8", "int4", "fp32"), "optimizer": ("adamw", "muon"),
    "precision": ("fp32", "bf16"), "device": ("cpu", "cuda"),
}  # fmt: skip
"""What may stand where one of a few words is meant."""
TAKEN: dict[str, Sequence[str]] = {
    "heads": ("medusa", "hydra", "ppd", "hidden-transfer"), "form": ("medusa",),
    "enter": ("hidden-transfer",), "exit": ("exit-adapter", "accelerator"),
    "layers": ("lora-drop", "router"), "rank": ("lora-drop", "markov", "accelerator", "dspark"),
    "share": ("router",), "head": ("markov",), "block": ("dflash", "dspark"),
    "verifier_lm_head": ("eagle3", "dflash", "dspark"),
}  # fmt: skip
"""Options that are for some kinds only."""
COUNTED = {"markov": ("steps", "learning_rate", "optimizer", "precision")}
"""Options of a training by steps, which kinds that count do not take."""
NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
"""What PyTorch calls a processor's products in bfloat16: two on x86, one on Arm."""
STEP_TOKENS = {"ppd": 512, "hidden-transfer": 512, "lora-drop": 512, "router": 512}
"""Positions that a step reads, where these are fewer than usual: each is the whole host's work."""
PLACED = ("kind", "checkpoint", "prompts", "out", "text")
"""What a command line begins with; the rest are options, said where they differ."""


def check_numbers(command: Any, names: Sequence[str]) -> None:
    """Raise GraftlineError for an option that is not a number above 0."""
    for name in names:
        number = getattr(command, name)
        if number is not None and not 0 < number < float("inf"):
            raise GraftlineError(f"{_option(name)} {number}: use a number above 0")


def check_threads(threads: int | None) -> None:
    """Raise GraftlineError for more than the machine has."""
    most = os.cpu_count() or 1
    if threads is not None and not 1 <= threads <= most:
        raise GraftlineError(f"--threads {threads}: this machine has {most} processors")


def check_bf16(device: str = "cpu") -> None:
    """Raise GraftlineError where products in bfloat16 would be worked out bit by bit, on a `device`
    of torch's."""
    import torch

    if device == "cuda":
        native, what = torch.cuda.is_bf16_supported(including_emulation=False), "GPU"
    else:
        has = torch.cpu.get_capabilities()
        native, what = any(has.get(name) for name in NATIVE_BF16), "processor"
    if not native:
        raise GraftlineError(
            f"--precision bf16: this {what} has no products in bfloat16, and would take a "
            "hundred times as long as in fp32; leave it out"
        )


def spelled(command: Any, placed: Sequence[str]) -> list[str]:
    """The options of a command that differ from what is usual, but for those `placed` before."""
    differ = [
        (one.name, getattr(command, one.name)) for one in fields(command)
        if one.name not in placed and getattr(command, one.name) != one.default
    ]  # fmt: skip
    return [
        word for name, value in differ
        for word in ([_option(name)] if value is True else [_option(name), str(value)])
    ]  # fmt: skip


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


class Command(TrainOptions):
    """The options of a command line, under their own names."""

    def check(self) -> None:
        """Raise GraftlineError for a value that cannot be."""
        for name, known in KNOWN.items():
            if (value := getattr(self, name)) is not None and value not in known:
                said = "KIND" if name == "kind" else f"--{name}"
                raise GraftlineError(f"{said} {value}: unknown{nearest(value, known)}")
        for name, kinds in TAKEN.items():
            if getattr(self, name) not in (None, False) and self.kind not in kinds:
                *rest, last = kinds
                named = f"{', '.join(rest)} and {last}" if rest else last
                raise GraftlineError(
                    f"{_option(name)} is for {named}; {self.kind} does not take it"
                )
        usual = {one.name: one.default for one in fields(self)}
        for name in COUNTED.get(self.kind, ()):
            if getattr(self, name) != usual[name]:
                raise GraftlineError(
                    f"{_option(name)} is for a training by steps; {self.kind} counts and takes none"
                )
        if self.kind == "markov" and self.head is None:
            raise GraftlineError(
                "train markov adds bigrams to heads that are there; give Medusa's: --head PATH"
            )
        if self.text and self.kind == "router":
            raise GraftlineError("--text: routers read prompts, and plain texts have none")
        check_numbers(self, ("minutes", "steps", "learning_rate"))
        if self.share is not None and not 0 < self.share < 1:
            raise GraftlineError(f"--share {self.share:g}: use a share between 0 and 1")
        check_threads(self.threads)

    def __str__(self) -> str:
        said = ["graftline", "train", self.kind, self.checkpoint, "--prompts", str(self.prompts)]
        said += ["-o", str(self.out), *(["--text"] if self.text else [])]
        return shlex.join([*said, *spelled(self, PLACED)])

    def job(self, watch: Watch, device: str = "cpu") -> Job:
        """The job, with its prompts read and its checkpoint found, for a `device` of torch's.
        Raises GraftlineError."""
        import torch

        from graftline.commands.answering import source_of
        from graftline.models.training import dflash, dspark, kangaroo, lora_drop, m2r2, markov
        from graftline.models.training.frozen import checkpoint_folder
        from graftline.models.training.head_lesson import HeadSettings
        from graftline.models.training.kinds import Head
        from graftline.models.training.router import SHARE
        from graftline.models.training.run import Job

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.precision == "bf16":
            check_bf16(device)
        source = source_of(self.checkpoint)
        texts = read_texts(self.prompts) if self.text else []
        conversations = [] if self.text else read_conversations(self.prompts, self.answers)
        folder = checkpoint_folder(source.checkpoint, watch)
        data = self._plain(folder, texts) if self.text else self._asked(
            source, folder, conversations, watch
        )  # fmt: skip
        bf16, counted = self.precision == "bf16", self.kind == "markov"
        ranks = {"markov": markov.RANK, "accelerator": m2r2.RANK, "dspark": dspark.RANK}
        rank = ranks.get(self.kind, lora_drop.RANK)
        usual = m2r2.EXIT if self.kind == "accelerator" else kangaroo.EXIT
        return Job(
            Head(self.kind, self.form or "v2", self.heads or 3, self.exit or usual,
                 self.layers or "", self.rank or rank, self.enter, self.share or SHARE,
                 "" if self.head is None else str(self.head.absolute()),
                 self.block or dflash.BLOCK, self.verifier_lm_head),
            source.checkpoint, folder, self.out, data,
            HeadSettings(
                1 if counted else self.steps, self.seed, self.learning_rate, self.optimizer, bf16,
                STEP_TOKENS.get(self.kind, HeadSettings.tokens),
            ),
            self.minutes if self.minutes or self.steps else MINUTES, str(self),
        )  # fmt: skip

    def _plain(self, folder: Path, texts: Sequence[str]) -> Data:
        from graftline.models.training.answers import Sampling
        from graftline.models.training.run import Data
        from graftline.runtimes.text.tokenizer import Tokenizer

        encode = Tokenizer.from_folder(folder).encode_part
        ids = [encode(text) for text in texts]
        return Data((), None, "text", Sampling(seed=self.seed), ids)

    def _asked(self, source: Source, folder: Path, conversations: Sequence[Conversation],
               watch: Watch) -> Data:  # fmt: skip
        from graftline.commands.answering import EngineAnswerer, built, engine_name
        from graftline.models.cache import place
        from graftline.models.training.answers import Sampling
        from graftline.models.training.frozen import host_name
        from graftline.models.training.run import POSITIONS, Data

        name = host_name(folder)

        def opened() -> Answerer:
            bundle = built(source, name, self.dtype, place("training") / "hosts", watch)
            return EngineAnswerer(bundle, self.threads, self.max_new_tokens, POSITIONS, watch)

        engine = engine_name(source, name, self.dtype, self.max_new_tokens)
        return Data(conversations, opened, engine, Sampling(seed=self.seed))
