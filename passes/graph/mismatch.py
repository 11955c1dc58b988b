"""What a recogniser answers where its pattern is not: a value. Who asked tries the next spelling,
or refuses the host with all the reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graftline.errors import NotApplicable
from graftline.passes.graph.meaning import label, label_value

_REASONS, _NAMES, _LONGEST = 3, 2, 240


@dataclass(frozen=True)
class Mismatch:
    """Why what was looked for is not at `node`; `others` are nodes and values that say so too."""

    node: str
    reason: str
    others: tuple[str, ...] = ()
    final: bool = False
    """Whether no other spelling may be tried: the host is not to be served with this node in it."""

    @classmethod
    def at(cls, node: ir.Node | ir.Value, reason: str, final: bool = False) -> Mismatch:
        """At a node, or at the node that makes a value."""
        name = label(node) if isinstance(node, ir.Node) else label_value(node)
        return cls(name, reason, final=final)

    @classmethod
    def over(cls, nodes: Sequence[ir.Node | ir.Value], reason: str) -> Mismatch:
        """At the first of several nodes or values, all of which were looked at."""
        names = [label(n) if isinstance(n, ir.Node) else label_value(n) for n in nodes]
        return cls(names[0] if names else "the graph", reason, tuple(names[1:]))

    @property
    def text(self) -> str:
        """Node and reason, in one line."""
        return f"{self.node}: {self.reason}"

    def error(self) -> NotApplicable:
        """The refusal of a host for this reason alone."""
        return NotApplicable(self.reason, (self.node, *self.others))


def refusal(what: str, found: Sequence[Mismatch]) -> NotApplicable:
    """The refusal of a host in which `what` was looked for: the first reasons, each with its nodes,
    in one line; the reason alone where there is but one."""
    by_reason: dict[str, list[Mismatch]] = {}
    for one in found:
        by_reason.setdefault(one.reason, []).append(one)
    if len(by_reason) == 1:
        (same,) = by_reason.values()
        names = dict.fromkeys(n for m in same for n in (m.node, *m.others))
        return NotApplicable(f"{what}: {same[0].reason}", list(names))
    told = [f"{_names(same)}: {_cut(why)}" for why, same in list(by_reason.items())[:_REASONS]]
    left = len(by_reason) - len(told)
    more = f"; and {left} other reason{'s' * (left > 1)}" if left else ""
    return NotApplicable(f"{what}: {'; '.join(told)}{more}" if told else what)


def _names(same: Sequence[Mismatch]) -> str:
    names = list(dict.fromkeys(m.node for m in same))
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3].rstrip() + "..."
