"""A bundle with a draft engine inside: made in one go, checked whole, and used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graftline.build.check import check
from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.bundle.store import load_graph
from graftline.draft import DraftSource, check_vocabulary
from graftline.errors import BundleError, GraftlineError
from graftline.runtimes.load import load
from graftline.runtimes.ort.session import OrtSession
from graftline.runtimes.sessions import open_session
from graftline.runtimes.surroundings import agreement, embedding_of, step_ratio
from tests.passes.canonical.raw_decoder import decoder

DTYPES = ("fp32", "int8", "int4")


@pytest.fixture(scope="module")
def bundle(wide_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("drafts") / "wide.graft"
    return optimize(wide_checkpoint, out, recipe="draft-model", draft="int4")


def test_the_draft_is_a_stage_among_the_bundles_stages(bundle: Bundle) -> None:
    manifest = bundle.manifest
    forms = manifest.of_role("form")
    own = [name for name in manifest.stages if name not in forms]
    assert own == ["export", "canonical", "draft.canonical", "ort-cpu", "draft"]
    assert {stage.owner for stage in forms.values()} == {"target"}
    draft = manifest.stages["draft"]
    assert (draft.role, draft.owner, draft.dtype, draft.made_of) == (
        "engine", "draft", "int4", "export",
    )  # fmt: skip
    assert manifest.engines() == {"target": "ort-cpu", "draft": "draft"}
    assert manifest.same_weights("draft")
    assert "quantize" in draft.pipeline
    assert "quantize" not in manifest.main.pipeline
    assert draft.exactness is not None
    assert manifest.exactness is not None
    assert draft.exactness.worst != manifest.exactness.worst
    assert not any(rel.startswith("draft/") for rel in manifest.files)
    assert "--draft int4" in manifest.rebuild


def test_what_target_and_draft_have_in_common_is_done_and_told_once(bundle: Bundle) -> None:
    """One export, one front; the checkpoint's own model is compared with it once."""
    passes = [(p.name, p.owner) for p in bundle.manifest.passes]
    assert [owner for name, owner in passes if name == "canonicalize"] == ["target"]
    assert [owner for name, owner in passes if name == "quantize"] == ["draft"]
    assert [owner for name, owner in passes if name == "lower-ort"] == ["target", "draft"]
    laws = [(w.law, w.graft, w.owner) for w in bundle.manifest.laws]
    assert [row for row in laws if row[0] == "checkpoint"] == [("checkpoint", "export", "target")]
    whole = [row[1:] for row in laws if row[0] == "whole"]
    assert {("ort-cpu", "target"), ("draft", "draft"), ("draft.canonical", "draft")} <= set(whole)


def test_check_holds_and_sees_a_flipped_byte_in_the_draft(bundle: Bundle) -> None:
    load(bundle.path).generate([1, 2, 3], max_new_tokens=4)  # measures costs: caches, not changes
    report = check(bundle.path)
    assert report.holds, [f for f in report.findings if not f.holds]
    drafts = {f.what for f in report.findings if f.what.startswith("draft: law")}
    assert {"draft: law whole", "draft: law reproducible", "draft: law row-invariant"} <= drafts
    victim = bundle.path / "draft.onnx"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(BundleError, match=r"draft\.onnx was changed .*--draft int4"):
        Bundle.open(bundle.path)
    victim.write_bytes(whole)


def test_draft_and_target_are_compared_in_whatever_capacity_there_is(bundle: Bundle) -> None:
    small, large = (open_session(bundle, capacity=40, stage=s) for s in ("draft", "ort-cpu"))
    text = np.random.default_rng(0).integers(0, 256, 192).tolist()
    assert 0.05 <= agreement(small, large, text) <= 0.98
    assert step_ratio(small, large) > 0


