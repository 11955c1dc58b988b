"""A bundle is whole or not there, notices every flipped byte, and never leads outside itself."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import pytest

from graftline.bundle.manifest import Exactness, LawRow, Manifest, PassRow, Stage
from graftline.bundle.reader import Bundle, BundleWriter
from graftline.errors import BundleError
from graftline.facts import DecoderFacts
from graftline.ports import Port

TraceFunction = Callable[[FrameType, str, object], object]
FACTS = DecoderFacts(100, 8, 2, 2, 1, 4, 64)
PORTS = (
    Port("tokens", "tokens", "in", "int64", ("B", "N")),
    Port("key", "cache.key", "in", "float32", ("B", 1, "S", 4), layer=0, mirror="key.out"),
)


STAGE = Stage("target", "graphs/canonical.onnx", PORTS, FACTS, "kv-cache | tree-mask")


def stages(**changed: object) -> dict[str, object]:
    """The one stage, changed, as a part of manifest.json."""
    return {"stages": {"canonical": json.loads(json.dumps(asdict(STAGE))) | changed}}


def manifest(**changed: object) -> Manifest:
    values: dict[str, object] = {
        "name": "toy",
        "recipe": "plain",
        "target": "canonical",
        "dtype": "fp32",
        "stages": {"canonical": STAGE},
        "rebuild": "graftline optimize toy -o toy.graft",
        "passes": (PassRow("kv-cache", "kv-cache", 0.1, 5, 7, ("2 TensorScatter",), "no re-run"),),
        "laws": (LawRow("kv-cache", "neutral", "held", "equal", 0.0, 1e-4),),
        "exactness": Exactness(True, 1e-6),
        "quality": {"perplexity": 3.0},
    }
    return Manifest(**{**values, **changed})  # type: ignore[arg-type]


def write(out: Path, weight: bytes = b"weights") -> Bundle:
    with BundleWriter(out) as writer:
        writer.path("graphs/canonical.onnx").write_bytes(b"graph")
        writer.path("weights/w.bin").write_bytes(weight)
        writer.finish(manifest())
    return Bundle.open(out)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write(tmp_path / "toy.graft")


def reseal(root: Path, change: dict[str, object]) -> None:
    """Change the manifest as an attacker would: with a matching seal."""
    text = json.dumps(json.loads((root / "manifest.json").read_text()) | change)
    (root / "manifest.json").write_text(text)
    seal = hashlib.sha256(text.encode()).hexdigest()
    (root / "manifest.json.sha256").write_text(f"{seal}  manifest.json\n")


def test_what_is_written_is_read_back(bundle: Bundle) -> None:
    made = manifest()
    for name in ("stages", "facts", "passes", "laws", "exactness", "quality", "rebuild"):
        assert getattr(bundle.manifest, name) == getattr(made, name), name
    assert bundle.graph("canonical").read_bytes() == b"graph"
    assert bundle.manifest.files.keys() == {"graphs/canonical.onnx", "weights/w.bin"}
    assert bundle.manifest.versions["onnx"]
    assert os.listdir(bundle.path.parent) == ["toy.graft"]


def test_every_flipped_byte_of_every_file_is_noticed(bundle: Bundle) -> None:
    for path in sorted(p for p in bundle.path.rglob("*") if p.is_file()):
        whole = path.read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 40)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(BundleError) as caught:
                Bundle.open(bundle.path)
            assert "\n" not in str(caught.value)
            assert "rebuild" in str(caught.value) or "cannot be read" in str(caught.value)
        path.write_bytes(whole)
    Bundle.open(bundle.path)


def test_a_damaged_file_is_named_with_the_command_that_rebuilds(bundle: Bundle) -> None:
    (bundle.path / "weights/w.bin").write_bytes(b"weightz")
    with pytest.raises(BundleError, match=r"w\.bin was changed .*rebuild: graftline optimize toy"):
        Bundle.open(bundle.path)
    assert Bundle.open(bundle.path, verify=False).manifest.name == "toy"
    (bundle.path / "weights/w.bin").write_bytes(b"short")
    with pytest.raises(BundleError, match="has 5 bytes, not 7"):
        Bundle.open(bundle.path, verify=False)
    (bundle.path / "weights/w.bin").unlink()
    with pytest.raises(BundleError, match=r"weights/w\.bin is missing"):
        Bundle.open(bundle.path, verify=False)


@pytest.mark.parametrize("rel", ["../secret", "/etc/passwd", "a/../../secret", "..\\secret", ""])
def test_paths_never_leave_the_folder(bundle: Bundle, rel: str) -> None:
    (bundle.path.parent / "secret").write_bytes(b"secret")
    entry = {"sha256": hashlib.sha256(b"secret").hexdigest(), "size": 6}
    reseal(bundle.path, {"files": {rel: entry}} | stages(file=rel))
    with pytest.raises(BundleError, match="leaves the folder"):
        Bundle.open(bundle.path)
    with pytest.raises(BundleError, match="leaves the folder"), BundleWriter("x") as writer:
        writer.path(rel)


def test_a_link_that_leaves_the_folder_is_refused(bundle: Bundle) -> None:
    outside = bundle.path.parent / "outside"
    outside.write_bytes(b"weights")
    (bundle.path / "weights/w.bin").unlink()
    (bundle.path / "weights/w.bin").symlink_to(outside)
    with pytest.raises(BundleError, match=r"link weights/w\.bin leaves the folder"):
        Bundle.open(bundle.path)


def nested(levels: int) -> dict[str, object]:
    found: dict[str, object] = {}
    for _ in range(levels):
        found = {"a": found}
    return found


ENGINE = {
    "file": "e", "graph": "nowhere", "target": "t", "library": "l", "profiles": {}, "options": {},
    "size": 1, "seconds": 1.0, "peak_memory": 0,
}  # fmt: skip


X = {"name": "x", "role": "x", "direction": "in", "dtype": "int64", "shape": []}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2, this graftline reads 4; rebuild: graftline optimize toy -o toy"),
        ({"schema": "3"}, 'schema "3"'),
        ({"schema": 2, "rebuild": "rm -rf /"}, "rebuild: graftline optimize CHECKPOINT -o OUT"),
        ({"colour": "red"}, "unknown fields colour"),
        (stages(facts={"kind": "decoder"}), "stages.canonical.facts.vocabulary is missing"),
        ({"files": {"graphs/canonical.onnx": 3}}, "files.graphs/canonical.onnx is 3, not an"),
        ({"files": {"a": {"sha256": "0" * 64, "size": -1}}}, "a size or a sha256 that none can"),
        ({"files": {"a": {"sha256": "0" * 63 + "x", "size": 1}}}, "a sha256 that none can have"),
        (stages(ports=[{"name": "x"}]), "stages.canonical.ports.0..role is missing"),
        (stages(role="captain"), "stages.canonical.role is \"captain\", not one of export"),
        ({"target": "other"}, "target names a stage 'other', which is no graph"),
        (stages(inputs_from=["other"]), "canonical.inputs_from names a stage 'other'"),
        (stages(inputs_from=["canonical"]), "stages canonical take inputs from one another"),
        (stages(ports=[X, {**X, "owner": "head.0"}]), "port x twice, of head.0 and target"),
        (stages(file="elsewhere.onnx"), "not in the manifest"),
        (stages(file=["a"]), r'stages.canonical.file is \["a"\], not a text'),
        ({"dtype": 7}, "dtype is 7, not a text"),
        ({"dtype": "fp32\u001b[2J"}, "dtype holds a control character"),
        ({"exactness": {"row_invariant": 1, "worst": 0}}, "row_invariant is 1, not true or false"),
        ({"laws": [{"graft": "a", "law": "b", "status": "won", "what": ""}]}, "not one of held"),
        ({"laws": {"a": 1}}, "laws is .*, not a list"),
        ({"generation": nested(40)}, "nested deeper than 16"),
        ({"extra": {"engine": ENGINE}}, "extra.engine names a stage 'nowhere'"),
        ({"draft": {"source": "int4", "same_weights": "no"}}, "draft.same_weights is \"no\""),
    ],
)
def test_a_strange_manifest_is_refused(
    bundle: Bundle, change: dict[str, object], message: str
) -> None:
    reseal(bundle.path, change)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(bundle.path)
    assert "\n" not in str(caught.value)
    assert "rebuild: graftline optimize" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested deeper than 16"),
        ('{"a":' * 100_000, "nested deeper than 16"),
        ("[]", "an object"),
        ('{"schema": 3', "not JSON"),
        ('{"schema": 1' + "0" * 5000 + "}", "not JSON"),
        (" " * (17 << 20), "17,825,792 bytes, at most 16,777,216 are read"),
    ],
    ids=["lists", "objects", "list", "cut", "digits", "huge"],
)
def test_a_text_that_is_no_manifest_is_refused(bundle: Bundle, text: str, message: str) -> None:
    (bundle.path / "manifest.json").write_text(text)
    seal = hashlib.sha256(text.encode()).hexdigest()
    (bundle.path / "manifest.json.sha256").write_text(f"{seal}  manifest.json\n")
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(bundle.path)
    assert len(str(caught.value)) < 400


def test_a_draft_engine_that_is_the_bundle_itself_is_refused(bundle: Bundle) -> None:
    """By a link to the folder, or by a draft in the draft: neither is followed."""
    (bundle.path / "draft").symlink_to(".")
    reseal(bundle.path, {"draft": {"source": "int4", "same_weights": True}})
    with pytest.raises(BundleError, match="a draft engine has no draft of its own; rebuild"):
        Bundle.open(bundle.path).draft()
    (bundle.path / "draft").unlink()
    shutil.copytree(bundle.path, bundle.path / "draft")
    with pytest.raises(BundleError, match="a draft engine has no draft of its own; rebuild"):
        Bundle.open(bundle.path).draft()


def test_two_stages_that_are_one_file_are_refused(bundle: Bundle) -> None:
    rel = "graphs/canonical.onnx"
    one = stages(file=rel)["stages"]
    assert isinstance(one, dict)
    reseal(bundle.path, {"stages": {**one, "ort-cpu": one["canonical"]}})
    with pytest.raises(BundleError, match="two stages are the same file"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_interrupt_leaves_nothing(tmp_path: Path, stop: type[BaseException]) -> None:
    def interrupted() -> None:
        with BundleWriter(tmp_path / "new.graft") as writer:
            writer.path("graphs/canonical.onnx").write_bytes(b"graph")
            writer.finish(manifest())
            raise stop

    with pytest.raises(stop):
        interrupted()
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("part", range(0, 16, 2))
def test_ctrl_c_at_any_line_leaves_the_older_bundle_or_the_newer(tmp_path: Path, part: int) -> None:
    """A real signal, at every other line that writing runs: never half of anything."""
    out = tmp_path / "toy.graft"
    lines = interrupted_write(out, None)
    stopped = 0
    for at in range(part, lines, 16):
        write(out, b"older")
        interrupted_write(out, at)
        assert os.listdir(tmp_path) == ["toy.graft"], f"line {at}"
        held = Bundle.open(out).file("weights/w.bin").read_bytes()
        assert held in (b"older", b"newer"), f"line {at}"
        stopped += held == b"older"
    assert stopped > 5


def interrupted_write(out: Path, at: int | None) -> int:
    """Write a newer bundle and press Ctrl-C at the line numbered `at`; how many lines ran."""
    seen = 0
    ours = ("bundle/writer.py", "graftline/files.py", "interrupts.py")

    def line(frame: FrameType, event: str, argument: object) -> TraceFunction | None:
        nonlocal seen
        if not frame.f_code.co_filename.endswith(ours):
            return None
        if event == "line":
            if seen == at:
                signal.raise_signal(signal.SIGINT)
            seen += 1
        return line

    told = ""
    sys.settrace(line)
    try:
        write(out, b"newer")
    except KeyboardInterrupt as stop:
        told = str(stop)
    finally:
        sys.settrace(None)
    if told:
        assert told == f"{out} was written"
        assert Bundle.open(out).file("weights/w.bin").read_bytes() == b"newer"
    return seen


def test_an_interrupt_keeps_the_older_bundle(bundle: Bundle) -> None:
    def interrupted() -> None:
        with BundleWriter(bundle.path) as writer:
            writer.path("graphs/canonical.onnx").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    Bundle.open(bundle.path)
    assert os.listdir(bundle.path.parent) == ["toy.graft"]


def test_an_interrupt_between_the_renames_brings_the_older_bundle_back(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def stop_before_second(source: Path, target: Path) -> None:
        if ".tmp-" in source.name:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", stop_before_second)
    with pytest.raises(KeyboardInterrupt):
        write(bundle.path, b"newer")
    assert Bundle.open(bundle.path).file("weights/w.bin").read_bytes() == b"weights"


def test_what_a_killed_writer_left_is_cleared_or_restored(bundle: Bundle) -> None:
    dead = 2**22 + 1  # above the largest process number Linux gives
    os.rename(bundle.path, f"{bundle.path}.old-{dead}")
    Path(f"{bundle.path}.tmp-{dead}").mkdir()
    with pytest.raises(BundleError, match="was not finished"), BundleWriter(bundle.path):
        assert bundle.path.is_dir()
    assert os.listdir(bundle.path.parent) == ["toy.graft"]
    Bundle.open(bundle.path)


def test_an_older_bundle_is_replaced_whole(bundle: Bundle) -> None:
    assert write(bundle.path, b"newer").file("weights/w.bin").read_bytes() == b"newer"
    assert os.listdir(bundle.path.parent) == ["toy.graft"]


def test_something_else_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").write_bytes(b"cat")
    (tmp_path / "file").write_bytes(b"file")
    with pytest.raises(BundleError, match="not a bundle; choose another -o"):
        write(tmp_path / "photos")
    with pytest.raises(BundleError, match="not a folder"):
        write(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert (tmp_path / "photos/cat.png").read_bytes() == b"cat"
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "photos"]


def test_an_unfinished_or_lying_bundle_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not finished"), BundleWriter(tmp_path / "a"):
        pass
    with pytest.raises(BundleError, match="never written"), BundleWriter(tmp_path / "b") as writer:
        writer.finish(manifest())
    assert os.listdir(tmp_path) == []


def test_no_space_is_told_before_the_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 100 << 20))
    with (
        pytest.raises(BundleError, match=r"2,048 MiB needed, 100 MiB free"),
        BundleWriter(tmp_path / "big") as writer,
    ):
        writer.need(2 << 30)
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with BundleWriter(tmp_path / "big") as writer:
            writer.path("a").write_bytes(b"x")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(BundleError, match="the disk is full"):
        fill()
    assert os.listdir(tmp_path) == []


def test_a_checkpoint_file_is_linked_or_else_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "model.safetensors"
    source.write_bytes(b"w")
    lines: list[str] = []

    def cross_device(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    with BundleWriter(tmp_path / "out", lines.append) as writer:
        writer.path("graphs/canonical.onnx").write_bytes(b"graph")
        assert writer.link(source, "weights/a")
        assert writer.path("weights/a").samefile(source)
        assert not lines
        with pytest.raises(BundleError, match="cannot link"):
            writer.link(tmp_path / "absent", "weights/d")
        monkeypatch.setattr(os, "link", cross_device)
        assert not writer.link(source, "weights/c")
        assert "cannot be linked (Invalid cross-device link), copying" in lines[0]
        writer.finish(manifest())
    assert Bundle.open(tmp_path / "out").file("weights/a").read_bytes() == b"w"


def test_costs_are_kept_outside_the_manifest_and_survive_nothing_bad(bundle: Bundle) -> None:
    costs = {"chain": {"1": 25.0}, "tree": {"2": 27.5}}
    assert bundle.read_costs("EPYC x 2") is None
    assert bundle.write_costs("EPYC x 2", costs)
    assert bundle.read_costs("EPYC x 2") == costs
    assert bundle.read_costs("EPYC x 4") is None
    Bundle.open(bundle.path)
    assert bundle.unlisted() == []
    kept = next((bundle.path / "costs").iterdir())
    kept.write_text(kept.read_text().replace("25.0", "5.0"))
    assert bundle.read_costs("EPYC x 2") is None


def test_a_bundle_that_cannot_be_written_keeps_no_costs(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*args: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", read_only)
    assert not bundle.write_costs("k", {"chain": {}})
    assert bundle.read_costs("k") is None
    assert list((bundle.path / "costs").iterdir()) == []


def test_paths_that_are_no_bundle_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"x")
    with pytest.raises(BundleError, match="no such bundle; make one"):
        Bundle.open(tmp_path / "absent")
    with pytest.raises(BundleError, match=r"a file, not a bundle; make one: graftline optimize"):
        Bundle.open(tmp_path / "model.gguf")
    with pytest.raises(BundleError, match=r"not a bundle \(no manifest.json\)"):
        Bundle.open(tmp_path)


def test_unknown_names_offer_the_nearest(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="did you mean 'canonical'"):
        bundle.graph("cannonical")
    with pytest.raises(BundleError, match=r"did you mean 'weights/w.bin'"):
        bundle.file("weights/w.bi")
    (bundle.path / "stray").write_bytes(b"x")
    assert bundle.unlisted() == ["stray"]
