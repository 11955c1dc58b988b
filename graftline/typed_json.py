"""Values read from JSON or TOML that others may have written: each of the type that is declared.

Knows dataclasses (of those with a `variant`, the one that it says), Mapping[str, X],
tuple[X, ...], Literal, X | None, str, int, float, bool, and Any for JSON of whatever form.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache, partial
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from graftline.errors import nearest

DEEPEST = 16
"""Objects and lists within one another."""
LONGEST = 16 << 20
"""Bytes of a whole text."""
CONTROL = {chr(code) for code in (*range(32), 127)} - set("\n\t")
"""What a terminal would obey in place of showing it."""


class Misfit(ValueError):
    """A value that is not of its type: where it is, and what it should be."""


def parse(text: str, largest: int = LONGEST) -> dict[str, Any]:
    """The object that a JSON text holds. Raises Misfit for a text that is too long, nested too
    deep, or no object."""
    if len(text) > largest:
        raise Misfit(f"{len(text):,} characters, at most {largest:,} are read")
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise Misfit(f"nested deeper than {DEEPEST}") from error
    except ValueError as error:
        raise Misfit(f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise Misfit(f"{_shown(found)}, not an object")
    _check_depth(found)
    return cast("dict[str, Any]", found)


def _check_depth(value: object) -> None:
    """Level by level, so that no text is deep enough to exhaust the stack."""
    level: list[Any] = [value]
    for _ in range(DEEPEST + 1):
        children = [list(v.values()) if isinstance(v, dict) else v for v in level]
        level = [c for v in children if isinstance(v, list) for c in cast("list[Any]", v)]
        if not level:
            return
    raise Misfit(f"nested deeper than {DEEPEST}")


Reader = Callable[[Any, str], Any]
"""reader(value, where): the value, of the reader's type."""


def read(kind: Any, value: Any, where: str = "") -> Any:
    """`value` as `kind`, lists as tuples. Raises Misfit."""
    return _reader(kind)(value, where)


@cache
def _reader(kind: Any) -> Reader:
    """A type is looked into once, not at each of its values: a manifest has ten thousand."""
    if is_dataclass(kind):
        return partial(_object, kind)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return partial(_literal, inner)
    if origin is types.UnionType:
        return _either(inner)
    if origin is tuple:
        return partial(_rows, _reader(inner[0]))
    if origin is Mapping:
        return partial(_mapping, _reader(inner[1]))
    return _as_it_is if kind is Any else partial(_checked, kind)


def _as_it_is(value: Any, where: str) -> Any:
    return value


def _literal(known: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, str) or value not in known:
        told = tuple(map(str, known))
        close = nearest(value, told) if isinstance(value, str) else ""
        raise Misfit(f"{where} is {_shown(value)}, not one of {', '.join(told)}{close}")
    return value


def _rows(reader: Reader, value: Any, where: str) -> Any:
    rows = _checked(list, value, where)
    return tuple([reader(row, f"{where}[{i}]") for i, row in enumerate(rows)])


def _mapping(reader: Reader, value: Any, where: str) -> Any:
    rows = _checked(dict, value, where)
    return {_checked(str, k, where): reader(v, f"{where}.{k}") for k, v in rows.items()}


def _object(kind: Any, value: Any, where: str) -> Any:
    rows: dict[str, Any] = _checked(dict, value, where)
    if hasattr(kind, "variant"):
        try:
            kind = kind.variant(rows)
        except KeyError as error:
            raise Misfit(f"{_at(where, 'kind')} is {_shown(rows.get('kind'))}, unknown") from error
    readers, needed = _declared(kind)
    if strange := sorted(map(str, rows.keys() - readers.keys())):
        told = f"unknown fields {', '.join(strange)}" + (f" in {where}" if where else "")
        raise Misfit(told + nearest(strange[0], readers))
    if lost := [name for name in needed if name not in rows]:
        raise Misfit(f"{_at(where, lost[0])} is missing")
    return kind(**{name: readers[name](held, _at(where, name)) for name, held in rows.items()})


@cache
def _declared(kind: Any) -> tuple[dict[str, Reader], tuple[str, ...]]:
    """What reads each field of a dataclass, and the fields that it cannot be without."""
    hints = get_type_hints(kind)
    needed = tuple(f.name for f in fields(kind) if _needed(f))
    return {f.name: _reader(hints[f.name]) for f in fields(kind)}, needed


def _needed(row: Field[Any]) -> bool:
    return row.default is MISSING and row.default_factory is MISSING


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _either(kinds: tuple[Any, ...]) -> Reader:
    *others, last = (kind for kind in kinds if kind is not type(None))
    readers, behind = {kind: _reader(kind) for kind in others}, _reader(last)
    if type(None) in kinds:
        readers[type(None)] = _as_it_is
    return lambda value, where: readers.get(type(value), behind)(value, where)


NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false",
         list: "a list", dict: "an object"}  # fmt: skip


def _checked(kind: Any, value: Any, where: str) -> Any:
    """A plain value, of exactly this type; a whole number stands for a number too."""
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise Misfit(f"{where or 'it'} is {_shown(value)}, not {NAMES[kind]}")
    if kind is str and not (value.isprintable() or CONTROL.isdisjoint(value)):
        raise Misfit(f"{where} holds a control character")
    return value


def _shown(value: Any) -> str:
    """A value in an error message: short, and one line."""
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 40 else f"{text[:37]}..."
