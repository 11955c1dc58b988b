"""The manifest of a bundle: what it holds, how it was made, and what was proven about it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any, Literal

from graftline.bundle.typed_json import Misfit, parse, read
from graftline.errors import BundleError
from graftline.facts import DecoderFacts, Facts, as_decoder
from graftline.law import LawRow
from graftline.ports import Assumption, Port

SCHEMA = 4
MANIFEST = "manifest.json"
SEAL = "manifest.json.sha256"
"""Its digest, in the format of `sha256sum`."""
TOOLS = ("graftline", "numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "tensorrt-rtx-cu13")
REBUILD = "graftline optimize CHECKPOINT -o OUT"


@dataclass(frozen=True)
class FileEntry:
    """Digest and length in bytes of one file of the bundle."""

    sha256: str
    size: int


@dataclass(frozen=True)
class PassRow:
    """What one pass did: its pipeline text, time, nodes added ("2 Where"), and why."""

    name: str
    text: str
    seconds: float
    nodes_before: int
    nodes_after: int
    added: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Exactness:
    """The row-invariant law on the target; `worst` is the largest logit difference seen."""

    row_invariant: bool
    worst: float


@dataclass(frozen=True)
class DraftRow:
    """What is said of a draft engine: what was asked for, and whether its weights are the target's
    own."""

    source: str
    same_weights: bool


StageRole = Literal["export", "canonical", "target", "form", "fused", "depth"]


@dataclass(frozen=True)
class Stage:
    """One graph of a bundle: its file, its ports, what is known of it, and the passes that made it
    of the export.

    The `export` is the unmodified graph; `canonical` has every graft and no lowering; the `target`
    is what a runtime opens; a `form` is its step for chains, or for several sequences, over the
    same weights and caches; a `fused` step drafts and verifies by itself; a `depth` is a sub-model
    of the first blocks. `inputs_from` names the stages whose outputs it takes.
    """

    role: StageRole
    file: str
    ports: tuple[Port, ...]
    facts: Facts
    pipeline: str = ""
    inputs_from: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineRow:
    """What is said of a TensorRT engine; `graph` is the stage that it was built from."""

    file: str
    graph: str
    target: str
    library: str
    profiles: Mapping[str, Mapping[str, tuple[tuple[int, ...], ...]]]
    options: Mapping[str, Any]
    size: int
    seconds: float
    peak_memory: int
    plugins: Mapping[str, str] = field(default_factory=dict[str, str])


EXTRA: Mapping[str, Any] = {
    "min_rows": int | None,
    "per_rows": Mapping[str, float],
    "engine": EngineRow,
}
"""What `extra` may hold, and of which type."""


@dataclass(frozen=True)
class Manifest:
    """Everything a reader may rely on without opening a graph.

    `stages` are its graphs by name ("canonical", "ort-cpu"), `target` the name of the one that a
    runtime opens. `rebuild` is the command that makes this bundle again. `files` is filled in by
    `BundleWriter.finish`. Paths are relative to the folder, with forward slashes. `assumptions` are
    what was put in place of inputs of the export. `draft` tells of
    the draft engine, a bundle of its own in the folder draft/: its `source` as asked for, and
    whether it has the target's own weights (`same_weights`); empty where there is none. `packed` is
    the sha256 of the manifest of the bundle that this one was packed from; "" for one that
    `optimize` made.
    """

    name: str
    recipe: str
    target: str
    dtype: str
    stages: Mapping[str, Stage]
    rebuild: str = REBUILD
    passes: tuple[PassRow, ...] = ()
    laws: tuple[LawRow, ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    exactness: Exactness | None = None
    quality: Mapping[str, float] = field(default_factory=dict[str, float])
    generation: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tokenizer: tuple[str, ...] = ()
    draft: Mapping[str, Any] = field(default_factory=dict[str, Any])
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    packed: str = ""
    versions: Mapping[str, str] = field(default_factory=lambda: tool_versions())
    created: str = ""
    files: Mapping[str, FileEntry] = field(default_factory=dict[str, FileEntry])

    @property
    def main(self) -> Stage:
        """The target's stage."""
        return self.stages[self.target]

    @property
    def facts(self) -> Facts:
        """Of the target's stage."""
        return self.main.facts

    @property
    def decoder(self) -> DecoderFacts:
        """Of the target's stage. Raises BundleError for another kind of host."""
        return as_decoder(self.main.facts)

    def of_role(self, role: StageRole) -> dict[str, Stage]:
        """The stages of that role, in order."""
        return {name: stage for name, stage in self.stages.items() if stage.role == role}

    def to_json(self) -> str:
        """The text of manifest.json."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read manifest.json. Raises BundleError for another schema, and for a text that is too
        long, nested too deep or of wrong types, or whose parts do not fit one another."""
        rows: dict[str, Any] = {}
        try:
            rows = parse(text)
            if (found := rows.pop("schema", None)) != SCHEMA:
                told = f"{json.dumps(found)[:20]}, this graftline reads {SCHEMA}"
                raise BundleError(f"{MANIFEST} has schema {told}; rebuild: {_rebuild(rows)}")
            manifest: Manifest = read(cls, rows)
            manifest.check_parts()
        except Misfit as error:
            again = _rebuild(rows)
            raise BundleError(f"{MANIFEST} cannot be read ({error}); rebuild: {again}") from error
        return manifest

    def check_parts(self) -> None:
        """Raise Misfit where a part has a wrong form, or names a stage that is not there."""
        for rel, entry in self.files.items():
            if entry.size < 0 or not re.fullmatch(r"[0-9a-f]{64}", entry.sha256):
                raise Misfit(f"files.{rel} has a size or a sha256 that none can have")
        for name, kind in EXTRA.items():
            if name in self.extra:
                read(kind, self.extra[name], f"extra.{name}")
        named = [("target", self.target)]
        for name, stage in self.stages.items():
            named += [(f"{name}.inputs_from", one) for one in stage.inputs_from]
        engine = self.extra.get("engine")
        named += [("extra.engine", engine["graph"])] if engine else []
        for where, name in named:
            if name not in self.stages:
                raise Misfit(f"{where} names a stage '{name}', which is no graph of the bundle")
        files = [stage.file for stage in self.stages.values()]
        if twice := [file for file in files if files.count(file) > 1]:
            raise Misfit(f"two stages are the same file {twice[0]}")
        self._check_order()
        for name, stage in self.stages.items():
            ports = Counter((p.name, p.direction) for p in stage.ports)
            if twice := [port for (port, _), count in ports.items() if count > 1]:
                owners = sorted({p.owner for p in stage.ports if p.name == twice[0]})
                raise Misfit(f"'{name}' has the port {twice[0]} twice, of {' and '.join(owners)}")
        if self.draft:
            read(DraftRow, dict(self.draft), "draft")

    def _check_order(self) -> None:
        """Raise Misfit where stages wait for one another in a circle."""
        left = {name: set(stage.inputs_from) for name, stage in self.stages.items()}
        while ready := {name for name, waits in left.items() if not waits & left.keys()}:
            left = {name: waits for name, waits in left.items() if name not in ready}
        if left:
            raise Misfit(f"the stages {', '.join(sorted(left))} take inputs from one another")


def _rebuild(rows: Mapping[str, Any]) -> str:
    """The command that makes a bundle again, as its manifest has it, where that can be shown."""
    said = rows.get("rebuild")
    fine = isinstance(said, str) and said.startswith("graftline optimize ") and len(said) < 2000
    return str(said) if fine and str(said).isprintable() else REBUILD


def tool_versions() -> dict[str, str]:
    """Installed versions of the tools whose version can change a bundle."""
    found: dict[str, str] = {}
    for tool in TOOLS:
        try:
            found[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            continue
    return found
