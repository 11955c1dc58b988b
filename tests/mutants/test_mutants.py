"""Every fault on purpose is caught by its law; every host is sound without one."""

from __future__ import annotations

import pytest
from faults.hosts import Hosts
from faults.mutant import Mutant
from faults.table import BEYOND, MUTANTS
from faults.trial import sound, tried

HOSTS = {(m.host, str(dict(m.options))): m for m in MUTANTS}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_law_catches(mutant: Mutant, hosts: Hosts) -> None:
    got = tried(mutant, hosts)
    assert got.touched, "the fault changed nothing"
    assert got.law in ([""] if mutant.name in BEYOND else mutant.laws), got.said


@pytest.mark.parametrize("mutant", HOSTS.values(), ids=lambda m: f"{m.host}, {dict(m.options)}")
def test_the_host_without_a_fault_is_sound(mutant: Mutant, hosts: Hosts) -> None:
    assert sound(mutant.host, mutant.options, hosts).law == ""


def test_names_are_unique_and_the_exceptions_known() -> None:
    names = [m.name for m in MUTANTS]
    assert len(set(names)) == len(names) >= 60
    assert set(BEYOND) <= set(names)
