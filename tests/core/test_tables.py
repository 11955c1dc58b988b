"""Adding a thing is one file and one line: a file whose line was forgotten is found here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from graftline.kinds import KINDS
from graftline.passes import GRAFTS
from graftline.recipe import all_recipes
from graftline.runtimes.drafters import DRAFTERS
from graftline.runtimes.rules import RULES
from graftline.runtimes.schedules import SCHEDULES, schedule_of

ROOT = Path(__file__).parents[2]
BASES = {"Graft"}


def classes(folder: str) -> dict[str, set[str]]:
    """By file, the public classes defined in it that derive from a graft or are dataclasses."""
    found: dict[str, set[str]] = {}
    for file in sorted((ROOT / folder).glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = {n.name for n in tree.body if isinstance(n, ast.ClassDef) and n.name[0] != "_"}
        if file.stem != "__init__":
            found[file.stem] = names
    return found


def test_every_graft_is_in_its_table() -> None:
    listed = {cls.__name__ for cls in GRAFTS.values()}
    for file in sorted((ROOT / "passes").glob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                derives = {b.id for b in node.bases if isinstance(b, ast.Name)} & BASES
                assert not derives or node.name in listed, f"{file.name}: {node.name}"


@pytest.mark.parametrize(
    ("folder", "table"), [("runtimes/drafters", DRAFTERS), ("runtimes/rules", RULES)]
)
def test_every_drafter_and_rule_file_is_in_its_table(folder: str, table: dict[str, type]) -> None:
    listed = {cls.__name__ for cls in table.values()}
    for stem, names in classes(folder).items():
        assert names & listed, f"{folder}/{stem}.py defines nothing that is in its table"


def test_every_schedule_is_in_its_table_under_its_name() -> None:
    assert {name: kind.name for name, kind in SCHEDULES.items()} == {n: n for n in SCHEDULES}
    files = {f.stem for f in (ROOT / "runtimes/schedules").glob("*.py")}
    assert files - {"__init__", "schedule", "course", "step"} == set(SCHEDULES)


def test_names_are_the_class_names_in_kebab_case() -> None:
    for name, graft in GRAFTS.items():
        assert name == graft.name()


ON_TARGET = ("hidden-transfer", "placeholders", "refresh-state", "routers")
"""Passes that put a head into the target's own graphs."""


def test_every_recipe_names_things_that_exist() -> None:
    from graftline.passes import Pipeline

    files = {f.stem for f in (ROOT / "graftline/recipes").glob("*.toml")}
    assert files == {r.name for r in all_recipes()}
    for one in all_recipes():
        assert one.kind in KINDS
        assert (one.drafter in DRAFTERS) == (one.kind == "decoder")
        assert (one.rule in RULES) == (one.kind == "decoder")
        Pipeline.parse(one.passes, GRAFTS)
        Pipeline.parse(one.head, GRAFTS)
        own = any(p in one.passes for p in ON_TARGET)
        within = own or "exit" in one.needs  # the target's own graphs
        beside = "head" in one.needs and not within
        assert bool(one.head) == beside, "passes of a head that is a graph of its own"
        assert bool(one.schedule) == ("routes" in one.needs)
        if one.schedule:
            for text in schedule_of(one).passes():
                Pipeline.parse(text, GRAFTS)


def test_the_command_that_rebuilds_has_every_option() -> None:
    from graftline.build.head_plan import HeadPlan
    from graftline.build.plan import Plan

    plan = Plan.of("suffix", "kv-cache", "ort-cpu", "int4", "hqq", "int8", (2,), "", "host")
    told = plan.command("in", "out", "")
    said = "--recipe suffix --dtype int4 --quantizer hqq --passes kv-cache --draft int8"
    assert told == f"graftline optimize in -o out {said} --draft-depths 2"
    heads = HeadPlan.parse("a head", "fp32")
    plan = Plan.of("medusa", None, "ort-cpu", "fp32", None, None, (), "", "host", heads)
    said = "--recipe medusa --dtype fp32 --head 'a head'"
    assert plan.command("in", "out", "") == f"graftline optimize in -o out {said}"
    loops = {"spec": "a spec.toml", "steps": (1, 4)}
    plan = Plan.of("yonos-sr", None, "ort-cpu", "fp32", None, None, (), "", "host", **loops)
    plan = plan.for_kind(KINDS["denoiser"], "yonos-sr")
    said = "--recipe yonos-sr --dtype fp32 --spec 'a spec.toml' --steps 1,4"
    assert plan.command("in", "out", "") == f"graftline optimize in -o out {said}"
