"""A text that passes look at activations of, and what they keep of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from graftline.evaluate import Feed
from graftline.passes.pipeline.graft import Graft

SAMPLE = "graftline.sample"
"""In a model's `meta`, which is no part of its file: the Sample that passes may look at."""
Watch = Callable[[str], None]


@dataclass(frozen=True)
class Sample:
    """Feeds of a graph as it is now: all sequences, and a few of them; or `missing`, why there are
    none. `say` is told what takes time. `kept` is what passes have learned from the text, by a key
    of theirs: the graphs that are made of one host share it, so that it is learned once."""

    feed: Feed
    probe: Feed
    say: Watch
    missing: str = ""
    kept: dict[Hashable, Any] = field(default_factory=dict[Hashable, Any])

    def after(self, graft: Graft, model: ir.Model) -> Sample:
        """The same for the graph that a graft made of it."""
        if self.missing:
            return self
        feeds = graft.neutral(self.feed, model), graft.neutral(self.probe, model)
        return Sample(*feeds, self.say, kept=self.kept)
