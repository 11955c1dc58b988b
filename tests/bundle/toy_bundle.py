"""A bundle of a few bytes, and its manifest changed as an attacker would."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from graftline.bundle.manifest import Exactness, LawRow, Manifest, PassRow, Stage
from graftline.bundle.reader import Bundle, BundleWriter
from graftline.facts import DecoderFacts
from graftline.ports import Port

FACTS = DecoderFacts(100, 8, 2, 2, 1, 4, 64)
PORTS = (
    Port("tokens", "tokens", "in", "int64", ("B", "N")),
    Port("key", "cache.key", "in", "float32", ("B", 1, "S", 4), layer=0, mirror="key.out"),
)
STAGE = Stage(
    "engine", "graphs/canonical.onnx", PORTS, FACTS, "kv-cache | tree-mask",
    dtype="fp32", exactness=Exactness(True, 1e-6), quality={"perplexity": 3.0},
)  # fmt: skip


def stages(**changed: object) -> dict[str, object]:
    """The one stage, changed, as a part of manifest.json."""
    return {"stages": {"canonical": json.loads(json.dumps(asdict(STAGE))) | changed}}


def beside(**changed: object) -> dict[str, object]:
    """The one stage and another like it, changed, of a file of its own."""
    rows = stages(file="more.onnx", **changed)["stages"]
    one = stages()["stages"]
    assert isinstance(rows, dict)
    assert isinstance(one, dict)
    return {"stages": {**one, "more": rows["canonical"]}}


def manifest(**changed: object) -> Manifest:
    values: dict[str, object] = {
        "name": "toy",
        "recipe": "plain",
        "target": "canonical",
        "stages": {"canonical": STAGE},
        "rebuild": "graftline optimize toy -o toy.graft",
        "passes": (PassRow("kv-cache", "kv-cache", 0.1, 5, 7, ("2 TensorScatter",), "no re-run"),),
        "laws": (LawRow("kv-cache", "neutral", "held", "equal", 0.0, 1e-4),),
    }
    return Manifest(**{**values, **changed})  # type: ignore[arg-type]


def write(out: Path, weight: bytes = b"weights") -> Bundle:
    with BundleWriter(out) as writer:
        writer.path("graphs/canonical.onnx").write_bytes(b"graph")
        writer.path("weights/w.bin").write_bytes(weight)
        writer.finish(manifest())
    return Bundle.open(out)


def reseal(root: Path, change: dict[str, object]) -> None:
    """Change the manifest as an attacker would: with a matching seal."""
    text = json.dumps(json.loads((root / "manifest.json").read_text()) | change)
    (root / "manifest.json").write_text(text)
    seal = hashlib.sha256(text.encode()).hexdigest()
    (root / "manifest.json.sha256").write_text(f"{seal}  manifest.json\n")
