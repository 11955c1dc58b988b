"""A graft: one rewrite that states what it needs and under which inputs it is invisible."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Hashable, Mapping
from typing import ClassVar, Literal

import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.evaluate import Feed
from graftline.law import Evidence
from graftline.ports import read_ports

MADE_BY, BLOCK, ROLE = "graftline.made_by", "graftline.block", "graftline.role"
Stage = Literal["front", "graft", "fuse", "lower"]
STAGES: tuple[Stage, ...] = ("front", "graft", "fuse", "lower")
"""To the canonical form; what is grafted on; the step in one graph; to a backend's operators."""
SHARED = "shared"
"""The block of what several blocks read."""
Evaluate = Callable[[ir.Model, Feed], Feed]
Law = Callable[["Graft", ir.Model, ir.Model, Feed, Evaluate], Evidence]
"""law(graft, before, after, feed of before, evaluate) -> what was compared. Raises LawBroken."""
WeightFreeLaw = Callable[["Graft", ir.Model, ir.Model], Evidence]
"""law(graft, before, after) -> what was compared, on the whole graph, without running it."""


@dataclasses.dataclass(frozen=True)
class Graft:
    """Base of all passes: a frozen dataclass whose fields are its options.

    `laws` and `weight_free` laws are checked after `apply`, besides the common four.
    """

    stage: ClassVar[Stage] = "graft"
    """When it runs: passes of a pipeline stand in the order of STAGES."""
    laws: ClassVar[tuple[Law, ...]] = ()
    weight_free: ClassVar[tuple[WeightFreeLaw, ...]] = ()
    """Laws that need no numbers but the graph's own: they run at every size, on all blocks, and
    read one weight at a time at most."""
    numeric: ClassVar[bool] = True
    """False for a pass that changes values by design (quantize): the neutral law reports, not
    judges."""
    computes: ClassVar[tuple[str, ...]] = ()
    """Roles of the host's inputs that the graph makes itself from now on. All others stay inputs.
    """

    @property
    def calibrates(self) -> bool:
        """Whether it looks at activations, where the model carries a sample to make some of."""
        return False

    @classmethod
    def name(cls) -> str:
        """The CLI name: the class name in kebab-case."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()

    def __str__(self) -> str:
        changed = [
            f"{f.name}={_text(getattr(self, f.name))}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        ]
        return self.name() + ("{" + ",".join(changed) + "}" if changed else "")

    def requires(self, model: ir.Model) -> None:
        """Raise NotApplicable, naming the nodes looked at, when the host does not fit."""

    def apply(self, model: ir.Model) -> None:
        """Rewrite the model in place."""
        raise NotApplicable(f"{self.name()} has nothing to apply")

    def neutral(self, feed: Feed, after: ir.Model) -> Feed:
        """From a feed of the graph before, the feed of `after` under which nothing changed."""
        return dict(feed)

    def reference(self, before: ir.Model, feed: Feed, evaluate: Evaluate) -> Feed:
        """What the host computes for a feed of it, in as many calls as the graft puts into one."""
        return evaluate(before, feed)

    def carried(self, outputs: Feed, after: ir.Model) -> Feed:
        """From outputs of the graph after, the outputs of the graph before they stand for."""
        return outputs

    def dropped(self, before: ir.Model) -> frozenset[str]:
        """Inputs and outputs of the host that the graph has no more, by design."""
        ports = (p for p in read_ports(before) if p.direction == "in")
        return frozenset(p.name for p in ports if p.role in self.computes)

    def replaced(self, before: ir.Model) -> frozenset[str]:
        """Outputs of the host that `carried` makes from outputs of the graph after."""
        return frozenset()

    def apart(self, before: ir.Model) -> Mapping[int, Hashable]:
        """Blocks of the host that it rewrites otherwise than the rest, by design, and how."""
        return {}

    def within(self, blocks: int) -> Graft:
        """The same rewrite for the first `blocks` blocks of its host, on which the numeric laws
        run."""
        return self


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def stamp(node: ir.Node, by: str) -> ir.Node:
    """Mark a node with the pass that made it, for `graftline inspect`."""
    node.metadata_props[MADE_BY] = by
    return node
