"""`graftline recipes` and `graftline passes`: the lists to choose from."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from graftline.commands import screen
from graftline.commands.options.printing import Json


def recipes(json: Json = False) -> None:
    """List the recipes: the passes and runtime policy of published systems.

    Examples:

    `graftline recipes`

    `graftline recipes --json`
    """
    from graftline.recipe import all_recipes

    known = all_recipes()
    keys = ("name", "system", "family", "lossless", "needs", "kind")
    if json:
        screen.write_json([{k: getattr(r, k) for k in keys} for r in known])
        return
    rows = [
        (
            r.name, r.system, r.family, "yes" if r.lossless else "no", ", ".join(r.needs) or "-",
            r.kind,
        )
        for r in known
    ]
    screen.console().print(screen.table("recipes", keys, rows))


def passes(json: Json = False) -> None:
    """List the passes of the compiler, with their options and purpose.

    Examples:

    `graftline passes`

    `graftline optimize model -o out.graft --passes "kv-cache | reduce-logits{topk=4}"`
    """
    from graftline.passes import GRAFTS

    found: list[dict[str, Any]] = [
        {
            "name": name,
            "stage": graft.stage,
            "meaning": _first_paragraph(graft),
            "options": {f.name: _default(f) for f in dataclasses.fields(graft)},
            "changes_values": not graft.numeric,
        }
        for name, graft in GRAFTS.items()
    ]
    if json:
        screen.write_json(found)
        return
    rows = [
        (
            row["name"],
            row["stage"],
            ", ".join(f"{k}={v}" for k, v in row["options"].items()) or "-",
            row["meaning"],
        )
        for row in found
    ]
    columns = ("name", "stage", "options", "what it does")
    screen.console().print(screen.table("passes", columns, rows))


def _first_paragraph(graft: type) -> str:
    return " ".join((inspect.getdoc(graft) or "").partition("\n\n")[0].split())


def _default(field: dataclasses.Field[object]) -> object:
    value = field.default
    if value is dataclasses.MISSING:
        return "(required)"
    return value if isinstance(value, bool | int | float | str | None) else str(value)
