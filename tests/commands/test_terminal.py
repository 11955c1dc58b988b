"""What reaches the terminal: any encoding, any UTF-8 text, silent and missing libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from graftline.commands.cli import app
from graftline.commands.questions import read_questions
from graftline.commands.run import _exactness
from graftline.errors import RequestError
from graftline.runtimes.load import load

NOISY = (
    "import logging, sys, warnings, graftline.build.optimize\n"
    "def noisy(*args, **options):\n"
    "    import tqdm, transformers\n"
    "    from graftline.errors import CheckpointError\n"
    "    warnings.warn('from a library', stacklevel=1)\n"
    "    logging.getLogger('torch.onnx').error('from a log')\n"
    "    transformers.logging.get_logger('transformers').warning('from transformers')\n"
    "    list(transformers.utils.logging.tqdm(range(3)))\n"
    "    list(tqdm.tqdm(range(3)))\n"
    "    if options['recipe'] == 'plain': raise CheckpointError('the one line')\n"
    "    raise SystemExit(0)\n"
    "graftline.build.optimize.optimize = noisy\n"
    "sys.argv[1:] = ['optimize', 'x', '-o', 'y', '-q', '--recipe', RECIPE]\n"
    "from graftline.commands.cli import main; main()"
)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, **environment},
        timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "code", "told"),
    [("plain", 2, b"graftline: the one line\n"), ("prompt-lookup", 0, b"")],
)
def test_libraries_are_silent(recipe: str, code: int, told: bytes) -> None:
    done = python(f"RECIPE = {recipe!r}\n{NOISY}")
    assert (done.returncode, done.stderr) == (code, told)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_any_encoding_takes_any_text(encoding: str) -> None:
    code = (
        "import sys\nfrom graftline.commands import screen\n"
        "from graftline.commands.cli import app\n"
        "screen.accept_any_text()\nsys.stdout.write('→ 你 …\\n')\n"
        "screen.write_json({'text': '你'})\n"
    )
    done = python(code, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    first, _, rest = done.stdout.decode(encoding).partition("\n")
    assert first.startswith("-> ? ")
    assert json.loads(rest) == {"text": "你"}


def test_generated_text_streams_to_a_stdout_that_lacks_its_characters(tiny_bundle: Path) -> None:
    """A tiny decoder samples bytes, most of which are no character: U+FFFD, unknown to cp1252."""
    ask = ["run", str(tiny_bundle), "hello", "--max-new-tokens", "40", "--ignore-eos"]
    ask += ["--temperature", "1", "--seed", "3"]
    whole = json.loads(CliRunner().invoke(app, [*ask, "--json"]).stdout)
    text = str(whole["text"])
    assert len(whole["tokens"]) == 40
    with pytest.raises(UnicodeEncodeError):
        text.encode("cp1252")
    code = f"import sys; sys.argv[1:] = {ask!r}\nfrom graftline.commands.cli import main; main()"
    done = python(code, PYTHONIOENCODING="cp1252", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, b"")
    written = (c.encode("cp1252", "replace").decode("cp1252") for c in text)
    assert done.stdout.decode("cp1252").replace("\r\n", "\n") == "".join(written) + "\n"


def test_questions_keep_separators_inside_their_texts(tmp_path: Path) -> None:
    texts = ["a\u2028b\u0085c\u2029d", "second"]
    file = tmp_path / "q.jsonl"
    rows = "\r\n".join(json.dumps({"prompt": t}, ensure_ascii=False) for t in texts)
    file.write_bytes(b"\xef\xbb\xbf" + rows.encode())
    assert [q.turns for q in read_questions(file)] == [(t,) for t in texts]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b'{"prompt": "a\xff"}', r"q\.jsonl: byte 13 is not UTF-8"),
        (b'{"prompt": "\\ud800"}', "line 1: half of a surrogate pair"),
        (b"[" * 100_000, "line 1: not JSON"),
    ],
)
def test_questions_that_are_no_text_are_named(data: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes(data)
    with pytest.raises(RequestError, match=told):
        read_questions(tmp_path / "q.jsonl")


def test_stdin_that_is_not_utf8_is_one_line() -> None:
    result = CliRunner().invoke(app, ["run", "absent", "-"], input=b"ab\xff")
    assert result.exit_code == 2
    assert result.stderr == "graftline: stdin: byte 2 is not UTF-8; convert it to UTF-8\n"


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        ("ModuleNotFoundError('no', name='torch')", 2, 'pip install "graftline[export]"'),
        ("ImportError('needs it')", 2, "see: graftline doctor"),
        ("MemoryError()", 2, "out of memory"),
        ("KeyError('x')", 1, "a defect of graftline: KeyError: 'x'"),
    ],
)
def test_what_nothing_foresaw_is_one_line(
    error: str, code: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import graftline.build.doctor as doctor

    def fails() -> None:
        raise eval(error)

    monkeypatch.setattr(doctor, "diagnose", fails)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == code
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("count", ["0", "-1", "99999999999"])
def test_more_threads_than_processors_are_refused(count: str) -> None:
    """100,000 spinning threads on two processors never end."""
    result = CliRunner().invoke(app, ["run", "absent", "hello", "--threads", count])
    assert result.exit_code == 2
    assert "this machine has" in result.stderr


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"threads": 0}, r"threads=0: this machine has \d+ processors; use 1 to \d+"),
        ({"threads": -4}, "threads=-4: this machine has"),
        ({"threads": 10**9}, "threads=1000000000: this machine has"),
        ({"capacity": 0}, "capacity=0 holds no token; use at least 1"),
        ({"capacity": -64}, "capacity=-64 holds no token"),
    ],
)
def test_load_refuses_sizes_that_cannot_be(sizes: dict[str, int], told: str) -> None:
    with pytest.raises(RequestError, match=told):
        load("absent", **sizes)  # type: ignore[arg-type]


def test_the_exactness_of_a_run_is_told_apart_from_the_engines() -> None:
    def told(lossless: bool, row_invariant: bool, drafted: int) -> str:
        stats: Any = SimpleNamespace(
            lossless=lossless, row_invariant=row_invariant, drafted=drafted
        )
        return _exactness(stats)

    assert "nothing was drafted, so these tokens are plain decoding's" in told(True, False, 0)
    assert "drafts may change tokens" in told(True, False, 0)
    assert "by --exact" in told(True, False, 9)
    assert told(False, False, 9).startswith("not lossless")
    assert told(True, True, 9).startswith("lossless: these tokens are plain decoding's")


@pytest.mark.parametrize(
    "command",
    [
        ["recipes"],
        ["doctor", "--json"],
        ["inspect", "BUNDLE", "--json"],
        ["check", "BUNDLE", "-q"],
        ["run", "BUNDLE", "hello", "--max-new-tokens", "3"],
        ["bench", "BUNDLE", "--prompts", "QUESTIONS", "--max-new-tokens", "3"],
    ],
    ids=lambda c: c[0],
)
def test_a_base_install_runs_bundles(command: list[str], tiny_bundle: Path, tmp_path: Path) -> None:
    """Without the extra `export`: a bundle needs neither torch nor transformers."""
    (tmp_path / "q.jsonl").write_text('{"prompt": "abcabc"}')
    given = {"BUNDLE": str(tiny_bundle), "QUESTIONS": str(tmp_path / "q.jsonl")}
    words = [given.get(word, word) for word in command]
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'accelerate', 'gguf', 'sentencepiece'):\n"
        "    sys.modules[name] = None\n"
        f"sys.argv[1:] = {words!r}\n"
        "from graftline.commands.cli import main; main()"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
