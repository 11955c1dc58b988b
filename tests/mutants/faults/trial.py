"""One mutant, tried: does a law catch it at `optimize`, and which?"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from faults.hosts import Hosts, no_bars
from faults.mutant import Instead, Mutant, Touched
from faults.table import MUTANTS
from graftline.build.optimize import optimize
from graftline.errors import GraftlineError, LawBroken
from tests.kept_passes import Fault

WATCHED = {call for m in MUTANTS if isinstance(m.apply, Instead) for call in m.apply.watched()}
"""Functions that faults replace: of what passes make it is noted whether it took one of these."""


@dataclass(frozen=True)
class Outcome:
    """`law` is the law that caught it, the name of the error that refused it, or "" where it
    survived; `said` is the error's line."""

    law: str
    said: str
    touched: int


def tried(mutant: Mutant, hosts: Hosts) -> Outcome:
    """Optimize the mutant's host with the fault in place. What comes before the fault is done once
    for all mutants of a host."""
    touched, fault = Touched(), mutant.fault
    with pytest.MonkeyPatch.context() as patch:
        hosts.keep(patch)
        if fault is not None:
            hosts.keep_passes(patch, fault, WATCHED)
        if mutant.reading_is_sound:
            hosts.keep_reading(patch)
        if mutant.front_is_sound:
            hosts.keep_fronts(patch)
        mutant.apply(patch, touched)
        law, said = optimized(mutant.host, mutant.options, hosts)
    return Outcome(law, said, touched.count)


def sound(host: str, options: Mapping[str, Any], hosts: Hosts) -> Outcome:
    """Optimize a host as it is; what comes before most faults is done once, by whoever is first."""
    with pytest.MonkeyPatch.context() as patch:
        hosts.keep(patch)
        hosts.keep_passes(patch, Fault(), WATCHED)
        hosts.keep_reading(patch)
        hosts.keep_fronts(patch)
        return Outcome(*optimized(host, options, hosts), 0)


def optimized(host: str, options: Mapping[str, Any], hosts: Hosts) -> tuple[str, str]:
    """("", "") where every law holds, else which law or error said no, and its line."""
    no_bars()
    if "head" in options:
        options = {**options, "head": hosts.head(options["head"])}
    if "spec" in options:
        options = {**options, "spec": hosts.spec(options["spec"])}
    with tempfile.TemporaryDirectory(dir=hosts.folder) as out:
        try:
            optimize(hosts.path(host), Path(out) / "made.graft", **options)
        except LawBroken as error:
            return error.law, f"{error.who}: {error}"
        except GraftlineError as error:
            return type(error).__name__, str(error)
    return "", ""
