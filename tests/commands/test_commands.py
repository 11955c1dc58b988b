"""Every command on a real bundle: what it prints, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from graftline.commands.texts import template_values
from tests.bundle.toy_bundle import reseal
from tests.commands.calling import call, refused


def test_recipes_and_passes_list_every_one() -> None:
    from graftline.passes import GRAFTS
    from graftline.recipe import all_recipes

    listed = json.loads(call("recipes", "--json").stdout)
    assert [r["name"] for r in listed] == [r.name for r in all_recipes()]
    assert listed[0].keys() == {"name", "system", "family", "lossless", "needs", "kind"}
    listed = json.loads(call("passes", "--json").stdout)
    assert {p["name"] for p in listed} == GRAFTS.keys()
    assert all(p["meaning"] for p in listed)
    shown = call("passes").stdout + call("recipes").stdout
    assert all(name in shown for name in ("kv-cache", "tree-mask", "token-recycling"))


def test_doctor_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import graftline.build.doctor as doctor

    found = json.loads(call("doctor", "--json").stdout)
    able = {a["name"]: a for a in found["abilities"]}
    assert able["ort-cpu"]["builds"]
    assert able["ort-cpu"]["runs"]
    assert {"ort-cuda", "trt-rtx", "trt"} <= able.keys()
    assert "ort-cpu" in call("doctor").stdout
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda n: None if n == "torch" else real(n))
    able = {a.name: a for a in doctor.diagnose().abilities}
    reader = able["read checkpoints (HF, GGUF, .pt2)"]
    assert not reader.builds
    assert "torch" in reader.reason
    assert reader.install == 'pip install "graftline[export]"'


def test_optimize_prints_what_it_made_and_its_manifest(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    result = call("optimize", tiny_checkpoint, "-o", tmp_path / "a.graft")
    assert result.exit_code == 0, result.stderr
    assert "2 blocks" in result.stdout
    assert "writing canonical.onnx" in result.stderr
    result = call("optimize", tiny_checkpoint, "-o", tmp_path / "a.graft", "-q", "--json")
    assert result.stderr == ""
    assert json.loads(result.stdout)["recipe"] == "prompt-lookup"
    assert os.listdir(tmp_path) == ["a.graft"]


def test_run_streams_the_text_and_tells_the_stats(tiny_bundle: Path) -> None:
    ask = ("run", tiny_bundle, "hello", "--max-new-tokens", "12", "--ignore-eos")
    whole = json.loads(call(*ask, "--json").stdout)
    assert len(whole["tokens"]) == 12
    assert whole["finish_reason"] == "length"
    assert {"steps", "mat", "tokens_per_second"} <= whole["stats"].keys()
    shown = call(*ask, "--stats")
    assert shown.stdout == whole["text"] + "\n"
    assert "12 tokens, ended by length" in shown.stderr
    assert "MAT" in shown.stderr
    raw = json.loads(call(*ask, "--raw", "--json").stdout)
    assert raw["tokens"] != whole["tokens"], "the chat template makes a difference"
    piped = ("run", tiny_bundle, "-", *ask[3:], "--json")
    assert json.loads(call(*piped, stdin="hello").stdout)["tokens"] == whole["tokens"]


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (("--max-new-tokens", "0"), "at least 1"),
        (("--max-new-tokens", "100000"), "capacity"),
        (("--recipe", "plian"), "did you mean 'plain'?"),
        (("--temperature", "-1"), "temperature"),
        (("--no-thinking",), "chat template does not know 'enable_thinking' (it takes none)"),
        (("--template-arg", "style=short"), "chat template does not know 'style'"),
        (("--template-arg", "style"), "--template-arg style: use NAME=VALUE"),
        (("--tools", "none.json"), "--tools none.json cannot be read (No such file"),
        (("--logprobs", "2"), "log-probabilities are shown in JSON alone; add --json"),
        (("--logit-bias", "3:1"), "--logit-bias 3:1: use ID=BIAS, as 50256=-100"),
        (("--json-schema", "nowhere.json"), "nowhere.json cannot be read: No such file"),
        (("--regex", "(a"), "regex cannot be compiled"),
        (("--regex", "a", "--grammar", "nowhere.lark"), "nowhere.lark cannot be read"),
        (("--n", "2"), "n=2 at temperature 0"),
        (("--presence-penalty", "nan"), "presence_penalty is nan"),
    ],
)
def test_run_refuses_what_cannot_be_served(
    tiny_bundle: Path, option: tuple[str, ...], told: str
) -> None:
    assert told in refused("run", tiny_bundle, "hello", *option)


def test_tools_come_from_a_file(tiny_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "tools.json"
    for text, told in (
        ("{", "is not JSON"),
        ("{}", "holds no list; put the functions' schemas in one"),
        ("[3]", "tools is no list of JSON schemas"),
        ('[{"name": "f"}]', "chat template does not know 'tools'"),
    ):
        file.write_text(text)
        assert told in refused("run", tiny_bundle, "hello", "--tools", file)
    assert template_values(["a=1", "b=x=y", "c=true"]) == {"a": 1, "b": "x=y", "c": True}
    assert template_values([]) is None


def test_the_checkpoints_defaults_are_told_and_can_be_left_out(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "sampled.graft"
    shutil.copytree(tiny_bundle, bundle)
    own = {"do_sample": True, "temperature": 0.7, "max_new_tokens": 9, "num_beams": 2}
    reseal(bundle, {"generation": {"eos_token_id": 256, **own}})
    ask = ("run", bundle, "hello", "--ignore-eos", "--seed", "1")
    greedy = json.loads(call("run", tiny_bundle, *ask[2:], "--json").stdout)
    assert (len(greedy["tokens"]), greedy["stats"]["defaults"]) == (128, {})
    whole = json.loads(call(*ask, "--json").stdout)
    assert whole["tokens"] != greedy["tokens"][:9]
    assert len(whole["tokens"]) == 9
    assert whole["stats"]["defaults"] == {"temperature": 0.7, "max_new_tokens": 9}
    said = json.loads(call(*ask, "--temperature", "0", "--json").stdout)
    assert said["tokens"] == greedy["tokens"][:9]
    without = json.loads(call(*ask, "--no-defaults", "--json").stdout)
    assert without["tokens"] == greedy["tokens"]
    told = call(*ask, "--stats").stderr
    assert "generation_config.json: temperature=0.7, max_new_tokens=9 (--no-defaults)" in told
    assert "temperature=0.7, max_new_tokens=9; not used: num_beams=2" in call(
        "inspect", bundle
    ).stdout.replace("\n", "")
    assert "generation_config" not in call("run", tiny_bundle, *ask[2:], "--stats").stderr


def test_run_shapes_and_explains_what_it_writes(tiny_bundle: Path, tmp_path: Path) -> None:
    ask = ("run", tiny_bundle, "hello", "--max-new-tokens", "30")
    schema = tmp_path / "colour.json"
    schema.write_text(json.dumps({"enum": ["red", "green"]}))
    assert json.loads(call(*ask, "--json-schema", schema).stdout) in ("red", "green")
    lark = tmp_path / "g.lark"
    lark.write_text('start: "(" /[ab]{3}/ ")"')
    assert re.fullmatch(r"\([ab]{3}\)\n", call(*ask, "--grammar", lark).stdout)
    barred = ("--regex", "[a-c]{5}", "--logit-bias", "64=-inf", "--logit-bias", "65=-inf")
    explained = ("--logprobs", "2", "--prompt-logprobs", "0", "--json")
    told = json.loads(call(*ask, *barred, *explained).stdout)
    assert told["text"] == "ccccc"
    assert [len(one["top"]) for one in told["logprobs"]] == [2] * len(told["tokens"])
    assert len(told["prompt_logprobs"]) == told["usage"]["prompt_tokens"] > 5
    assert told["prompt_logprobs"][0] is None
    kept = ("--stop-token-id", "66", "--include-stop")
    assert call(*ask, *barred, *kept).stdout == "c\n"
    told = refused("run", *ask[1:], *barred, *kept, "--min-tokens", "1")
    assert "after 0 new tokens no token is left to choose: logit_bias, min_tokens, regex" in told
    free = (
        "--n", "2", "--temperature", "1", "--seed", "4", "--presence-penalty", "2",
        "--frequency-penalty", "0.5", "--no-repeat-ngram-size", "3", "--ignore-eos",
    )  # fmt: skip
    both = json.loads(call(*ask, *free, "--json").stdout)
    assert [len(one["tokens"]) for one in both] == [30, 30]
    one, two = (answer["text"] for answer in both)
    assert call(*ask, *free).stdout == f"--- 1 of 2 ---\n{one}\n\n--- 2 of 2 ---\n{two}\n"


def test_inspect_shows_the_bundle_its_blocks_and_their_nodes(tiny_bundle: Path) -> None:
    shown = call("inspect", tiny_bundle).stdout
    for part in ("facts", "ports", "kv-cache", "neutral", "row-invariant", "block 1", "sha256"):
        assert part in shown, part
    found = json.loads(call("inspect", tiny_bundle, "--json").stdout)
    assert found["stages"]["ort-cpu"]["facts"]["layers"] == 2
    assert len(found["graph"]["anchors"]["attention"]) == 2
    assert {"0", "1", "embedding", "head"} <= found["graph"]["blocks"].keys()
    picture = call("inspect", tiny_bundle, "--graph", "--stage", "canonical").stdout
    assert [line[:17] for line in picture.splitlines() if "Attention(causal)" in line] == [
        "blocks 0–1 × 2   "
    ]
    nodes = json.loads(call("inspect", tiny_bundle, "--nodes", "1", "--json").stdout)
    assert len(nodes) == found["graph"]["blocks"]["1"]
    assert {"host", "lower-ort"} <= {n["made by"] for n in nodes}
    assert "there are 0 to 1" in refused("inspect", tiny_bundle, "--nodes", "7")
    assert "did you mean 'canonical'" in refused("inspect", tiny_bundle, "--stage", "canonica")


def test_inspect_takes_a_bare_graph(tiny_bundle: Path, tmp_path: Path) -> None:
    shown = call("inspect", tiny_bundle / "canonical.onnx")
    assert shown.exit_code == 0, shown.stderr
    assert "blocks 0–1" in shown.stdout
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    assert "not an ONNX graph" in refused("inspect", tmp_path / "broken.onnx")


def test_check_holds_for_what_optimize_made_and_notices_a_changed_byte(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    result = call("check", tiny_bundle, "-q", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["holds"]
    kinds = {f["what"] for f in report["findings"]}
    assert "files" in kinds
    assert any(k.startswith("law ") for k in kinds)
    assert any("greedy tokens, prompt-lookup" in k for k in kinds)
    copy = tmp_path / "copy.graft"
    shutil.copytree(tiny_bundle, copy)
    (copy / "stray").write_bytes(b"x")
    result = call("check", copy, "-q")
    assert result.exit_code == 2
    assert "stray is not in the manifest" in result.stderr
    (copy / "stray").unlink()
    graph = copy / "export.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    result = call("check", copy, "-q")
    assert result.exit_code == 2
    assert "export.onnx was changed" in result.stderr
    assert result.stderr.count("\n") == 1


def test_check_notices_an_engine_that_answers_otherwise(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import graftline.kinds.decoder.greedy as check

    real = check.reference_tokens

    def another(bundle: object, prompt: object, count: int) -> tuple[list[int], list[float]]:
        tokens, gaps = real(bundle, prompt, count)  # type: ignore[arg-type]
        return [*tokens[:-1], (tokens[-1] + 1) % 260], [*gaps[:-1], 0.5]

    monkeypatch.setattr(check, "reference_tokens", another)
    result = call("check", tiny_bundle, "-q")
    assert result.exit_code == 2
    assert "leave the export's at token" in result.stderr


def test_bench_writes_the_published_json(tiny_bundle: Path, tmp_path: Path) -> None:
    questions = [
        {"question_id": 1, "category": "writing", "turns": ["abcabcabc", "more"]},
        {"question_id": 2, "category": "rag", "turns": ["xyzxyz"]},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    result = call(
        "bench", tiny_bundle, "--prompts", tmp_path / "q.jsonl", "--recipes", "prompt-lookup",
        "--max-new-tokens", "16", "--ignore-eos", "--json", tmp_path / "out.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert found.keys() == {"model", "machine", "versions", "temperature", "recipes"}
    assert found["recipes"].keys() == {"plain", "prompt-lookup"}
    assert found["recipes"]["plain"]["groups"].keys() == {"mt_bench", "rag"}
    row = found["recipes"]["prompt-lookup"]["overall"]
    assert row.keys() == {
        "tokens_per_second", "speedup", "median_speedup", "mat", "identical", "prompts",
        "predicted", "controller_share",
    }  # fmt: skip
    assert row["predicted"] > 0
    assert 0 < row["controller_share"] < 0.5
    assert row["identical"]
    assert row["prompts"] == 2
    assert "mt_bench" in result.stdout
    assert "overall" in result.stdout
    bad = ("bench", tiny_bundle, "--prompts", tmp_path / "q.jsonl", "--json", "nowhere/out.json")
    assert "its folder does not exist" in refused(*bad)


def test_pack_makes_a_folder_or_an_archive_and_says_how_large(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    told = call("pack", tiny_bundle, "-o", tmp_path / "app.tar", "-q")
    assert (told.exit_code, told.stderr) == (0, "")
    assert "KiB of " in told.stdout
    assert f"unpack it with: tar -xf {tmp_path / 'app.tar'}" in told.stdout
    made = json.loads(call("pack", tiny_bundle, "-o", tmp_path / "app", "-q", "--json").stdout)
    assert made.keys() == {"path", "size", "before"}
    assert made["size"] < made["before"]
    assert "packed" in call("inspect", tmp_path / "app").stdout
    assert json.loads(call("check", tmp_path / "app", "-q", "--json").stdout)["holds"]
    assert "not run" in call("check", tmp_path / "app", "-q").stdout
    assert call("run", tmp_path / "app", "abc", "--max-new-tokens", "2").exit_code == 0


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("absent.graft", "-o", "x"), "absent.graft: no such bundle; make one"),
        (("BUNDLE", "-o", "x.tar.gz"), "weights do not compress; choose a name that ends in .tar"),
        (("BUNDLE", "-o", "BUNDLE"), "is the bundle itself or lies in it; choose another -o"),
        (("BUNDLE",), "Missing option '-o' / '--out'"),
    ],
)
def test_pack_refuses_in_one_line(tiny_bundle: Path, args: tuple[str, ...], told: str) -> None:
    assert told in refused("pack", *(str(tiny_bundle) if a == "BUNDLE" else a for a in args), "-q")


def test_a_packed_bundle_says_which_stages_it_has(tiny_bundle: Path, tmp_path: Path) -> None:
    call("pack", tiny_bundle, "-o", tmp_path / "app", "-q")
    told = refused("inspect", tmp_path / "app", "--stage", "canonical")
    assert "no graph for 'canonical'; it was packed without its export" in told
