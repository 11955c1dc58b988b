"""What `graftline distill` was asked for: checked, written down, and made a job."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graftline.commands.options.distilling import DistillOptions
from graftline.commands.training import MINUTES, check_numbers, check_threads, spelled
from graftline.errors import GraftlineError, nearest

if TYPE_CHECKING:
    import numpy.typing as npt

    from graftline.bundle.writer import Watch
    from graftline.models.training.distil import Job

KINDS = ("one-step",)
"""What can be distilled."""
PLACED = ("kind", "checkpoint", "out", "condition")
"""What a command line begins with; the rest are options, said where they differ."""


class Command(DistillOptions):
    """The options of a command line, under their own names."""

    def check(self) -> None:
        """Raise GraftlineError for a value that cannot be."""
        if self.kind not in KINDS:
            raise GraftlineError(f"KIND {self.kind}: unknown{nearest(self.kind, KINDS)}")
        if self.optimizer not in (known := ("adamw", "muon")):
            close = nearest(self.optimizer, known)
            raise GraftlineError(f"--optimizer {self.optimizer}: unknown{close}")
        check_numbers(self, ("minutes", "steps", "pairs", "batch", "learning_rate"))
        if not 0 <= self.perceptual < float("inf"):
            raise GraftlineError(f"--perceptual {self.perceptual}: use 0 or a number above")
        check_threads(self.threads)

    def __str__(self) -> str:
        said = ["graftline", "distill", self.kind, self.checkpoint, "-o", str(self.out)]
        said += [word for pair in self.condition or () for word in ("--condition", pair)]
        return shlex.join([*said, *spelled(self, PLACED)])

    def job(self, watch: Watch) -> Job:
        """The job, with its teacher built and opened. Raises GraftlineError."""
        import numpy as np
        import torch

        from graftline.commands.decode import read_conditions
        from graftline.commands.opening import open_decoder
        from graftline.commands.teaching import (
            check_same,
            checked,
            loop_facts,
            student_denoiser,
            student_spec,
            teacher_bundle,
        )
        from graftline.models.training.distil import Job
        from graftline.models.training.one_step import StudentSettings

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        read = read_conditions(self.condition or ())
        bundle, spec = teacher_bundle(self.checkpoint, self.spec, watch)
        facts = loop_facts(bundle)
        assert facts.sampling is not None
        engine = open_decoder(bundle.path, watch, self.threads)
        shape, given = checked(engine, read, self.size)
        denoiser = student_denoiser(bundle, engine, given)
        own = student_spec(denoiser, facts, spec)

        def draw(
            noise: npt.NDArray[Any], conditions: Mapping[str, Any]
        ) -> npt.NDArray[Any]:
            return engine.decode(noise, **conditions)

        random = np.random.default_rng(self.seed)
        first = {name: value[:2] for name, value in given.items()}
        noise = random.standard_normal((min([2, *map(len, first.values())]), *shape))
        noise = noise.astype(np.float32)
        draw(noise, first)  # refuses conditions that do not fit
        check_same(denoiser, facts.sampling.train_steps / 2, noise, first)
        settings = StudentSettings(
            self.steps, self.seed, self.learning_rate, self.optimizer, pairs=self.pairs,
            batch=self.batch, perceptual=self.perceptual,
        )  # fmt: skip
        return Job(
            self.checkpoint, self.out, denoiser, facts.sampling,
            draw, bundle.digest, shape, given, own,
            settings, self.minutes if self.minutes or self.steps else MINUTES, str(self),
        )  # fmt: skip
