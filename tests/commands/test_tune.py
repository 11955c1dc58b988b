"""`graftline tune` on a real bundle: what it keeps, where, and what happens when it is damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from graftline.build.optimize import optimize
from graftline.bundle.reader import Bundle
from graftline.errors import BundleError, GraftlineError
from graftline.runtimes.drafters import make_drafter
from graftline.runtimes.drafters.token_recycling import TokenRecycling
from graftline.runtimes.load import load
from graftline.runtimes.resources import Resources
from graftline.runtimes.trees.template import Template
from tests.commands.calling import call


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "tiny.graft"
    shutil.copytree(tiny_bundle, copy, ignore=shutil.ignore_patterns("costs"))
    return copy


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    said = ("ab ab ab", "cd", "what is this", "abc abc abc abc", "x y z x y z", "hello hello")
    file.write_text("\n".join(json.dumps({"prompt": text}) for text in said))
    return file


def give_costs(bundle: Path, per_row: float) -> None:
    """Store step costs in place of measuring them, so that what pays is known."""
    from graftline.runtimes.measured import step_costs
    from graftline.runtimes.sessions import open_session

    opened = Bundle.open(bundle)
    step_costs(opened, open_session(opened))
    (file,) = (bundle / "costs").iterdir()
    key = json.loads(file.read_text())["key"]
    table = {str(q): 10.0 + per_row * (q - 1) for q in (1, 2, 8, 64)}
    rest: dict[str, object] = {"far": {}}
    assert opened.write_costs(key, {"chain": table, "tree": table} | rest)


def test_tables_of_an_older_form_are_measured_again(bundle: Path) -> None:
    """As graftline stored them before a long past had a table."""
    from graftline.runtimes.measured import step_costs
    from graftline.runtimes.sessions import open_session

    give_costs(bundle, per_row=0.01)
    (file,) = (bundle / "costs").iterdir()
    opened, key = Bundle.open(bundle), json.loads(file.read_text())["key"]
    assert opened.write_costs(key, {"chain": {"1": 1e9}, "tree": {}})
    costs = step_costs(opened, open_session(opened))
    assert costs.of(1) < 1e6
    assert set(costs.batches) == {4, 8}
    kept = opened.read_costs(key)
    assert kept == costs.to_json()
    assert costs.store is not None
    costs.store(costs.to_json(2.0, 2.0))
    assert step_costs(opened, open_session(opened)).of(1) == 2.0 * costs.of(1)


def stored(bundle: Path) -> dict[str, Any]:
    (file,) = (bundle / "tuned").iterdir()
    return json.loads(file.read_text())["tuned"]


def test_tunes_without_the_export_extra(bundle: Path, prompts: Path) -> None:
    """As `pip install graftline` leaves it: a bundle is tuned without what reads checkpoints."""
    give_costs(bundle, per_row=0.01)
    args = ["tune", str(bundle), "--prompts", str(prompts), "--recipes", "token-recycling"]
    args += ["--max-new-tokens", "40", "-q", "--json"]
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'accelerate', 'gguf', 'sentencepiece', 'triton'):\n"
        "    sys.modules[name] = None\n"
        f"sys.argv[1:] = {args!r}\n"
        "from graftline.commands.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    (row,) = json.loads(done.stdout)["recipes"]
    assert row["recipe"] == "token-recycling"
    assert row["kept"] == list(stored(bundle)["token-recycling"])


def test_what_is_tuned_is_kept_and_used_and_changes_no_token(bundle: Path, prompts: Path) -> None:
    give_costs(bundle, per_row=0.01)
    options: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True}
    before = load(bundle).generate("ab ab ab", recipe="token-recycling", **options)
    result = call("tune", bundle, "--prompts", prompts, "--max-new-tokens", "120", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["plain"] == pytest.approx(100.0)
    rows = {row["recipe"]: row for row in told["recipes"]}
    assert rows.keys() == {"token-recycling", "suffix", "prompt-lookup"}
    assert all(row["after"] >= row["before"] > 0 and row["steps"] for row in rows.values())
    assert rows["token-recycling"]["kept"] == ["template", "priors"]
    assert rows["token-recycling"]["after"] > rows["token-recycling"]["before"]
    assert "token-recycling: 6/6" in result.stderr

    table = stored(bundle)
    plan = Template.from_json(table["token-recycling"]["template"])
    assert table["tree"] == plan.shape.parents.tolist()
    Bundle.open(bundle)
    assert Bundle.open(bundle).unlisted() == []
    engine = load(bundle)
    assert engine.resources.tuned == table
    drafter = make_drafter("token-recycling", {}, engine.resources)
    assert isinstance(drafter, TokenRecycling)
    assert drafter.plan.paths == plan.paths
    assert engine.generate("ab ab ab", recipe="token-recycling", **options).tokens == before.tokens


def test_recipes_tuned_alone_leave_the_others_as_they_were(bundle: Path, prompts: Path) -> None:
    give_costs(bundle, per_row=0.01)
    for name in ("token-recycling", "suffix"):
        result = call(
            "tune", bundle, "--prompts", prompts, "--max-new-tokens", "90", "--recipes", name, "-q"
        )
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        assert f"  {name}" in result.stdout
    assert "template" in stored(bundle)["token-recycling"]


def test_where_rows_are_dear_nothing_is_kept(bundle: Path, prompts: Path) -> None:
    give_costs(bundle, per_row=50.0)
    result = call(
        "tune", bundle, "--prompts", prompts, "--max-new-tokens", "30", "--recipes",
        "token-recycling", "--json",
    )  # fmt: skip
    (row,) = json.loads(result.stdout)["recipes"]
    assert row["before"] == row["after"] == pytest.approx(100.0)
    assert row["kept"] == []
    assert stored(bundle) == {}


def test_a_damaged_file_is_refused_in_one_line_and_replaced_once_deleted(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert opened.read_tuned("here") is None
    opened.write_tuned("here", {"suffix": {"priors": {"1": [1.0, 0.5]}}})
    assert opened.read_tuned("here") == {"suffix": {"priors": {"1": [1.0, 0.5]}}}
    assert opened.read_tuned("elsewhere") is None
    (file,) = (bundle / "tuned").iterdir()
    whole = file.read_text()
    for damaged in (whole[:-20], whole.replace("0.5", "0.9"), "[]", "", whole.replace("here", "x")):
        file.write_text(damaged)
        with pytest.raises(BundleError) as error:
            opened.read_tuned("here")
        assert "delete it, and run graftline tune again" in str(error.value)
        assert str(file) in str(error.value)
        assert "\n" not in str(error.value)
    file.unlink()
    assert opened.read_tuned("here") is None


def test_an_interrupt_leaves_what_was_there(
    bundle: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_costs(bundle, per_row=0.01)
    args = ("tune", bundle, "--prompts", prompts, "--max-new-tokens", "20", "--recipes", "suffix")
    assert call(*args).exit_code == 0
    before = stored(bundle)
    real = os.replace

    def interrupted(source: Path, target: Path) -> None:
        if Path(target).parent.name == "tuned":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    result = call(*args)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert stored(bundle) == before
    assert len(list((bundle / "tuned").iterdir())) == 1


def test_a_judge_head_is_learned_kept_and_used(
    tiny_checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "judged.graft"
    optimize(tiny_checkpoint, bundle, recipe="judge-decoding")
    give_costs(bundle, per_row=0.01)
    asked: dict[str, Any] = {"max_new_tokens": 60, "ignore_eos": True, "recipe": "judge-decoding"}
    with pytest.raises(GraftlineError, match="graftline tune BUNDLE --recipes judge-decoding"):
        load(bundle).generate("ab ab ab", **asked)
    result = call(
        "tune", bundle, "--prompts", prompts, "--max-new-tokens", "120", "--recipes",
        "judge-decoding", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["recipes"]
    assert row["kept"] == ["judge"]
    assert row["after"] > row["before"] > 0
    assert "judge-decoding: training on" in result.stderr
    engine = load(bundle)
    assert len(stored(bundle)["judge"]["weight"]) == engine.session.facts.hidden
    judged, plain = (engine.generate("ab ab ab", **{**asked, "recipe": name}) for name in NAMES)
    assert judged.stats.steps < plain.stats.steps == 59
    assert not judged.stats.lossless


NAMES = ("judge-decoding", "plain")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--recipes", "judge-decoding"), "rebuild the bundle with the pass tap{layers=norm}"),
        (("--recipes", "sufix"), "did you mean 'suffix'?"),
        (("--recipes", "plain"), "recipe plain: its drafter has nothing to tune"),
        (("--recipes", "draft-model"), "needs a draft"),
        (("--max-new-tokens", "1"), "greater than or equal to 2"),
        (("--max-new-tokens", "9999"), "the capacity is 512"),
        (("--per-group", "1", "--recipes", "suffix"), "give at least 2"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    bundle: Path, prompts: Path, args: tuple[str, ...], told: str
) -> None:
    result = call("tune", bundle, "--prompts", prompts, "-q", *args)
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (bundle / "tuned").exists()


def test_a_tuned_tree_that_is_none_is_refused() -> None:
    tuned = {"token-recycling": {"template": {"parents": [-1, 5], "ranks": [0, 0], "chances": [1]}}}
    with pytest.raises(GraftlineError, match="run graftline tune again"):
        make_drafter("token-recycling", {}, Resources(tuned=tuned))
