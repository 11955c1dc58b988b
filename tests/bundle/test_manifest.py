"""A manifest that is deep, of wrong types, or names what cannot be is refused in one line."""

from __future__ import annotations

import hashlib

import pytest

from graftline.bundle.reader import Bundle
from graftline.errors import BundleError
from tests.bundle.toy_bundle import beside, reseal, stages


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
        ({"schema": 4}, "schema 4, this graftline reads 5; rebuild: graftline optimize toy -o toy"),
        ({"schema": "3"}, 'schema "3"'),
        ({"schema": 4, "rebuild": "rm -rf /"}, "rebuild: graftline optimize CHECKPOINT -o OUT"),
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
        (stages(dtype=7), "canonical.dtype is 7, not a text"),
        (stages(dtype="fp32\u001b[2J"), "dtype holds a control character"),
        (stages(exactness={"row_invariant": 1, "worst": 0}), "row_invariant is 1, not true"),
        ({"laws": [{"graft": "a", "law": "b", "status": "won", "what": ""}]}, "not one of held"),
        ({"laws": {"a": 1}}, "laws is .*, not a list"),
        ({"generation": nested(40)}, "nested deeper than 16"),
        ({"extra": {"engine": ENGINE}}, "extra.engine names a stage 'nowhere'"),
        (stages(role="depth"), "the target 'canonical' is not the engine of its owner 'target'"),
        (stages(owner="draft"), "the target 'canonical' is not the engine of its owner 'target'"),
        (stages(made_of="other"), "canonical.made_of names a stage 'other', which is no graph"),
        (stages(made_of="canonical"), "is made of 'canonical', which is not an export"),
        (beside(owner="draft", role="depth"), "'more' is of 'draft', which has not one engine"),
        (beside(owner="target"), "'canonical' is of 'target', which has not one engine"),
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


def test_two_stages_that_are_one_file_are_refused(bundle: Bundle) -> None:
    rel = "graphs/canonical.onnx"
    one = stages(file=rel)["stages"]
    assert isinstance(one, dict)
    reseal(bundle.path, {"stages": {**one, "ort-cpu": one["canonical"]}})
    with pytest.raises(BundleError, match="two stages are the same file"):
        Bundle.open(bundle.path)
