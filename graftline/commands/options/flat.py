"""Commands whose signature has dataclasses of options, as typer reads them: option by option."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints


def flat(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with the fields of a dataclass, and of dataclasses in it, in place of each
    parameter that is one. Raises ValueError where two options have one name."""
    hints = get_type_hints(command, include_extras=True)
    parameters = [
        one
        for name, given in signature(command).parameters.items()
        for one in _flattened(name, hints[name], given.default)
    ]

    @wraps(command)
    def call(**values: Any) -> None:
        command(**{name: _taken(name, hints[name], values) for name in given})

    given = signature(command).parameters
    call.__annotations__ = {one.name: one.annotation for one in parameters}
    call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return call


def _flattened(name: str, kind: Any, default: Any) -> Iterator[Parameter]:
    """The parameters that one stands for: keywords, as only these take any order of defaults."""
    if not is_dataclass(kind):
        yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        return
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        usual = Parameter.empty if field.default is MISSING else field.default
        yield from _flattened(field.name, hints[field.name], usual)


def _taken(name: str, kind: Any, values: dict[str, Any]) -> Any:
    """The value of a parameter: that of its name, or a dataclass of those of its fields."""
    if not is_dataclass(kind):
        return values[name]
    hints = get_type_hints(kind, include_extras=True)
    made: Any = kind
    return made(**{one.name: _taken(one.name, hints[one.name], values) for one in fields(kind)})
