"""The command line: help, exit codes, and one line for each error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from graftline.errors import GraftlineError
from tests.commands.calling import call, refused

COMMANDS = (
    "optimize", "pack", "run", "bench", "tune", "inspect", "diff", "check", "recipes", "passes",
    "doctor",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_that_calls_it(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert f"graftline {command}" in result.stdout.partition("Example")[2]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from graftline.commands.cli import app\n"
        "try: app(['optimize', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'onnxruntime', 'onnx', 'onnx_ir', 'numpy'}\n"
        "print(sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("optimise", "x"), "Did you mean 'optimize'?"),
        (("optimize",), "Missing argument 'CHECKPOINT'"),
        (("optimize", "x", "-o", "y", "--recipie", "plain"), "--recipe"),
        (("optimize", "x", "-o", "y", "--recipe", "prompt-lokup"), "did you mean 'prompt-lookup'?"),
        (("optimize", "x", "-o", "y", "--dtype", "fp23"), "did you mean 'fp32'?"),
        (("optimize", "x", "-o", "y", "--target", "ort-cpuu"), "did you mean 'ort-cpu'?"),
        (("optimize", "x", "-o", "y", "--weights", "lnk"), "did you mean 'link'?"),
        (("optimize", "x", "-o", "y", "--passes", "kv-cash"), "did you mean 'kv-cache'?"),
        (("optimize", "x", "-o", "y", "--draft-depths", "a,b"), "takes numbers of blocks joined"),
        (("optimize", "x", "-o", "y", "--draft-depths", "3,9"), "there is no draft engine to cut"),
        (("optimize", "x", "-o", "y", "--recipe", "medusa"), "needs a draft head; add --head PATH"),
        (("optimize", "x", "-o", "y", "-q", "--head", "absent"), "absent: no such file or folder"),
        (("optimize", "x", "-o", "y", "--head", ""), "--head is empty; give a path"),
        (("optimize", "absent", "-o", "y", "-q"), "absent"),
        (("run", "absent", "hello"), "absent: no such bundle; make one: graftline optimize"),
        (("run", "absent", ""), "the prompt is empty"),
        (
            ("run", "absent", "hello", "--max-new-tokens", "many"),
            "Invalid value for '--max-new-tokens'",
        ),
        (("bench", "absent"), "absent: no such bundle"),
        (("bench", "absent", "--prompts", "x", "--recipes", "plian"), "did you mean 'plain'?"),
        (("bench", "absent", "--prompts", "absent.jsonl"), "absent.jsonl cannot be read"),
        (("inspect", "absent.onnx"), "absent.onnx: no such file"),
        (("inspect", "absent"), "absent: no such bundle"),
        (("check", "absent"), "absent: no such bundle"),
        (("recipes", "more"), "unexpected extra argument"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    args: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in refused(*args)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("args", [("--debug", "check", "absent"), ("check", "absent", "--debug")])
def test_debug_shows_the_traceback_wherever_it_stands(args: tuple[str, ...]) -> None:
    result = call(*args)
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "Traceback" not in call("check", "absent").stderr


def test_an_interrupt_says_that_nothing_was_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import graftline.build.optimize

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(graftline.build.optimize, "optimize", interrupted)
    result = call("optimize", "x", "-o", tmp_path / "y", "-q")
    assert result.exit_code == 130
    assert result.stderr == "graftline: interrupted; nothing was written\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_optimize_leaves_nothing(number: int, tmp_path: Path) -> None:
    code = (
        "import signal, sys, time, graftline.build.optimize\n"
        # a shell's background job, as CI may be, starts with SIGINT ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from graftline.bundle.reader import BundleWriter\n"
        "def slow(checkpoint, out, **options):\n"
        "    with BundleWriter(out) as writer:\n"
        "        writer.write_text('graphs/half.onnx', 'half')\n"
        "        print('writing', flush=True)\n"
        "        time.sleep(60)\n"
        "graftline.build.optimize.optimize = slow\n"
        f"sys.argv[1:] = ['optimize', 'x', '-o', {str(tmp_path / 'out')!r}, '-q']\n"
        "from graftline.commands.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    assert os.listdir(tmp_path)
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told == "graftline: interrupted; nothing was written\n"
    assert os.listdir(tmp_path) == []


def test_a_reader_that_leaves_is_no_error(tiny_bundle: Path) -> None:
    command = f"{sys.executable} -m graftline recipes --json | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "["
    assert "Traceback" not in done.stderr


def test_errors_of_several_lines_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import graftline.build.doctor as doctor

    def fails() -> None:
        raise GraftlineError("first\nsecond")

    monkeypatch.setattr(doctor, "diagnose", fails)
    assert refused("doctor") == "graftline: first second\n"
