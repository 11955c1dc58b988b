"""A sample of two consecutive chunks, of which the second is drawn behind the first."""

from __future__ import annotations

from dataclasses import dataclass

from graftline.errors import GraftlineError


@dataclass(frozen=True)
class Chunks:
    """A sample [B, C, H, 2 `width`] is two chunks side by side, of which the first sees nothing of
    the second, as the decoder of Music2Latent2 is trained (Pasini et al., arXiv 2501.17578).
    `latents` is the input [B, 2 L, ...] that holds the latents of both. `timestep` is the input [B]
    that says how noisy the first chunk is, where the network has one: then it is given with `noise`
    (sigma; 0: clean) at every step. Else it is as noisy as the step."""

    width: int
    latents: str
    timestep: str = ""
    noise: float = 0.0

    def check(self) -> None:
        """Raise GraftlineError naming the field that cannot be."""
        rules = (
            ("width", self.width, self.width >= 1, "1 or more, the places of one chunk"),
            ("latents", repr(self.latents), bool(self.latents), "the name of an input"),
            ("noise", self.noise, self.noise >= 0, "0 or more"),
            ("noise", self.noise, not self.noise or bool(self.timestep),
             "0 without chunks.timestep: the chunk before is as noisy as the step"),
        )  # fmt: skip
        for field, value, holds, wanted in rules:
            if not holds:
                raise GraftlineError(f"chunks.{field} is {value}; it must be {wanted}")