@pytest.mark.parametrize("recipe", ["draft-model", "cascade-drafting"])
def test_tokens_are_plains_alone_and_in_a_ragged_batch(
    bundle: Bundle, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draft works on the target's caches; costs None makes it draft at every step. A batch
    makes about as many calls of it as its longest sequence alone."""
    calls: list[object] = []
    run = OrtSession._run  # pyright: ignore[reportPrivateUsage]

    def counted(self: OrtSession, call: Any) -> Any:
        calls.append(self)
        return run(self, call)

    monkeypatch.setattr(OrtSession, "_run", counted)
    engine = load(bundle.path)
    assert engine.resources.draft is not None
    opened = engine.resources.draft()
    assert opened.shares
    assert opened is engine.resources.draft()
    assert 0 < opened.step < 1000
    engine.policies.costs = None
    engine.policies._made.clear()
    random = np.random.default_rng(5)
    prompts = [random.integers(0, 256, n).tolist() for n in (5, 17, 40)]
    options: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True}
    plain = [engine.generate(p, recipe="plain", **options).tokens for p in prompts]
    calls.clear()
    alone = [engine.generate(p, recipe=recipe, **options) for p in prompts]
    apart = sum(1 for session in calls if session is opened.session)
    assert [r.tokens for r in alone] == plain
    assert sum(r.stats.steps for r in alone) < 0.9 * 3 * 29
    calls.clear()
    batch = engine.generate(prompts, recipe=recipe, **options)
    together = sum(1 for session in calls if session is opened.session)
    # a copied chain may be verified alone, where this machine makes that worth it
    assert 0 < together < (0.6 if recipe == "draft-model" else 1.0) * apart
    assert [r.tokens for r in batch] == plain
    assert [r.stats.steps for r in batch] == [r.stats.steps for r in alone]


def test_caches_of_a_draft_that_has_ended_are_used_again(bundle: Bundle) -> None:
    """New ones cost as much as twenty steps at the first call; two at once have two."""
    shared = load(bundle.path).resources.draft
    assert shared is not None
    first, second = shared().alone(), shared().alone()
    sessions = [first.session, second.session]  # type: ignore[attr-defined]
    assert sessions[0] is not sessions[1]
    first.session.follow(0, 0, [1, 2, 3])
    del first
    third = shared().alone()
    assert third.session is sessions[0]  # type: ignore[attr-defined]
    found = third.session.follow(0, 0, [4, 5]).logits.copy()
    assert np.array_equal(found, second.session.follow(0, 0, [4, 5]).logits)


def test_siblings_decode_pass_by_pass_in_turn_and_the_draft_of_each_reads_its_caches(
    bundle: Bundle,
) -> None:
    engine = load(bundle.path)
    engines = [engine, engine.sibling(), engine.sibling()]
    random = np.random.default_rng(8)
    prompts = [random.integers(0, 256, n).tolist() for n in (5, 17, 17)]
    prompts[2] = prompts[1]
    options: dict[str, Any] = {"max_new_tokens": 30, "ignore_eos": True, "recipe": "draft-model"}
    plain = [engine.generate(p, **{**options, "recipe": "plain"}).tokens for p in prompts]
    for one in engines:
        one.policies.costs = None
        one.policies._made.clear()
    runs = [one.passes(p, **options) for one, p in zip(engines, prompts, strict=True)]
    while any([next(run, None) for run in runs]):
        pass
    assert [run.result.tokens for run in runs if run.result] == plain
    assert sum(run.result.stats.steps for run in runs if run.result) < 0.9 * 3 * 29


def test_weights_of_both_engines_are_stored_once(bundle: Bundle) -> None:
    """One file of what the engines read; what both read as it is, such as norms, is there once."""
    files = {rel for rel in bundle.manifest.files if rel.endswith(".weights")}
    assert "engine.weights" in files
    assert files <= {"engine.weights", "source/source.weights"}

    def places(stage: str) -> set[tuple[str, int | None]]:
        weights = load_graph(bundle.graph(stage)).graph.initializers.values()
        tensors = [v.const_value for v in weights]
        return {(Path(t.path).name, t.offset) for t in tensors if isinstance(t, ir.ExternalTensor)}

    target, draft = places("ort-cpu"), places("draft")
    assert target & draft
    assert draft - target


def test_the_embedding_is_the_checkpoints(bundle: Bundle) -> None:
    facts = bundle.manifest.facts
    assert embedding_of(bundle)().shape == (facts.vocabulary, facts.hidden)


def test_a_corpus_is_read_with_the_tokenizer(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("abc")
    assert load(bundle.path, corpus=tmp_path).resources.corpus is not None
    with pytest.raises(GraftlineError, match="absent"):
        load(bundle.path, corpus=tmp_path / "absent")


def test_a_bundle_without_a_draft_says_how_to_get_one(tiny_bundle: Path) -> None:
    with pytest.raises(GraftlineError, match="--draft int8"):
        load(tiny_bundle, recipe="draft-model")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "draft-model"}, "needs a draft engine; add --draft int8"),
        ({"draft": "int4", "dtype": "int4"}, "is the target itself"),
        ({"draft": "absent"}, "absent: no such file or folder"),
        ({"draft": "int5"}, "nor a precision; did you mean 'int"),
    ],
)
def test_refused_before_anything_is_written(
    tiny_checkpoint: Path, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    with pytest.raises(GraftlineError, match=message):
        optimize(tiny_checkpoint, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "checkpoint", "dtype"),
    [
        ("int8", None, "int8"),
        ("a/b", "a/b", "fp32"),
        ("a:b:int4", "a:b", "int4"),
        ("c:", "c:", "fp32"),
    ],
)
def test_what_draft_may_be(text: str, checkpoint: str | None, dtype: str) -> None:
    source = DraftSource.parse(text, DTYPES, "fp32")
    assert source == DraftSource(None if checkpoint is None else Path(checkpoint), dtype)


def tokenizer(folder: Path, vocabulary: dict[str, int], added: str = "<s>") -> Path:
    folder.mkdir()
    file = folder / "tokenizer.json"
    extra = [{"id": len(vocabulary), "content": added}]
    file.write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": extra}))
    return file


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    ours = tokenizer(tmp_path / "a", {"x": 0, "y": 1})
    same = tokenizer(tmp_path / "b", {"x": 0, "y": 1})
    other = tokenizer(tmp_path / "c", {"x": 1, "y": 0})
    masked = tokenizer(tmp_path / "e", {"x": 0, "y": 1, "<s>": 2}, added="<mask>")
    assert check_vocabulary([ours], [same], (3, 8), "same") is None  # logits may be padded
    with pytest.raises(GraftlineError, match="use another checkpoint") as caught:
        check_vocabulary([ours], [other], (3, 3), "other")
    assert "\n" not in str(caught.value)
    assert check_vocabulary([ours], [masked], (3, 8), "with its own mask", mask=3) is None
    with pytest.raises(GraftlineError, match="the token '<mask>' is id None there and 3"):
        check_vocabulary([masked], [ours], (8, 3), "has no row for id 3", mask=3)
    check_vocabulary([], [ours], (3, 3), "without a tokenizer")
    with pytest.raises(GraftlineError, match="vocabulary of 8, the target's is 3"):
        check_vocabulary([], [ours], (3, 8), "without a tokenizer")


def test_a_few_added_tokens_may_differ(tmp_path: Path) -> None:
    words = {f"w{i}": i for i in range(1000)}
    ours = tokenizer(tmp_path / "a", words)
    few, many = tmp_path / "few", tmp_path / "many"
    for place, count in ((few, 1), (many, 11)):
        content = json.loads(ours.read_text())
        content["added_tokens"] = [{"id": 1000 + i, "content": f"<{i}>"} for i in range(count)]
        place.mkdir()
        (place / "tokenizer.json").write_text(json.dumps(content))
    note = check_vocabulary([ours], [few / "tokenizer.json"], (1001, 1001), "d")
    assert note is not None
    assert "2 added tokens differ from the target's, first '<0>'" in note
    with pytest.raises(GraftlineError, match="in the target; a draft needs"):
        check_vocabulary([ours], [many / "tokenizer.json"], (1001, 1100), "d")
    with pytest.raises(GraftlineError, match="in the target; a draft needs"):
        check_vocabulary([ours], [few / "tokenizer.json"], (1001, 1000), "no row for 1000")
    swapped = {**words, "w0": 1, "w1": 0}
    with pytest.raises(GraftlineError, match="the token 'w0' is id 1 there and 0"):
        check_vocabulary(
            [ours], [tokenizer(tmp_path / "s", swapped, "</s>")], (1001, 1001), "d"
        )


def test_graphs_of_two_vocabularies_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    """Neither file states the last size of its logits, and neither has a tokenizer."""
    for name, size in (("target", 11), ("draft", 9)):
        model = decoder(outputs="float[B,N,V] logits")
        table = model.graph.initializers["embed"]
        assert table.const_value is not None
        table.const_value = ir.tensor(table.const_value.numpy()[:size], name="embed")
        table.shape = table.const_value.shape
        ir.save(model, tmp_path / f"{name}.onnx")
    draft = str(tmp_path / "draft.onnx")
    with pytest.raises(GraftlineError, match="vocabulary of 9, the target's is 11"):
        optimize(tmp_path / "target.onnx", tmp_path / "out", recipe="draft-model", draft=draft)
    assert not (tmp_path / "out").exists()
