"""The manifest of a bundle: what it holds, how it was made, and what was proven about it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any, Literal

from graftline.errors import BundleError
from graftline.facts import DecoderFacts, Facts, as_decoder
from graftline.law import LawRow
from graftline.owners import TARGET
from graftline.ports import Assumption, Port
from graftline.receptive_field import ReceptiveField
from graftline.smoothing import Smoothing
from graftline.typed_json import Misfit, parse, read

SCHEMA = 5
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
    """What one pass did: its pipeline text, time, nodes added ("2 Where"), and why; `owner` is
    whose stage it was for."""

    name: str
    text: str
    seconds: float
    nodes_before: int
    nodes_after: int
    added: tuple[str, ...] = ()
    why: str = ""
    owner: str = TARGET


@dataclass(frozen=True)
class Exactness:
    """The row-invariant law on an engine; `worst` is the largest logit difference seen. From steps
    of `min_rows` on all agree (None: none do); `per_rows` is the difference by number of rows. In
    calls of `same_rows` or more, a prompt gives the same bits however it is cut (None: it does not,
    or was not tried)."""

    row_invariant: bool
    worst: float
    min_rows: int | None = None
    per_rows: Mapping[str, float] = field(default_factory=dict[str, float])
    same_rows: int | None = None


StageRole = Literal[
    "export", "canonical", "engine", "form", "fused", "depth", "route", "exit", "rest"
]
EXPORT, CANONICAL = "export", "canonical"
"""Stages of the target that no runtime opens, by name."""


def stage_name(owner: str, part: str) -> str:
    """The name of a part of an owner: the target's are named without it."""
    return part if owner == TARGET else f"{owner}.{part}"


@dataclass(frozen=True)
class Stage:
    """One graph of a bundle: its file, its ports, what is known of it, and the `pipeline` of passes
    that made it of the stage `made_of`, an export.

    The `export` is the unmodified graph; `canonical` has every graft and no lowering; the `engine`
    is what a runtime opens; a `form` is its step for chains, or for several sequences, over the
    same weights and caches; a `fused` step drafts and verifies by itself; a `depth` is a sub-model
    of the first blocks; a `route` is the target without some blocks, or parts of blocks, and works
    on the target's caches; an `exit` is its first blocks and its head, and a `rest` all blocks
    behind those, from the hidden states that leave them, on its caches too. `owner` is whose it is:
    the target's, a draft head's, or a draft's, which has stages of its own; it is of the target's
    export where it is that in another precision.
    `dtype` is the precision of its weights, "" where they are as the checkpoint has them.
    `exactness` and `quality` are what was measured on an engine. `inputs_from` names the stages
    whose outputs it takes. `fields` are the receptive fields of a decoder that runs in windows,
    and `smoothing` how those of one without are cross-faded.
    """

    role: StageRole
    file: str
    ports: tuple[Port, ...]
    facts: Facts
    pipeline: str = ""
    made_of: str = ""
    owner: str = TARGET
    dtype: str = ""
    exactness: Exactness | None = None
    quality: Mapping[str, float] = field(default_factory=dict[str, float])
    inputs_from: tuple[str, ...] = ()
    fields: tuple[ReceptiveField, ...] = ()
    smoothing: Smoothing | None = None


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
    "engine": EngineRow, "heads": tuple[EngineRow, ...], "forms": tuple[EngineRow, ...],
}  # fmt: skip
"""What `extra` may hold, and of which type: TensorRT engines of the target, of draft heads, and of
other forms of the target's run."""


@dataclass(frozen=True)
class Manifest:
    """Everything a reader may rely on without opening a graph.

    `stages` are its graphs by name ("canonical", "ort-cpu", "draft"), of all owners; `target` is
    the name of the one that a runtime opens, and what all of them are lowered for. `rebuild` is the
    command that makes this bundle again. `files` is filled in by `BundleWriter.finish`. Paths are
    relative to the folder, with forward slashes. `assumptions` are what was put in place of inputs
    of an export. `packed` is the sha256 of the manifest of the bundle that this one was packed
    from; "" for one that `optimize` made.
    """

    name: str
    recipe: str
    target: str
    stages: Mapping[str, Stage]
    rebuild: str = REBUILD
    passes: tuple[PassRow, ...] = ()
    laws: tuple[LawRow, ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    generation: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tokenizer: tuple[str, ...] = ()
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

    @property
    def dtype(self) -> str:
        """Of the target's stage."""
        return self.main.dtype

    @property
    def exactness(self) -> Exactness | None:
        """Of the target's stage."""
        return self.main.exactness

    @property
    def quality(self) -> Mapping[str, float]:
        """Of the target's stage."""
        return self.main.quality

    def of_role(self, role: StageRole, owner: str | None = None) -> dict[str, Stage]:
        """The stages of that role, of one owner or of all, in order."""
        stages = self.stages.items()
        return {n: s for n, s in stages if s.role == role and owner in (None, s.owner)}

    def engines(self) -> dict[str, str]:
        """The name of each owner's engine, the target's first."""
        return {stage.owner: name for name, stage in self.of_role("engine").items()}

    def built(self) -> list[tuple[str, Mapping[str, Any]]]:
        """The TensorRT engines, the target's first, each with the key of `extra` it is under."""
        engine = self.extra.get("engine")
        more = [(key, row) for key in ("heads", "forms") for row in self.extra.get(key, ())]
        return [*([("engine", engine)] if engine else []), *more]

    def engine_of(self, stage: str) -> Stage:
        """The engine of a stage's owner."""
        return self.stages[self.engines()[self.stages[stage].owner]]

    def same_weights(self, owner: str) -> bool:
        """Whether an owner's engine and the target's are made of one export."""
        return self.stages[self.engines()[owner]].made_of == self.main.made_of

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
            if stage.made_of and not self.packed:
                named.append((f"{name}.made_of", stage.made_of))
        named += [(f"extra.{where}", row["graph"]) for where, row in self.built()]
        for where, name in named:
            if name not in self.stages:
                raise Misfit(f"{where} names a stage '{name}', which is no graph of the bundle")
        files = [stage.file for stage in self.stages.values()]
        if twice := [file for file in files if files.count(file) > 1]:
            raise Misfit(f"two stages are the same file {twice[0]}")
        self._check_order()
        self._check_owners()
        for name, stage in self.stages.items():
            ports = Counter((p.name, p.direction) for p in stage.ports)
            if twice := [port for (port, _), count in ports.items() if count > 1]:
                owners = sorted({p.owner for p in stage.ports if p.name == twice[0]})
                raise Misfit(f"'{name}' has the port {twice[0]} twice, of {' and '.join(owners)}")

    def _check_owners(self) -> None:
        """Raise Misfit unless each owner has one engine, the target's is the bundle's own, and what
        stages are made of are exports."""
        engines = [stage.owner for stage in self.of_role("engine").values()]
        if (self.main.owner, self.main.role) != (TARGET, "engine"):
            raise Misfit(f"the target '{self.target}' is not the engine of its owner '{TARGET}'")
        for name, stage in self.stages.items():
            if engines.count(stage.owner) != 1:
                raise Misfit(f"'{name}' is of '{stage.owner}', which has not one engine")
            source = self.stages.get(stage.made_of)
            if source is not None and source.role != "export":
                raise Misfit(f"'{name}' is made of '{stage.made_of}', which is not an export")

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
