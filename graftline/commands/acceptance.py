"""`graftline bench --oracle`: how far each recipe's rule is from what any rule could accept; and
`--force-acceptance`: what came of drafts of a given quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from graftline.commands import screen
from graftline.commands.questions import Question, groups

if TYPE_CHECKING:
    from graftline.runtimes.engine import Engine
    from graftline.runtimes.study.forced import Forcing
    from graftline.runtimes.study.records import Records

COLUMNS = ("recipe", "rule", "nodes#", "drafts#", "accepted#", "expected#", "bound#", "best#")


def record(
    engine: Engine,
    questions: Sequence[Question],
    recipes: Sequence[str],
    options: Mapping[str, Any],
    watch: Callable[[str], None],
) -> dict[str, Records]:
    """Let every recipe answer the first question of each group again, and record its drafts.

    A run of its own: to look at whole distributions takes longer than the steps.
    """
    from graftline.runtimes.sampling import Sampling

    sampling = Sampling(float(options["temperature"]))
    first = [next(q for q in questions if q.group == group) for group in groups(questions)]
    found: dict[str, Records] = {}
    for name in recipes:
        watch(f"recording drafts of {name}")
        found[name] = engine.record(name, sampling)
        for question in first:
            if len(found[name].nodes) < found[name].most:
                engine.generate(question.turns[0], recipe=name, **options)
    return found


def table(found: Mapping[str, Records]) -> Any:
    """Mean chances at the recorded nodes. `expected`: of the rule by its own theory; `bound`: of
    the best rule on these drafts; `best`: on the target's likeliest tokens instead of these."""
    rows: list[tuple[str, ...]] = []
    for name, records in found.items():
        means = records.summary()
        if means:
            shares = (_share(means[key]) for key in ("accepted", "rule", "bound", "best"))
            rows.append(
                (name, records.rule, f"{means['nodes']}", f"{means['drafts']:.1f}", *shares)
            )
    return screen.table("acceptance at drafted nodes", COLUMNS, rows)


def by_depth(found: Mapping[str, Forcing]) -> Any:
    """Of forced drafts, the share that was accepted at each depth, where those before it were."""
    deepest = max((len(forcing.outcomes) for forcing in found.values()), default=0)
    columns = ("recipe", *(f"depth {depth + 1}#" for depth in range(deepest)))
    rows: list[tuple[str, ...]] = []
    for name, forcing in found.items():
        shares = [f"{hits / drafts:.2f} of {drafts}" for drafts, hits in forcing.outcomes]
        rows.append((name, *shares, *["-"] * (deepest - len(shares))))
    return screen.table("acceptance as forced", columns, rows)


def report(found: Mapping[str, Records]) -> dict[str, Any]:
    """The `oracle` part of the published JSON."""
    return {name: {"of": r.rule, **r.summary()} for name, r in found.items()}


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
