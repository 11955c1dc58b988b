"""`graftline train` from prompts to a head that `optimize` takes, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from graftline.bundle.reader import Bundle
from graftline.commands.conversations import read_conversations, read_texts
from graftline.commands.training import check_bf16
from graftline.errors import GraftlineError, RequestError
from graftline.models.training.answers import Conversation
from graftline.runtimes.load import load
from tests.commands.calling import call, refused
from tests.markov_host import MarkovCheckpoint, around
from tests.models.training.predictable import write_host
from tests.tiny_checkpoints import WIDE


class Host(MarkovCheckpoint):
    """What `optimize` makes of the folder in which transformers finds the predictable host: the
    same sizes and tokens, read without torch's export."""

    following = staticmethod(around)


@pytest.fixture(scope="module")
def folder(known_checkpoints: dict[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from graftline.models import checkpoint
    from graftline.models.hf import HfCheckpoint

    path = write_host(tmp_path_factory.mktemp("train") / "host")
    known_checkpoints[path] = Host(path, WIDE)
    Host(path, WIDE).host()  # writes the tokenizer
    with pytest.MonkeyPatch.context() as patch:
        from graftline.models.training import frozen

        known = checkpoint.open_checkpoint
        patch.setattr(
            frozen, "open_checkpoint", lambda p: HfCheckpoint(path) if p == str(path) else known(p)
        )
        yield path


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(_kept(tmp_path_factory)))


KEPT: list[Path] = []


def _kept(factory: pytest.TempPathFactory) -> Path:
    if not KEPT:
        KEPT.append(factory.mktemp("cache"))
    return KEPT[0]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"say {n}"} for n in range(6)] + [{"turns": ["one", "two"]}]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


OPTIONS = ("--dtype", "fp32", "--max-new-tokens", "12", "--steps", "4", "-q")


