"""A mutant: one wrong behaviour, put into one function of ours, that a law must catch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import getattr_static
from types import FunctionType, ModuleType
from typing import Any

import onnx_ir as ir
import pytest

from graftline.passes.pipeline.graft import Graft
from tests.kept_passes import Call, Fault

PASSES = "graftline.passes."
BEHIND = ("graftline.build.", "graftline.kinds.", "graftline.runtimes.")


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

    @property
    def fault(self) -> Fault | None:
        """What it can reach of a run of passes; None where that is not known. Passes call no code
        of the rooms behind them (tests/core/test_rooms.py)."""
        if isinstance(self.apply, After):
            return Fault(graft=self.apply.graft)
        if not isinstance(self.apply, Instead):
            return None
        if self.apply.file.startswith(BEHIND):
            return Fault()
        watched = self.apply.watched()
        return Fault(calls=frozenset(watched)) if watched else None


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


@dataclass(frozen=True)
class Instead:
    """The function, or the constant, `owner.name` becomes `make(the real one, touched)`."""

    owner: Any
    name: str
    make: Callable[[Any, Touched], Any]

    def __call__(self, patch: pytest.MonkeyPatch, touched: Touched) -> None:
        real = getattr(self.owner, self.name)
        patch.setattr(self.owner, self.name, self.make(real, touched))

    @property
    def file(self) -> str:
        """The module that its code is in."""
        module = isinstance(self.owner, ModuleType)
        return self.owner.__name__ if module else self.owner.__module__

    def watched(self) -> list[Call]:
        """The functions of passes without a call of which the fault does nothing: of a constant,
        all of its file; none where they are not known."""
        if not self.file.startswith(PASSES):
            return []
        if isinstance(getattr_static(self.owner, self.name), FunctionType):
            return [(self.owner, self.name)]
        return _functions(self.owner) if isinstance(self.owner, ModuleType) else []


def _functions(module: ModuleType) -> list[Call]:
    """All functions of a file and methods of its classes; none where a class has others."""
    own = [v for v in vars(module).values() if getattr(v, "__module__", "") == module.__name__]
    classes = [v for v in own if isinstance(v, type)]
    held = [(owner, name, v) for owner in classes for name, v in vars(owner).items()]
    if any(isinstance(v, classmethod | staticmethod | property) for *_, v in held):
        return []
    held += [(module, name, v) for name, v in vars(module).items() if v in own]
    return [(owner, name) for owner, name, v in held if isinstance(v, FunctionType)]


def instead(owner: Any, name: str, make: Callable[[Any, Touched], Any]) -> Apply:
    """The function `owner.name` becomes `make(the real one, touched)`, which may call it and counts
    how often it does otherwise."""
    return Instead(owner, name, make)
