"""Recipes: passes and runtime policy under the name of a published system."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources

from graftline.errors import GraftlineError, nearest

_OPTIONAL = ("options", "rule_options", "head", "exit", "schedule", "schedule_options", "kind")
_DECODES = ("drafter", "rule")
"""What only recipes of decoders have."""
DECODER = "decoder"
FUSED = "fused"
"""The stage of a bundle whose graph is a fused step."""
LOSSY = "not lossless: its tokens may differ from plain decoding's"
"""What is said of a recipe that does not claim to be."""
ANSWER_PREFIX = "answer prefix"
"""What a recipe needs whose model thinks at latent tokens: how its answers begin."""
STEPS = ("host", FUSED)
"""Where a step drafts and verifies: between engine calls, or within one."""
FUSED_DRAFTERS = ("token-recycling", "medusa", "eagle")
FUSED_RULES = ("greedy", "point-mass")
"""What the passes fuse-draft, fuse-heads, fuse-block and fuse-verify put into the graph."""


@dataclass(frozen=True)
class Recipe:
    """One file of `graftline/recipes/`.

    `system` names the publication, `family` its kind, `needs` what must be given besides a
    checkpoint (nothing: an empty tuple). `passes` is the pipeline text, `drafter` and `rule` are
    names in the runtime's tables, `options` are the drafter's and `rule_options` the rule's. `head`
    are the passes of a draft head's own stage, where the recipe needs one, and `exit` those of an
    exit's behind the cut, where a head is part of it. `schedule` names what
    chooses the graph of each step, where not all of the model computes every token;
    `schedule_options` are its. `kind` is that of the hosts it is for; only a decoder's has a
    drafter and a rule.
    """

    name: str
    system: str
    family: str
    lossless: bool
    needs: tuple[str, ...]
    passes: str
    drafter: str = ""
    rule: str = ""
    options: dict[str, object] = field(default_factory=dict[str, object])
    rule_options: dict[str, object] = field(default_factory=dict[str, object])
    head: str = ""
    exit: str = ""
    schedule: str = ""
    schedule_options: dict[str, object] = field(default_factory=dict[str, object])
    kind: str = DECODER

    @property
    def asks(self) -> str:
        """The drafter that asks the recipe's draft head: its own, or the one that it is joined to a
        store from."""
        return str(self.options.get("head", self.drafter))


def check_step(step: str) -> None:
    """Raise GraftlineError for what is not one of STEPS."""
    if step not in STEPS:
        raise GraftlineError(f"unknown step '{step}'{nearest(step, STEPS)}")


def is_fusable(chosen: Recipe) -> bool:
    """Whether a fused step can do what this recipe does on the host."""
    return chosen.drafter in FUSED_DRAFTERS and chosen.rule in FUSED_RULES


def check_fusable(chosen: Recipe) -> None:
    """Raise GraftlineError where a fused step cannot do what this recipe does on the host."""
    if chosen.drafter not in FUSED_DRAFTERS:
        raise GraftlineError(
            f"recipe {chosen.name}: a fused step drafts by {', '.join(FUSED_DRAFTERS[:-1])} or "
            f"{FUSED_DRAFTERS[-1]}, not by "
            f"{chosen.drafter}; use --step host"
        )
    if chosen.rule not in FUSED_RULES:
        raise GraftlineError(
            f"recipe {chosen.name}: a fused step judges by {' or '.join(FUSED_RULES)}, not by "
            f"{chosen.rule}; use --step host"
        )


def recipe(name: str) -> Recipe:
    """The recipe of that name. Raises GraftlineError naming the nearest for an unknown one."""
    known = _all()
    if name not in known:
        raise GraftlineError(f"unknown recipe '{name}'{nearest(name, known)}")
    return known[name]


def claimed(name: str) -> str:
    """A recipe's name, and for people what it does not claim."""
    known = _all().get(name)
    return name if known is None or known.lossless else f"{name}, {LOSSY}"


def recipes(kind: str = DECODER) -> tuple[Recipe, ...]:
    """The recipes for a kind of host, by name."""
    return tuple(one for one in _all().values() if one.kind == kind)


def all_recipes() -> tuple[Recipe, ...]:
    """The recipes of all kinds, by name."""
    return tuple(_all().values())


def parse_recipe(text: str, source: str) -> Recipe:
    """Read a recipe's TOML. Raises GraftlineError naming `source` and the key that does not fit."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise GraftlineError(f"recipe {source}: not TOML ({error})") from error
    known = [f.name for f in fields(Recipe)]
    for key in table:
        if key not in known:
            raise GraftlineError(f"recipe {source}: unknown key '{key}'{nearest(key, known)}")
    free = _OPTIONAL if table.get("kind", DECODER) == DECODER else (*_OPTIONAL, *_DECODES)
    missing = [key for key in known if key not in table and key not in free]
    if missing:
        raise GraftlineError(f"recipe {source}: the key '{missing[0]}' is missing")
    kinds = {"lossless": bool, "needs": list} | {key: dict for key in table if "options" in key}
    for key, value in table.items():
        kind = kinds.get(key, str)
        if not isinstance(value, kind):
            raise GraftlineError(f"recipe {source}: '{key}' must be a {kind.__name__}")
    if table.get("schedule") and (table["lossless"] or table["drafter"] != "none"):
        raise GraftlineError(
            f"recipe {source}: a schedule leaves blocks out; set lossless to false and drafter to "
            "none"
        )
    table["needs"] = tuple(table["needs"])
    return Recipe(**table)


@cache
def _all() -> dict[str, Recipe]:
    folder = resources.files("graftline") / "recipes"
    files = [f for f in folder.iterdir() if f.name.endswith(".toml")]
    read = [parse_recipe(f.read_text(encoding="utf-8"), f.name) for f in files]
    return {r.name: r for r in sorted(read, key=lambda r: r.name)}
