"""A one-step student of a sampling loop: the same graph, taught the loop's samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from graftline.errors import NotApplicable
from graftline.models.training.graph_module import GraphModule
from graftline.models.training.operators.arithmetic import torch_dtype
from graftline.models.training.pairs import Pairs
from graftline.models.training.trainer import Look, Settings
from graftline.sampling.loop import clean_and_noise, fresh_steps
from graftline.sampling.schedule import trajectory
from graftline.sampling.spec import Sampling

Make = Callable[[torch.Tensor, Mapping[str, torch.Tensor]], torch.Tensor]
"""make(noise, conditions by the names of the graph's inputs) -> samples."""
WINDOW = 11
"""Places along an axis that SSIM compares at once (Wang et al., 2004)."""
PER_DEVIATION = 3.5
"""Half of torchmetrics' window in standard deviations of its weights."""


@dataclass(frozen=True)
class StudentSettings(Settings):
    """A step learns `batch` of `pairs` pairs; `perceptual` is the weight of 1 - SSIM beside the
    squared error over the samples' variance."""

    pairs: int = 2048
    batch: int = 32
    perceptual: float = 0.1


@dataclass(frozen=True)
class Errors:
    """Beside the teacher's samples of held-out noise: PSNR in decibels, and SSIM, None where it is
    not learned."""

    psnr: float
    ssim: float | None

    def __str__(self) -> str:
        return f"PSNR {self.psnr:.2f} dB" + ("" if self.ssim is None else f", SSIM {self.ssim:.3f}")


@dataclass(frozen=True)
class Denoiser:
    """A graph and what its inputs and its output are, by name; `conditions` are the names under
    which the teacher takes the graph's further inputs."""

    graph: GraphModule
    sample: str
    timestep: ir.Value
    prediction: str
    conditions: Mapping[str, str]


def student_sampling(teacher: Sampling) -> Sampling:
    """How a student of a loop is sampled: in one step from the last time step, where the sample is
    all noise, with the guidance inside. One of a teacher that predicts noise predicts v: in one
    step the noise is what is given (Salimans and Ho, 2202.00512, section 4). Raises NotApplicable
    where the loop adds new noise, so that no sample belongs to a noise, goes over scales, or has
    one step."""
    if fresh_steps(teacher):
        why = f"sampling.eta is {teacher.eta}" if teacher.scheduler == "ddim" else "adds new noise"
        raise NotApplicable(
            f"distill one-step: sampling.scheduler {teacher.scheduler} is stochastic ({why}), so "
            "that no sample belongs to a noise; sample the teacher with ddim (eta 0), euler or "
            "flow-match"
        )
    if teacher.scales > 1:
        raise NotApplicable(
            f"distill one-step: the teacher is sampled over {teacher.scales} scales, and a student "
            "in one step has one; sample the teacher with ddim (eta 0), euler or flow-match"
        )
    if teacher.steps < 2:
        raise NotApplicable(
            f"distill one-step: sampling.steps is {teacher.steps}; give the teacher's own number"
        )
    kind = "v" if teacher.prediction == "epsilon" else teacher.prediction
    return replace(teacher, steps=1, prediction=kind, spacing="trailing", guidance=1.0)


class OneStep:
    """A denoiser called once, as the first step of a schedule of one."""

    def __init__(self, denoiser: Denoiser, sampling: Sampling) -> None:
        self.denoiser, self.sampling = denoiser, sampling
        path = trajectory(sampling)
        (self.moment,) = path.moments
        self.start = path.start

    def drawn(self, noise: torch.Tensor, conditions: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The sample [B, C, H, W] of unit noise, as an engine draws it; `conditions` by the names
        of the graph's inputs."""
        return self._drawn(noise, conditions, self.sampling.clip)

    def unclipped(
        self, noise: torch.Tensor, conditions: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The same beyond the schedule's bounds too, where a clipped one has no gradient."""
        return self._drawn(noise, conditions, 0.0)

    def _drawn(
        self, noise: torch.Tensor, conditions: Mapping[str, torch.Tensor], bound: float
    ) -> torch.Tensor:
        moment, x = self.moment, noise * self.start
        seen, host = x * moment.scale, self.denoiser
        feed = {**conditions, host.sample: seen, host.timestep.name or "": self._time(len(noise))}
        said = host.graph(feed, host.prediction)
        if moment.prefix is not None:
            return said
        clean, epsilon = clean_and_noise(self.sampling.prediction, moment, seen, said)
        clean = clean.clamp(-bound, bound) if bound else clean
        clean = moment.skip * x + moment.out * clean
        return moment.there.signal * clean + moment.there.noise * epsilon

    def _time(self, batch: int) -> torch.Tensor:
        value = self.denoiser.timestep
        assert value.shape is not None
        assert value.dtype is not None
        dims = [d if isinstance(d, int) else batch for d in value.shape]
        return torch.full(dims, self.moment.time, dtype=torch_dtype(value.dtype))


class OneStepLesson:
    """The teacher's sample of the same noise, by squared error and SSIM (torchmetrics)."""

    def __init__(
        self,
        student: OneStep,
        pairs: Pairs,
        held_out: Pairs,
        conditions: Mapping[str, torch.Tensor],
        settings: StudentSettings,
    ) -> None:
        """`conditions` [R, ...] by the names of the graph's inputs. Raises NotApplicable where the
        samples are too small for SSIM."""
        self.student, self.pairs, self.held_out = student, pairs, held_out
        self.conditions, self.settings = conditions, settings
        self.parameters = student.denoiser.graph.weights
        self.variance = float(pairs.samples.var()) or 1.0
        self.range = float(pairs.samples.max() - pairs.samples.min()) or 1.0
        half = min(WINDOW // 2, (min(pairs.samples.shape[2:]) - 1) // 2)
        if settings.perceptual and not half:
            raise NotApplicable(
                f"samples of {list(pairs.samples.shape[2:])} are too small for SSIM; "
                "give --perceptual 0"
            )
        self.deviation = half / PER_DEVIATION

    def loss(self, step: int, progress: float, random: torch.Generator) -> torch.Tensor:
        """Of a step's pairs; in every epoch each is learned once, in another order."""
        count, batch = len(self.pairs), self.settings.batch
        epoch, place = divmod(step, max(count // batch, 1))
        seed = self.settings.seed * 1_000_003 + epoch
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        some = self.pairs.at(order[place * batch : (place + 1) * batch])
        error, alike = self._compared(some, self.student.unclipped)
        return error / self.variance + self.settings.perceptual * (1 - alike)

    @torch.no_grad()
    def look(self) -> Look:
        """PSNR and SSIM beside the teacher's samples; the score is the loss, negative."""
        error, alike = self.held_out_errors(self.student)
        score = -(error / self.variance + self.settings.perceptual * (1 - alike))
        return Look(score, [[error, alike]], f"held out: {self.errors(error, alike)}")

    def errors(self, error: float, alike: float) -> Errors:
        """A mean squared error in decibels, of the range of the teacher's samples, and SSIM."""
        psnr = 10 * math.log10(self.range**2 / error) if error else math.inf
        return Errors(psnr, alike if self.settings.perceptual else None)

    @torch.no_grad()
    def held_out_errors(self, student: OneStep) -> tuple[float, float]:
        """Mean squared error and SSIM of what a student makes of the held-out noise."""
        total, alike, count = 0.0, 0.0, len(self.held_out)
        for places in torch.arange(count).split(self.settings.batch):
            error, ssim = self._compared(self.held_out.at(places), student.drawn)
            total += float(error) * len(places) / count
            alike += float(ssim) * len(places) / count
        return total, alike

    def _compared(self, some: Pairs, make: Make) -> tuple[torch.Tensor, torch.Tensor]:
        given = {name: value[some.rows] for name, value in self.conditions.items()}
        made = make(some.noise, given)
        error = (made - some.samples).square().mean()
        if not self.settings.perceptual:
            return error, torch.ones(())
        alike = structural_similarity_index_measure(
            made, some.samples, sigma=self.deviation, data_range=self.range
        )
        assert isinstance(alike, torch.Tensor)
        return error, alike
