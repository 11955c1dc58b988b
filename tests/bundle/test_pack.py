"""What an app ships of a bundle runs alike, is verified, and says what it can no longer compare."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.pack import pack
from graftline.bundle.reader import Bundle
from graftline.errors import BundleError, GraftlineError
from graftline.runtimes.load import load
from graftline.runtimes.surroundings import embedding_of
from tests.bundle.engine_weights import generated, weights

ROWS = ("rows-2", "rows-4", "rows-8")
FORMS = ("chains", *ROWS)
"""Stages that are other forms of the target's step."""


def test_a_packed_bundle_runs_alike_and_holds_no_source(int4: Bundle, tmp_path: Path) -> None:
    made = pack(int4.path, tmp_path / "app/int4")
    packed = Bundle.open(made.path)
    graphs = {f"{name}.onnx" for name in ("ort-cpu", *FORMS)}
    assert packed.manifest.files.keys() == {"engine.weights", "report.txt", *graphs}
    assert made.size < 0.7 * made.before
    assert packed.manifest.stages.keys() == {"ort-cpu", *FORMS}
    assert generated(packed.path) == generated(int4.path)
    report = packed.file("report.txt").read_text()
    assert f"a bundle whose manifest.json has the sha256 {packed.manifest.packed}" in report
    for row in packed.manifest.laws:
        assert row.text in report
    assert embedding_of(packed)().shape == (512, 128)


def test_a_packed_bundle_is_verified_on_load(int4: Bundle, tmp_path: Path) -> None:
    path = pack(int4.path, tmp_path / "packed").path
    for rel in ("engine.weights", "ort-cpu.onnx", "manifest.json"):
        whole = (path / rel).read_bytes()
        (path / rel).write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        with pytest.raises(BundleError, match=rf"{rel} was changed.*rebuild: graftline optimize"):
            load(path)
        (path / rel).write_bytes(whole)
    load(path)


def test_check_of_a_packed_bundle_says_what_it_cannot_compare(fp32: Bundle, tmp_path: Path) -> None:
    plain = "greedy tokens, plain, prompt of 19"
    assert {f.what: f.status for f in check(fp32.path).findings}[plain] == "held"
    report = check(pack(fp32.path, tmp_path / "packed").path)
    assert report.holds
    found = {f.what: f for f in report.findings}
    why = "packed without the export and the checkpoint's weights"
    left = [f for f in report.findings if f.status == "not_run"]
    assert len(left) == 2
    assert all(why in f.found for f in left)
    assert "whole" in left[0].what
    assert "reproducible" not in left[0].what, "only what was ever run"
    assert left[1].what == plain
    assert found["law row-invariant"].status in ("held", "measured")
    beside = found["greedy tokens, suffix beside plain, prompt of 19"]
    assert (beside.status, beside.found[:6]) == ("held", "all 24")


