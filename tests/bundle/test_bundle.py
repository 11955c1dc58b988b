"""A bundle is whole or not there, notices every flipped byte, and never leads outside itself."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from graftline.bundle.reader import Bundle, BundleWriter
from graftline.errors import BundleError
from tests.bundle.toy_bundle import manifest, reseal, stages


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
