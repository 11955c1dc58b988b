"""A mutant: one wrong behaviour, put into one function of ours, that a law must catch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import pytest

from graftline.passes.pipeline.graft import Graft


@dataclass
class Touched:
    """How often the fault did something: a mutant that changed nothing was not tried."""

    count: int = 0


Apply = Callable[[pytest.MonkeyPatch, Touched], None]
Edit = Callable[[ir.Model], int]
"""edit(model) makes a graph wrong in place and returns in how many places."""


@dataclass(frozen=True)
class Mutant:
    """`law` is the law that catches it at `optimize`, or the name of the error that does; where
    how a processor rounds decides which is first, all of them, joined by "or". `options` are those
    of `optimize`."""

    name: str
    where: str
    wrong: str
    host: str
    law: str
    apply: Apply
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def laws(self) -> tuple[str, ...]:
        """The laws, one of which catches it."""
        return tuple(self.law.split(" or "))

    @property
    def reading_is_sound(self) -> bool:
        """Whether the checkpoint is read as it is without the fault."""
        return isinstance(self.apply, After)

    @property
    def front_is_sound(self) -> bool:
        """Whether the canonical host is made as it is without the fault."""
        return isinstance(self.apply, After) and self.apply.graft.stage != "front"


@dataclass(frozen=True)
class After:
    """`graft` does its work, and then `edit` spoils it: on the whole graph and on every reduced one
    alike."""

    graft: type[Graft]
    edit: Edit

    def __call__(self, patch: pytest.MonkeyPatch, touched: Touched) -> None:
        real = self.graft.apply

        def spoiled(graft: Graft, model: ir.Model) -> None:
            real(graft, model)
            touched.count += self.edit(model)

        patch.setattr(self.graft, "apply", spoiled)


def after(graft: type[Graft], edit: Edit) -> Apply:
    """The fault that an edit of what a pass has made is."""
    return After(graft, edit)


def instead(owner: Any, name: str, make: Callable[[Any, Touched], Any]) -> Apply:
    """The function `owner.name` becomes `make(the real one, touched)`, which may call it and counts
    how often it does otherwise."""

    def apply(patch: pytest.MonkeyPatch, touched: Touched) -> None:
        patch.setattr(owner, name, make(getattr(owner, name), touched))

    return apply