def test_prompts_in_and_a_head_that_optimize_takes_out(
    folder: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "head"
    command = ("train", "medusa", folder, "--prompts", prompts, "-o", out, *OPTIONS)
    made = call(*command)
    assert made.exit_code == 0, made.output
    assert f"{out}: Medusa V2" in made.stdout
    assert "held-out acceptance" in made.stdout
    assert f"try: graftline optimize {folder} -o OUT.graft --head {out}" in made.stdout
    card = (out / "README.md").read_text()
    assert "8 answers of" in card, "two turns are two texts"
    assert f"`graftline train medusa {folder} --prompts {prompts} -o {out} --steps 4" in card
    built = call("optimize", folder, "-o", tmp_path / "with.graft", "--head", out, "-q")
    assert built.exit_code == 0, built.output
    bundle = Bundle.open(tmp_path / "with.graft")
    assert bundle.manifest.stages["head.0"].owner == "head.0"
    again = call(*command[:-1], "--json")
    assert again.exit_code == 0
    said = json.loads(again.stdout)
    assert (said["steps"], said["ended"]) == (4, "all steps"), "an ended run is shown again"
    assert len(said["acceptance"]) == 3


def test_a_hydra_head_is_one_that_optimize_takes(
    folder: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "head"
    made = call("train", "hydra", folder, "--prompts", prompts, "--heads", "2", "-o", out, *OPTIONS)
    assert made.exit_code == 0, made.output
    assert f"{out}: Hydra" in made.stdout
    built = call("optimize", folder, "-o", tmp_path / "with.graft", "--head", out, "-q")
    assert built.exit_code == 0, built.output
    manifest = Bundle.open(tmp_path / "with.graft").manifest
    assert manifest.recipe == "hydra"
    assert {"head.0", "head.1"} < set(manifest.stages)


def test_a_bundle_answers_by_itself(folder: Path, prompts: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "host.graft"
    assert call("optimize", folder, "-o", bundle, "--recipe", "plain", "-q").exit_code == 0
    command = ("train", "eagle", bundle, "--prompts", prompts, "-o", tmp_path / "head", *OPTIONS)
    made = call(*command)
    assert made.exit_code == 0, made.output
    assert "EAGLE-1" in made.stdout
    assert "base_model: host" in (tmp_path / "head" / "README.md").read_text()


def test_answering_measures_no_step(
    folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Costs are for drafts, and nothing is drafted while prompts are answered."""
    bundle = tmp_path / "host.graft"
    assert call("optimize", folder, "-o", bundle, "--recipe", "plain", "-q").exit_code == 0

    def measured(*given: Any) -> None:
        raise AssertionError("costs were measured")

    monkeypatch.setattr("graftline.runtimes.measured.measure_costs", measured)
    command = ("train", "medusa", bundle, "--prompts", prompts, "-o", tmp_path / "head", *OPTIONS)
    made = call(*command, "--max-new-tokens", "10")
    assert made.exit_code == 0, made.output
    with pytest.raises(RequestError, match="costs=False: the recipe suffix drafts by what steps"):
        load(bundle, recipe="suffix", costs=False)


def test_a_bundle_without_its_checkpoint(
    tiny_bundle: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", "medusa", tiny_bundle, "--prompts", prompts, "-o", tmp_path / "head")
    assert "an exported graph; a head is trained beside" in refused(*command, "-q")
    gone = replace(Bundle.open(tiny_bundle).manifest, rebuild="graftline optimize a b -o c --x")
    monkeypatch.setattr(Bundle, "open", lambda path, verify: Bundle(path, gone))
    assert "built from a b, which is not there" in refused(*command, "-q")


def test_plain_text_is_learned_without_an_engine(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(json.dumps({"text": f"line {n} of a text"}) for n in range(8)))
    out = tmp_path / "head"
    made = call("train", "medusa", folder, "--prompts", text, "--text", "--heads", "2",
                "--form", "v1", "-o", out, "--steps", "2", "-q", "--json")  # fmt: skip
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["family"] == "Medusa V1"
    assert "8 plain texts" in (out / "README.md").read_text()


def test_progress_says_what_is_done_and_how_long_it_takes(
    folder: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "head"
    told = call("train", "medusa", folder, "--prompts", prompts, "-o", out, *OPTIONS[:-1]).stderr
    assert "hidden states" in told or "training on" in told
    assert "training: step 4 of 4, loss " in told
    assert "held-out acceptance " in told
    assert " left" in told


def test_ctrl_c_says_how_to_go_on(
    folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graftline.models.training import trainer

    def stopped(self: Any, progress: float, say: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_look", stopped)
        out = tmp_path / "head"
        made = call("train", "medusa", folder, "--prompts", prompts, "-o", out, *OPTIONS)
    assert made.exit_code == 130
    assert made.stderr.endswith(
        f"interrupted; {out} is the head as of step 1; run the same command to go on\n"
    )
    assert (out / "medusa_lm_head.safetensors").is_file()


def test_kinds_are_those_that_can_be_trained() -> None:
    from graftline.commands.training import KNOWN
    from graftline.models.training.kinds import KINDS

    assert KNOWN["kind"] == KINDS
    told = call("train", "--help").stdout
    assert all(kind in told for kind in KINDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["train", "medsua", "HOST"], "KIND medsua: unknown; did you mean 'medusa'?"),
        (["train", "medusa", "nowhere"], "nowhere: no such file or folder"),
        (["train", "medusa", "HOST", "--form", "v3"], "--form v3: unknown; did you mean 'v"),
        (["train", "eagle", "HOST", "--heads", "4"], "--heads is for medusa, hydra, ppd and"),
        (["train", "hydra", "HOST", "--form", "v1"], "--form is for medusa; hydra does not take"),
        (["train", "eagle", "HOST", "--exit", "1"], "--exit is for exit-adapter and accelerator"),
        (["train", "ppd", "HOST", "--enter", "1"], "--enter is for hidden-transfer; ppd does not"),
        (["train", "markov", "HOST"], "train markov adds bigrams to heads that are there; give"),
        (["train", "markov", "HOST", "--steps", "9"], "--steps is for a training by steps; markov"),
        (["train", "medusa", "HOST", "--head", "x"], "--head is for markov; medusa does not take"),
        (["train", "exit-adapter", "HOST"], "--exit 2: the target has 2 blocks, and an exit is in"),
        (["train", "eagle3", "HOST"], "n-4, which are not three in a host of n = 2; train eagle"),
        (["train", "medusa", "HOST", "--verifier-lm-head"], "lm-head is for eagle3, dflash"),
        (["train", "medusa", "HOST", "--dtype", "fp8"], "--dtype fp8: unknown"),
        (["train", "medusa", "HOST", "--optimizer", "sgd"], "--optimizer sgd: unknown"),
        (["train", "medusa", "HOST", "--precision", "fp16"], "--precision fp16: unknown"),
        (["train", "medusa", "HOST", "--minutes", "0"], "--minutes 0.0: use a number above 0"),
        (["train", "medusa", "HOST", "--steps", "-1"], "--steps -1: use a number above 0"),
        (["train", "medusa", "HOST", "--threads", "999"], "--threads 999: this machine has"),
        (["train", "medusa", "HOST", "--learning-rate", "nan"], "--learning-rate nan: use a"),
        (["train", "medusa", "HOST", "--colour", "red"], "No such option: --colour"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(
    folder: Path, prompts: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    given = [str(folder) if o == "HOST" else o for o in options]
    out = tmp_path / "head"
    if "--colour" in options:
        made = call(*given, "--prompts", prompts, "-o", out)
        assert made.exit_code == 2
        return
    assert message in refused(*given, "--prompts", prompts, "-o", out, "-q")
    assert not out.exists()


@pytest.mark.parametrize("has", ["avx512_bf16", "amx_bf16", "bf16", None])
def test_bf16_is_for_processors_that_multiply_it(
    monkeypatch: pytest.MonkeyPatch, has: str | None
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, str(has): True})
    if has:
        check_bf16()
    else:
        with pytest.raises(GraftlineError, match="--precision bf16: this processor has no prod"):
            check_bf16()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", "", "p.jsonl has no prompts"),
        ("p.txt", " \n\n", "p.txt has no prompts"),
        ("p.csv", "a,b", "prompts are read from .jsonl or .txt files"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": 3}', "p.jsonl, line 2: 3 is not a text"),
        ("p.jsonl", '{"prompt": "a"}\nprompt', "p.jsonl, line 2: not JSON"),
        ("p.jsonl", "[1]", "line 1: not an object with one of turns, prompt, text, messages"),
        ("p.jsonl", '{"question": "a"}', "line 1: needs one of turns, prompt, text, messages"),
        ("p.jsonl", '{"turns": []}', "line 1: 'turns' is not a list of texts"),
        ("p.jsonl", '{"turns": ["a", ""]}', "line 1: '' is not a text"),
        ("p.jsonl", '{"messages": [{"role": "bot", "content": "a"}]}', "has the role 'bot'"),
        ("p.jsonl", '{"messages": [{"role": "system", "content": "a"}]}', "no message of a user"),
        ("p.jsonl", '{"prompt": "\\ud83d"}', "half of a surrogate pair"),
        ("p.txt", b"\xff\xfe", "byte 0 is not UTF-8"),
        ("none.txt", None, "none.txt cannot be read"),
    ],
)
def test_an_empty_or_odd_file_of_prompts_is_one_line(
    folder: Path, tmp_path: Path, name: str, content: Any, message: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refused("train", "medusa", folder, "--prompts", file, "-o", tmp_path / "head", "-q")
    assert message in line


def test_the_forms_of_prompts(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    messages = [
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "a"},
        {"role": "assistant", "content": "not the host's"}, {"role": "user", "content": "b"},
    ]  # fmt: skip
    rows: list[Any] = [
        {"turns": ["x", "y"], "category": "qa"}, {"prompt": "p"}, {"text": "t"},
        {"messages": messages}, {"prompt": "p"},
    ]  # fmt: skip
    file.write_text("\n\n".join(map(json.dumps, rows)))
    assert read_conversations(file) == [
        Conversation(("x", "y")), Conversation(("p",)), Conversation(("t",)),
        Conversation(("a", "b"), "be brief"),
    ]  # fmt: skip
    lines = tmp_path / "p.txt"
    lines.write_text("first\n\n second \nfirst\n")
    assert read_conversations(lines) == [Conversation(("first",)), Conversation(("second",))]
    again = read_conversations(lines, 2)
    assert [one.take for one in again] == [0, 0, 1, 1]
    assert again[0].group == again[2].group != again[1].group
    assert read_texts(lines) == ["first\n\n second \nfirst\n"]
    with pytest.raises(RequestError, match="line 1: needs 'text'"):
        read_texts(file)


def test_a_device_that_is_not_there_is_refused(folder: Path, prompts: Path, tmp_path: Path) -> None:
    command = ("train", "medusa", folder, "--prompts", prompts, "-o", tmp_path / "head", "-q")
    assert "--device gpu: unknown" in refused(*command, "--device", "gpu")
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    said = refused(*command, "--device", "cuda")
    assert "--device cuda: PyTorch finds no GPU here; use --device cpu" in said


def test_the_cpu_is_taken_where_accelerate_was_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says of GPUs does not matter then."""
    from graftline.models.training.crew import ALONE, Crew

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert Crew.open() == Crew.open("cpu") == ALONE
