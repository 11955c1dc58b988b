"""`check`: is a bundle still what it was proven to be? All of it is run again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from graftline.build.engines import is_engine
from graftline.bundle.reader import Bundle
from graftline.errors import GraftlineError, LawBroken
from graftline.files import of_source
from graftline.kinds import kind_of
from graftline.kinds.kind import Finding
from graftline.law import LawRow, summary
from graftline.owners import TARGET
from graftline.targets import CUDA

Watch = Callable[[str], None]


@dataclass(frozen=True)
class Report:
    """All findings; `holds` when nothing differs."""

    path: str
    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        """True when nothing differs."""
        return all(f.holds for f in self.findings)


def check(path: str | Path, watch: Watch | None = None) -> Report:
    """Re-hash every file, re-run the laws, and compare what the bundle answers with the unmodified
    export: of a decoder greedy tokens, plain decoding's with the export's and the recipe's with
    plain decoding's on the same engine.

    A damaged bundle ends the check: what cannot be trusted is not run. Of a bundle without its
    source weights, what cannot be compared is `not_run`. Raises BundleError only for a path that is
    no bundle or whose manifest cannot be read.
    """
    say = watch or _silent
    bundle = Bundle.open(path, verify=False)
    say(f"hashing {len(bundle.manifest.files)} files")
    findings = _files(bundle)
    if not all(f.holds for f in findings):
        return Report(str(path), tuple(findings))
    elsewhere = _elsewhere(bundle.manifest.target)
    findings += _laws(bundle, elsewhere, say)
    if elsewhere:
        return Report(str(path), (*findings, Finding("answers", elsewhere, True, "not_run")))
    say("comparing answers")
    findings += kind_of(bundle.manifest.facts).answers(bundle)
    return Report(str(path), tuple(findings))


def _elsewhere(target: str) -> str:
    """Why the bundle's graph does not run here, "" when it does."""
    from graftline.runtimes.ort.provider import cuda_missing

    if is_engine(target):
        return "not compared: the engine runs on its GPU only"
    missing = cuda_missing() if target == CUDA else ""
    return f"not compared: {missing}" if missing else ""


def _files(bundle: Bundle) -> list[Finding]:
    whole = not bundle.without_source()
    wrong = [Finding("files", line, False) for line in bundle.differences(source=whole)]
    wrong += [Finding("files", f"{rel} is not in the manifest", False) for rel in bundle.unlisted()]
    count = sum(whole or not of_source(rel) for rel in bundle.manifest.files)
    return wrong or [Finding("files", f"{count} files have their sha256", True)]


def _laws(bundle: Bundle, elsewhere: str, say: Watch) -> list[Finding]:
    from graftline.build.recheck import recheck

    if told := bundle.without_source():
        return _without_source(bundle, told, elsewhere, say)
    say("running the laws again")
    try:
        rows = recheck(bundle, say)
    except LawBroken as error:
        return [Finding(f"law {error.law}", str(error), False)]
    except GraftlineError as error:
        return [Finding("laws", str(error), False)]
    return [*map(_finding, rows), Finding("laws", summary(rows), True)]


def _finding(row: LawRow) -> Finding:
    whose = "" if row.owner == TARGET else f"{row.owner}: "
    return Finding(f"{whose}law {row.law}", f"{row.graft}: {row.text}", True, row.status)


def _without_source(bundle: Bundle, why: str, elsewhere: str, say: Watch) -> list[Finding]:
    """What is left to check: laws that ask each engine alone. The others are as they were."""
    laws = bundle.manifest.laws
    names = ", ".join(dict.fromkeys(row.law for row in laws))
    told = f"not run: {why}; when it was made: {summary(laws)}"
    found = [Finding(f"laws {names}", told, True, "not_run")]
    if elsewhere or not laws:
        return found
    for owner, engine in bundle.manifest.engines().items():
        rows = kind_of(bundle.manifest.stages[engine].facts).alone(bundle, engine, say)
        found += [_finding(replace(row, owner=owner)) for row in rows]
    return found


def _silent(line: str) -> None:
    """Watch nothing."""
