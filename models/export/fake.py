"""Hosts without weights: the graph of a config at any scale, for shape work and estimates."""

from __future__ import annotations

from typing import Any

from graftline.facts import write_facts
from graftline.models.hf import build, facts_of
from graftline.models.host import Host, Watch, silent


def fake_host(config: Any, full_export: bool = False, watch: Watch | None = None) -> Host:
    """The host of a transformers config whose weights have shapes but no data.

    Reading a weight raises; everything that only looks at shapes works, at any size.
    """
    built = build(config, full_export, watch or silent)
    facts = facts_of(config, built.parameters, type(config).__name__)
    write_facts(built.graph, facts)
    return Host(built.graph, facts)
