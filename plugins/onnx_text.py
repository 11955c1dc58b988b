"""ONNX's text, with two additions: calls may be nested, and common constants need no definition.

    seen = Less (slot, Unsqueeze (lengths, axis_1))

is written out as

    axis_1 = Constant <value = int64[1] {1}> ()
    seen__1 = Unsqueeze (lengths, axis_1)
    seen = Less (slot, seen__1)
"""

from __future__ import annotations

import re

CONSTANTS = {
    "zero": "int64 {0}",
    "one": "int64 {1}",
    "two": "int64 {2}",
    "none": "int64 {-1}",
    "zero_f": "float {0.0}",
    "one_f": "float {1.0}",
    "tiny": "float {1e-30}",
    "true": "bool {1}",
    "axis_0": "int64[1] {0}",
    "axis_1": "int64[1] {1}",
    "axis_2": "int64[1] {2}",
    "last_axis": "int64[1] {-1}",
    "one_1": "int64[1] {1}",
    "flat": "int64[1] {-1}",
}
"""By name; `flat` is the shape of a vector."""
_STATEMENT = re.compile(r"(\s*)([\w, ]+) = (\w+(?: *<[^>]*>)? *\(.*\))")
_CALL = re.compile(r"(\w+(?: *<[^>]*>)?) *\((.*)\)")


def written_out(text: str) -> str:
    """Statements of one call each, of which each is on a line, after the constants they name."""
    named = set(re.findall(r"\w+", text))
    used = [name for name in CONSTANTS if name in named]
    lines = [f"{name} = Constant <value = {CONSTANTS[name]}> ()" for name in used]
    for line in text.splitlines():
        statement = _STATEMENT.fullmatch(line)
        lines += _calls(statement[2], statement[3]) if statement else [line]
    return "\n".join(lines)


def _calls(made: str, call: str) -> list[str]:
    """The statements of a call, its arguments' first; `made` is what it makes."""
    found = _CALL.fullmatch(call)
    assert found is not None, f"not a call: {call}"
    operator, arguments = found[1], _arguments(found[2])
    lines: list[str] = []
    for place, argument in enumerate(arguments):
        if "(" in argument:
            arguments[place] = f"{made.partition(',')[0]}__{place}"
            lines += _calls(arguments[place], argument)
    return [*lines, f"{made} = {operator} ({', '.join(arguments)})"]


def _arguments(text: str) -> list[str]:
    """Split at the commas outside of parentheses and attributes."""
    found, depth = [""], 0
    for character in text:
        depth += (character in "(<") - (character in ")>")
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return [argument.strip() for argument in found]
