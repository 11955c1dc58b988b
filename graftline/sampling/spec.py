"""How a denoiser is sampled: what its prediction means, and the scheduler with its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from graftline.errors import GraftlineError

Prediction = Literal["epsilon", "v", "x0", "flow"]
Scheduler = Literal[
    "consistency", "ddim", "ddpm", "euler", "euler-ancestral", "flow-match", "lcm", "prefix",
    "pyramid"
]  # fmt: skip
Betas = Literal["linear", "scaled-linear", "cosine"]
Spacing = Literal["leading", "trailing", "linspace"]
Final = Literal["one", "first"]
FLOWS: tuple[Scheduler, ...] = ("flow-match", "pyramid")
"""Schedulers of networks that say which way the sample goes."""
MOST_SCALES = 6


@dataclass(frozen=True)
class Sampling:
    """A noisy sample is x = a x0 + s noise; a denoiser predicts, of x at a time step:

        epsilon  the noise                  v     a noise - s x0 (Salimans and Ho, 2202.00512)
        x0       the clean sample           flow  noise - x0 (Lipman et al., 2210.02747)

    Schedulers: `ddim` (Song et al., 2010.02502; `eta` of its equation 16), `ddpm`, the posterior
    of the training's own process (Ho et al., 2006.11239, equation 7: `ddim` of `eta` 1, but that a
    clipped clean sample says what noise is left), `euler` over levels of noise and
    `euler-ancestral` (Karras et al., 2206.00364), `flow-match` (Esser et al., 2403.03206), and
    `lcm`, multi-step consistency sampling (Luo et al., 2310.04378). `prefix` is that of generators
    distilled from autoregressive ones (Liu et al., 2412.17153): the places of a sample, row after
    row, are its `train_steps` tokens; step i of n is given the first i / n of them as they were
    predicted and the first noise for the others, and its time step is how many it is given.
    `pyramid` is pyramidal flow matching (Jin et al., 2410.05954) over `scales`: each scale has a
    straight line of its own, along which `flow` says how to go, from the sample of the scale
    before, doubled and with new noise within its blocks of 2 x 2. `consistency` is multistep
    consistency sampling (Song et al., 2303.01469, algorithm 1) of x = x0 + sigma epsilon: from each
    of the `sigmas` to a clean sample, which gets new noise for the next. The network is given x and
    sigma as they are, as one that was exported with its scaling is.
    """

    prediction: Prediction
    scheduler: Scheduler
    steps: int
    """Of the whole loop."""
    train_steps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    betas: Betas = "linear"
    """How the variances of the training's time steps follow one another."""
    spacing: Spacing = "leading"
    """Which of the training's time steps are taken (Lin et al., 2305.08891, table 2). Of
    `flow-match`, `trailing` ends a step above no noise, as Flux is drawn, and the others a time
    step of the training above it."""
    offset: int = 0
    """Added to the time steps of the spacing `leading`, and of `prefix`."""
    final: Final = "one"
    """What follows the last time step: no noise at all, or the noise of the training's first."""
    eta: float = 0.0
    """Of `ddim`: 0 is deterministic, 1 as noisy as the training's own process."""
    clip: float = 0.0
    """Bound of the predicted clean sample; 0: none."""
    shift: float = 1.0
    """Of `flow-match`: more than 1 spends more steps where there is much noise."""
    original_steps: int = 50
    """Of `lcm`: the steps of the solver that it was distilled from."""
    sigma_data: float = 0.5
    timestep_scaling: float = 10.0
    scales: int = 1
    """Of `pyramid`: sizes that are sampled in turn, each twice the one before."""
    sigmas: tuple[float, ...] = ()
    """Of `consistency`, falling; n steps take the first n."""
    sigma_min: float = 0.002
    """Of `consistency`: the noise of the training's cleanest samples."""
    guidance: float = 1.0
    """Classifier-free guidance (Ho and Salimans, 2207.12598); 1: none, or distilled."""

    @property
    def noisy(self) -> bool:
        """Whether steps add fresh noise."""
        always = self.scheduler in ("consistency", "ddpm", "euler-ancestral", "lcm")
        return always or (self.scheduler == "ddim" and self.eta > 0)

    def told(self) -> str:
        """In words."""
        count = "one step" if self.steps == 1 else f"{self.steps} steps"
        guided = f", guidance {self.guidance:g}" if self.guidance != 1 else ""
        over = f" over {self.scales} scales" if self.scales > 1 else ""
        return f"drawn in {count} of {self.scheduler} from {self.prediction}{over}{guided}"

    def check(self) -> None:
        """Raise GraftlineError naming the field that cannot be, or does not fit another."""
        flows, pyramid = self.scheduler in FLOWS, self.scheduler == "pyramid"
        consistent, falling = self.scheduler == "consistency", (*self.sigmas, self.sigma_min)
        clean = consistent or self.scheduler == "prefix"
        rules = (
            ("steps", self.steps, 1 <= self.steps <= self.train_steps, "1 to train_steps"),
            ("beta_start", self.beta_start, 0 < self.beta_start <= self.beta_end, "0 to beta_end"),
            ("beta_end", self.beta_end, self.beta_end < 1, "less than 1"),
            ("offset", self.offset, 0 <= self.offset < self.train_steps, "0 to train_steps"),
            ("eta", self.eta, 0 <= self.eta <= 1, "0 to 1"),
            ("eta", self.eta, not self.eta or self.scheduler == "ddim", "0 unless ddim"),
            ("clip", self.clip, self.clip >= 0, "0 or more"),
            ("shift", self.shift, self.shift > 0, "more than 0"),
            ("original_steps", self.original_steps,
             1 <= self.original_steps <= self.train_steps, "1 to train_steps"),
            ("steps", self.steps, self.scheduler != "lcm" or self.steps <= self.original_steps,
             "at most original_steps for lcm"),
            ("prediction", self.prediction, (self.prediction == "flow") == flows,
             "'flow' for the schedulers flow-match and pyramid, and for no other"),
            ("prediction", self.prediction, self.prediction == "x0" or not clean,
             f"'x0' for the scheduler {self.scheduler}"),
            ("clip", self.clip, not self.clip or self.scheduler not in ("prefix", "pyramid"),
             f"0 for {self.scheduler}"),
            ("shift", self.shift, self.shift == 1 or not pyramid, "1 for pyramid"),
            ("scales", self.scales, self.scales == 1 or pyramid, "1 unless pyramid"),
            ("scales", self.scales, 2 <= self.scales <= MOST_SCALES or not pyramid,
             f"2 to {MOST_SCALES} for pyramid"),
            ("steps", self.steps, not pyramid or self.steps % self.scales == 0,
             "a multiple of scales for pyramid"),
            ("sigmas", list(self.sigmas), bool(self.sigmas) == consistent,
             "said for the scheduler consistency, and for no other"),
            ("sigma_min", self.sigma_min, self.sigma_min >= 0, "0 or more"),
            ("sigmas", list(self.sigmas), all(a > b for a, b in pairwise(falling)),
             f"falling numbers above sigma_min, {self.sigma_min:g}"),
            ("steps", self.steps, not consistent or self.steps <= len(self.sigmas),
             f"at most {len(self.sigmas)}, as many as sampling.sigmas"),
        )  # fmt: skip
        for field, value, holds, wanted in rules:
            if not holds:
                raise GraftlineError(f"sampling.{field} is {value}; it must be {wanted}")
