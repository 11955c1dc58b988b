"""What a checkpoint becomes: a graph, the facts about it, and the files that go with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir

from graftline.facts import Facts
from graftline.files import FileState
from graftline.models.reference import Original
from graftline.models.spec import Spec
from graftline.models.weights import WeightSource

Watch = Callable[[str], None]
"""watch(text): told of every stage that takes time."""


@dataclass
class Host:
    """A model before grafting, as it was exported; its facts say of what kind it is.

    `generation` holds the checkpoint's generation defaults (generation_config.json), unread ids
    and all; `weights` is the source the graph's initializers came from, empty where they are part
    of the graph's own files. `own` runs the checkpoint's own model, or is the user's graph as it
    lies on disk; None where there is neither.
    """

    model: ir.Model
    facts: Facts
    tokenizer_files: list[Path] = field(default_factory=list[Path])
    generation: dict[str, Any] = field(default_factory=dict[str, Any])
    weights: WeightSource = field(default_factory=lambda: WeightSource({}))
    own: Original | None = None
    states: Mapping[Path, FileState] = field(default_factory=dict[Path, FileState])
    """The files that the graph's weights lie in, as they were when the graph was made."""
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The decoder's config by transformers' names; empty for a checkpoint without one."""
    spec: Callable[[], Spec] | None = None
    """Reads what a denoiser's checkpoint says of it besides the graph."""


class Checkpoint(Protocol):
    """Something on disk that can become a host."""

    @property
    def path(self) -> Path:
        """The file or folder given."""
        ...

    def host(self, full_export: bool = False, watch: Watch | None = None) -> Host:
        """Export or read the graph. Raises CheckpointError or NotApplicable, in one line."""
        ...


def silent(text: str) -> None:
    """The watch that nobody reads."""
