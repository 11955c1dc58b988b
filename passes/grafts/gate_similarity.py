"""The similarity at which gated MLPs save what a speed-up asks for, on a text of the host's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx_ir as ir

from graftline.errors import LawBroken, NotApplicable
from graftline.evaluate import Array
from graftline.law import Evidence
from graftline.passes.anchors.residual import Span
from graftline.passes.graph.activations import activations
from graftline.passes.laws.gated import Gates, cosines_of, similarity_of
from graftline.passes.pipeline.graft import Graft
from graftline.passes.pipeline.sample import SAMPLE, Sample

FIRST_ROWS = 8
"""Rows at the beginning of each text that are not counted: whatever stands there is attended to
most, and MLPs hardly change it (cosines of 0.9999 on SmolLM2)."""
Mids = Sequence[tuple[Span, ir.Value]]
"""Blocks of the region, and the stream of each without its MLP."""


@dataclass(frozen=True)
class Reach:
    """How far rows of a text would come: for each gate and row [gates, rows] the largest cosine of
    an MLP before it, which lets the row pass by from that similarity downwards; and by gate the
    share of all numbers that a step reads which its MLP has."""

    cosines: Array
    shares: Array

    def saved(self, similarity: float) -> float:
        """The share of a step's numbers that a row passes by, on average."""
        return float((self.shares[:, None] * (self.cosines >= similarity)).sum(0).mean())

    def similarity(self, saved: float) -> float:
        """The largest similarity at which at least that share is saved."""
        order = np.argsort(-self.cosines, axis=None)
        each = np.broadcast_to(self.shares[:, None], self.cosines.shape).reshape(-1)[order]
        place = int(np.searchsorted(np.cumsum(each) / self.cosines.shape[1], saved))
        return float(self.cosines.reshape(-1)[order[min(place, order.size - 1)]])

    @property
    def most(self) -> float:
        """The largest speed-up there is: a row that passes by at every gate."""
        return 1 / (1 - float(self.shares.sum()))


def reach_of(graft: Graft, model: ir.Model, mids: Mids, shares: Array) -> Reach:
    """The cosines of a host's own text. Raises NotApplicable where there is no text to look at."""
    sample: Sample | None = model.meta.get(SAMPLE)
    if sample is None or sample.missing:
        why = "this pipeline has no text of the host" if sample is None else sample.missing
        raise NotApplicable(f"{graft}: {why}; give a similarity in place of a speedup")
    if graft not in sample.kept:
        sample.say("gate-mlp: how far MLPs turn the stream of the host's own text")
        names = [value.name or "" for span, mid in mids[:-1] for value in (mid, span.end)]
        found = dict(activations(model, sample.feed, names))
        turned = [cosines_of(found[mid.name or ""], found[span.end.name or ""])
                  for span, mid in mids[:-1]]  # fmt: skip
        rows = np.stack(turned)[:, :, FIRST_ROWS:].reshape(len(turned), -1)
        sample.kept[graft] = Reach(np.maximum.accumulate(rows, axis=0), shares)
    return sample.kept[graft]


def chosen(graft: Graft, reach: Reach, speedup: float) -> float:
    """The similarity for a speed-up. Raises NotApplicable for one that no gate can give."""
    if not 1 < speedup < reach.most:
        most = math.floor(100 * reach.most) / 100
        raise NotApplicable(
            f"{graft}: gated MLPs make a step more than 1 and less than {most:g} times as fast "
            f"here, not {speedup:g}"
        )
    return reach.similarity(1 - 1 / speedup)


def saves(graft: Graft, before: ir.Model, after: ir.Model) -> Evidence:
    """On the host's own text a row passes by as many numbers as the speed-up asks for, but for one
    row's MLP: the similarity in the graph is the one that was looked for."""
    gates, sample = cast(Gates, graft), cast("Sample | None", after.meta.get(SAMPLE))
    own = similarity_of(after)
    if not gates.speedup:
        return Evidence(f"rows pass by behind an MLP of similarity {own:g}, as asked")
    assert sample is not None, "without a text there is no similarity"
    reach: Reach = sample.kept[graft]
    due, saved = 1 - 1 / gates.speedup, reach.saved(own)
    most = 2 * float(reach.shares.max()) / reach.cosines.shape[1]
    if not abs(saved - due) <= most:
        by = f"saves {saved:.4f} of a step, for {due:.4f}"
        raise LawBroken(graft.name(), "saves", f"a similarity of {own:g}", by)
    what = f"a similarity of {own:.4f} saves {saved:.3f} of what a step reads"
    return Evidence(f"{what}, on the host's own text", abs(saved - due), most)
