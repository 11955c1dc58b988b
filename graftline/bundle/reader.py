"""The bundle: the folder that leaves the compiler and that every runtime opens.

    OUT/manifest.json           what is inside (bundle/manifest.py), with the sha256 of every file
    OUT/manifest.json.sha256    digest of the manifest itself, in the format of `sha256sum`
    OUT/*.onnx                  a graph per stage
    OUT/engine.weights          what the engines read, and no checkpoint file holds as they need it
    OUT/weights/                checkpoint files that the engines point into: linked, not copied
    OUT/source/                 what only the export and the canonical graph read: for `check`
    OUT/engines/  tokenizer/
    OUT/costs/                  measured step costs of this machine: a cache, outside the manifest
    OUT/tuned/                  what `graftline tune` found on this machine, likewise
    OUT/machine/                the weights as this machine's kernels want them, likewise

Nothing in it is executed on load, and no path leaves the folder. Without source/ a bundle runs as
before; `graftline pack` makes one without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any, cast

from graftline.bundle.manifest import MANIFEST, REBUILD, SEAL, Manifest
from graftline.bundle.writer import BundleWriter as BundleWriter
from graftline.errors import BundleError, nearest
from graftline.files import digest, files_in, inside, of_source
from graftline.typed_json import LONGEST

COSTS, TUNED, MACHINE = "costs", "tuned", "machine"


class Bundle:
    """A finished bundle, opened read-only; `manifest` says what it holds."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> Bundle:
        """Open the bundle at `path`; `verify` re-hashes every file but those below source/, which
        nothing runs.

        Raises BundleError, in one line, for a path that is no bundle and for the first difference.
        """
        root = Path(path)
        if not root.is_dir() or not (root / MANIFEST).is_file():
            raise BundleError(f"{root}: {_no_bundle(root)}")
        text = _sealed_manifest(root)
        try:
            bundle = cls(root, Manifest.from_json(text))
        except BundleError as error:
            raise BundleError(f"{root}: {error}") from error
        for difference in bundle.differences(content=verify):
            raise BundleError(difference)
        return bundle

    @property
    def digest(self) -> str:
        """The sha256 of the manifest, and so of everything that it lists."""
        return hashlib.sha256((self.path / MANIFEST).read_bytes()).hexdigest()

    def differences(self, content: bool = True, source: bool = False) -> Iterator[str]:
        """What differs from the manifest, one line each; `content` re-hashes, else sizes only;
        `source` looks below source/ too."""
        entries = [rel for rel in self.manifest.files if source or not of_source(rel)]
        for stage in self.manifest.stages.values():
            if stage.file not in self.manifest.files:
                yield f"{self.path}: graph {stage.file} is not in the manifest; {self._rebuild()}"
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            yield from filter(None, pool.map(self._difference, entries, repeat(content)))

    def unlisted(self) -> list[str]:
        """Files in the folder that the manifest does not list (the measurements aside)."""
        known = {MANIFEST, SEAL, *self.manifest.files}
        found = (p.relative_to(self.path).as_posix() for p in files_in(self.path))
        caches = (f"{COSTS}/", f"{TUNED}/", f"{MACHINE}/")
        return sorted(r for r in found if r not in known and not r.startswith(caches))

    def sizes(self) -> tuple[int, int]:
        """Bytes that the bundle adds to the disk, and bytes that it shares with other files."""
        states = [(self.path / rel).stat() for rel in self.manifest.files if self._is_file(rel)]
        here = Counter(state.st_ino for state in states)
        unique = {state.st_ino: state for state in states}.values()
        shared = sum(s.st_size for s in unique if s.st_nlink > here[s.st_ino])
        return sum(s.st_size for s in unique) - shared, shared

    def _is_file(self, rel: str) -> bool:
        return inside(self.path, rel).is_file()

    def file(self, rel: str) -> Path:
        """Path of a file the manifest lists. Raises BundleError for any other."""
        if rel not in self.manifest.files:
            known = nearest(rel, self.manifest.files)
            raise BundleError(f"{self.path}: no file {rel} in this bundle{known}")
        return inside(self.path, rel)

    def graph(self, name: str) -> Path:
        """Path of the graph of a stage or target. Raises BundleError naming those there are."""
        if name not in self.manifest.stages:
            known = nearest(name, self.manifest.stages)
            packed = "; it was packed without its export" if self.manifest.packed else ""
            raise BundleError(
                f"{self.path}: no graph for '{name}'{packed}{known}; {self._rebuild()}"
            )
        return self.file(self.manifest.stages[name].file)

    def without_source(self) -> str:
        """Why the bundle cannot be compared with the model that it was made of, "" where it can."""
        if self.manifest.packed:
            return "packed without the export and the checkpoint's weights"
        lost = [r for r in self.manifest.files if of_source(r) and not (self.path / r).is_file()]
        return f"{lost[0]} is not here" if lost else ""

    def read_costs(self, key: str) -> dict[str, Any] | None:
        """Costs measured under `key` (machine and threads); None when not measured or damaged."""
        try:
            row = json.loads(self._costs_file(key).read_text(encoding="utf-8"))
            if row["key"] == key and row["sha256"] == _costs_digest(row["costs"]):
                return cast(dict[str, Any], row["costs"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # a cache: absent and damaged both mean "measure again"
        return None

    def write_costs(self, key: str, costs: Mapping[str, Any]) -> bool:
        """Cache measured costs; False when the bundle cannot be written, and they are not kept."""
        costs = json.loads(json.dumps(costs))
        row = {"key": key, "sha256": _costs_digest(costs), "costs": costs}
        try:
            _replace(self._costs_file(key), json.dumps(row))
        except OSError:
            return False
        return True

    def read_tuned(self, key: str) -> dict[str, Any] | None:
        """What `graftline tune` stored under `key` (machine and threads); None when nothing was.

        Raises BundleError for a damaged file: unlike costs it is not found again by itself.
        """
        path = self._measured_file(TUNED, key)
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            whole = row["key"] == key and row["sha256"] == _costs_digest(row["tuned"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            whole, row = False, {}
        if not whole:
            raise BundleError(f"{path} was changed; delete it, and run graftline tune again")
        return cast(dict[str, Any], row["tuned"])

    def write_tuned(self, key: str, tuned: Mapping[str, Any]) -> None:
        """Store what was tuned, in place of what was there. Raises OSError when it cannot."""
        tuned = json.loads(json.dumps(tuned))
        row = {"key": key, "sha256": _costs_digest(tuned), "tuned": tuned}
        _replace(self._measured_file(TUNED, key), json.dumps(row))

    def _costs_file(self, key: str) -> Path:
        return self._measured_file(COSTS, key)

    def _measured_file(self, folder: str, key: str) -> Path:
        slug = re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-")[:40]
        return self.path / folder / f"{slug}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"

    def _difference(self, rel: str, content: bool) -> str | None:
        path = inside(self.path, rel)
        entry = self.manifest.files[rel]
        if not path.is_file():
            return f"{self.path}: {rel} is missing; {self._rebuild()}"
        if (size := path.stat().st_size) != entry.size:
            return f"{self.path}: {rel} has {size} bytes, not {entry.size}; {self._rebuild()}"
        if content and (found := digest(path)) != entry.sha256:
            was = f"sha256 {found[:12]}, not {entry.sha256[:12]}"
            return f"{self.path}: {rel} was changed ({was}); {self._rebuild()}"
        return None

    def _rebuild(self) -> str:
        return f"rebuild: {self.manifest.rebuild}"


def _sealed_manifest(root: Path) -> str:
    size = (root / MANIFEST).stat().st_size
    if size > LONGEST:
        raise BundleError(
            f"{root}: {MANIFEST} has {size:,} bytes, at most {LONGEST:,} are read; rebuild: "
            f"{REBUILD}"
        )
    raw = (root / MANIFEST).read_bytes()
    try:
        seal = (root / SEAL).read_text(encoding="utf-8").split()
        text = raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{root}: {SEAL} or {MANIFEST} cannot be read ({error})") from error
    if seal != [hashlib.sha256(raw).hexdigest(), MANIFEST]:
        raise BundleError(f"{root}: {MANIFEST} was changed; rebuild: {REBUILD}")
    return text


def _no_bundle(root: Path) -> str:
    if not root.exists():
        return "no such bundle; make one: graftline optimize CHECKPOINT -o OUT"
    if root.is_dir():
        return f"not a bundle (no {MANIFEST}); make one: graftline optimize {root} -o OUT"
    if root.suffix == ".tar":
        return f"an archive; unpack it (tar -xf {root}) and give the folder"
    return f"a file, not a bundle; make one: graftline optimize {root} -o OUT"


def _replace(target: Path, text: str) -> None:
    """Write a file that is seen whole or not at all."""
    temporary = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        target.parent.mkdir(exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _costs_digest(costs: object) -> str:
    return hashlib.sha256(json.dumps(costs, sort_keys=True).encode()).hexdigest()
