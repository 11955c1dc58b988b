"""multi-scale: a sample from coarse to fine, one call of the denoiser for each size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.passes.grafts.collapse_loop import CollapseLoop
from graftline.sampling.spec import Sampling


@dataclass(frozen=True)
class MultiScale(CollapseLoop):
    """The sampling loop over sizes as one chain, coarse to fine, with one call for each: every
    sample is doubled, given new noise within its blocks, and refined (Wang and Chen, arXiv
    2603.19570; the scheduler `pyramid`).

    One input of unit noise of the last size is the noise of all: its blocks' averages are the first
    sample's, and what varies within them is added as the sizes double. `steps` of the whole loop;
    0: as many as it has sizes. Neutral: the published loop, called step by step.
    """

    def sampling(self, model: ir.Model) -> Sampling:
        sampling = super().sampling(model)
        if sampling.scales == 1:
            raise NotApplicable(
                f"{self.name()} samples over scales, and sampling.scheduler is "
                f"{sampling.scheduler}; a network that was trained for it has the scheduler "
                "'pyramid' and its scales in the spec"
            )
        return replace(sampling, steps=self.steps or sampling.scales)
