"""The manifest of a bundle: what it holds, how it was made, and what was proven about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import metadata
from typing import Any, cast, get_args

from graftline.errors import BundleError
from graftline.law import LawRow, Status
from graftline.ports import Assumption, Facts, Port, assumptions_from_json, ports_from_json

SCHEMA = 2
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
class Manifest:
    """Everything a reader may rely on without opening a graph.

    `graphs` maps a stage or target ("canonical", "ort-cpu") to its file, `ports` the same names to
    their ports. `rebuild` is the command that makes this bundle again. `files` is filled in by
    `BundleWriter.finish`. Paths are relative to the folder, with forward slashes. `assumptions` are
    what was put in place of inputs of the export. `draft` tells of
    the draft engine, a bundle of its own in the folder draft/: its `source` as asked for, and
    whether it has the target's own weights (`same_weights`); empty where there is none.
    """

    name: str
    facts: Facts
    pipeline: str
    recipe: str
    target: str
    dtype: str
    graphs: Mapping[str, str]
    ports: Mapping[str, tuple[Port, ...]]
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
    versions: Mapping[str, str] = field(default_factory=lambda: tool_versions())
    created: str = ""
    files: Mapping[str, FileEntry] = field(default_factory=dict[str, FileEntry])

    def to_json(self) -> str:
        """The text of manifest.json."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read manifest.json. Raises BundleError for another schema or a misfitting field."""
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise BundleError(f"manifest.json is not JSON ({error}); rebuild: {REBUILD}") from error
        if not isinstance(rows, dict) or rows.get("schema") != SCHEMA:
            found = cast(dict[str, Any], rows).get("schema") if isinstance(rows, dict) else None
            raise BundleError(
                f"manifest.json has schema {found!r}, this graftline reads {SCHEMA}; "
                f"rebuild: {REBUILD}"
            )
        return _read(cast(dict[str, Any], rows))


def tool_versions() -> dict[str, str]:
    """Installed versions of the tools whose version can change a bundle."""
    found: dict[str, str] = {}
    for tool in TOOLS:
        try:
            found[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            continue
    return found


def _pass_row(row: dict[str, Any]) -> PassRow:
    return replace(PassRow(**row), added=tuple(row["added"]))


def _law_row(row: dict[str, Any]) -> LawRow:
    if row["status"] not in get_args(Status):
        raise TypeError(f"a law has the status {row['status']!r}")
    return LawRow(**row)


def _read(rows: dict[str, Any]) -> Manifest:
    known = {f.name for f in fields(Manifest)}
    values = {key: value for key, value in rows.items() if key != "schema"}
    if strange := sorted(values.keys() - known):
        raise BundleError(f"manifest.json has unknown fields {', '.join(strange)}; {REBUILD}")
    try:
        values["facts"] = Facts(**values["facts"])
        values["ports"] = {k: ports_from_json(v) for k, v in values["ports"].items()}
        values["passes"] = tuple(_pass_row(r) for r in values["passes"])
        values["laws"] = tuple(_law_row(r) for r in values["laws"])
        values["assumptions"] = assumptions_from_json(values.get("assumptions", []))
        values["files"] = {str(k): FileEntry(**v) for k, v in values["files"].items()}
        values["tokenizer"] = tuple(values["tokenizer"])
        if values["exactness"] is not None:
            values["exactness"] = Exactness(**values["exactness"])
        return Manifest(**values)
    except (TypeError, KeyError, AttributeError) as error:
        raise BundleError(f"manifest.json cannot be read ({error}); rebuild: {REBUILD}") from error
