from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.exports import Exports

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def hosts(kept_exports: Exports, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """The hosts of all mutants: written once, exported once."""
    from faults.hosts import Hosts

    return Hosts(tmp_path_factory.mktemp("hosts"), kept_exports)