def test_a_bundle_whose_source_was_deleted_loads_and_says_so(int4: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "moved.graft"
    shutil.copytree(int4.path, path)
    changed = path / "source/0/BF16.safetensors"
    changed.write_bytes(changed.read_bytes()[:-1] + b"?")
    assert generated(path) == generated(int4.path), "nothing that runs reads it"
    report = check(path)
    assert not report.holds
    assert "source/0/BF16.safetensors was changed" in report.findings[0].found
    shutil.rmtree(path / "source")
    assert generated(path) == generated(int4.path)
    told = [f for f in check(path).findings if f.status == "not_run"]
    assert "source/0/BF16.safetensors is not here" in told[0].found
    assert pack(path, tmp_path / "packed").size < int4.file("engine.weights").stat().st_size * 1.5


def test_an_archive_holds_the_packed_folder_and_names_nobody(int4: Bundle, tmp_path: Path) -> None:
    made = pack(int4.path, tmp_path / "app.tar")
    with tarfile.open(made.path) as tar:
        members = tar.getmembers()
        tar.extractall(tmp_path / "there", filter="data")
    assert members[0].name == "app/manifest.json"
    assert {(m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, "", "", 0o644)}
    assert generated(tmp_path / "there/app") == generated(int4.path)
    first = made.path.read_bytes()
    assert pack(int4.path, tmp_path / "app.tar").path.read_bytes() == first, "an older one goes"
    with pytest.raises(BundleError, match=r"an archive; unpack it \(tar -xf .*app\.tar\)"):
        load(made.path)
    assert pack(tmp_path / "there/app", tmp_path / "again.tar").size == made.size


def test_the_draft_engine_is_packed_too(host: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = optimize(
        host("BF16"), tmp_path / "draft.graft", recipe="draft-model", draft="int4",
        draft_depths=(1,), step="host",
    )  # fmt: skip
    packed = Bundle.open(pack(bundle.path, tmp_path / "packed").path)
    assert packed.manifest.stages.keys() == {"ort-cpu", "draft", "depth-1", *ROWS}
    assert packed.manifest.same_weights("draft")
    told = (packed.path / "report.txt").read_text()
    assert "\nstage draft: 2 blocks of export, int4 (row-invariant: " in told
    assert "\nstage depth-1: 1 of 2 blocks of export, int4: canonicalize" in told
    assert not any("source" in rel or "export" in rel for rel in packed.manifest.files)
    assert generated(packed.path) == generated(bundle.path)
    report = check(packed.path)
    assert report.holds
    assert {"law row-invariant", "draft: law row-invariant"} <= {f.what for f in report.findings}


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("app.tar.gz", "weights do not compress; choose a name that ends in .tar"),
        ("app.tgz", "weights do not compress"),
        ("photos", "is a folder that is not a bundle"),
        ("photos/cat.png", "is not a folder"),
        ("notes.tar", "is a file that pack did not make"),
        ("folder.tar", "is not a file"),
        ("int4.graft", "is the bundle itself or lies in it"),
        ("int4.graft/packed", "is the bundle itself or lies in it"),
    ],
)
def test_nothing_else_is_ever_written_over(
    int4: Bundle, tmp_path: Path, out: str, told: str
) -> None:
    for folder in ("photos", "folder.tar"):
        (tmp_path / folder).mkdir()
    for file in ("photos/cat.png", "notes.tar"):
        (tmp_path / file).write_bytes(b"mine")
    target = int4.path.parent / out if out.startswith("int4") else tmp_path / out
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(GraftlineError, match=told):
        pack(int4.path, target)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "photos/cat.png").read_bytes() == b"mine"


def test_a_damaged_bundle_is_not_packed(int4: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "bad.graft"
    shutil.copytree(int4.path, path)
    (path / "engine.weights").write_bytes(b"x" + (path / "engine.weights").read_bytes()[1:])
    with pytest.raises(BundleError, match=r"engine\.weights was changed"):
        pack(path, tmp_path / "out.tar")
    assert os.listdir(tmp_path) == ["bad.graft"]


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("name", ["app", "app.tar"])
def test_an_interrupted_pack_leaves_nothing(
    int4: Bundle, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def interrupted(handle: int) -> None:
        signal.raise_signal(signal.SIGINT)
        real(handle)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack(int4.path, tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_a_disk_without_room_for_the_archive_leaves_the_older_one(
    int4: Bundle, tmp_path: Path
) -> None:
    """The kernel refuses to let any file grow past the engine's weights: the archive does."""
    pack(int4.path, tmp_path / "app.tar")
    before = (tmp_path / "app.tar").read_bytes()
    code = (
        "import resource, sys; from graftline.bundle.pack import pack\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))\n"
        "try: pack(*sys.argv[2:])\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    room = str(weights(int4)["engine.weights"] + 4096)
    words = [sys.executable, "-c", code, room, str(int4.path), str(tmp_path / "app.tar")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("BundleError cannot write"), done.stdout + done.stderr
    assert os.listdir(tmp_path) == ["app.tar"]
    assert (tmp_path / "app.tar").read_bytes() == before
